"""What a benchmark of judges is, and what its readers share: rows of a published table become labelled pairs.

A reader keeps the two candidates in the order of the file; a label says which is better. A bad row is an error: a
benchmark with rows left out is another benchmark.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jrm_plugin.data.reading import BadRecord, ImageCheck, checked_records, reading_bar, to_edit
from jrm_plugin.data.tables import Table, is_dataset_folder, read_table
from jrm_plugin.errors import JRMError, shortened
from jrm_plugin.evaluation.agreement import Judged, Statistic, decided
from jrm_plugin.records.preferences import PreferencePair
from jrm_plugin.records.samples import OVERALL, Sample

_FILES = (".json", ".jsonl", ".csv", ".tsv")


@dataclass(frozen=True)
class Column:
    """A number of a benchmark's table.

    Attributes:
        title: above it.
        statistic: of the pairs.
        dimension: only those labelled in it; None: the labels of all dimensions.
        where: only those with this value in this column of their `info`.
        ties: whether pairs that people call a tie count.
    """

    title: str
    statistic: Statistic
    dimension: str | None
    where: tuple[str, Any] | None = None
    ties: bool = False

    def of(self, by_dimension: Mapping[str, Judged]) -> list[Judged]:
        """The pairs that it is about, of each of its dimensions."""
        names = by_dimension if self.dimension is None else [name for name in by_dimension if name == self.dimension]
        parts = [by_dimension[name] if self.ties else decided(by_dimension[name]) for name in names]
        return [part if self.where is None else part.where(*self.where) for part in parts]


@dataclass(frozen=True)
class Published:
    """Rows of a paper's table: the values of each judge in the order of the columns, None where it gives none."""

    source: str
    rows: Mapping[str, tuple[float | None, ...]]


@dataclass(frozen=True)
class Benchmark:
    """Labelled pairs, and what is computed of a judge of them.

    Attributes:
        name: by which it is chosen.
        title: what it is called in a table.
        pairs: in the order of the file; `info` has a pair's `id`, and the columns that `columns` and `divisions` name.
        columns: of its table.
        divisions: further columns of `info` by which the accuracy is shown.
        published: what a paper reports in these columns.
        prepare: what the benchmark's own script does with the images of a sample before a judge sees them.
        note: what a reader of the table has to know.
    """

    name: str
    title: str
    pairs: Sequence[PreferencePair]
    columns: tuple[Column, ...]
    divisions: tuple[str, ...] = ()
    published: Published | None = None
    prepare: Callable[[Sample], Sample] | None = None
    note: str = ""

    @property
    def dimensions(self) -> list[str]:
        """What the pairs are labelled in, in the order of the file."""
        return [*dict.fromkeys(name for pair in self.pairs for name in pair.labels)]


class TablePairs(Sequence):
    """The pairs of a table's rows, each made when it is asked for; every row is read and its images checked once.

    Raises:
        JRMError: a row is no pair; names the file, the row and what is wrong with it.
    """

    def __init__(self, table: Table, to_pairs: Callable[[Mapping[str, Any]], list[PreferencePair]], progress: bool):
        self._table, self._to_pairs = table, to_pairs
        self._where: list[tuple[int, int]] = []  # the row of each pair, and which of its pairs it is
        bad, images = [*table.bad], ImageCheck(decode=False)
        for row in reading_bar([*range(len(table.rows))], Path(table.name), progress):
            try:
                pairs = to_pairs(table.rows[row])
                for pair in pairs:
                    images.check(pair.chosen, pair.rejected)
            except JRMError as error:
                bad.append(BadRecord(table.name, table.number(row), str(error)))
            else:
                self._where += [(row, k) for k in range(len(pairs))]
        checked_records((), sorted(bad, key=lambda record: record.row), strict=True)

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            return [self[k] for k in range(*position.indices(len(self)))]
        row, k = self._where[position]
        return self._to_pairs(self._table.rows[row])[k]


def benchmark_table(source: str | Path, what: str, needed: Sequence[str], *, hint: str = "") -> Table:
    """The rows of a file, of a folder that holds one file or a data set, or of a hub name.

    Raises:
        JRMError: it cannot be read, or a column of the published format is missing.
    """
    return with_columns(read_table(file_in(source), progress=False), what, needed, hint=hint)


def with_columns(table: Table, what: str, needed: Sequence[str], *, hint: str = "") -> Table:
    """The table, if it has the columns of the published format; else a [`JRMError`]."""
    if missing := [name for name in needed if name not in table.names]:
        raise JRMError(
            f"{table.name} ({table.kind}) is not {what}: it has no column {', '.join(missing)}, but "
            f"{', '.join(table.names)}; give the published files{f', or {hint}' if hint else ''}."
        )
    return table


def file_in(source: str | Path) -> str | Path:
    folder = Path(source)
    if not folder.is_dir() or is_dataset_folder(folder) or next(folder.rglob("*.parquet"), None):
        return source
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _FILES)
    if len(files) != 1:
        names = ", ".join(path.name for path in files) or "none"
        raise JRMError(f"the folder {folder} must hold Parquet files or one JSON or CSV file, and holds {names}.")
    return files[0]


def pair_of(
    table: Table,
    instruction: Any,
    source: Any,
    candidates: tuple[Any, Any],
    labels: Mapping[str, int],
    *,
    scores: Sequence[float] | None = None,
    **info: Any,
) -> PreferencePair:
    """The pair in a row's cells; `scores` are the overall ones of both candidates.

    Raises:
        JRMError: part of a sentence: a cell is empty or holds no image.
    """
    first, second = (to_edit(instruction, source, candidate, table.root or Path()) for candidate in candidates)
    if not first.prompt_images:
        raise JRMError("it has no source image")
    of_each = [None, None] if scores is None else [{OVERALL: float(score)} for score in scores]
    return PreferencePair(first, second, labels, *of_each, info=info)


def one_of(row: Mapping[str, Any], column: str, meanings: Mapping[Any, Any]) -> Any:
    """What a cell means, by what may stand in it; part of a sentence as a [`JRMError`] where it is anything else."""
    value = row[column]
    try:
        return meanings[value]
    except (KeyError, TypeError):
        accepted = ", ".join(map(str, meanings))
        raise JRMError(f"{column} must be one of {accepted}, not {shortened(value)}") from None


def two_images(row: Mapping[str, Any], column: str) -> tuple[Any, Any]:
    """The two images of a cell that holds a list of them."""
    images = row[column]
    if not isinstance(images, Sequence) or isinstance(images, (str, bytes)) or len(images) != 2:
        raise JRMError(f"{column} must be a list of two images, not {shortened(images)}")
    return images[0], images[1]


def limited(benchmark: Benchmark, count: int) -> Benchmark:
    """The first `count` pairs, and what more their groups have."""
    total = len(benchmark.pairs)
    if count >= total:
        return benchmark
    pairs = [benchmark.pairs[k] for k in range(count)]
    if groups := {pair.info["group"] for pair in pairs if "group" in pair.info}:
        rest = (benchmark.pairs[k] for k in range(count, total))
        pairs += [pair for pair in rest if pair.info.get("group") in groups]
    return replace(benchmark, pairs=pairs, note=f"{benchmark.note} The first {len(pairs)} of {total} pairs.".strip())
