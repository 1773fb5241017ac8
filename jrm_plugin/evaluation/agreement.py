"""How well a judge agrees with people over labelled pairs: what benchmarks of judges report.

Shape suffixes: N pairs, K thresholds, G groups. A margin is score(first) - score(second), NaN where the judge has no
score: such a pair is right by no rule. A label is 1 (the first is better), 0 (a tie) or -1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation.metrics import proportion
from jrm_plugin.extras import require


@dataclass(frozen=True)
class Judged:
    """What a judge said of N pairs, as columns.

    Attributes:
        label_N: what people say.
        margin_N: what the judge says.
        probability_N: its P(the first is better), or None of a judge that has no sigma.
        sigma_N: how unsure it is of the margin, sqrt(sigma² of both scores), or None likewise.
        prompt_N: the number of each pair's prompt; pairs of one prompt are resampled together.
        info: further columns, by which pairs are divided.
    """

    label_N: np.ndarray
    margin_N: np.ndarray
    prompt_N: np.ndarray
    probability_N: np.ndarray | None = None
    sigma_N: np.ndarray | None = None
    info: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.label_N)

    def take(self, rows: np.ndarray) -> "Judged":
        """Some of the pairs: a mask, or numbers of rows, which may repeat."""
        return replace(
            self,
            label_N=self.label_N[rows],
            margin_N=self.margin_N[rows],
            prompt_N=self.prompt_N[rows],
            probability_N=None if self.probability_N is None else self.probability_N[rows],
            sigma_N=None if self.sigma_N is None else self.sigma_N[rows],
            info={name: values[rows] for name, values in self.info.items()},
        )

    def where(self, column: str, value: Any) -> "Judged":
        return self.take(self.info[column] == value)


Statistic = Callable[[Judged], float | None]  # None where there is nothing to divide by


# --- accuracy ---------------------------------------------------------------------------------------------------------


def is_right(judged: Judged, threshold: float | None = None) -> np.ndarray:
    """Which pairs are judged as people do, `[N]`.

    With a threshold, a margin of at most that size says tie. Without one the judge never says tie: a pair that people
    call a tie is wrong, and so is a margin of exactly 0.
    """
    ordered_N = (np.sign(judged.margin_N) == judged.label_N) & (judged.label_N != 0)
    if threshold is None:
        return ordered_N
    tie_N = np.abs(judged.margin_N) <= threshold
    return np.where(judged.label_N == 0, tie_N, ordered_N & ~tie_N)


def decided(judged: Judged) -> Judged:
    """The pairs that people do not call a tie."""
    return judged.take(judged.label_N != 0)


def accuracy(judged: Judged) -> float | None:
    """Accuracy without ties, C / (C + D + Tm): pairs that people call a tie are left out (Deutsch et al. 2023)."""
    return _mean(is_right(decided(judged)))


def best_threshold(judged: Judged) -> tuple[float, int]:
    """The threshold with which most pairs are right, the smallest of the best, and how many are right.

    Tried are 0 and the size of every margin, which are all that differ. Pairs of equal margins change sides together,
    so the order of the pairs does not matter.
    """
    size_N = np.abs(judged.margin_N)
    finite_N = np.isfinite(size_N)
    ordered_N = is_right(judged)
    thresholds_K = np.unique(np.append(size_N[finite_N], 0.0))
    ties_K = np.searchsorted(np.sort(size_N[finite_N & (judged.label_N == 0)]), thresholds_K, side="right")
    lost_K = np.searchsorted(np.sort(size_N[ordered_N]), thresholds_K, side="right")
    right_K = ordered_N.sum() + ties_K - lost_K
    best = int(np.argmax(right_K))
    return float(thresholds_K[best]), int(right_K[best])


def accuracy_with_ties(judged: Judged) -> float | None:
    """(C + Thm) / N with the best threshold (Deutsch et al. 2023). It is chosen on these pairs, so it flatters."""
    return best_threshold(judged)[1] / len(judged) if len(judged) else None


def accuracy_at(threshold: float) -> Statistic:
    """(C + Thm) / N with a fixed threshold: the rule of a benchmark that has one."""

    def accuracy_at_threshold(judged: Judged) -> float | None:
        return _mean(is_right(judged, threshold))

    return accuracy_at_threshold


def group_accuracy(judged: Judged) -> float | None:
    """The share of groups (`info["group"]`) of which every pair is right: a whole ranking of 3 or 4 candidates.

    `info["group_size"]` is the number of a group's pairs; what is drawn twice counts twice.
    """
    _, group_N = np.unique(judged.info["group"], return_inverse=True)
    right_G = np.bincount(group_N, weights=~is_right(judged)) == 0
    return float(np.average(right_G[group_N], weights=1 / judged.info["group_size"])) if len(group_N) else None


def macro(column: str) -> Statistic:
    """The mean of the accuracies without ties of a column's groups, each of which counts the same."""

    def macro_accuracy(judged: Judged) -> float | None:
        pairs = decided(judged)
        _, group_N = np.unique(pairs.info[column], return_inverse=True)
        return _mean(np.bincount(group_N, weights=is_right(pairs)) / np.bincount(group_N))

    return macro_accuracy


def _mean(right_N: np.ndarray) -> float | None:
    return float(right_N.mean()) if len(right_N) else None


# --- how sure, and how right ------------------------------------------------------------------------------------------


def risk_coverage(judged: Judged, uncertainty_N: np.ndarray) -> dict | None:
    """Whether a judge is wrong where it is unsure: the error among the share of pairs that it is surest of.

    Args:
        judged: pairs that are no ties.
        uncertainty_N: how unsure it is of each.

    Returns:
        `coverage` and `risk`, the curve, one point a pair; `area` under it (the mean risk over all coverages; Geifman &
        El-Yaniv 2017), beside `area_random`, that of an uncertainty that says nothing (the overall error), and
        `area_oracle`, that of one that puts every error last. None without any pair.

    Pairs of equal uncertainty are taken in no order: each counts as their mean.
    """
    wrong_N = ~is_right(judged)
    n = len(wrong_N)
    if not n:
        return None
    _, block_N, counts = np.unique(uncertainty_N, return_inverse=True, return_counts=True)
    mean_wrong = np.bincount(block_N, weights=wrong_N) / counts
    coverage_N = np.arange(1, n + 1) / n
    risk_N = np.cumsum(np.repeat(mean_wrong, counts)) / np.arange(1, n + 1)
    oracle_N = np.cumsum(np.sort(wrong_N)) / np.arange(1, n + 1)
    return {
        "coverage": coverage_N.tolist(),
        "risk": risk_N.tolist(),
        "area": float(risk_N.mean()),
        "area_random": float(wrong_N.mean()),
        "area_oracle": float(oracle_N.mean()),
        "n": n,
    }


def rank_correlations(score_N: np.ndarray, known_N: np.ndarray) -> dict:
    """Spearman's rho and Kendall's tau-b of scores and what people gave: `{"spearman", "kendall", "n"}`.

    None where there are fewer than two, or all of one side are equal.
    """
    require("scipy", "a rank correlation", install="jrm-plugin[eval]")
    from scipy.stats import kendalltau, spearmanr

    if len(score_N) != len(known_N):
        raise JRMError(f"A rank correlation needs as many scores as ratings, got {len(score_N)} and {len(known_N)}.")
    if len(score_N) < 2 or np.ptp(score_N) == 0 or np.ptp(known_N) == 0:
        return {"spearman": None, "kendall": None, "n": len(score_N)}
    spearman, kendall = spearmanr(score_N, known_N).statistic, kendalltau(score_N, known_N).statistic
    return {"spearman": float(spearman), "kendall": float(kendall), "n": len(score_N)}


# --- intervals --------------------------------------------------------------------------------------------------------


def resampled_rows(prompt_N: np.ndarray, resamples: int, seed: int = 0) -> list[np.ndarray]:
    """Rows of `resamples` bootstrap samples: prompts are drawn with replacement, with all of their pairs."""
    _, unit_N = np.unique(prompt_N, return_inverse=True)
    units, rows = int(unit_N.max(initial=-1)) + 1, np.arange(len(unit_N))
    rng = np.random.default_rng(seed)
    drawn = (np.bincount(rng.integers(0, units, units), minlength=units) for _ in range(resamples if units else 0))
    return [np.repeat(rows, counts[unit_N]) for counts in drawn]


def with_interval(statistic: Statistic, judged: Judged, resamples: int) -> dict:
    """A statistic, a share, with its 95 % bootstrap interval over prompts: `{"value", "low", "high", "n"}`.

    Where all resamples agree, as where everything is right, they say nothing of how sure the value is: then it is
    Wilson's interval over prompts.
    """
    value = statistic(judged)
    values = [statistic(judged.take(rows)) for rows in resampled_rows(judged.prompt_N, resamples)]
    bounds = _interval(values)
    if value is not None and len({*values}) == 1:
        prompts = len(np.unique(judged.prompt_N))
        bounds = {name: proportion(value * prompts, prompts)[name] for name in ("low", "high")}
    return {"value": value, **bounds, "n": len(judged)}


def difference(statistic: Statistic, first: Judged, second: Judged, resamples: int) -> dict:
    """A statistic of one judge less that of another on the same pairs, with its paired 95 % bootstrap interval."""
    values = []
    for rows in resampled_rows(first.prompt_N, resamples):
        pair = statistic(first.take(rows)), statistic(second.take(rows))
        values.append(None if None in pair else pair[0] - pair[1])
    whole = statistic(first), statistic(second)
    value = None if None in whole else whole[0] - whole[1]
    return {"value": value, **_interval(values), "n": len(first)}


def _interval(values: list[float | None]) -> dict:
    present = [value for value in values if value is not None]
    if not present:
        return {"low": None, "high": None}
    low, high = np.quantile(present, (0.025, 0.975))
    return {"low": float(low), "high": float(high)}
