"""Preference pairs as JSON Lines, a pair a line, which `read_preferences` reads by the names of its columns.

`source`, `instruction`, `a`, `b` and `label` (`A`, `B` or `tie`); by dimension `label_…`, `chosen_score_…`,
`rejected_score_…`, `chosen_critique_…` and `rejected_critique_…`, of which `chosen` is about `a`; what else is known.
It holds what EditReward's format has no place for: texts as answers, images in memory, dimensions and labels of one's
own, and pairs without scores.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jrm_plugin.data.columns import is_understood
from jrm_plugin.errors import JRMError
from jrm_plugin.files import write_jsonl
from jrm_plugin.records.images import is_data_url, to_data_url
from jrm_plugin.records.preferences import PreferencePair
from jrm_plugin.records.samples import OVERALL, Sample, StoredImage

_LABELS = {1: "A", 0: "tie", -1: "B"}
_READERS_INFO = {"file", "row"}  # added by the readers, not written back


def write_preferences(path: str | Path, pairs: Iterable[PreferencePair]) -> Path:
    """Writes pairs with their critiques; `read_preferences` gives them back, the better one as `chosen`.

    Paths of images under the folder of `path` are written relative to it, others absolute; images in memory become
    `data:` URLs without loss. A key of `info` that a reader would take for a field gets `info_` before its name.

    Raises:
        JRMError: a pair says what the table cannot: nothing tells which sample is the better one, or some pairs have an
            overall label and others have none; or the file cannot be written.
    """
    path = Path(path)
    pairs = list(pairs)
    check_preferences(pairs, path)
    return write_jsonl(path, (_to_row(pair, path.parent) for pair in pairs))


def check_preferences(pairs: Sequence[PreferencePair], path: Path) -> None:
    """Raises the [`JRMError`] of `write_preferences` for pairs that have no place in a table; writes nothing."""
    labelled = [OVERALL in pair.labels for pair in pairs]
    for number, pair in enumerate(pairs, 1):
        problem = ""
        if any(labelled) and not labelled[number - 1]:
            problem = "it has no overall label, and others have one; write them apart"
        elif not labelled[number - 1] and not (pair.chosen_scores and pair.rejected_scores):
            problem = "it has neither an overall label nor scores"
        elif any(len(s.response_images) + bool(s.response_text) > 1 for s in (pair.chosen, pair.rejected)):
            problem = "a response must be one image or a text"
        if problem:
            raise JRMError(f"pair {number} does not fit into {path}: {problem}.")


def _to_row(pair: PreferencePair, root: Path) -> dict[str, Any]:
    sources = [_to_text(image, root) for image in pair.chosen.prompt_images]
    row: dict[str, Any] = {"source": sources if len(sources) > 1 else sources[0] if sources else None}
    row["instruction"] = pair.chosen.prompt_text
    row |= {"a": _answer(pair.chosen, root), "b": _answer(pair.rejected, root)}
    row |= {_column("label", name): _LABELS[label] for name, label in pair.labels.items()}
    for side in ("chosen", "rejected"):
        row |= {_column(f"{side}_score", name): s for name, s in (getattr(pair, f"{side}_scores") or {}).items()}
        critiques = getattr(pair, f"{side}_critiques")
        row |= {f"{side}_critique_{name}": json.loads(critique.to_json()) for name, critique in critiques.items()}
    known = {name: value for name, value in pair.info.items() if name not in _READERS_INFO}
    return row | {f"info_{name}" if is_understood(name) else name: value for name, value in known.items()}


def _column(field: str, dimension: str) -> str:
    return field if dimension == OVERALL else f"{field}_{dimension}"


def _answer(sample: Sample, root: Path) -> str:
    """The one image of a response, or its text."""
    return _to_text(sample.response_images[0], root) if sample.response_images else sample.response_text


def _to_text(image: StoredImage, root: Path) -> str:
    if not isinstance(image, str):
        return to_data_url(image)
    if is_data_url(image) or "://" in image:
        return image
    absolute, folder = os.path.abspath(image), os.path.join(os.path.abspath(root), "")
    return absolute.removeprefix(folder)
