"""The Plackett-Luce loss of a ranked group whose scores are normal: listwise, where `group_ranking_loss` is pairwise.

The mathematics
---------------
Given scores r_1, ..., r_G, the model of Plackett and Luce (Plackett 1975; ListMLE of Xia et al. 2008) draws a ranking
by choosing the best, then the best of the rest, and so on. Of candidates in their order,

    P(1 > 2 > ... > G | r) = prod_i exp(r_i) / sum_{j >= i} exp(r_j),

which for two candidates is sigmoid(r_1 - r_2), the model of the JRM paper's eq. (4). Here each r_i ~ N(mu_i, sigma_i^2)
on its own, as there, and the loss of a ranking is

    objective="marginal"    -log E[P(1 > ... > G | r)]                      (eq. 5 for more than two)
    objective="expected"    E[-log P(1 > ... > G | r)] = sum_i E[log sum_{j >= i} exp(r_j)] - mu_i

There is no closed form for more than two. But the ranking is that of u_i = r_i + g_i with standard Gumbel noise g_i
(Yellott 1977), and the u_i are independent of each other. So a G-fold integral falls into one-fold ones: with the
distribution function F_i and the density f_i of u_i, and H_G = F_G,

    H_i(x) = P(u_G < ... < u_i < x) = integral from -inf to x of f_i(y) H_{i+1}(y) dy,        P = H_1(inf),
    E[log sum_{j >= i} exp(r_j)] = E[max_{j >= i} u_j] - gamma,     E[max u_j] by 1 - prod_j F_j(x).

F and f. With Z standard normal and a = x - mu, F(a) = E[exp(-exp(sigma Z - a))]. Completing the square gives the
density by the same function, f(a) = exp(sigma^2 / 2 - a) F(a - sigma^2), with all digits in its right tail.

Exactness. It is numerical integration, in float64 and in logarithms. Gumbel noise makes every f_i smooth at the scale
of 1, however small sigma_i is: E over Z is a trapezoidal sum, and H is integrated on panels with Gauss-Legendre nodes.
Both converge exponentially. The error of a loss is below 1e-6 while no sigma is above SIGMA_MAX and no two mu are
further apart than SPAN_MAX (tests/kernels/test_plackett_luce_loss.py: against the closed form for two candidates, the
sum over all rankings, and brute force). Beyond, the scores of a group are scaled down to that, which makes its noise
larger in proportion: finite, and no longer exact.

Shapes: G candidates, D dimensions, R rankings (of a group and dimension, or one way to break its ties), X points, Q
nodes of the sum over Z.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable
from functools import cache

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from .group_ranking_loss import checked_ranks
from .uncertainty_ranking_loss import Objective, Reduction, check_options

SIGMA_MAX = 8.0
SPAN_MAX = 128.0
ORDERS_MAX = 120  # the ways to break the ties of one ranking; five candidates that are all tied have so many
NODES, PANEL = 10, 1.5
REACH = 7.0  # sigmas, beyond which a normal has 1e-12 of its mass
LEFT, RIGHT = 4.0, 18.0  # of Gumbel noise: exp(-exp(4)) and exp(-18) are left out
STEP = 0.7  # of the trapezoidal sum


def plackett_luce_loss(
    mu_GD: torch.Tensor,
    log_sigma_GD: torch.Tensor,
    rank_GD: torch.Tensor,
    *,
    objective: Objective = "marginal",
    reduction: Reduction = "mean",
) -> torch.Tensor:
    """Plackett-Luce loss of a ranked group, in each dimension on its own.

    For two candidates it is `uncertainty_ranking_loss`. Of a ranking with ties it is the mean over the orders that
    break them, which for two candidates is the tie without a threshold: half a win each way. A candidate whose rank is
    NaN is left out of that dimension, whatever its score, and gets no gradient from it.

    Args:
        mu_GD, log_sigma_GD: means of the scores of G candidates in D dimensions, and the natural logarithms of their
            standard deviations, `[G, D]`, or `[..., G, D]` of several groups.
        rank_GD: ranks, 1 for the best, of that shape; floating-point with NaN where missing, or integers where none is.
        objective: "marginal" for -log E[P], "expected" for E[-log P].
        reduction: "mean" over the groups and dimensions in which two candidates have a rank (0 if there is none),
            "sum", or "none" for a tensor `[..., D]`, 0 where fewer have one.

    Returns:
        The loss in float32 (float64 if a score is): a scalar, or that tensor for "none".

    Raises:
        ValueError: as in `group_ranking_loss`, or the ties of a ranking can be broken in more than 120 ways.

    Example:
        >>> mu_GD, log_sigma_GD = torch.tensor([[1.0], [0.0], [0.5]]), torch.zeros(3, 1)
        >>> plackett_luce_loss(mu_GD, log_sigma_GD, torch.tensor([[1], [3], [2]]))
        tensor(1.3067)
    """
    check_options(0.0, objective, reduction, "auto")
    rank_GD = checked_ranks(mu_GD, log_sigma_GD, rank_GD)
    dtype = torch.float64 if torch.float64 in (mu_GD.dtype, log_sigma_GD.dtype) else torch.float32
    shape = (*mu_GD.shape[:-2], mu_GD.shape[-1])

    # Each ranking is a row of candidates, best first, with those that have no rank left out.
    orders = [_orders(ranks) for ranks in rank_GD.mT.reshape(-1, mu_GD.shape[-2]).tolist()]
    present = torch.tensor([len(ways[0]) > 1 for ways in orders], device=mu_GD.device).reshape(shape)
    rows = [(row, order, 1 / len(ways)) for row, ways in enumerate(orders) for order in ways if len(order) > 1]
    # The scores of no ranking get gradients too, zeros: DDP expects one for every parameter.
    loss = 0 * (mu_GD.masked_fill(rank_GD.isnan(), 0).sum() + log_sigma_GD.masked_fill(rank_GD.isnan(), 0).sum())
    loss_R = loss.to(dtype).expand(math.prod(shape))
    for size in {len(order) for _, order, _ in rows}:
        of_size = [row for row in rows if len(row[1]) == size]
        row_R = torch.tensor([row for row, _, _ in of_size], device=mu_GD.device)
        order_RG = torch.tensor([order for _, order, _ in of_size], device=mu_GD.device)
        share_R = torch.tensor([share for _, _, share in of_size], device=mu_GD.device, dtype=torch.float64)
        mu_RG, log_sigma_RG = (
            x.mT.reshape(-1, x.shape[-2])[row_R].gather(1, order_RG).double() for x in (mu_GD, log_sigma_GD)
        )
        losses_R = _marginal(mu_RG, log_sigma_RG) if objective == "marginal" else _expected(mu_RG, log_sigma_RG)
        loss_R = loss_R.index_add(0, row_R, (share_R * losses_R).to(dtype))
    if reduction == "none":
        return loss_R.reshape(shape)
    return loss_R.sum() / present.sum().clamp(min=1) if reduction == "mean" else loss_R.sum()


def count_orders(ranks: Iterable[float | None]) -> int:
    """In how many ways the ties of a ranking can be broken; None and NaN are candidates without a rank."""
    counts = Counter(rank for rank in ranks if rank is not None and not math.isnan(rank))
    return math.prod(map(math.factorial, counts.values()))


def _orders(ranks: list[float]) -> list[tuple[int, ...]]:
    """The candidates that have a rank, best first: each order that breaks their ties."""
    places = sorted({rank for rank in ranks if not math.isnan(rank)})
    tied = [[k for k, rank in enumerate(ranks) if rank == place] for place in places]
    count = count_orders(ranks)
    if count > ORDERS_MAX:
        raise ValueError(
            f"a ranking's ties can be broken in {count} ways, and {ORDERS_MAX} are the most that are averaged; "
            "use group_ranking_loss for it."
        )
    ways = itertools.product(*(itertools.permutations(block) for block in tied))
    return [tuple(itertools.chain(*way)) for way in ways]


def _marginal(mu_RG: torch.Tensor, log_sigma_RG: torch.Tensor) -> torch.Tensor:
    """-log E[P(1 > 2 > ... > G)] of each row."""
    mu_RG, sigma_RG, _ = _scaled(mu_RG, log_sigma_RG)
    left_R1, width_R1, point_RX = _panels(mu_RG, sigma_RG)
    log_H_RX, log_P_R = _log_F(point_RX - mu_RG[:, -1:], sigma_RG[:, -1:]), mu_RG[:, 0]
    for i in range(mu_RG.shape[1] - 2, -1, -1):
        a_RX, sigma_R1 = point_RX - mu_RG[:, i, None], sigma_RG[:, i, None]
        log_f_RX = sigma_R1**2 / 2 - a_RX + _log_F(a_RX - sigma_R1**2, sigma_R1)
        log_H_RX, log_P_R = _log_integral(log_f_RX + log_H_RX, width_R1)
    return -log_P_R


def _expected(mu_RG: torch.Tensor, log_sigma_RG: torch.Tensor) -> torch.Tensor:
    """sum_i E[log sum_{j >= i} exp(r_j)] - mu_i of each row."""
    mu_RG, sigma_RG, scale_R = _scaled(mu_RG, log_sigma_RG)
    left_R1, width_R1, point_RX = _panels(mu_RG, sigma_RG)
    weight_RX = width_R1 / 2 * _gauss_legendre(mu_RG.device)[1].repeat(point_RX.shape[1] // NODES)
    log_F_RX = _log_F(point_RX - mu_RG[:, -1:], sigma_RG[:, -1:])
    loss_R = torch.zeros_like(mu_RG[:, 0])
    for i in range(mu_RG.shape[1] - 2, -1, -1):
        log_F_RX = log_F_RX + _log_F(point_RX - mu_RG[:, i, None], sigma_RG[:, i, None])
        largest_R = left_R1[:, 0] - (weight_RX * torch.expm1(log_F_RX)).sum(
            1
        )  # E[max u]: nothing is left of the panels
        loss_R = loss_R + (largest_R - np.euler_gamma - mu_RG[:, i])
    return loss_R * scale_R


def _scaled(mu_RG: torch.Tensor, log_sigma_RG: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """mu, sigma and by what both were divided, so that they are within SIGMA_MAX and SPAN_MAX."""
    log_sigma_RG = log_sigma_RG.clamp(-100, 70)
    with torch.no_grad():
        span_R = (mu_RG.amax(1) - mu_RG.amin(1)) / SPAN_MAX
        scale_R = torch.maximum(span_R, log_sigma_RG.amax(1).exp() / SIGMA_MAX).clamp(min=1.0)
    return mu_RG / scale_R[:, None], log_sigma_RG.exp() / scale_R[:, None], scale_R


@torch.no_grad()
def _panels(mu_RG: torch.Tensor, sigma_RG: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where all but nothing of every u lies: its left end, the width of its panels, and their nodes."""
    left_R1 = (mu_RG - REACH * sigma_RG).amin(1, keepdim=True) - LEFT
    length_R1 = (mu_RG + REACH * sigma_RG).amax(1, keepdim=True) + RIGHT - left_R1
    count = math.ceil(float(length_R1.max()) / PANEL)
    width_R1 = length_R1 / count
    node_N = (_gauss_legendre(mu_RG.device)[0] + 1) / 2
    panel_X = torch.arange(count, device=mu_RG.device, dtype=torch.float64).repeat_interleave(NODES)
    return left_R1, width_R1, left_R1 + width_R1 * (panel_X + node_N.repeat(count))


def _log_integral(log_g_RX: torch.Tensor, width_R1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logarithms of the integral of exp(log g) from the left up to each point, and over all of them."""
    node, weight_N, upto_NN = _gauss_legendre(log_g_RX.device)
    log_g_RPN = log_g_RX.unflatten(1, (-1, NODES))
    largest_RP1 = log_g_RPN.detach().amax(2, keepdim=True)
    g_RPN = torch.exp(log_g_RPN - largest_RP1)
    log_scale_RP1 = largest_RP1 + torch.log(width_R1 / 2).unsqueeze(2)
    upto_RP = torch.logcumsumexp((log_scale_RP1 + torch.log(g_RPN @ weight_N[:, None]))[..., 0], 1)
    # The polynomial through the nodes may fall below zero where g falls by many orders of magnitude in one panel.
    within_RPN = log_scale_RP1 + torch.log((g_RPN @ upto_NN.T).clamp(min=1e-30))
    before_RP1 = torch.nn.functional.pad(upto_RP[:, :-1], (1, 0), value=-1e300).unsqueeze(2)
    return torch.logaddexp(before_RP1, within_RPN).flatten(1), upto_RP[:, -1]


@cache
def _gauss_legendre(device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Nodes and weights on [-1, 1], and the integrals from -1 up to each node of the polynomials through the nodes."""
    node_N, weight_N = np.polynomial.legendre.leggauss(NODES)
    legendre = np.polynomial.legendre
    antiderivatives = [legendre.legint(coefficients, lbnd=-1) for coefficients in np.eye(NODES)]
    integral_NN = np.stack([legendre.legval(node_N, coefficients) for coefficients in antiderivatives], 1)
    upto_NN = integral_NN @ np.linalg.inv(legendre.legvander(node_N, NODES - 1))
    return tuple(torch.from_numpy(x).to(device) for x in (node_N, weight_N, upto_NN))


class _LogF(torch.autograd.Function):
    """log E[exp(-exp(sigma Z - a))] and its derivatives, without a graph of the sum over Z."""

    @staticmethod
    def forward(ctx, a_RX: torch.Tensor, sigma_R1: torch.Tensor) -> torch.Tensor:
        step_R1 = STEP / sigma_R1.clamp(min=1.0)
        # The density asks for F as far as sigma^2 to the left, where Z is about -sigma.
        low, high = REACH + sigma_R1, REACH
        count = math.ceil(float(((low + high) / step_R1).max()))
        z_RQ = step_R1 * torch.arange(count + 1, device=a_RX.device, dtype=torch.float64) - low
        log_weight_RQ = torch.log(step_R1 / math.sqrt(2 * math.pi)) - z_RQ**2 / 2
        t_RXQ = (sigma_R1 * z_RQ).unsqueeze(1) - a_RX.unsqueeze(2)
        exp_RXQ = torch.exp(t_RXQ.clamp_(max=700.0))
        log_terms_RXQ = log_weight_RQ.unsqueeze(1) - exp_RXQ
        log_F_RX = torch.logsumexp(log_terms_RXQ, 2)
        slope_RXQ = torch.exp(log_terms_RXQ - log_F_RX.unsqueeze(2)).mul_(exp_RXQ)
        ctx.save_for_backward(slope_RXQ.sum(2), -(slope_RXQ * z_RQ.unsqueeze(1)).sum(2))
        return log_F_RX

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_RX):
        of_a_RX, of_sigma_RX = ctx.saved_tensors
        return grad_RX * of_a_RX, (grad_RX * of_sigma_RX).sum(1, keepdim=True)


_log_F = _LogF.apply
