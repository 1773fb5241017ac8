"""Pairs of your own, from any table that `jrm train` reads; `columns` says what is what where names differ."""

from dataclasses import replace
from pathlib import Path

from jrm_plugin.data.columns import Columns
from jrm_plugin.data.preferences import read_preferences
from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation.agreement import accuracy, accuracy_with_ties
from jrm_plugin.evaluation.benchmarks.benchmark import Benchmark, Column
from jrm_plugin.records.preferences import PreferencePair

HUB = None


def read(source: str | Path, *, columns: Columns | None = None, progress: bool = True) -> Benchmark:
    records = read_preferences(source, columns=columns, progress=progress)
    if not records.examples or not isinstance(records.examples[0], PreferencePair):
        raise JRMError(f"{source} holds texts to learn and no pairs; give pairs, ranked lists or scored candidates.")
    benchmark = Benchmark("pairs", Path(source).stem, records.examples, (), note=records.understood)
    names = benchmark.dimensions
    heads = {name: f"{name.replace('_', ' ')}, " if len(names) > 1 else "" for name in names}
    shown = [Column(f"{head}no ties", accuracy, name) for name, head in heads.items()]
    shown += [Column(f"{head}with ties", accuracy_with_ties, name, ties=True) for name, head in heads.items()]
    return replace(benchmark, columns=tuple(shown))
