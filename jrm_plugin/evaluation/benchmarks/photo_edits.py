"""PhotoEdits: crops of photographs with effects and things laid over them."""

from pathlib import Path

from jrm_plugin.evaluation.benchmarks.benchmark import Benchmark
from jrm_plugin.evaluation.benchmarks.synthetic import read_synthetic
from jrm_plugin.synthetic.photo_edits import PHOTO_EDITS as EDIT_SET  # noqa: F401  what `load_benchmark` draws

HUB = None


def read(source: str | Path, *, progress: bool = True) -> Benchmark:
    return read_synthetic("photo_edits", "PhotoEdits", source, progress)
