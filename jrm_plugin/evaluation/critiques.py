"""How well the critiques that a model writes agree with those that pairs carry."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation.metrics import proportion
from jrm_plugin.evaluation.pairs import check_pairs, samples_of
from jrm_plugin.records.critiques import Critique, UnparsedCritique
from jrm_plugin.records.preferences import PreferencePair

if TYPE_CHECKING:
    from jrm_plugin.scoring.scorer import RewardScorer


def evaluate_critiques(
    scorer: "RewardScorer", pairs: Sequence[PreferencePair], n: int | None = None, *, progress: bool = False
) -> dict:
    """Let the model write critiques of both samples of the first `n` pairs and compare them with those in the pairs.

    Args:
        scorer: a scorer that writes: of a `RewardScorer` it takes `critique` only.
        pairs: with the critiques that are expected, or without any.
        n: how many pairs; by default all.
        progress: show a bar.

    Returns:
        - `parsed`: the share of all generated critiques that are valid `Critique`s, as a `metrics.proportion`;
        - `right`: the share that say exactly what the pair's critique says, of those whose pair has one;
        - `by_dimension`: for each dimension `parsed`, and the shares `label`, `box`, `finding`, `global`, `whole` that
          say exactly what the pair's critique says: in the regions' labels, in their boxes, before `<|global|>`, after
          it, and altogether. Each is counted over the critiques whose counterpart in the pair has that part; one that
          does not parse agrees with nothing, and a pair without critiques counts for `parsed` only. `box_iou` is the
          mean overlap of boxes (intersection over union, regions taken in order, a missing one 0) over the same
          critiques as `box`; None without any.

    Raises:
        JRMError: there is no pair, `n` is below 1, or a sample cannot be read.
    """
    if n is not None and n < 1:
        raise JRMError(f"Critiques are compared on at least 1 pair, got n={n}.")
    pairs = pairs if n is None else pairs[:n]
    check_pairs(pairs)
    written = scorer.critique(samples_of(pairs), progress=progress)
    expected = [critiques for pair in pairs for critiques in (pair.chosen_critiques, pair.rejected_critiques)]
    by_dimension = {
        name: _agreement([critiques[name] for critiques in written], [critiques.get(name) for critiques in expected])
        for name in written[0]
    }
    return {
        "parsed": _over_dimensions(by_dimension, "parsed"),
        "right": _over_dimensions(by_dimension, "whole"),
        "by_dimension": by_dimension,
    }


def _over_dimensions(by_dimension: dict[str, dict], part: str) -> dict:
    shares = [agreement[part] for agreement in by_dimension.values()]
    return proportion(sum(share["correct"] for share in shares), sum(share["n"] for share in shares))


def _agreement(written: list[Critique | UnparsedCritique], expected: list[Critique | None]) -> dict:
    # A `RepairedCritique` was not valid as it was written.
    parsed = [critique if type(critique) is Critique else None for critique in written]
    agrees: dict[str, list[bool]] = {part: [] for part in ("label", "box", "finding", "global", "whole")}
    overlaps: list[float] = []
    for critique, target in zip(parsed, expected, strict=True):
        if target is None:
            continue
        parts = _parts(critique) if critique else {}
        for part, value in _parts(target).items():
            if value:
                agrees[part].append(parts.get(part) == value)
        if target.edit_region:
            overlaps.append(_mean_overlap(critique, target))
    return {
        "parsed": proportion(sum(critique is not None for critique in parsed), len(parsed)),
        **{part: proportion(sum(values), len(values)) for part, values in agrees.items()},
        "box_iou": sum(overlaps) / len(overlaps) if overlaps else None,
    }


def _parts(critique: Critique) -> dict:
    finding, whole_image = critique.split_at_global()
    return {
        "label": [region.label for region in critique.edit_region],
        "box": [region.bbox_2d for region in critique.edit_region],
        "finding": finding,
        "global": whole_image,
        "whole": critique.to_json(),
    }


def _mean_overlap(critique: Critique | None, target: Critique) -> float:
    boxes = [region.bbox_2d for region in critique.edit_region] if critique else []
    targets = [region.bbox_2d for region in target.edit_region]
    return sum(_overlap(a, b) for a, b in zip(boxes, targets, strict=False)) / max(len(boxes), len(targets))


def _overlap(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Intersection over union."""
    if a == b:
        return 1.0  # also where both are empty
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    areas = sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b))
    return common / (areas - common) if areas > common else 0.0
