"""Rows of any kind of table: a file, a `datasets` folder, a name on the hub, or what is in memory already.

What a file is, its content says: Parquet, a JSON list, JSON Lines, or cells between commas, tabs or semicolons. A row
is a dict of plain values; an image in it is a path, the bytes of a file, or the dict of both that `datasets` makes of
one. Rows of Parquet and of `datasets` are read when they are asked for, and no image of theirs is decoded.
"""

import csv
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jrm_plugin.data.reading import BadRecord, read_json_lines
from jrm_plugin.errors import JRMError, as_jrm_error
from jrm_plugin.extras import require
from jrm_plugin.files import parse_json, read_json, read_text

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

ACCEPTED_KINDS = (
    "EditReward JSON, a JSON list, JSON Lines, CSV, TSV, Parquet, a folder that `datasets` saved, or a hub name, "
    "owner/name or owner/name:split"
)
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILE_ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".arrow")
_DELIMITERS = {",": "CSV", "\t": "TSV", ";": "CSV with semicolons"}


@dataclass(frozen=True)
class Table:
    """Rows and where they come from.

    `root` is the folder that paths of images are relative to, or None where they stay as they are. `numbers` are the
    rows' numbers in the file, where they are not 1, 2, 3, ….
    """

    name: str
    kind: str
    rows: Sequence[Mapping[str, Any]]
    names: tuple[str, ...]
    root: Path | None = None
    numbers: Sequence[int] | None = None
    bad: list[BadRecord] = field(default_factory=list)

    def number(self, row: int) -> int:
        return row + 1 if self.numbers is None else self.numbers[row]


def read_table(source: "str | Path | Dataset | Sequence[Mapping]", *, progress: bool = True) -> Table:
    """The rows of a file, a `datasets` folder, a hub name, a `datasets.Dataset`, or a list of dicts.

    Args:
        source: `folder:split` and `owner/name:split` choose a split; without one it is `train`, or
            the only one.
        progress: show a bar on a terminal.

    Raises:
        JRMError: it is not there, is of no kind that is known, or holds no row.
    """
    if not isinstance(source, (str, os.PathLike)):
        table = _from_memory(source)
    else:
        path, split = _path_and_split(str(source))
        if path.is_dir():
            table = _from_folder(path, split)
        elif path.exists():
            table = _from_file(path, progress)
        elif HUB_NAME.fullmatch(str(path)) and path.suffix.lower() not in _FILE_ENDINGS:
            table = _from_hub(str(path), split)
        else:
            raise JRMError(f"{path} does not exist: check the path.")
    if not len(table.rows) and not table.bad:
        raise JRMError(f"{table.name} ({table.kind}) holds no usable record.")
    return table


def _path_and_split(source: str) -> tuple[Path, str | None]:
    name, colon, split = source.rpartition(":")
    if colon and name and not os.path.exists(source) and re.fullmatch(r"\w[\w.\[\]%+:-]*", split):
        return Path(name), split
    return Path(source), None


# --- files ------------------------------------------------------------------------------------------------------------


def _from_file(path: Path, progress: bool) -> Table:
    try:
        with path.open("rb") as file:
            begin = file.read(16)
    except OSError as error:
        raise JRMError(f"{path} cannot be read: {error.strerror}.") from error
    if begin.startswith(b"PAR1"):
        return _from_parquet(path)
    if b"\0" in begin and not begin.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
        raise JRMError(f"{path} is no text and no Parquet; give {ACCEPTED_KINDS}.")
    text = read_text(path).lstrip()
    if not text:
        raise JRMError(f"{path} is empty: give {ACCEPTED_KINDS}.")
    if text[0] == "[":
        rows = [*enumerate(read_json(path), 1)]
        good = [(number, row) for number, row in rows if isinstance(row, dict)]
        wrong = [(number, row) for number, row in rows if not isinstance(row, dict)]
        reasons = [(number, f"a record must be a JSON object, not a {type(row).__name__}") for number, row in wrong]
        return _of_dicts(
            str(path),
            "a JSON list",
            [row for _, row in good],
            path.parent,
            [number for number, _ in good],
            [BadRecord(str(path), number, reason) for number, reason in reasons],
        )
    if text[0] == "{":
        bad: list[BadRecord] = []
        lines = [*read_json_lines(path, bad, progress)]
        if not lines:
            raise JRMError(f"{path} begins as JSON and is neither a list nor one object a line ({bad[0].reason}).")
        numbers = [number for number, _ in lines]
        return _of_dicts(str(path), "JSON Lines", [record for _, record in lines], path.parent, numbers, bad)
    return _from_cells(path)


def _from_cells(path: Path) -> Table:
    """CSV and its kin: the delimiter is the one that the first line has most of."""
    text = read_text(path)
    first_line = text.lstrip("\n").split("\n", 1)[0]
    delimiter = max(_DELIMITERS, key=first_line.count)
    kind = _DELIMITERS[delimiter]
    if not first_line.count(delimiter):
        raise JRMError(
            f"{path} is no table: its first line, {first_line[:60]!r}, has one column; give {ACCEPTED_KINDS}."
        )
    with as_jrm_error(f"{path} cannot be read as {kind}"):
        csv.field_size_limit(2**30)  # an image may stand in a cell
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        lines = [(row, cells) for row, cells in enumerate(reader, 1) if cells]
    names = [name.strip() for name in lines[0][1]]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise JRMError(f"{path} has two columns with the name {repeated[0]!r}; rename one.")
    records, numbers, bad = [], [], []
    for number, cells in lines[1:]:
        if len(cells) == len(names):
            records.append({name: _of_cell(cell) for name, cell in zip(names, cells, strict=True)})
            numbers.append(number)
        else:
            bad.append(BadRecord(str(path), number, f"it has {len(cells)} cells, and the first line {len(names)}"))
    return _of_dicts(str(path), kind, records, path.parent, numbers, bad, names)


def _of_cell(cell: str) -> Any:
    """A cell's text, the list or object that it holds as JSON, or nothing."""
    if cell[:1] in ("[", "{"):
        with suppress(JRMError, json.JSONDecodeError):
            return parse_json(cell)
    return cell if cell.strip() else None


def _of_dicts(
    name: str,
    kind: str,
    records: Sequence[Mapping],
    root: Path | None,
    numbers: Sequence[int] | None = None,
    bad: list[BadRecord] | None = None,
    names: Sequence[str] | None = None,
) -> Table:
    names = names or [*dict.fromkeys(key for record in records for key in record)]
    return Table(name, kind, records, tuple(map(str, names)), root, numbers, bad or [])


def _from_parquet(path: Path) -> Table:
    require("pyarrow", "a Parquet file", install="jrm-plugin[parquet]")
    import pyarrow.parquet as pq

    with as_jrm_error(f"{path} cannot be read as Parquet"):
        table = pq.read_table(path)
    return Table(str(path), "Parquet", _ArrowRows(table), tuple(table.column_names), path.parent)


class _ArrowRows(Sequence):
    """The rows of an Arrow table, each made a dict when it is asked for."""

    def __init__(self, table: Any):
        self._table = table

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, row: int) -> dict[str, Any]:  # type: ignore[override]
        return self._table.slice(row, 1).to_pylist()[0]


# --- datasets ---------------------------------------------------------------------------------------------------------


class _DatasetRows(Sequence):
    """The rows of a `datasets.Dataset` with their images as they are stored."""

    def __init__(self, dataset: "Dataset"):
        # A transform of the user's own makes its rows; else Arrow gives them as they are stored.
        self._is_stored = dataset.format["type"] != "custom"
        self._dataset = dataset.with_format("arrow") if self._is_stored else dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, row: int) -> dict[str, Any]:  # type: ignore[override]
        return self._dataset[row].to_pylist()[0] if self._is_stored else self._dataset[row]


def of_dataset(dataset: "Dataset", name: str = "the data set", root: Path | None = None) -> Table:
    """The rows of a `datasets.Dataset`; they stay where they are."""
    return Table(name, "a datasets.Dataset", _DatasetRows(dataset), tuple(dataset.column_names), root)


def stored(stream: "IterableDataset") -> "IterableDataset":
    """The rows of a stream with their images as they are stored."""
    return stream.decode(False) if stream.features is not None else stream


def _from_memory(source: Any) -> Table:
    if isinstance(source, Sequence) and not isinstance(source, (str, bytes)):
        if wrong := [number for number, row in enumerate(source, 1) if not isinstance(row, Mapping)]:
            raise JRMError(f"row {wrong[0]} of the list is a {type(source[wrong[0] - 1]).__name__}; give dicts.")
        return _of_dicts("the list", "a list of dicts", source, None)
    if isinstance(source, Mapping):
        raise JRMError(f"the data have the splits {', '.join(map(str, source))}; give one of them.")
    if not hasattr(source, "column_names") or not hasattr(source, "with_format"):
        raise JRMError(f"rows must be a datasets.Dataset, a list of dicts or a path, not a {type(source).__name__}.")
    return of_dataset(source)


def _from_folder(path: Path, split: str | None) -> Table:
    require("datasets", f"the folder {path}", install="jrm-plugin[trl]")
    import datasets

    with as_jrm_error(f"the folder {path} cannot be read as a data set; give {ACCEPTED_KINDS}"):
        if is_dataset_folder(path):
            content = datasets.load_from_disk(path)
        else:
            content = datasets.load_dataset(str(path), split=split)
    return of_dataset(_one_split(content, str(path), split), str(path))


def is_dataset_folder(path: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote this folder."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _from_hub(name: str, split: str | None) -> Table:
    require("datasets", f"the data set {name}", install="jrm-plugin[trl]")
    import datasets

    with as_jrm_error(f"{name} is no file or folder here, and no data set that the hub gives"):
        content = datasets.load_dataset(name, split=split)
    return of_dataset(_one_split(content, name, split), name)


def _one_split(content: Any, name: str, split: str | None) -> "Dataset":
    if not isinstance(content, Mapping):
        return content
    splits = [*content]
    if split is None:
        split = "train" if "train" in splits else splits[0] if len(splits) == 1 else None
    if split not in splits:
        what = f"no split {split!r}" if split else "no split train"
        raise JRMError(f"{name} has {what}, only {', '.join(splits)}; write {name}:{splits[0]}.")
    return content[split]
