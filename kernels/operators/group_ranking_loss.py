"""The ranking loss of a group of candidates for one prompt: the sum over its pairs, in one call.

Shapes: G candidates, D dimensions, P = G (G - 1) / 2 pairs; dimensions before them are groups.
"""

import math

import torch

from ._backend import Backend
from .uncertainty_ranking_loss import Objective, Reduction, check_options, check_scores, uncertainty_ranking_loss


def group_ranking_loss(
    mu_GD: torch.Tensor,
    log_sigma_GD: torch.Tensor,
    rank_GD: torch.Tensor,
    *,
    margin: float = 0.0,
    tie_threshold: float = 0.0,
    objective: Objective = "marginal",
    reduction: Reduction = "mean",
    backend: Backend = "auto",
) -> torch.Tensor:
    """Ranking loss of a ranked group: every two candidates are one pair, in each dimension on its own.

    The candidate of the smaller rank is the better one; equal ranks are a tie. A candidate whose rank is NaN is left
    out of that dimension, whatever its score, and gets no gradient from it.

    Args:
        mu_GD, log_sigma_GD: means of the scores of G candidates in D dimensions, and the natural logarithms of their
            standard deviations, `[G, D]`, or `[..., G, D]` of several groups.
        rank_GD: ranks, 1 for the best, of that shape; floating-point with NaN where missing, or integers where none is.
        margin: number, the amount by which the better candidate should win; a tied pair has none.
        tie_threshold, objective, backend: as in `uncertainty_ranking_loss`.
        reduction: "mean" over the pairs that have both ranks (0 if there is none), "sum", or "none" for a tensor
            [..., G (G - 1) / 2, D] with the pairs in the order of `torch.triu_indices` and 0 where a rank is missing.

    Returns:
        The loss in float32 (float64 if a score is): a scalar, or that tensor for "none".

    Raises:
        ValueError: as in `uncertainty_ranking_loss`, or the shapes are not one [..., G, D].

    Example:
        >>> mu_GD, log_sigma_GD = torch.tensor([[1.0], [0.0], [0.5]]), torch.zeros(3, 1)
        >>> group_ranking_loss(mu_GD, log_sigma_GD, torch.tensor([[1], [3], [2]]))
        tensor(0.4828)
    """
    check_options(tie_threshold, objective, reduction, backend)
    rank_GD = checked_ranks(mu_GD, log_sigma_GD, rank_GD)
    if isinstance(margin, torch.Tensor) or not abs(margin) < math.inf:
        raise ValueError(f"margin must be a finite number, got {margin!r}.")

    missing_GD = rank_GD.isnan()
    mu_GD, log_sigma_GD = mu_GD.masked_fill(missing_GD, 0.0), log_sigma_GD.masked_fill(missing_GD, 0.0)
    G = mu_GD.shape[-2]
    first_P, second_P = torch.triu_indices(G, G, offset=1, device=mu_GD.device)
    rank_first_PD, rank_second_PD = rank_GD[..., first_P, :], rank_GD[..., second_P, :]
    first_PD, second_PD = (index_P.unsqueeze(1).expand(rank_first_PD.shape) for index_P in (first_P, second_P))
    swap_PD, tie_PD = rank_first_PD > rank_second_PD, rank_first_PD == rank_second_PD
    i_PD, j_PD = torch.where(swap_PD, second_PD, first_PD), torch.where(swap_PD, first_PD, second_PD)
    present_PD = ~(rank_first_PD.isnan() | rank_second_PD.isnan())

    loss_PD = uncertainty_ranking_loss(
        mu_GD.gather(-2, i_PD),
        log_sigma_GD.gather(-2, i_PD),
        mu_GD.gather(-2, j_PD),
        log_sigma_GD.gather(-2, j_PD),
        margin=margin * (~tie_PD).double(),
        tie=tie_PD,
        tie_threshold=tie_threshold,
        weight=present_PD,
        objective=objective,
        reduction="none",
        backend=backend,
    )
    if reduction == "none":
        return loss_PD
    return loss_PD.sum() / present_PD.sum().clamp(min=1) if reduction == "mean" else loss_PD.sum()


def checked_ranks(mu_GD: torch.Tensor, log_sigma_GD: torch.Tensor, rank_GD: torch.Tensor) -> torch.Tensor:
    """The ranks in float64 where the scores are; raises unless all are tensors of one shape `[..., G, D]`."""
    check_scores(mu_GD=mu_GD, log_sigma_GD=log_sigma_GD)
    if mu_GD.dim() < 2 or not isinstance(rank_GD, torch.Tensor) or rank_GD.shape != mu_GD.shape:
        shapes = f"{tuple(mu_GD.shape)} and {tuple(getattr(rank_GD, 'shape', ()))}"
        raise ValueError(f"mu_GD and rank_GD must be tensors of one shape [..., G, D], got {shapes}.")
    return rank_GD.to(device=mu_GD.device, dtype=torch.float64)
