"""The joint objective: ranking and critiques (paper section 3.2, eq. 5-7).

Shape suffixes: N pairs, D dimensions, C = D + 1 columns, the dimensions and then the overall score.
"""

import math

import torch

from jrm_plugin.kernels import uncertainty_ranking_loss
from jrm_plugin.records.scores import OverallRule


def with_overall(
    mu_ND: torch.Tensor, log_sigma_ND: torch.Tensor, overall_rule: OverallRule = "mean"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Appends the overall score to the dimensions' scores: `[N, D]` to `[N, C]`.

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
    mu_chosen_ND: torch.Tensor,
    log_sigma_chosen_ND: torch.Tensor,
    mu_rejected_ND: torch.Tensor,
    log_sigma_rejected_ND: torch.Tensor,
    label_NC: torch.Tensor,
    *,
    overall_rule: OverallRule = "mean",
    tie_threshold: float = 0.0,
    objective: str = "marginal",
) -> torch.Tensor:
    """-log P of every label (paper eq. 4-5), `[N, C]`, zero where there is none.

    Args:
        mu_*, log_sigma_*: `[N, D]` scores of both samples of each pair.
        label_NC: 1 where the chosen sample is better, 0 for a tie, -1 where the rejected one is better, and NaN where
            the pair has no label; the last column is the overall label.
        overall_rule: see [`with_overall`].
        tie_threshold, objective: see [`uncertainty_ranking_loss`].
    """
    mu_i, log_sigma_i = with_overall(mu_chosen_ND, log_sigma_chosen_ND, overall_rule)
    mu_j, log_sigma_j = with_overall(mu_rejected_ND, log_sigma_rejected_ND, overall_rule)
    # A preference for j over i is the loss of the swapped pair.
    swap_NC = label_NC < 0
    return uncertainty_ranking_loss(
        torch.where(swap_NC, mu_j, mu_i),
        torch.where(swap_NC, log_sigma_j, log_sigma_i),
        torch.where(swap_NC, mu_i, mu_j),
        torch.where(swap_NC, log_sigma_i, log_sigma_j),
        tie=label_NC == 0,
        tie_threshold=tie_threshold,
        weight=(~label_NC.isnan()).to(mu_i.dtype),
        objective=objective,
        reduction="none",
    )


def ranking_loss(loss_NC: torch.Tensor, label_NC: torch.Tensor) -> torch.Tensor:
    """L_rank: the mean over pairs of each pair's mean over what it is labelled in.

    Args: as [`ranking_loss_per_label`] gives and takes them. A pair labelled only overall trains the overall score.
    """
    labels_N = (~label_NC.isnan()).sum(-1)
    return (loss_NC.sum(-1) / labels_N.clamp(min=1)).mean()


def joint_loss(rank_loss: torch.Tensor, critique_loss: torch.Tensor, alpha: float) -> torch.Tensor:
    """L_total = (1 - alpha) L_rank + alpha L_LM (paper eq. 7); `critique_loss` is the mean over critique tokens.

    Eq. (6) writes a sum over tokens; the mean is what alpha = 0.7 means with Hugging Face's cross-entropy.
    """
    return (1 - alpha) * rank_loss + alpha * critique_loss
