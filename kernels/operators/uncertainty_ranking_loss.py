"""The uncertainty-aware ranking loss: its public functions and the custom operator behind them.

The mathematics is told in `ranking_loss_torch`; `ranking_loss_triton` does the same in one launch. Either computes
loss and gradients of every pair in the forward pass; the backward pass only scales the gradients.
"""

import math
from typing import Literal, TypeAlias, get_args

import torch
from torch.autograd.function import once_differentiable

from . import ranking_loss_torch
from ._backend import BACKENDS, Backend, use_triton

Objective: TypeAlias = Literal["marginal", "expected"]
Reduction: TypeAlias = Literal["mean", "sum", "none"]
OBJECTIVES, REDUCTIONS = get_args(Objective), get_args(Reduction)


@torch.library.custom_op("jrm_plugin::pair_losses", mutates_args=())
def pair_losses(
    mu_i: torch.Tensor,
    log_sigma_i: torch.Tensor,
    mu_j: torch.Tensor,
    log_sigma_j: torch.Tensor,
    margin: torch.Tensor | None,
    margin_number: float,
    tie: torch.Tensor | None,
    tie_threshold: float,
    objective: str,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss of each pair and its derivatives in mu_i, log_sigma_i and log_sigma_j, of the inputs' shape."""
    dtype = _computed_dtype(mu_i, log_sigma_i, mu_j, log_sigma_j)
    if dtype == torch.float32 and use_triton(backend, mu_i.device):
        from .ranking_loss_triton import launch

        return launch(mu_i, log_sigma_i, mu_j, log_sigma_j, margin, margin_number, tie, tie_threshold, objective)
    m = mu_i.to(dtype) - mu_j.to(dtype) - (margin_number if margin is None else margin.to(dtype))
    m_N, log_sigma_i_N, log_sigma_j_N = (x.to(dtype).reshape(-1) for x in (m, log_sigma_i, log_sigma_j))
    tie_N = None if tie is None else tie.reshape(-1)
    outputs = ranking_loss_torch.pair_losses(m_N, log_sigma_i_N, log_sigma_j_N, tie_N, tie_threshold, objective)
    return tuple(output_N.reshape(mu_i.shape).contiguous() for output_N in outputs)


@pair_losses.register_fake
def _(mu_i, log_sigma_i, mu_j, log_sigma_j, *_):
    dtype = _computed_dtype(mu_i, log_sigma_i, mu_j, log_sigma_j)
    return tuple(torch.empty(mu_i.shape, dtype=dtype, device=mu_i.device) for _ in range(4))


def _keep_gradients(ctx, inputs, output):
    _, *gradients = output
    ctx.has_margins = inputs[4] is not None
    ctx.mark_non_differentiable(*gradients)
    ctx.save_for_backward(*gradients)


@once_differentiable
def _scale_gradients(ctx, grad_loss, *_):
    dm, dlog_sigma_i, dlog_sigma_j = ctx.saved_tensors
    grad_mu = grad_loss * dm
    grad_margin = -grad_mu if ctx.has_margins else None
    return grad_mu, grad_loss * dlog_sigma_i, -grad_mu, grad_loss * dlog_sigma_j, grad_margin, *(None,) * 5


pair_losses.register_autograd(_scale_gradients, setup_context=_keep_gradients)


@pair_losses.register_vmap
def _(info, in_dims, *arguments):
    """Pairs do not feel each other, so a batch of calls is one call on more pairs."""

    def with_batch_first(value, dim):
        if not isinstance(value, torch.Tensor):
            return value
        return value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)

    return pair_losses(*map(with_batch_first, arguments, in_dims)), (0,) * 4


def _computed_dtype(*scores: torch.Tensor) -> torch.dtype:
    return torch.float64 if any(x.dtype == torch.float64 for x in scores) else torch.float32


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_options(tie_threshold: float, objective: Objective, reduction: Reduction, backend: Backend) -> None:
    _check_choice("objective", objective, OBJECTIVES)
    _check_choice("reduction", reduction, REDUCTIONS)
    _check_choice("backend", backend, BACKENDS)
    if isinstance(tie_threshold, torch.Tensor) or not 0 <= tie_threshold < math.inf:
        raise ValueError(f"tie_threshold must be a finite number >= 0, got {tie_threshold!r}.")


def check_scores(**tensors: torch.Tensor) -> None:
    """Raises unless they are floating-point tensors of one shape on one device."""
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


def _check_per_pair(name: str, value: torch.Tensor | float, like: torch.Tensor) -> torch.Tensor | float:
    """A finite number, or a tensor of the pairs' shape, on their device."""
    if isinstance(value, torch.Tensor):
        if value.shape not in ((), like.shape):
            wanted = f"one value or the pairs' shape {tuple(like.shape)}"
            raise ValueError(f"{name} must have {wanted}, got {tuple(value.shape)}.")
        return value.to(like.device).expand(like.shape)
    if not abs(value) < math.inf:
        raise ValueError(f"{name} must be finite, got {value!r}.")
    return value


def uncertainty_ranking_loss(
    mu_i: torch.Tensor,
    log_sigma_i: torch.Tensor,
    mu_j: torch.Tensor,
    log_sigma_j: torch.Tensor,
    *,
    margin: torch.Tensor | float = 0.0,
    tie: torch.Tensor | None = None,
    tie_threshold: float = 0.0,
    weight: torch.Tensor | float | None = None,
    objective: Objective = "marginal",
    reduction: Reduction = "mean",
    backend: Backend = "auto",
) -> torch.Tensor:
    """Ranking loss of pairs whose scores are normal: "i is better than j", or "i and j are tied".

    JRM paper, section 3.2, eq. (4)-(5). Exact and deterministic; a pair's loss and gradients are bitwise the same
    whatever it is batched with. Half-precision inputs are computed in float32, float64 ones in float64 (accuracy:
    kernels/ACCURACY.md). Differentiable once, in mu, log sigma, margin and weight. A custom operator: works under
    `torch.compile(fullgraph=True)`, `torch.vmap` and autocast (which does not change it).

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
        backend: "auto" for the Triton kernel where inputs of at most float32 are on a GPU (and Triton is installed)
            and torch elsewhere; "triton" or "torch" for that one. float64 is always computed by torch. On CPU "triton"
            runs in Triton's interpreter, if TRITON_INTERPRET=1 was set: for tests, thousands of times slower.

    Returns:
        The loss in float32 (float64 if an input is): a scalar, or a tensor of the inputs' shape for "none".

    Raises:
        ValueError: an input has the wrong type, shape, device or value, or there is no pair to take the mean of.

    Example:
        >>> mu_i, mu_j, log_sigma = torch.tensor([1.0, 0.5]), torch.tensor([0.0, 0.7]), torch.zeros(2)
        >>> uncertainty_ranking_loss(mu_i, log_sigma, mu_j, log_sigma)
        tensor(0.5807)
    """
    check_options(tie_threshold, objective, reduction, backend)
    check_scores(mu_i=mu_i, log_sigma_i=log_sigma_i, mu_j=mu_j, log_sigma_j=log_sigma_j)
    if reduction == "mean" and mu_i.numel() == 0:
        raise ValueError("uncertainty_ranking_loss has no pair to take the mean of: mu_i is empty.")
    if tie is not None and not (isinstance(tie, torch.Tensor) and tie.dtype == torch.bool and tie.shape == mu_i.shape):
        raise ValueError(f"tie must be a boolean tensor of the pairs' shape {tuple(mu_i.shape)}, or None.")
    margin = _check_per_pair("margin", margin, mu_i)
    margins, number = (margin, 0.0) if isinstance(margin, torch.Tensor) else (None, float(margin))
    loss, *_ = pair_losses(
        mu_i, log_sigma_i, mu_j, log_sigma_j, margins, number, tie, float(tie_threshold), objective, backend
    )
    if weight is not None:
        weight = _check_per_pair("weight", weight, mu_i)
        loss = loss * (weight.to(loss.dtype) if isinstance(weight, torch.Tensor) else weight)
    return loss if reduction == "none" else loss.sum() if reduction == "sum" else loss.mean()


def win_probability(
    mu_i: torch.Tensor,
    log_sigma_i: torch.Tensor,
    mu_j: torch.Tensor,
    log_sigma_j: torch.Tensor,
    *,
    margin: torch.Tensor | float = 0.0,
    tie_threshold: float = 0.0,
) -> torch.Tensor:
    """P(i is better than j) = E[sigmoid(r_i - r_j - margin - tie_threshold)], JRM paper, section 3.2, eq. (4).

    The marginal loss of `uncertainty_ranking_loss` is minus its logarithm.

    Args:
        mu_i, mu_j: means of the scores of the two samples, tensors of one shape (any).
        log_sigma_i, log_sigma_j: natural logarithms of their standard deviations, of that shape.
        margin: number, or one per pair: the amount by which i should win.
        tie_threshold: number >= 0, by which i has to win besides, where there are ties.

    Returns:
        A tensor of the inputs' shape, in float32 (float64 if an input is).

    Raises:
        ValueError: an input has the wrong type, shape, device or value.

    Example:
        >>> win_probability(torch.tensor([1.0, 0.0]), torch.zeros(2), torch.zeros(2), torch.zeros(2))
        tensor([0.6751, 0.5000])
    """
    loss = uncertainty_ranking_loss(
        mu_i, log_sigma_i, mu_j, log_sigma_j, margin=margin, tie_threshold=tie_threshold, reduction="none"
    )
    return torch.exp(-loss)
