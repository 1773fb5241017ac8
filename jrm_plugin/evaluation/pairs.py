"""How well a reward model orders labelled pairs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation.metrics import pairwise_accuracy, preference_calibration
from jrm_plugin.kernels import win_probability
from jrm_plugin.records.preferences import PreferencePair
from jrm_plugin.records.scores import RewardScore


@dataclass(frozen=True)
class PairResult:
    """What a model said of one pair.

    Attributes:
        labels: by dimension or `"overall"`: 1 people prefer the chosen sample, 0 a tie, -1 they prefer the rejected.
        chosen, rejected: the scores.
        win_probability: P(chosen is better) by dimension and overall, exact (paper eq. 4).
        info: the pair's `info`.
    """

    labels: Mapping[str, int]
    chosen: RewardScore
    rejected: RewardScore
    win_probability: Mapping[str, float]
    info: Mapping[str, Any] = field(default_factory=dict)


def evaluate_pairs(scorer, pairs: list[PreferencePair], progress: bool = False) -> list[PairResult]:
    """Score both samples of every pair; one `PairResult` per pair, in order.

    Raises:
        JRMError: there is no pair, or a pair is labelled in a dimension that the model does not score.
    """
    check_pairs(pairs)
    scores = scorer.score(samples_of(pairs), progress=progress)
    chosen, rejected = scores[0::2], scores[1::2]
    names = list(scores[0].mu)
    for row, pair in enumerate(pairs):
        if unknown := [name for name in pair.labels if name not in names]:
            raise JRMError(f"Pair {row} is labelled in {unknown[0]!r}, but the model scores only {', '.join(names)}.")
    probability = {name: _win_probability(chosen, rejected, name) for name in names}
    return [
        PairResult(pair.labels, i, j, {name: probability[name][row] for name in names}, pair.info)
        for row, (pair, i, j) in enumerate(zip(pairs, chosen, rejected, strict=True))
    ]


def summarize(results: list[PairResult]) -> dict:
    """All numbers about `results`, as a dict that `json.dumps` can write.

    Returns:
        - `pairs`: their number; `dimensions`: the names, `"overall"` last;
        - `accuracy`: by dimension, `metrics.pairwise_accuracy` over the pairs labelled in it (ties left out; equal
          scores count as wrong);
        - `by_edit`: kind of edit (`info["edit"]`) -> dimension -> accuracy;
        - `by_failure`, `by_quality`: what became of the instruction (`info["failure1"]`, `info["failure2"]`) or to the
          picture (`info["quality1"]`, `info["quality2"]`) -> dimension -> accuracy, over the pairs in which exactly one
          of the two samples shows it;
        - `mean_sigma`: by dimension, over all samples;
        - `calibration`: by dimension, `metrics.preference_calibration` over the pairs that are no tie in it.

        A group appears in a dimension only where at least one of its pairs is labelled in it.
    """
    check_pairs(results)
    names = list(results[0].chosen.mu)
    return {
        "pairs": len(results),
        "dimensions": names,
        "accuracy": {name: _accuracy(results, name) for name in names},
        "by_edit": _by_group(results, names, lambda info: {info["edit"]} if "edit" in info else set()),
        "by_failure": _by_group(results, names, lambda info: _shown_once(info, "failure")),
        "by_quality": _by_group(results, names, lambda info: _shown_once(info, "quality")),
        "mean_sigma": {
            name: sum(r.chosen.sigma[name] + r.rejected.sigma[name] for r in results) / (2 * len(results))
            for name in names
        },
        "calibration": {name: _calibration(results, name) for name in names},
    }


def _win_probability(chosen: list[RewardScore], rejected: list[RewardScore], name: str) -> list[float]:
    def column(values):
        return torch.tensor(list(values), dtype=torch.float64)

    return win_probability(
        column(score.mu[name] for score in chosen),
        column(score.sigma[name] for score in chosen).log(),
        column(score.mu[name] for score in rejected),
        column(score.sigma[name] for score in rejected).log(),
    ).tolist()


def _accuracy(results: list[PairResult], name: str) -> dict:
    labelled = [r for r in results if name in r.labels]
    return pairwise_accuracy(
        [r.chosen.mu[name] - r.rejected.mu[name] for r in labelled], [r.labels[name] for r in labelled]
    )


def _by_group(results: list[PairResult], names: list[str], groups_of: Callable[[Mapping], set]) -> dict:
    members: dict[str, list[PairResult]] = {}
    for result in results:
        for group in groups_of(result.info):
            members.setdefault(str(group), []).append(result)
    return {
        group: {name: _accuracy(rows, name) for name in names if any(name in r.labels for r in rows)}
        for group, rows in sorted(members.items())
    }


def _shown_once(info: Mapping, key: str) -> set:
    if f"{key}1" not in info or f"{key}2" not in info:
        return set()
    return {info[f"{key}1"]} ^ {info[f"{key}2"]}


def _calibration(results: list[PairResult], name: str) -> dict:
    decided = [r for r in results if r.labels.get(name, 0) != 0]
    # P of what people prefer. Where that is the rejected sample it is computed anew: 1 - P loses its digits near 1.
    better = [r.chosen if r.labels[name] == 1 else r.rejected for r in decided]
    worse = [r.rejected if r.labels[name] == 1 else r.chosen for r in decided]
    return preference_calibration(_win_probability(better, worse, name))


def samples_of(pairs: list[PreferencePair]) -> list:
    return [sample for pair in pairs for sample in (pair.chosen, pair.rejected)]


def check_pairs(pairs: list) -> None:
    if not pairs:
        raise JRMError("There is no pair to evaluate: the list is empty.")
