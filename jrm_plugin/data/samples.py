"""Samples to score in bulk: a table, a folder of edits, or images that are candidates for one instruction.

A table is JSONL, one object a line, `{"source": path or list or null, "instruction": text, "edited": path}`, paths
relative to the file's folder; or the same as any other kind that `tables.py` reads. `records.names` has the other names
that are taken; further keys are carried along.

Folder: each sub-folder with images is one edit with `instruction.txt`, `source.*` (or `source_1.*`, `source_2.*`, …;
none for a generation), and the images to score under any other name. Capital letters make no difference. Hidden files
and what systems leave beside images (`._x.png`, `__MACOSX`, `Thumbs.db`) are no part of it.

A glob (`shards/*.jsonl`) stands for all files it matches, in order of their names.
"""

import glob
import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from jrm_plugin.data.columns import Columns, check_columns
from jrm_plugin.data.reading import BadRecord, need, to_edit
from jrm_plugin.data.tables import is_dataset_folder, read_table
from jrm_plugin.errors import JRMError
from jrm_plugin.files import content_digest, read_text
from jrm_plugin.records.checks import checked_text
from jrm_plugin.records.images import digest, is_data_url
from jrm_plugin.records.names import ACCEPTED, names_in, refuse_hidden_source, refuse_near_names, value_of
from jrm_plugin.records.samples import Sample, StoredImage

logger = logging.getLogger(__name__)

_SOURCE = re.compile(r"source(?:[ _-]?([0-9]+))?", re.IGNORECASE)
# What people call a source, too: refused where there is none, because it would be scored as an edit.
_LIKE_A_SOURCE = re.compile(r"sources?|sorce|src|original|before|input|reference|ref", re.IGNORECASE)
_INSTRUCTION = "instruction.txt"
_COMPANIONS = {"__macosx", "thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class BulkItem:
    """A sample to score and the record it came from."""

    sample: Sample
    record: dict


def read_samples(
    path: Path, *, columns: Columns | None = None, instruction: str | None = None, sources: Sequence[str] = ()
) -> list[BulkItem]:
    """All samples of a table of any kind that `read_table` reads, a folder of edits, or a glob of tables; or the images
    of a folder or a glob, for one instruction.

    Says, by a warning, how many samples are of which task where they are of several, and what files of a folder are no
    images.

    Args:
        path: the file, folder, glob or hub name.
        columns: which columns are `source`, `instruction` and `edited`, where names differ from the usual ones.
        instruction: what all images of `path` were made for; None where `path` itself says it.
        sources: the images that they were made from, beside an instruction.

    Raises:
        JRMError: a line is no such object, an image may be a source and is not named as one, or there is nothing to
            score; names the file and line.
    """
    if instruction is not None:
        if columns:
            raise JRMError("columns are those of a table; leave them out beside an instruction.")
        items = _read_images(path, instruction, list(sources))
    elif sources:
        raise JRMError("a source belongs to an instruction; give both, or neither where the input has them.")
    elif path.is_dir() and not is_dataset_folder(path):
        items = _read_folder(path)
    else:
        items = [item for file in _matches(path) for item in _read_records(file, columns)]
    tasks = Counter(item.sample.task for item in items)
    if len(tasks) > 1:
        counts = " and ".join(f"{count} as {task}s" for task, count in tasks.most_common())
        logger.warning("%s holds samples of several tasks: %s are scored.", path, counts)
    return items


def _matches(path: Path) -> list[Path]:
    """The files of a glob; a path that is there, or is no glob, itself."""
    name = re.sub(r":\w+(\[[^]/]*\])?$", "", str(path))  # a split may be cut, as in folder:train[:10]
    if path.exists() or not glob.has_magic(name):
        return [path]
    files = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if os.path.isfile(name)]
    if not files:
        raise JRMError(f"no file matches {path}: check the pattern.")
    return files


def _read_records(path: Path, columns: Columns | None) -> list[BulkItem]:
    table = read_table(path, progress=False)
    check_columns(table, columns or {}, ACCEPTED)
    items, bad = [], [*table.bad]
    for position in range(len(table.rows)):
        try:
            row, number = table.rows[position], table.number(position)
            items.append(_to_item(_by_our_names(row, columns), table.root or Path(), f"{path.name}#{number}"))
        except JRMError as error:
            bad.append(BadRecord(str(path), table.number(position), str(error)))
    if bad:
        first = min(bad, key=lambda record: record.row)
        raise JRMError(f"{str(first).rstrip('.')}; mend or remove that line.")
    if not items:
        raise JRMError(f"{path} holds no sample.")
    return items


def _by_our_names(row: Mapping[str, Any], columns: Columns | None) -> dict[str, Any]:
    """The row with the fields of a mapping under their own names, the other columns behind them."""
    fields: dict[str, Any] = {}
    used = set()
    for field, column in (columns or {}).items():
        parts = [] if column is None else [column] if isinstance(column, str) else column
        values = [row.get(part) for part in parts]
        fields[field] = None if column is None else values[0] if isinstance(column, str) else values
        used.update(parts)
    return fields | {name: value for name, value in row.items() if name not in used}


def _to_item(record: dict, root: Path, where: str = "") -> BulkItem:
    for name in record:
        checked_text(name or "(empty)", "name of a key")
    refuse_near_names(record)
    for field in ("instruction", "edited"):
        if not names_in(record, field):
            need(record, (field,))
    if not names_in(record, "source"):
        refuse_hidden_source(record)
    sample = to_edit(value_of(record, "instruction"), value_of(record, "source"), value_of(record, "edited"), root)
    return BulkItem(sample, {name: _in_words(value, where) for name, value in record.items()})


def _in_words(value: Any, where: str) -> Any:
    """What stands for an image in memory in the output: the name of its file, or its place in the input."""
    if isinstance(value, list):
        return [_in_words(item, where) for item in value]
    if isinstance(value, Mapping) and value and {*value} <= {"bytes", "path"}:
        return value.get("path") or where
    return where if isinstance(value, bytes) else value


class SampleDigests:
    """What samples hold, by the content of their files, in 32 bytes: a run that goes on compares it.

    Each file is read once.
    """

    def __init__(self):
        self._of_files: dict[str, bytes] = {}

    def __call__(self, sample: Sample) -> bytes:
        whole = hashlib.sha256()
        for block in (*sample.prompt, *sample.response):
            if block["type"] == "text":
                whole.update(hashlib.sha256(block["text"].encode()).digest())
            else:
                whole.update(self.of_image(block["image"]))
        return whole.digest()

    def of_image(self, image: StoredImage) -> bytes:
        if not isinstance(image, str) or is_data_url(image):
            return digest(image)
        if image not in self._of_files:
            try:
                self._of_files[image] = content_digest(image)
            except JRMError:  # scoring says what is wrong with it
                self._of_files[image] = b"unreadable"
        return self._of_files[image]


# --- images for one instruction ---------------------------------------------------------------------------------------


def _read_images(path: Path, instruction: str, sources: list[str]) -> list[BulkItem]:
    """Each image of a folder, its sub-folders included, or of a glob; the sources are no candidates."""
    files = _matches(path)
    if path.is_dir():
        files = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
        files = sorted(file for file in files if not any(map(_is_companion, file.relative_to(path).parts)))
        if texts := [file for file in files if file.name.lower() == _INSTRUCTION]:
            raise JRMError(f"{texts[0]} is an instruction already; leave --instruction out, or remove that file.")
    endings = Image.registered_extensions()
    images = [file for file in files if file.suffix.lower() in endings]
    if not images:
        raise JRMError(
            f"{path} is no image to score for the instruction, and holds none; leave out what the input says itself."
        )
    given = {os.path.realpath(source) for source in sources}
    edited = [file for file in images if os.path.realpath(file) not in given]
    _refuse_likely_source(edited, sources)
    _say_others([file for file in files if file not in {*images}], path)
    items = []
    for file in edited:
        name = str(file.relative_to(path) if path.is_dir() else file)
        record = {"source": sources, "instruction": instruction, "edited": name}
        items.append(BulkItem(to_edit(instruction, sources, str(file), Path()), record))
    return items


def _refuse_likely_source(edited: list[Path], sources: Sequence[object]) -> None:
    if near := [path for path in edited if not sources and _LIKE_A_SOURCE.fullmatch(path.stem)]:
        raise JRMError(
            f"{near[0]} may be the source of the edits beside it; call it source{near[0].suffix}, or rename it."
        )


def _say_others(others: list[Path], root: Path) -> None:
    if others:
        logger.warning(
            "%d files in %s are no images and are not scored; the first is %s.", len(others), root, others[0]
        )


# --- folders ----------------------------------------------------------------------------------------------------------


def _read_folder(root: Path) -> list[BulkItem]:
    endings = Image.registered_extensions()
    items: list[BulkItem] = []
    others: list[Path] = []
    for folder in [root, *sorted(path for path in root.rglob("*") if path.is_dir())]:
        if any(_is_companion(part) for part in folder.relative_to(root).parts):
            continue
        files = sorted(path for path in folder.iterdir() if not _is_companion(path.name))
        texts = [path for path in files if path.name.lower() == _INSTRUCTION]
        images = [path for path in files if path.suffix.lower() in endings and path.is_file()]
        if texts and len(texts) == 1:
            items += _read_edit(root, texts[0], images)
            others += [path for path in files if path.is_file() and path not in (*texts, *images)]
            if unread := [path for path in others if path.parent == folder and _SOURCE.fullmatch(path.stem)]:
                raise JRMError(f"{unread[0]} is called a source and is no kind of image; convert or rename it.")
        elif images or texts:
            raise JRMError(f"the folder {folder} must hold one {_INSTRUCTION} beside its images, not {len(texts)}.")
    if not items:
        raise JRMError(f"the folder {root} holds no edit: a sub-folder with {_INSTRUCTION} and images to score.")
    _say_others(others, root)
    return items


def _read_edit(root: Path, text: Path, images: list[Path]) -> list[BulkItem]:
    numbered = [(path, _SOURCE.fullmatch(path.stem)) for path in images]
    sources = sorted((int(match[1] or 0), str(path.relative_to(root))) for path, match in numbered if match)
    edited = [path for path, match in numbered if not match]
    if len({number for number, _ in sources}) < len(sources):
        names = ", ".join(Path(name).name for _, name in sources)
        raise JRMError(f"{text.parent} has the sources {names}; keep one of each number.")
    if not edited:
        raise JRMError(f"{text.parent} has no image to score.")
    _refuse_likely_source(edited, sources)
    instruction = read_text(text).strip()
    items = []
    for path in edited:
        record = {
            "source": [name for _, name in sources],
            "instruction": instruction,
            "edited": str(path.relative_to(root)),
        }
        try:
            items.append(_to_item(record, root))
        except JRMError as error:
            raise JRMError(f"{text.parent}: {error}") from error
    return items


def _is_companion(name: str) -> bool:
    return name.startswith(".") or name.lower() in _COMPANIONS
