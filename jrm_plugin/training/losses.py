"""The joint objective: ranking and critiques (paper section 3.2, eq. 5-7).

Shape suffixes: N groups (a pair is one of two), G candidates of the largest, P pairs of them, D dimensions, C = D + 1
columns, the dimensions and then the overall score.
"""

import math

import torch

from jrm_plugin.kernels import group_ranking_loss, plackett_luce_loss
from jrm_plugin.kernels.uncertainty_ranking_loss import Objective
from jrm_plugin.records.scores import OverallRule


def with_overall(
    mu_ND: torch.Tensor, log_sigma_ND: torch.Tensor, overall_rule: OverallRule = "mean"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Appends the overall score to the dimensions' scores: `[..., D]` to `[..., C]`.

    By the same rules as `RewardScore`'s: the mean or the sum of the dimensions' scores, taken as independent, or the
    score of the dimension whose mu is lowest.
    """
    if overall_rule == "min":
        lowest_N1 = mu_ND.argmin(-1, keepdim=True)
        overall_mu_N1, overall_log_sigma_N1 = mu_ND.gather(-1, lowest_N1), log_sigma_ND.gather(-1, lowest_N1)
    elif overall_rule == "sum":
        overall_mu_N1 = mu_ND.sum(-1, keepdim=True)
        overall_log_sigma_N1 = 0.5 * torch.logsumexp(2 * log_sigma_ND, -1, keepdim=True)
    else:
        overall_mu_N1 = mu_ND.mean(-1, keepdim=True)
        overall_log_sigma_N1 = 0.5 * torch.logsumexp(2 * log_sigma_ND, -1, keepdim=True) - math.log(mu_ND.shape[-1])
    return torch.cat([mu_ND, overall_mu_N1], -1), torch.cat([log_sigma_ND, overall_log_sigma_N1], -1)


def ranking_loss_per_label(
    mu_NGD: torch.Tensor,
    log_sigma_NGD: torch.Tensor,
    rank_NGC: torch.Tensor,
    *,
    overall_rule: OverallRule = "mean",
    kind: str = "pairwise",
    tie_threshold: float = 0.0,
    objective: Objective = "marginal",
) -> torch.Tensor:
    """The loss of every label (paper eq. 4-5), `[N, C]`, zero where there is none.

    Args:
        mu_NGD, log_sigma_NGD: scores of the candidates of each group, a pair being a group of two.
        rank_NGC: the place of each candidate, 1 for the best, equal ones a tie; NaN where it is not ranked, or where a
            group has fewer candidates than others. The last column is the overall label.
        overall_rule: see [`with_overall`].
        kind: `pairwise`: the mean over every two candidates of [`group_ranking_loss`], as in InstructGPT (Ouyang
            et al. 2022, eq. 1); `plackett_luce`: that of the whole order, [`plackett_luce_loss`], divided by its number
            of choices, one less than candidates. For a pair both are `uncertainty_ranking_loss`.
        tie_threshold: see [`group_ranking_loss`]; of `pairwise` alone.
        objective: see [`uncertainty_ranking_loss`].
    """
    mu_NGC, log_sigma_NGC = with_overall(mu_NGD, log_sigma_NGD, overall_rule)
    ranked_NC = (~rank_NGC.isnan()).sum(1)
    if kind == "plackett_luce":
        loss_NC = plackett_luce_loss(mu_NGC, log_sigma_NGC, rank_NGC, objective=objective, reduction="none")
        return loss_NC / (ranked_NC - 1).clamp(min=1)
    loss_NPC = group_ranking_loss(
        mu_NGC, log_sigma_NGC, rank_NGC, tie_threshold=tie_threshold, objective=objective, reduction="none"
    )
    return loss_NPC.sum(1) / (ranked_NC * (ranked_NC - 1) // 2).clamp(min=1)


def ranking_loss(loss_NC: torch.Tensor, rank_NGC: torch.Tensor) -> torch.Tensor:
    """L_rank: the mean over groups of each group's mean over what it is labelled in.

    Args: as [`ranking_loss_per_label`] gives and takes them. A group labelled only overall trains the overall score.
    """
    labels_N = is_labelled(rank_NGC).sum(-1)
    return (loss_NC.sum(-1) / labels_N.clamp(min=1)).mean()


def ranks_of_labels(label_NC: torch.Tensor) -> torch.Tensor:
    """The places of both sides of pairs, `[N, 2, C]`, from labels 1 (the first is better), 0 (a tie), -1 and NaN."""
    places = [torch.where(label_NC == worse, 2.0, 1.0).masked_fill(label_NC.isnan(), math.nan) for worse in (-1, 1)]
    return torch.stack(places, 1)


def is_labelled(rank_NGC: torch.Tensor) -> torch.Tensor:
    """Where two candidates or more are ranked, `[N, C]`."""
    return (~rank_NGC.isnan()).sum(1) > 1


def joint_loss(rank_loss: torch.Tensor, critique_loss: torch.Tensor, alpha: float) -> torch.Tensor:
    """L_total = (1 - alpha) L_rank + alpha L_LM (paper eq. 7); `critique_loss` is the mean over critique tokens.

    Eq. (6) writes a sum over tokens; the mean is what alpha = 0.7 means with Hugging Face's cross-entropy.
    """
    return (1 - alpha) * rank_loss + alpha * critique_loss
