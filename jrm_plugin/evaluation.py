"""How well a reward model judges: against labelled pairs, against written critiques, and inside its hidden states.

A scorer is anything with the three methods of `RewardScorer` that are used here: `score`, `critique` and
`hidden_states`, each of a list of samples and with a keyword `progress`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from jrm_plugin.errors import JRMError
from jrm_plugin.kernels import win_probability
from jrm_plugin.metrics import effective_rank, pairwise_accuracy, preference_calibration, proportion
from jrm_plugin.samples import Critique, PreferencePair, RewardScore

GLOBAL_TAG = "<|global|>"


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


# --- preferences ------------------------------------------------------------------------------------------------------


def evaluate_pairs(scorer, pairs: list[PreferencePair], progress: bool = False) -> list[PairResult]:
    """Score both samples of every pair; one `PairResult` per pair, in order.

    Raises:
        JRMError: there is no pair, or a pair is labelled in a dimension that the model does not score.
    """
    _check_pairs(pairs)
    scores = scorer.score(_samples(pairs), progress=progress)
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
    _check_pairs(results)
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


# --- critiques --------------------------------------------------------------------------------------------------------


def split_reasoning(reasoning: str) -> tuple[str, str]:
    """The finding about the regions and the remark on the whole image: what stands before and after `<|global|>`."""
    finding, _, whole = reasoning.partition(GLOBAL_TAG)
    return finding.strip(), whole.strip()


def evaluate_critiques(scorer, pairs: list[PreferencePair], n: int | None = None, *, progress: bool = False) -> dict:
    """Let the model write critiques of both samples of the first `n` pairs and compare them with those in the pairs.

    Returns:
        - `parsed`: the share of all generated critiques that are valid `Critique`s, as a `metrics.proportion`;
        - `by_dimension`: for each dimension `parsed`, and the shares `label`, `box`, `finding`, `global`, `whole` that
          say exactly what the pair's critique says: in the regions' labels, in their boxes, before `<|global|>`, after
          it, and altogether. Each is counted over the critiques whose counterpart in the pair has that part; one that
          does not parse agrees with nothing, and a pair without critiques counts for `parsed` only. `box_iou` is the
          mean overlap of boxes (intersection over union, regions taken in order, a missing one 0) over the same
          critiques as `box`; None without any.
    """
    if n is not None and n < 1:
        raise JRMError(f"Critiques are compared on at least 1 pair, got n={n}.")
    pairs = pairs if n is None else pairs[:n]
    _check_pairs(pairs)
    written = scorer.critique(_samples(pairs), progress=progress)
    expected = [critiques for pair in pairs for critiques in (pair.chosen_critiques, pair.rejected_critiques)]
    by_dimension = {
        name: _agreement([critiques[name] for critiques in written], [critiques.get(name) for critiques in expected])
        for name in written[0]
    }
    parsed = [each["parsed"] for each in by_dimension.values()]
    return {
        "parsed": proportion(sum(each["correct"] for each in parsed), sum(each["n"] for each in parsed)),
        "by_dimension": by_dimension,
    }


def _agreement(written: list, expected: list[Critique | None]) -> dict:
    # a repaired critique was not valid as it was written
    parsed = [critique if type(critique) is Critique else None for critique in written]
    agrees: dict[str, list[bool]] = {part: [] for part in ("label", "box", "finding", "global", "whole")}
    overlaps: list[float] = []
    for critique, oracle in zip(parsed, expected, strict=True):
        if oracle is None:
            continue
        told = _parts(critique) if critique else {}
        for part, value in _parts(oracle).items():
            if value:
                agrees[part].append(told.get(part) == value)
        if oracle.edit_region:
            overlaps.append(_mean_overlap(critique, oracle))
    return {
        "parsed": proportion(sum(critique is not None for critique in parsed), len(parsed)),
        **{part: proportion(sum(values), len(values)) for part, values in agrees.items()},
        "box_iou": sum(overlaps) / len(overlaps) if overlaps else None,
    }


def _parts(critique: Critique) -> dict:
    finding, whole_image = split_reasoning(critique.reasoning)
    return {
        "label": [region.label for region in critique.edit_region],
        "box": [region.bbox_2d for region in critique.edit_region],
        "finding": finding,
        "global": whole_image,
        "whole": critique.to_json(),
    }


def _mean_overlap(critique: Critique | None, oracle: Critique) -> float:
    boxes = [region.bbox_2d for region in critique.edit_region] if critique else []
    targets = [region.bbox_2d for region in oracle.edit_region]
    return sum(_overlap(a, b) for a, b in zip(boxes, targets, strict=False)) / max(len(boxes), len(targets))


def _overlap(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    if a == b:
        return 1.0  # also where both are empty
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    areas = sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b))
    return common / (areas - common) if areas > common else 0.0


# --- representation ---------------------------------------------------------------------------------------------------


def evaluate_representation(
    scorer, pairs: list[PreferencePair], *, bootstrap: int = 200, seed: int = 0, progress: bool = False
) -> dict:
    """`metrics.effective_rank` of the reward token's hidden state over both samples of all pairs (section 4.3).

    The two samples of a pair share their prompt, so the interval resamples whole pairs.
    """
    _check_pairs(pairs)
    hidden = scorer.hidden_states(_samples(pairs), progress=progress).to("cpu", torch.float64).numpy()
    # 2 rows a pair, or 2 per dimension where each dimension is read in a sequence of its own.
    return effective_rank(hidden, bootstrap=bootstrap, group_size=len(hidden) // len(pairs), seed=seed)


def _samples(pairs: list[PreferencePair]) -> list:
    return [sample for pair in pairs for sample in (pair.chosen, pair.rejected)]


def _check_pairs(pairs: list) -> None:
    if not pairs:
        raise JRMError("There is no pair to evaluate: the list is empty.")
