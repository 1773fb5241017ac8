"""Whatever people have their preferences in, as pairs and ranked groups (or texts to learn, as `CritiqueExample`s).

EditReward's JSON and `language.jsonl` are read by their own reader, with the critiques beside them; every other table
by the meaning of its columns (`columns.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jrm_plugin.data.columns import Columns, Layout
from jrm_plugin.data.editreward import read_edit_reward, read_language
from jrm_plugin.data.reading import BadRecord, ImageCheck, Records, checked_records, reading_bar
from jrm_plugin.data.tables import Table, read_table
from jrm_plugin.errors import JRMError
from jrm_plugin.records.preferences import Example, samples_of_example

if TYPE_CHECKING:
    from datasets import Dataset


class TableExamples(Sequence):
    """The examples of a table, each made when it is asked for, so that rows on disk stay there.

    Args:
        table: the rows.
        columns: what its columns mean, where their names do not say it.
        groups: whether a list of candidates is one `RankedGroup`; otherwise every two of it are a pair.
        check: called with every example once; a `JRMError` of its makes the row a bad one.
        progress: show a bar on a terminal.

    Attributes:
        bad: the rows that are none.
        understood: a line that says how the table was read.
    """

    def __init__(
        self,
        table: Table,
        columns: Columns | None = None,
        *,
        groups: bool = False,
        check: Callable[[Example], None] = lambda example: None,
        progress: bool = True,
    ):
        self._layout, self._table = Layout(table, columns, groups=groups), table
        self.bad = [*table.bad]
        self._where: list[tuple[list[int], int]] = []  # the rows of each example, and which of theirs it is
        for unit in reading_bar(self._layout.units(), Path(table.name), progress):
            try:
                examples = self._layout.examples([table.rows[row] for row in unit], count=True)
                for example in examples:
                    check(example)
            except JRMError as error:
                self.bad.append(BadRecord(table.name, table.number(unit[0]), str(error)))
            else:
                self._where += [(unit, k) for k in range(len(examples))]
        self.bad.sort(key=lambda record: record.row)
        self.understood = self._layout.understood(len(self._where))

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            return [self[k] for k in range(*position.indices(len(self)))]
        unit, k = self._where[position]
        example = self._layout.of_unit(unit)[k]
        example.info.update({"file": self._table.name, "row": self._table.number(unit[0])})
        return example


def read_preferences(
    source: "str | Path | Dataset | Sequence[Mapping[str, Any]]",
    *,
    columns: Columns | None = None,
    images_root: str | Path | None = None,
    groups: bool = False,
    strict: bool = True,
    decode: bool = False,
    progress: bool = True,
) -> Records:
    """Read preferences, or texts to learn, from whatever holds them; what it is, its content says.

    Args:
        source: a file of EditReward JSON, another JSON list, JSON Lines, CSV, TSV or Parquet; a folder that
            `datasets.save_to_disk` wrote, or a hub name, with `:split` behind it; a `datasets.Dataset`; a list of
            dicts.
        columns: what the columns mean where they have other names than the usual ones, `{field: column}`: `source`,
            `instruction`, and `chosen` and `rejected`, or `a`, `b` and `label`, or `ranked`, or `candidates` and
            `ranking` or `scores`, or `edited` and `score` or `rank`, or `edited` and `text`.
        images_root: the folder that image paths are relative to; by default that of the file.
        groups: whether a list of candidates is one `RankedGroup`; otherwise every two of it are a `PreferencePair`.
        strict: True: a bad record is an error. False: bad records are left out and listed, and every image is decoded.
        decode: whether every image is decoded also with `strict`; otherwise a file's header and end are read.
        progress: show a bar on a terminal.

    Returns:
        `Records` whose `examples` are made when they are asked for, where the table has columns.

    Raises:
        JRMError: it cannot be read, its columns are not understood (the message shows a mapping that would work), or,
            with `strict`, a record is bad.
    """
    table = read_table(source, progress=progress)
    options = {"images_root": images_root, "strict": strict, "decode": decode, "progress": progress}
    if columns is None and isinstance(source, (str, Path)):
        if table.kind == "a JSON list" and {"path1", "path2"} <= {*table.names}:
            return read_edit_reward(source, **options)
        if table.kind == "JSON Lines" and {"prompt", "path", "text"} <= {*table.names}:
            return read_language(source, **options)
    if images_root is not None:
        table = Table(table.name, table.kind, table.rows, table.names, Path(images_root), table.numbers, table.bad)
    images = ImageCheck(decode=decode or not strict)

    def check(example: Example) -> None:
        images.check(*samples_of_example(example))

    examples = TableExamples(table, columns, groups=groups, check=check, progress=progress)
    return checked_records(examples, examples.bad, strict, examples.understood)
