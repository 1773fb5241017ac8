"""The uncertainty-aware ranking loss, exact and without sampling.

The mathematics
---------------
Two scores are independent normals, r_i ~ N(mu_i, sigma_i^2) and r_j ~ N(mu_j, sigma_j^2). Their difference less a
margin is z ~ N(m, s^2) with

    m = mu_i - mu_j - margin,        s^2 = sigma_i^2 + sigma_j^2,

and the probability that i wins is P(m) = E[sigmoid(z)] (JRM paper, section 3.2, eq. 4). The loss of "i beats j" is

    objective="marginal"    -log E[sigmoid(z)]     (eq. 5; the default)
    objective="expected"    E[-log sigmoid(z)]     (what sampling implementations estimate; never the smaller one)

Closed form. The logistic law is a normal scale mixture: sigmoid(z) = E_k[Phi(z / 2k)] with k Kolmogorov-distributed
(Andrews and Mallows, 1974). A normal convolved with it stays one, so that

    P(m)                      = E_k[Phi(m / tau)],                                     tau^2 = s^2 + 4 k^2
    E[-log sigmoid(z)]        = max(-m, 0) + E_k[tau (phi(b) - b Phi(-b))],            b = |m| / tau

and a Gauss rule in log k with 8 nodes (float32) or 32 (float64) does E_k for every m and s alike. Two identities give
the derivatives: p = P' = E_k[phi(m / tau) / tau], and the heat equation dP / d log s = s^2 p'.

Tails. The upper tail U(x) = P(-x) of x = |m| is summed directly where x <= s^2 / 2 + 2. Beyond, where an error of the
rule would be amplified, E[f(z) exp(-z)] = exp(s^2 / 2 - m) E[f(z - s^2)] moves the work to the middle:

    U(x) = exp(s^2 / 2 - x) P(x - s^2),        and p, p', p'' by differentiating it.

The slowest exponent is always factored out, and Phi(-b) = phi(b) sqrt(pi / 2) erfcx(b / sqrt 2), so nothing underflows.

Ties (Rao and Kupper, 1967). With a threshold h >= 0 the outcomes of a pair have probabilities

    win  E[sigmoid(z - h)] = P(m - h),     loss  E[sigmoid(-z - h)] = P(-m - h),     tie  P(m + h) - P(m - h),

which sum to 1. A wide tie interval is a difference of tails; a narrow one, where that would cancel, is the integral of
p over [m - h, m + h] by Gauss-Legendre. For the expected objective the tie is a sum of two wins and a constant.

Shapes: N pairs, K nodes of the rule, G candidates in a group, D dimensions.
"""

import math

import torch
from torch.autograd.function import once_differentiable

from ._constants import (
    FOUR_K2_FLOAT32,
    FOUR_K2_FLOAT64,
    LEGENDRE_NODE,
    LEGENDRE_WEIGHT,
    WEIGHT_FLOAT32,
    WEIGHT_FLOAT64,
)

OBJECTIVES = ("marginal", "expected")
REDUCTIONS = ("mean", "sum", "none")
BACKENDS = ("auto", "torch")

# above this log sigma the logistic is nothing beside the normal: only m / s counts, and both are scaled down to it
LOG_SIGMA_SCALED = 36.0
# log sigma is cut here, so that the expected loss of many pairs, about 0.4 s each, still has a finite sum in float32
LOG_SIGMA_MAX = 70.0
LOG_SIGMA_MIN = -100.0


def _node_sums(terms):
    """Sum over dim 1, whose length is a power of two, by halving.

    torch.sum may add in another order for another number of pairs; a pair's loss must not depend on its neighbours.
    """
    while terms.shape[1] > 1:
        half = terms.shape[1] // 2
        terms = terms[:, :half] + terms[:, half:]
    return terms[:, 0]


def _scaled_mixture(x_N, s2_N):
    """The normals N(0, tau^2) of the mixture at x >= 0, for each node of the rule.

    Returns b = x / tau, the weighted density w phi(b), 1 / tau and the Mills ratio Phi(-b) / phi(b), all [K, N], and
    exponent_N: the densities lack the factor exp(exponent), that of the widest normal, which falls slowest.
    """
    narrow = x_N.dtype == torch.float32
    four_k2_K1 = x_N.new_tensor(FOUR_K2_FLOAT32 if narrow else FOUR_K2_FLOAT64).unsqueeze(1)
    weight_K1 = x_N.new_tensor(WEIGHT_FLOAT32 if narrow else WEIGHT_FLOAT64).unsqueeze(1)
    tau2_KN = s2_N + four_k2_K1
    rate_KN = torch.rsqrt(tau2_KN)
    b_KN = (x_N * rate_KN).clamp(max=1e18)  # its square stays finite
    lag_KN = (four_k2_K1[-1] - four_k2_K1) / tau2_KN[-1]  # b^2 - b^2 of the widest, over b^2
    density_KN = weight_K1 * math.sqrt(0.5 / math.pi) * torch.exp(-0.5 * b_KN * b_KN * lag_KN)
    # erfcx in float32 is good to 4e-7 only
    mills_KN = (math.sqrt(math.pi / 2) * torch.special.erfcx(b_KN.double() * math.sqrt(0.5))).to(x_N.dtype)
    return b_KN, density_KN, rate_KN, mills_KN, -0.5 * b_KN[-1] * b_KN[-1]


def _upper_tail(x_N, s2_N, curvature=False):
    """U(x) = P(-x) and its derivatives for x >= 0, each divided by exp(exponent).

    Returns exponent_N and a stack of U, p and -s^2 p' (which is dU / d log s, never negative for x >= 0); with
    `curvature` also of p' and s^2 p''.
    """
    half_N = 0.5 * s2_N
    # + 2: p'' vanishes near x = tau, where the differences of the tilt would keep too few digits in float32
    direct_N = x_N <= half_N + 2
    y_N = x_N - s2_N
    b_KN, density_KN, rate_KN, mills_KN, exponent_N = _scaled_mixture(torch.where(direct_N, x_N, y_N.abs()), s2_N)
    slope_KN = density_KN * rate_KN
    share_KN = s2_N * (rate_KN * rate_KN)
    terms = [density_KN * mills_KN, slope_KN, density_KN * b_KN * share_KN]
    if curvature:
        terms += [-slope_KN * b_KN * rate_KN, slope_KN * (b_KN * b_KN - 1) * share_KN]
    plain = _node_sums(torch.stack(terms))

    # the tilt: U(x) = exp(s^2 / 2 - x) P(y), y = x - s^2; for y > 0, P(y) is 1 - U(y)
    above_N = y_N > 0
    mirrored = plain * torch.where(above_N, torch.exp(exponent_N), torch.ones_like(exponent_N))
    P_N = torch.where(above_N, 1 - mirrored[0], mirrored[0])
    p_N = mirrored[1]
    minus_s2_p1_N = torch.where(above_N, mirrored[2], -mirrored[2])
    tilted = [P_N, P_N - p_N, s2_N * (P_N - 2 * p_N) - minus_s2_p1_N]
    if curvature:
        p1_N = torch.where(above_N, mirrored[3], -mirrored[3])
        tilted += [2 * p_N - P_N - p1_N, s2_N * (P_N - 3 * p_N) - 3 * minus_s2_p1_N - mirrored[4]]
    tilted_exponent_N = half_N - x_N + torch.where(above_N, torch.zeros_like(exponent_N), exponent_N)
    return torch.where(direct_N, exponent_N, tilted_exponent_N), torch.where(direct_N, plain, torch.stack(tilted))


def _marginal_win(m_N, s2_N):
    """-log P(m) and its derivatives in m and log s."""
    exponent_N, (U_N, p_N, heat_N) = _upper_tail(m_N.abs(), s2_N)
    factor_N = torch.exp(exponent_N)
    positive_N = m_N > 0
    loser_N = factor_N * U_N
    loss_N = torch.where(positive_N, -torch.log1p(-loser_N), -(exponent_N + torch.log(U_N)))
    per_probability_N = torch.where(positive_N, factor_N / (1 - loser_N), 1 / U_N)
    dm_N = (-per_probability_N * p_N).clamp(min=-1.0)
    dlogs_N = per_probability_N * heat_N
    return loss_N, dm_N, torch.where(positive_N, dlogs_N, -dlogs_N)


def _expected_parts(x_N, s2_N):
    """E[max(z, 0)] - max(m, 0) for the mixture at |m| = x >= 0, its derivative in log s, and U(x)."""
    b_KN, density_KN, rate_KN, mills_KN, exponent_N = _scaled_mixture(x_N, s2_N)
    terms = [density_KN * (1 - b_KN * mills_KN) / rate_KN, density_KN * s2_N * rate_KN, density_KN * mills_KN]
    return _node_sums(torch.stack(terms)) * torch.exp(exponent_N)


def _expected_win(m_N, s2_N):
    """E[-log sigmoid(z)] and its derivatives in m and log s."""
    excess_N, dlogs_N, U_N = _expected_parts(m_N.abs(), s2_N)
    return excess_N + (-m_N).clamp(min=0), torch.where(m_N > 0, -U_N, U_N - 1), dlogs_N


def _half_each_way(win, m_N, s2_N):
    """A tie without a threshold: half a win of i, half a win of j."""
    ahead, behind = win(m_N, s2_N), win(-m_N, s2_N)
    return tuple(0.5 * (a + sign * b) for a, b, sign in zip(ahead, behind, (1, -1, 1), strict=True))


def _marginal_tie(m_N, s2_N, h_N):
    """-log(P(m + h) - P(m - h)) and its derivatives in m and log s."""
    x_N = m_N.abs()
    center_N = x_N.clamp(max=1e36)  # an infinite m would leave inf - inf between the exponents below
    low_N, high_N = center_N - h_N, center_N + h_N

    # wide interval: U(low) - U(high), relative to exp(scale)
    exponent_low_N, low = _upper_tail(low_N.abs(), s2_N)
    exponent_high_N, high = _upper_tail(high_N, s2_N)
    inside_N = low_N < 0
    scale_N = torch.where(inside_N, torch.zeros_like(x_N), exponent_low_N)
    low, high = low * torch.exp(exponent_low_N - scale_N), high * torch.exp(exponent_high_N - scale_N)
    above_low_N = torch.where(inside_N, 1 - low[0], low[0])
    heat_low_N = torch.where(inside_N, -low[2], low[2])
    wide = torch.stack([above_low_N - high[0], high[1] - low[1], heat_low_N - high[2]])
    log_wide_N = torch.where(inside_N, torch.log1p(-(low[0] + high[0])), scale_N + torch.log(wide[0]))

    # narrow interval: 2 h times the mean over it of p, p' and s^2 p'', relative to the largest exponent
    J, N = len(LEGENDRE_NODE), x_N.shape[0]
    point_JN = center_N + h_N * x_N.new_tensor(LEGENDRE_NODE).unsqueeze(1)
    exponent_N, derivatives = _upper_tail(point_JN.abs().reshape(J * N), s2_N.repeat(J), curvature=True)
    exponent_JN, (_, p_JN, _, p1_JN, s2_p2_JN) = exponent_N.reshape(J, N), derivatives.reshape(5, J, N)
    largest_N = exponent_JN.amax(0)
    factor_JN = x_N.new_tensor(LEGENDRE_WEIGHT).unsqueeze(1) * torch.exp(exponent_JN - largest_N)
    parts = torch.stack([p_JN, torch.where(point_JN < 0, -p1_JN, p1_JN), s2_p2_JN]) * factor_JN
    narrow = sum(parts.unbind(1))  # in this order, whatever N is
    log_narrow_N = largest_N + torch.log(2 * h_N) + torch.log(narrow[0])

    is_wide_N = wide[0] > 0.5 * above_low_N
    P_N, dx_N, dlogs_N = torch.where(is_wide_N, wide, narrow)
    loss_N = torch.where(torch.isinf(x_N), x_N, -torch.where(is_wide_N, log_wide_N, log_narrow_N))
    return loss_N, -dx_N / P_N * torch.sign(m_N), -dlogs_N / P_N


def _expected_tie(m_N, s2_N, h_N):
    """E[-log sigmoid(z - h)] + E[-log sigmoid(-z - h)] - 2 h and its derivatives in m and log s.

    -log of the tie probability is this less log(1 - exp(-2 h)). Of the large parts, max(h - m, 0) + max(h + m, 0) - 2 h
    is max(|m| - h, 0).
    """
    x_N = m_N.abs()
    low_N = x_N - h_N
    excess_low_N, dlogs_low_N, U_low_N = _expected_parts(low_N.abs(), s2_N)
    excess_high_N, dlogs_high_N, U_high_N = _expected_parts(x_N + h_N, s2_N)
    dx_N = torch.where(low_N > 0, 1 - U_low_N, U_low_N) - U_high_N
    loss_N = low_N.clamp(min=0) + (excess_low_N + excess_high_N)
    return loss_N, dx_N * torch.sign(m_N), dlogs_low_N + dlogs_high_N


def _outcome_losses(m_N, log_sigma_i_N, log_sigma_j_N, tie_N, tie_threshold, objective):
    """Loss of each pair and its derivatives in m, log sigma_i and log sigma_j."""
    a_N = log_sigma_i_N.clamp(LOG_SIGMA_MIN, LOG_SIGMA_MAX)
    b_N = log_sigma_j_N.clamp(LOG_SIGMA_MIN, LOG_SIGMA_MAX)
    excess_N = (torch.maximum(a_N, b_N) - LOG_SIGMA_SCALED).clamp(min=0)
    shrink_N = torch.exp(-excess_N)
    variance_i_N, variance_j_N = torch.exp(2 * (a_N - excess_N)), torch.exp(2 * (b_N - excess_N))
    s2_N = variance_i_N + variance_j_N
    infinite_N = torch.isinf(m_N)
    m_N, h_N = m_N * shrink_N, tie_threshold * shrink_N

    win = _marginal_win if objective == "marginal" else _expected_win
    parts = win(m_N - h_N, s2_N)
    if tie_N is not None:
        if tie_threshold == 0:
            tied = _half_each_way(win, m_N, s2_N)
        else:
            tied = (_marginal_tie if objective == "marginal" else _expected_tie)(m_N, s2_N, h_N)
        parts = [torch.where(tie_N, t, w) for t, w in zip(tied, parts, strict=True)]
    loss_N, dm_N, dlogs_N = parts

    if objective == "marginal":  # depends on m / s where it was scaled; its slope at infinity is that of -m
        dm_N = torch.where(infinite_N, dm_N, dm_N * shrink_N)
    else:  # a length, as m and s are
        loss_N, dlogs_N = loss_N / shrink_N, dlogs_N / shrink_N
        if tie_N is not None and tie_threshold > 0:
            constant_N = torch.log(-torch.expm1(torch.full_like(m_N, -2 * tie_threshold)))
            loss_N = torch.where(tie_N, loss_N - constant_N, loss_N)
    per_variance_N = dlogs_N / s2_N.clamp(min=torch.finfo(s2_N.dtype).tiny)
    return loss_N, dm_N, per_variance_N * variance_i_N, per_variance_N * variance_j_N


class _PairLoss(torch.autograd.Function):
    """Loss per pair; its gradients are computed with it, in the forward pass, and scaled in the backward pass."""

    @staticmethod
    def forward(ctx, m, log_sigma_i, log_sigma_j, tie, tie_threshold, objective):
        tie_N = None if tie is None else tie.reshape(-1)
        flat = (tensor.reshape(-1) for tensor in (m, log_sigma_i, log_sigma_j))
        loss_N, *gradients = _outcome_losses(*flat, tie_N, tie_threshold, objective)
        ctx.save_for_backward(*(gradient_N.view(m.shape) for gradient_N in gradients))
        return loss_N.view(m.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):
        return *(grad_loss * gradient for gradient in ctx.saved_tensors), None, None, None


def _check_choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_options(tie_threshold, objective, reduction, backend):
    _check_choice("objective", objective, OBJECTIVES)
    _check_choice("reduction", reduction, REDUCTIONS)
    if backend == "triton":
        raise ValueError("backend='triton': this version has no Triton kernel yet; use 'auto' or 'torch'.")
    _check_choice("backend", backend, BACKENDS)
    if isinstance(tie_threshold, torch.Tensor) or not 0 <= tie_threshold < math.inf:
        raise ValueError(f"tie_threshold must be a finite number >= 0, got {tie_threshold!r}.")


def check_scores(**tensors):
    """The tensors in float32, or float64 if one of them is, after checks of type, shape and device."""
    (first_name, first), *_ = tensors.items()
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise ValueError(f"{name} must be a floating-point tensor, got {kind}.")
        if tensor.shape != first.shape:
            shapes = f"{tuple(tensor.shape)} and {tuple(first.shape)}"
            raise ValueError(f"{name} and {first_name} must have one shape, got {shapes}.")
        if tensor.device != first.device:
            raise ValueError(
                f"{name} is on {tensor.device} and {first_name} on {first.device}: move them to one device."
            )
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors.values()) else torch.float32
    return [tensor.to(dtype) for tensor in tensors.values()]


def _check_per_pair(name, value, like):
    """A finite number, or a tensor with one value per pair in the dtype of `like`."""
    if isinstance(value, torch.Tensor):
        if value.shape not in ((), like.shape):
            wanted = f"one value or the pairs' shape {tuple(like.shape)}"
            raise ValueError(f"{name} must have {wanted}, got {tuple(value.shape)}.")
        return value.to(device=like.device, dtype=like.dtype)
    if not abs(value) < math.inf:
        raise ValueError(f"{name} must be finite, got {value!r}.")
    return value


def uncertainty_ranking_loss(
    mu_i,
    log_sigma_i,
    mu_j,
    log_sigma_j,
    *,
    margin=0.0,
    tie=None,
    tie_threshold=0.0,
    weight=None,
    objective="marginal",
    reduction="mean",
    backend="auto",
):
    """Ranking loss of pairs whose scores are normal: "i is better than j", or "i and j are tied".

    JRM paper, section 3.2, eq. (4)-(5). Exact and deterministic; a pair's loss and gradients are bitwise the same
    whatever it is batched with. Half-precision inputs are computed in float32, float64 ones in float64 (accuracy:
    kernels/ACCURACY.md). Differentiable once, in mu, log sigma, margin and weight.

    Args:
        mu_i, mu_j: means of the scores of the better and the worse sample, tensors of one shape (any).
        log_sigma_i, log_sigma_j: natural logarithms of their standard deviations, of that shape. Any value is valid;
            above 70 counts as 70.
        margin: number, or one per pair: the amount by which i should win; it is subtracted from the score difference,
            m = mu_i - mu_j - margin in the dtype of the computation, for every outcome (a tied pair usually has none).
        tie: boolean mask of that shape, True where the pair is tied; None if no pair is.
        tie_threshold: number >= 0, the threshold h of Rao and Kupper: i wins with probability E[sigmoid(z - h)], j with
            E[sigmoid(-z - h)], and the rest is the tie's. With 0 a tie has no probability of its own and counts as half
            a win each way: 0.5 loss(i beats j) + 0.5 loss(j beats i).
        weight: number, or one per pair, that multiplies the pair's loss; None for 1.
        objective: "marginal" for -log E[sigmoid(z)], the paper's; "expected" for E[-log sigmoid(z)].
        reduction: "mean" for sum(weight * loss) / N over all N pairs, "sum", or "none" for a loss per pair.
        backend: "auto" or "torch".

    Returns:
        The loss in float32 (float64 if an input is): a scalar, or a tensor of the inputs' shape for "none".

    Raises:
        ValueError: an input has the wrong type, shape, device or value, or there is no pair to take the mean of.

    Example:
        >>> mu_i, mu_j, log_sigma = torch.tensor([1.0, 0.5]), torch.tensor([0.0, 0.7]), torch.zeros(2)
        >>> uncertainty_ranking_loss(mu_i, log_sigma, mu_j, log_sigma)
        tensor(0.5822)
    """
    check_options(tie_threshold, objective, reduction, backend)
    mu_i, log_sigma_i, mu_j, log_sigma_j = check_scores(
        mu_i=mu_i, log_sigma_i=log_sigma_i, mu_j=mu_j, log_sigma_j=log_sigma_j
    )
    if reduction == "mean" and mu_i.numel() == 0:
        raise ValueError("uncertainty_ranking_loss has no pair to take the mean of: mu_i is empty.")
    if tie is not None and not (isinstance(tie, torch.Tensor) and tie.dtype == torch.bool and tie.shape == mu_i.shape):
        raise ValueError(f"tie must be a boolean tensor of the pairs' shape {tuple(mu_i.shape)}, or None.")
    m = mu_i - mu_j - _check_per_pair("margin", margin, mu_i)
    loss = _PairLoss.apply(m, log_sigma_i, log_sigma_j, tie, float(tie_threshold), objective)
    if weight is not None:
        loss = loss * _check_per_pair("weight", weight, mu_i)
    return loss if reduction == "none" else loss.sum() if reduction == "sum" else loss.mean()


def win_probability(mu_i, log_sigma_i, mu_j, log_sigma_j, *, margin=0.0, tie_threshold=0.0):
    """P(i is better than j) = E[sigmoid(r_i - r_j - margin - tie_threshold)], JRM paper, section 3.2, eq. (4).

    Arguments as in `uncertainty_ranking_loss`, whose marginal loss is minus its logarithm. Returns a tensor of the
    inputs' shape, in float32 (float64 if an input is).
    """
    loss = uncertainty_ranking_loss(
        mu_i, log_sigma_i, mu_j, log_sigma_j, margin=margin, tie_threshold=tie_threshold, reduction="none"
    )
    return torch.exp(-loss)
