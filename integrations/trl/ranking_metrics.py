"""What is logged of scores and ranks: every two candidates as a pair, and groups of three and more as wholes.

Shape suffixes: N groups, G candidates of the largest, P pairs, C the dimensions and overall, K a candidate's rank, mu
and log sigma, and the loss of its group's label.
"""

from collections.abc import Sequence

import numpy as np
import torch

from jrm_plugin.evaluation.metrics import preference_calibration
from jrm_plugin.kernels import win_probability


def ranking_metrics(batches: Sequence[torch.Tensor], names: Sequence[str], *, counts: bool) -> dict[str, float]:
    """`rank_loss`, and by name `sigma/…`, `accuracy/…`, `brier/…`, `calibration_error/…` and [`group_accuracies`].

    Args:
        batches: `[N, G, C, K]` each; NaN for what is missing.
        names: of the C columns.
        counts: also say of how many pairs and groups an accuracy is: `pairs/…`, `groups/…`.
    """
    loss_NC = torch.cat([groups[:, 0, :, 3] for groups in batches]).numpy()
    metrics = {"rank_loss": float(np.nanmean(np.nanmean(loss_NC, axis=1)))}
    label_PC, margin_PC, probability_PC = map(np.concatenate, zip(*map(_pairs, batches), strict=True))
    for c, name in enumerate(names):
        log_sigma_S = torch.cat([groups[:, :, c, 2].flatten() for groups in batches])
        metrics[f"sigma/{name}"] = float(log_sigma_S[~log_sigma_S.isnan()].exp().mean())
        decided = np.abs(label_PC[:, c]) == 1
        if decided.any():
            label_P, p = label_PC[decided, c], probability_PC[decided, c]
            metrics[f"accuracy/{name}"] = float((label_P * margin_PC[decided, c] > 0).mean())
            if counts:
                metrics[f"pairs/{name}"] = int(decided.sum())
            fit = preference_calibration(np.where(label_P > 0, p, 1 - p))
            metrics[f"brier/{name}"] = fit["brier"]
            metrics[f"calibration_error/{name}"] = fit["expected_calibration_error"]
        ranked = [(g[:, :, c, 0], g[:, :, c, 1]) for g in batches]
        whole, best, groups = map(sum, zip(*(group_accuracies(*of_batch) for of_batch in ranked), strict=True))
        if groups:
            metrics |= {f"k_way/{name}": whole / groups, f"best_of_k/{name}": best / groups}
            if counts:
                metrics[f"groups/{name}"] = groups
    return metrics


def group_accuracies(rank_NG: torch.Tensor, mu_NG: torch.Tensor) -> tuple[int, int, int]:
    """Of groups of three or more ranked candidates: how many are right, how many in their best, how many in all.

    K-way accuracy is EditReward-Bench's (Wu et al. 2025): a group is right if each of its pairs is; pairs that people
    call a tie are left out, and equal scores are wrong. Best-of-K accuracy (RewardBench 2) asks whether the highest
    score is that of a candidate of the best rank. A group in which all are tied counts in neither.
    """
    ranked_NG = ~rank_NG.isnan()
    better_NGG = rank_NG[:, :, None] < rank_NG[:, None, :]  # false where a rank is missing
    counted_N = (ranked_NG.sum(1) > 2) & better_NGG.any((1, 2))
    right_NGG = mu_NG[:, :, None] > mu_NG[:, None, :]
    whole_N = (right_NGG | ~better_NGG).all((1, 2))
    is_best_NG = rank_NG == rank_NG.nan_to_num(nan=torch.inf).amin(1, keepdim=True)
    best_N, other_N = (
        mu_NG.masked_fill(~among_NG, -torch.inf).amax(1) for among_NG in (is_best_NG, ranked_NG & ~is_best_NG)
    )
    return int((counted_N & whole_N).sum()), int((counted_N & (best_N > other_N)).sum()), int(counted_N.sum())


def _pairs(groups_NGCK: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Label (1: the first is better, 0, -1, NaN), margin of mu and P(first is better) of every two candidates."""
    first_P, second_P = torch.triu_indices(groups_NGCK.shape[1], groups_NGCK.shape[1], offset=1)
    (rank_i, mu_i, log_sigma_i, _), (rank_j, mu_j, log_sigma_j, _) = (
        groups_NGCK[:, index].flatten(0, 1).unbind(-1) for index in (first_P, second_P)
    )
    probability = win_probability(mu_i, log_sigma_i, mu_j, log_sigma_j)
    return torch.sign(rank_j - rank_i).numpy(), (mu_i - mu_j).numpy(), probability.numpy()
