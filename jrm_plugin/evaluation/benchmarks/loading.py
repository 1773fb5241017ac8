"""The table of benchmarks, and a name into one."""

from importlib import import_module
from pathlib import Path

from jrm_plugin.data.columns import Columns
from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation.benchmarks.benchmark import Benchmark, limited

# A name for each, and what it is in a line; the module of that name reads it.
BENCHMARKS = {
    "edit_reward_bench": "EditReward-Bench of TIGER-Lab: rankings of 2, 3 and 4 candidates",
    "edit_score_bench": "EditReward-Bench of EditScore, another data set under that name",
    "mmrb2": "MMRB2, image editing: one to three source images",
    "gen_ai_bench": "GenAI-Bench, image editing: votes, with ties",
    "edit_reward_compass": "EditReward-Compass: three dimensions, with ties",
    "vc_reward_bench": "VCReward-Bench: visual consistency, 21 types of edits",
    "shape_edits": "ShapeEdits, drawn here: coloured shapes, which jrm-tiny knows",
    "photo_edits": "PhotoEdits, drawn here: photographs with effects",
    "pair_file": "pairs of your own, in any table that jrm train reads",
}
DRAWN = 1000  # held-out pairs of a made-up set, where no number is given


def load_benchmark(
    name: str,
    source: str | Path | None = None,
    *,
    columns: Columns | None = None,
    limit: int | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Benchmark:
    """A benchmark by its name.

    Args:
        name: one of `BENCHMARKS`.
        source: its file or folder, or a hub name; by default the publisher's on the hub, or drawn anew.
        columns: what the columns of a `pair_file` mean where they have other names than the usual ones.
        limit: only so many pairs, the first; groups stay whole.
        folder: where a made-up set is drawn, if it is not there yet.
        progress: show bars on a terminal.

    Raises:
        JRMError: there is no such benchmark, or no data of it; or they are not in the published form.
    """
    if name not in BENCHMARKS:
        raise JRMError(f"there is no benchmark {name!r}; there are {', '.join(BENCHMARKS)}.")
    module = import_module(f"jrm_plugin.evaluation.benchmarks.{name}")
    if columns and name != "pair_file":
        raise JRMError(f"columns belong to pair_file; {name} has its published columns.")
    options = {"columns": columns} if name == "pair_file" else {}
    if source is None and (edit_set := getattr(module, "EDIT_SET", None)):
        if folder is None:
            raise JRMError(f"{name} is drawn into a folder; name one, or a folder with its pairs.")
        source = Path(folder) / f"{name}-{limit or DRAWN}"
        if not (source / "meta.json").exists():  # which is written last
            edit_set.write(source, train=0, language=0, heldout=limit or DRAWN, progress=progress)
    if source is None:
        source = module.HUB
    if source is None:
        raise JRMError(f"{name} is on no hub in a form that is read here; say where it is with --data.")
    benchmark = module.read(source, progress=progress, **options)
    return benchmark if limit is None else limited(benchmark, limit)


def known_benchmark(text: str) -> tuple[str, str | None] | None:
    """A benchmark's name and where it is, in `name` or `name:place`; None where `text` begins with no such name."""
    name, _, place = text.partition(":")
    return (name, place or None) if name in BENCHMARKS else None
