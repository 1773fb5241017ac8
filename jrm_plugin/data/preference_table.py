"""Preference pairs and ranked groups as JSON Lines, one a line, which `read_preferences` reads by its columns' names.

`source`, `instruction`, `a`, `b` and `label` (`A`, `B` or `tie`); by dimension `label_…`, `chosen_score_…`,
`rejected_score_…`, `chosen_critique_…` and `rejected_critique_…`, of which `chosen` is about `a`; what else is known.
Of a group `candidates`, `ranking` and `scores`, and by dimension `ranking_…`, `scores_…` and `critiques_…`: lists, one
item a candidate, null where there is none.
It holds what EditReward's format has no place for: texts as answers, images in memory, dimensions and labels of one's
own, and pairs without scores.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from jrm_plugin.data.columns import is_understood
from jrm_plugin.errors import JRMError
from jrm_plugin.files import write_jsonl
from jrm_plugin.records.images import is_data_url, to_data_url
from jrm_plugin.records.preferences import PreferencePair, RankedGroup
from jrm_plugin.records.samples import OVERALL, Sample, StoredImage

_LABELS = {1: "A", 0: "tie", -1: "B"}
_READERS_INFO = {"file", "row"}  # added by the readers, not written back


def write_preferences(path: str | Path, pairs: Iterable[PreferencePair | RankedGroup]) -> Path:
    """Writes pairs, or groups, with their critiques; `read_preferences` gives them back, the better one as `chosen`.

    Paths of images under the folder of `path` are written relative to it, others absolute; images in memory become
    `data:` URLs without loss. A key of `info` that a reader would take for a field gets `info_` before its name.

    Raises:
        JRMError: a pair says what the table cannot: nothing tells which sample is the better one, or some pairs have an
            overall label and others have none; there are pairs and groups; or the file cannot be written.
    """
    path = Path(path)
    pairs = list(pairs)
    check_preferences(pairs, path)
    rows = (_to_list(p, path.parent) if isinstance(p, RankedGroup) else _to_row(p, path.parent) for p in pairs)
    return write_jsonl(path, rows)


def check_preferences(pairs: Sequence[PreferencePair | RankedGroup], path: Path) -> None:
    """Raises the [`JRMError`] of `write_preferences` for pairs that have no place in a table; writes nothing."""
    labelled = [OVERALL in pair.ranks for pair in pairs]
    for number, pair in enumerate(pairs, 1):
        problem = ""
        is_group = isinstance(pair, RankedGroup)
        if is_group != isinstance(pairs[0], RankedGroup):
            problem = "some are pairs and some are groups; write them apart"
        elif not is_group and any(labelled) and not labelled[number - 1]:
            problem = "it has no overall label, and others have one; write them apart"
        elif not is_group and not labelled[number - 1] and not (pair.chosen_scores and pair.rejected_scores):
            problem = "it has neither an overall label nor scores"
        elif any(len(s.response_images) + bool(s.response_text) > 1 for s in pair.candidates):
            problem = "a response must be one image or a text"
        if problem:
            raise JRMError(f"pair {number} does not fit into {path}: {problem}.")


def _prompt(sample: Sample, root: Path) -> dict[str, Any]:
    sources = [_to_text(image, root) for image in sample.prompt_images]
    source = sources if len(sources) > 1 else sources[0] if sources else None
    return {"source": source, "instruction": sample.prompt_text}


def _to_list(group: RankedGroup, root: Path) -> dict[str, Any]:
    row = _prompt(group.candidates[0], root)
    row["candidates"] = [_answer(candidate, root) for candidate in group.candidates]
    for field, by_name in (("ranking", group.ranks), ("scores", group.scores)):
        row |= {_column(field, name): [*values] for name, values in by_name.items()}
    for name in dict.fromkeys(chain(*group.critiques)):
        row[f"critiques_{name}"] = [name in c and json.loads(c[name].to_json()) or None for c in group.critiques]
    return row | _known(group.info)


def _to_row(pair: PreferencePair, root: Path) -> dict[str, Any]:
    row = _prompt(pair.chosen, root)
    row |= {"a": _answer(pair.chosen, root), "b": _answer(pair.rejected, root)}
    row |= {_column("label", name): _LABELS[label] for name, label in pair.labels.items()}
    for side in ("chosen", "rejected"):
        row |= {_column(f"{side}_score", name): s for name, s in (getattr(pair, f"{side}_scores") or {}).items()}
        critiques = getattr(pair, f"{side}_critiques")
        row |= {f"{side}_critique_{name}": json.loads(critique.to_json()) for name, critique in critiques.items()}
    return row | _known(pair.info)


def _known(info: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: value for name, value in info.items() if name not in _READERS_INFO}
    return {f"info_{name}" if is_understood(name) else name: value for name, value in known.items()}


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
