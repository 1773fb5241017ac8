"""ShapeEdits and PhotoEdits: held-out edits whose scores are exact; drawn where no folder of them is given."""

from pathlib import Path

from jrm_plugin.data.editreward import read_edit_reward
from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation.agreement import accuracy
from jrm_plugin.evaluation.benchmarks.benchmark import Benchmark, Column
from jrm_plugin.records.samples import OVERALL


def read_synthetic(name: str, title: str, source: str | Path, progress: bool) -> Benchmark:
    """The held-out split of a folder that `EditSet.write` left, with a column for each dimension it is labelled in."""
    path = Path(source)
    path = path / "heldout.json" if path.is_dir() else path
    pairs = read_edit_reward(path, progress=progress).examples
    if not pairs:
        raise JRMError(f"{path} holds no pair; give a folder with held-out pairs.")
    dimensions = [name for name in dict.fromkeys(name for pair in pairs for name in pair.labels) if name != OVERALL]
    columns = [Column(name.replace("_", " ").capitalize(), accuracy, name) for name in dimensions]
    overall = Column("Overall", accuracy, OVERALL)
    return Benchmark(name, title, pairs, (overall, *columns), divisions=("edit",))
