"""How well a reward model orders labelled pairs, and how sure it is of the order."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation.metrics import pairwise_accuracy, preference_calibration
from jrm_plugin.kernels import win_probability
from jrm_plugin.records.preferences import PreferencePair
from jrm_plugin.records.samples import Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.scoring.protocol import Scorer


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


def evaluate_pairs(scorer: Scorer, pairs: Sequence[PreferencePair], *, progress: bool = False) -> list[PairResult]:
    """Score both samples of every pair; one `PairResult` per pair, in order.

    Raises:
        JRMError: there is no pair, or a pair is labelled in a dimension that the model does not score.
    """
    check_pairs(pairs)
    scores = scorer.score(samples_of(pairs), progress=progress)
    chosen, rejected = scores[0::2], scores[1::2]
    dimensions = list(scores[0].mu)
    for row, pair in enumerate(pairs):
        if unknown := [name for name in pair.labels if name not in dimensions]:
            scored = ", ".join(dimensions)
            raise JRMError(f"Pair {row} is labelled in {unknown[0]!r}, but the model scores only {scored}.")
    probabilities = {name: win_probabilities(chosen, rejected, name) for name in dimensions}
    return [
        PairResult(
            pair.labels, chosen[row], rejected[row], {name: probabilities[name][row] for name in dimensions}, pair.info
        )
        for row, pair in enumerate(pairs)
    ]


def summarize(results: Sequence[PairResult], groups: Mapping[str, Mapping[str, Any]] | None = None) -> dict:
    """All numbers about `results`, as a dict that `json.dumps` can write.

    Args:
        results: what `evaluate_pairs` returned.
        groups: ways to divide the pairs, by name. Each is `{"title", "column", "keys"}`: what a report writes above the
            accuracies and above the groups' names, and the keys of a pair's `info` that hold the names of its groups.
            With one key, a pair belongs to the group named there. With two, which speak of one of its samples each, it
            belongs to what only one of them names: a pair of which both samples are blurred says nothing about blur.

    Returns:
        - `pairs`: their number; `dimensions`: the names, `"overall"` last;
        - `accuracy`: by dimension, `metrics.pairwise_accuracy` over the pairs labelled in it (ties left out; equal
          scores count as wrong);
        - `groups`: for each of `groups` its `title`, its `column` and `accuracy`: group -> dimension -> accuracy. A
          group appears in a dimension only where at least one of its pairs is labelled in it;
        - `mean_sigma`: by dimension, over all samples;
        - `calibration`: by dimension, `metrics.preference_calibration` over the pairs that are no tie in it.
    """
    check_pairs(results)
    dimensions = list(results[0].chosen.mu)
    return {
        "pairs": len(results),
        "dimensions": dimensions,
        "accuracy": {name: _accuracy(results, name) for name in dimensions},
        "groups": {
            name: {
                "title": division["title"],
                "column": division["column"],
                "accuracy": _accuracy_by_group(results, dimensions, division["keys"]),
            }
            for name, division in (groups or {}).items()
        },
        "mean_sigma": {
            name: sum(r.chosen.sigma[name] + r.rejected.sigma[name] for r in results) / (2 * len(results))
            for name in dimensions
        },
        "calibration": {name: _calibration(results, name) for name in dimensions},
    }


def check_pairs(pairs: Sequence) -> None:
    """A `JRMError` where there is nothing to evaluate."""
    if not pairs:
        raise JRMError("There is no pair to evaluate: the list is empty.")


def samples_of(pairs: Iterable[PreferencePair]) -> list[Sample]:
    """Chosen and rejected sample of every pair, by turns."""
    return [sample for pair in pairs for sample in (pair.chosen, pair.rejected)]


def win_probabilities(chosen: list[RewardScore], rejected: list[RewardScore], dimension: str) -> list[float]:
    def column(values: Iterable[float]) -> torch.Tensor:
        return torch.tensor(list(values), dtype=torch.float64)

    return win_probability(
        column(score.mu[dimension] for score in chosen),
        column(score.sigma[dimension] for score in chosen).log(),
        column(score.mu[dimension] for score in rejected),
        column(score.sigma[dimension] for score in rejected).log(),
    ).tolist()


def _accuracy(results: Sequence[PairResult], dimension: str) -> dict:
    labelled = [r for r in results if dimension in r.labels]
    return pairwise_accuracy(
        [r.chosen.mu[dimension] - r.rejected.mu[dimension] for r in labelled], [r.labels[dimension] for r in labelled]
    )


def _accuracy_by_group(results: Sequence[PairResult], dimensions: list[str], keys: Sequence[str]) -> dict:
    members: dict[str, list[PairResult]] = {}
    for result in results:
        if all(key in result.info for key in keys):
            names = [str(result.info[key]) for key in keys]
            for name in names:
                if names.count(name) == 1:
                    members.setdefault(name, []).append(result)
    return {
        group: {name: _accuracy(rows, name) for name in dimensions if any(name in r.labels for r in rows)}
        for group, rows in sorted(members.items())
    }


def _calibration(results: Sequence[PairResult], dimension: str) -> dict:
    decided = [r for r in results if r.labels.get(dimension, 0) != 0]
    # P of what people prefer. Where that is the rejected sample it is computed anew: 1 - P loses its digits near 1.
    better = [r.chosen if r.labels[dimension] == 1 else r.rejected for r in decided]
    worse = [r.rejected if r.labels[dimension] == 1 else r.chosen for r in decided]
    return preference_calibration(win_probabilities(better, worse, dimension))
