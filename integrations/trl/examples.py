"""What a trainer is given, as examples: sequences of them, tables whose rows are read when a batch is made, streams."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any, TypeAlias

from datasets import Dataset, IterableDataset
from torch.utils.data import IterableDataset as TorchStream

from jrm_plugin.data.columns import Columns, Layout
from jrm_plugin.data.preferences import TableExamples, read_preferences
from jrm_plugin.data.tables import Table, read_table, stored
from jrm_plugin.errors import JRMError, as_jrm_error
from jrm_plugin.records.preferences import CritiqueExample, Example, example_from_record, example_to_record

ExamplesLike: TypeAlias = Dataset | IterableDataset | Sequence[Example] | Sequence[Mapping[str, Any]] | str | Path
PASSED = {"passed": True}  # in place of an example of a stream that an earlier run was trained on
# The one column of what `to_dataset` makes: an example as JSON text.
COLUMN = "example"


def to_dataset(examples: Sequence[Example]) -> Dataset:
    """Examples as a `datasets.Dataset` of one column of JSON text; images that are no files stand in it whole."""
    return Dataset.from_dict({COLUMN: [json.dumps(example_to_record(example)) for example in examples]})


def to_example(row: Example | Mapping[str, Any]) -> Example:
    """The example that a row of a data set is, or that a row of [`to_dataset`]'s holds.

    Raises:
        JRMError: the row is the error of one that could not be made.
    """
    if not isinstance(row, Mapping):
        return row
    if row.get("error"):
        raise JRMError(row["error"])
    return example_from_record(json.loads(row[COLUMN]))


def origin(example: Example) -> str | None:
    """Where an example was read from, if a reader made it."""
    return f"{example.info['file']}, row {example.info['row']}" if {"file", "row"} <= example.info.keys() else None


def has_critique(example: Example) -> bool:
    """Whether there is a text to learn in it."""
    return isinstance(example, CritiqueExample) or any(example.critiques)


def checked_examples(
    given: Any, columns: Columns | None, what: str, check: Callable[[Example], None]
) -> Dataset | Sequence[Example]:
    """What was given to a trainer, with each of its examples checked once.

    Args:
        given: any of `ExamplesLike` but a stream.
        columns: what the columns of a table mean.
        what: names it in errors.
        check: raises a `JRMError` for an example that cannot be used.
    """
    if isinstance(given, (str, Path)):
        given = read_preferences(given, columns=columns, groups=True).examples
    if isinstance(given, TableExamples) or _holds_examples(given) or _holds_json(given):
        for row in given:
            check(to_example(row))
        return given
    table = replace(read_table(given, progress=False), name=f"the {what}")
    examples = TableExamples(table, columns, groups=True, check=check, progress=False)
    if examples.bad:
        raise JRMError(f"{str(examples.bad[0]).rstrip('.')} ({len(examples.bad)} bad rows in all).")
    return examples


def _holds_examples(given: Any) -> bool:
    return isinstance(given, Sequence) and bool(given) and isinstance(given[0], Example)


def _holds_json(given: Any) -> bool:
    return isinstance(given, Dataset) and COLUMN in given.column_names


class ExampleStream(TorchStream):
    """The examples of a `datasets.IterableDataset`, each checked as it comes.

    A row that cannot be used gives `{"error": sentence}`: raised in a data loader's worker, an error would reach the
    trainer as the text of a traceback.

    Args:
        stream: its rows, of which each is one example.
        columns: what their columns mean.
        what: names it in errors.
        check: raises a `JRMError` for an example that cannot be used.
        endless: begin anew, in the order of the next epoch, when the stream is done.

    Attributes:
        passed: how many of the first examples were trained on before. [`PASSED`] stands in their place, so that a run
            goes on at the same example without making one of each row before it.
    """

    def __init__(
        self,
        stream: IterableDataset,
        columns: Columns | None,
        what: str,
        check: Callable[[Example, int], None],
        *,
        endless: bool = False,
    ):
        self._stream, self._what, self._check = stored(stream), what, check
        first = next(iter(islice(self._stream, 1)), None)
        if first is None:
            raise JRMError(f"the {what} is a stream without a row.")
        self._layout, self._endless, self.passed = None, endless, 0
        if COLUMN not in first:
            self._layout = Layout(Table(f"the {what}", "a stream", [first], tuple(first)), columns, groups=True)
            if self._layout.is_scattered:
                raise JRMError(f"the rows of the {what} belong together, which a stream cannot tell; give a Dataset.")

    def __iter__(self) -> Iterator[Any]:
        number = 0
        try:
            for number, row in enumerate(self._rows()):
                if number < self.passed:
                    yield PASSED
                    continue
                with as_jrm_error("it cannot be used"):
                    (example,) = [to_example(row)] if self._layout is None else self._layout.examples([row])
                    self._check(example, number)
                yield example
        except JRMError as error:
            yield {"error": f"row {number + 1} of the {self._what}: {error}"}

    def _rows(self) -> Iterator[Any]:
        for epoch in count() if self._endless else [0]:
            self._stream.set_epoch(epoch)
            with as_jrm_error("the rows behind it cannot be read"):
                yield from self._stream
