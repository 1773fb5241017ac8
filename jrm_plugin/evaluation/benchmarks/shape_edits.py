"""ShapeEdits: coloured shapes on a grid, which `jrm-tiny` knows."""

from pathlib import Path

from jrm_plugin.evaluation.benchmarks.benchmark import Benchmark
from jrm_plugin.evaluation.benchmarks.synthetic import read_synthetic
from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS as EDIT_SET  # noqa: F401  what `load_benchmark` draws

HUB = None


def read(source: str | Path, *, progress: bool = True) -> Benchmark:
    return read_synthetic("shape_edits", "ShapeEdits", source, progress)
