"""A benchmark of judges as an evaluation set of a training run, with the numbers of its table at every evaluation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from jrm_plugin.evaluation.agreement import Judged
from jrm_plugin.evaluation.benchmarks.benchmark import Benchmark
from jrm_plugin.evaluation.judges import dimension_for
from jrm_plugin.evaluation.judging import division_columns
from jrm_plugin.evaluation.results import column_values
from jrm_plugin.records.preferences import PreferencePair

FIGURES = "benchmark/"  # begins the names of the numbers in a log

# Of mu(chosen) - mu(rejected) by dimension, over the pairs of a set: numbers by name.
Figures: TypeAlias = Callable[[Mapping[str, np.ndarray]], dict[str, float]]


class BenchmarkExamples(Sequence):
    """The pairs of a benchmark, with its labels in the dimensions of the model that answer for them."""

    def __init__(self, benchmark: Benchmark, dimensions: Sequence[str]):
        self._benchmark = benchmark
        self._by = {name: dimension_for(name, dimensions) for name in benchmark.dimensions}
        self._labels = [pair.labels for pair in benchmark.pairs]
        infos = [pair.info for pair in benchmark.pairs]
        self._rows = {
            name: np.flatnonzero([name in labels for labels in self._labels]) for name in benchmark.dimensions
        }
        self._info = {
            name: division_columns(benchmark, [infos[row] for row in rows]) for name, rows in self._rows.items()
        }

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            return [self[k] for k in range(*position.indices(len(self)))]
        pair: PreferencePair = self._benchmark.pairs[position]
        prepare = self._benchmark.prepare or (lambda sample: sample)
        labels = {self._by[name]: label for name, label in pair.labels.items()}
        # critiques are for learning, and scores may be of dimensions that the model has not
        return replace(
            pair,
            chosen=prepare(pair.chosen),
            rejected=prepare(pair.rejected),
            labels=labels,
            chosen_scores=None,
            rejected_scores=None,
            chosen_critiques={},
            rejected_critiques={},
        )

    def figures(self, margins: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The numbers of the benchmark's table, where there are pairs for them."""
        judged = {
            name: Judged(
                label_N=np.array([self._labels[row][name] for row in rows]),
                margin_N=margins[self._by[name]][rows],
                prompt_N=rows,
                info=self._info[name],
            )
            for name, rows in self._rows.items()
        }
        values = column_values(self._benchmark, judged)
        return {FIGURES + title: value for title, value in values.items() if value is not None}
