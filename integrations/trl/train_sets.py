"""What a run is trained on: one set or several, by weight; in memory or as a stream that is larger."""

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset, interleave_datasets, load_dataset, load_from_disk

from jrm_plugin.configs import check_config
from jrm_plugin.data.columns import Columns, Layout
from jrm_plugin.data.tables import HUB_NAME, Table, is_dataset_folder, stored
from jrm_plugin.errors import JRMError, as_jrm_error
from jrm_plugin.integrations.trl.examples import COLUMN
from jrm_plugin.records.preferences import Example, example_to_record

_STREAMED = {".jsonl": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv"}
STREAMS = "JSON Lines (.jsonl), Parquet, CSV, TSV, a folder that `datasets` saved, or a hub name"


@dataclass(frozen=True)
class TrainSet:
    """One of the sets of a run, and which share of its examples comes from it, beside the weights of the others."""

    path: str
    weight: float = 1.0
    columns: dict | None = None
    images_root: str | None = None


def train_sets(train_data: Any, columns: Columns | None, images_root: str | None) -> list[TrainSet]:
    """The sets that `train_data` names: a path, a mapping of paths to weights, or a list of mappings.

    Args:
        columns, images_root: of the sets that have none of their own.

    Raises:
        JRMError: it is none of these, a set is named twice, or a weight is not positive.
    """
    if isinstance(train_data, str):
        items: list[Any] = [{"path": train_data}]
    elif isinstance(train_data, Mapping):
        items = [{"path": path, "weight": weight} for path, weight in train_data.items()]
    else:
        items = [*train_data]
    if not items or not all(isinstance(item, Mapping) for item in items):
        raise JRMError("train_data must be a path, a mapping of paths to weights, or a list of {path, weight}.")
    sets = []
    for number, item in enumerate(items, 1):
        train_set = TrainSet(**check_config(item, [TrainSet], f"set {number} of train_data"))
        if not 0 < train_set.weight < math.inf:
            raise JRMError(f"the weight of {train_set.path} in train_data must be above 0; leave the set out for none.")
        if train_set.path in [other.path for other in sets]:
            raise JRMError(f"{train_set.path} is in train_data twice; give it once, with a larger weight.")
        own_columns = columns if train_set.columns is None else train_set.columns
        own_root = images_root if train_set.images_root is None else train_set.images_root
        sets.append(replace(train_set, columns=own_columns and dict(own_columns), images_root=own_root))
    return sets


def _shares(sets: Sequence[TrainSet]) -> list[float]:
    total = sum(train_set.weight for train_set in sets)
    return [train_set.weight / total for train_set in sets]


# --- in memory --------------------------------------------------------------------------------------------------------


class DrawnExamples(Sequence):
    """Examples of several sets, each by the number of its set and its place there."""

    def __init__(self, examples: Sequence[Sequence[Example]], set_N: np.ndarray, row_N: np.ndarray):
        self._examples, self._set_N, self._row_N = examples, set_N, row_N

    def __len__(self) -> int:
        return len(self._set_N)

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            return [self[k] for k in range(*position.indices(len(self)))]
        return self._examples[self._set_N[position]][int(self._row_N[position])]


def without(examples: Sequence[Example], left_out: Collection[int]) -> DrawnExamples:
    """The examples without those at some positions."""
    kept_N = np.setdiff1d(np.arange(len(examples)), [*left_out])
    return DrawnExamples([examples], np.zeros_like(kept_N), kept_N)


def mixed(examples: Sequence[Sequence[Example]], sets: Sequence[TrainSet], seed: int) -> tuple[DrawnExamples, str]:
    """Examples of several sets in the shares of their weights, as `datasets.interleave_datasets` draws them.

    It is as long as it takes until each example of each set was drawn once; sets that are done before begin anew. What
    is drawn depends on the seed and the sets alone. Also gives a line that says how many are drawn.
    """
    numbers = [
        Dataset.from_dict({"set": [number] * len(of_set), "row": range(len(of_set))})
        for number, of_set in enumerate(examples)
    ]
    drawn = interleave_datasets(numbers, probabilities=_shares(sets), seed=seed, stopping_strategy="all_exhausted")
    set_N, row_N = (drawn.with_format("numpy")[name][:] for name in ("set", "row"))
    parts = ", ".join(
        f"{int((set_N == number).sum()):,} of {train_set.path} (which has {len(examples[number]):,})"
        for number, train_set in enumerate(sets)
    )
    return DrawnExamples(examples, set_N, row_N), f"an epoch is {len(set_N):,} examples: {parts}."


# --- as a stream ------------------------------------------------------------------------------------------------------


def stream_of(sets: Sequence[TrainSet], *, seed: int, buffer: int) -> IterableDataset:
    """The rows of several sets in the shares of their weights, shuffled through a buffer, as examples in JSON.

    A set that is done begins anew, until each was done once. A row that cannot be used says so in its place.

    Raises:
        JRMError: a set is not there, cannot be read row by row, or its columns are not understood.
    """
    streams = [_examples_of(train_set) for train_set in sets]
    mixed = streams[0]
    if len(streams) > 1:
        mixed = interleave_datasets(streams, probabilities=_shares(sets), seed=seed, stopping_strategy="all_exhausted")
    return mixed.shuffle(seed=seed, buffer_size=buffer) if buffer > 1 else mixed


def _examples_of(train_set: TrainSet) -> IterableDataset:
    rows, root = _rows(train_set.path)
    root = root if train_set.images_root is None else Path(train_set.images_root)
    with as_jrm_error(f"{train_set.path} cannot be streamed"):
        first = next(iter(rows.take(1)), None)
    if first is None:
        raise JRMError(f"{train_set.path} holds no usable record.")
    layout = Layout(Table(train_set.path, "a stream", [first], tuple(first), root), train_set.columns, groups=True)
    if layout.is_scattered:
        raise JRMError(
            f"the rows of {train_set.path} belong together, which a stream cannot tell; leave streaming out."
        )
    return rows.map(_to_json(layout, train_set.path), with_indices=True, remove_columns=[*first])


def _to_json(layout: Layout, name: str) -> Callable[[Mapping[str, Any], int], dict[str, str]]:
    def to_json(row: Mapping[str, Any], number: int) -> dict[str, str]:
        try:
            (example,) = layout.examples([row])
            example.info.update({"file": name, "row": number + 1})
            return {COLUMN: json.dumps(example_to_record(example)), "error": ""}
        except JRMError as error:
            return {COLUMN: "", "error": f"{name}, row {number + 1}: {error}"}

    return to_json


def _rows(source: str) -> tuple[IterableDataset, Path | None]:
    """The rows of a set, and the folder that its paths are relative to."""
    path = Path(source)
    name, _, split = source.partition(":")
    with as_jrm_error(f"{source} cannot be streamed"):
        if path.is_dir() and is_dataset_folder(path):
            dataset = load_from_disk(source)
            if not isinstance(dataset, Dataset):
                raise JRMError(f"{source} has the splits {', '.join(dataset)}; give the folder of one of them.")
            return stored(dataset.to_iterable_dataset()), path
        if path.suffix in _STREAMED:
            files = [str(path)] if path.exists() else sorted(map(str, path.parent.glob(path.name)))
            if not files:
                raise JRMError(f"{source} does not exist: check the path.")
            options = {"sep": "\t"} if path.suffix == ".tsv" else {}
            kind = _STREAMED[path.suffix]
            stream = load_dataset(kind, data_files=files, split="train", streaming=True, **options)
            return stored(stream), path.parent
        if not path.exists() and HUB_NAME.fullmatch(name):
            return stored(load_dataset(name, split=split or "train", streaming=True)), None
    raise JRMError(f"{source} cannot be read row by row; give {STREAMS}, or leave streaming out.")


def identity_of_stream(sets: Sequence[TrainSet]) -> dict[str, dict[str, int]]:
    """What a stream is read from, as far as it can be told without reading it: the sizes of its files."""
    identity = {}
    for train_set in sets:
        path = Path(train_set.path)
        files = [*path.rglob("*")] if path.is_dir() else [path] if path.exists() else [*path.parent.glob(path.name)]
        sizes = {str(file): file.stat().st_size for file in sorted(files) if file.is_file()}
        identity[f"size of {train_set.path}"] = sizes
    return identity
