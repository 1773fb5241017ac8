"""`jrm demo`: data, a language warm start, joint training, evaluation and a report, from nothing, on a CPU.

Every stage leaves its result in the output folder, and the same command goes on after the last whole one. The two
training stages are ordinary `jrm train` runs; their configs are in `jrm_plugin/resources/demo`.
"""

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jrm_plugin.cli.common import quiet
from jrm_plugin.cli.env import versions
from jrm_plugin.data.editreward import read_edit_reward, write_edit_reward
from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation.metrics import accuracy_difference
from jrm_plugin.evaluation.report import write_report
from jrm_plugin.extras import require
from jrm_plugin.files import check_writable, read_json, write_json
from jrm_plugin.model.rubrics import default_rubrics
from jrm_plugin.records.critiques import Critique
from jrm_plugin.records.preferences import PreferencePair
from jrm_plugin.records.samples import DIMENSIONS, KNOWN_DIMENSIONS, Sample
from jrm_plugin.runs import LOCK_FILE, check_settings, locked, read_records
from jrm_plugin.synthetic.photo_edits import PHOTO_EDITS
from jrm_plugin.synthetic.preferences import GROUPS, Candidate, EditSet
from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS

if TYPE_CHECKING:
    from jrm_plugin.scoring.scorer import RewardScorer

HELDOUT_PAIRS = 1000
CRITICISED_PAIRS = 100
CURVE_PAIRS = 100  # of the held-out ones, which the joint training is evaluated on while it runs
SHOWN_CRITIQUES = 6
# The candidates of each group that is ranked and shown: what became of the instruction, and of the picture.
GROUP = (
    ("none", "clean"),
    ("none", "mild_noise"),
    ("over_edit", "clean"),
    ("partial", "seam"),
    ("wrong_object", "clean"),
    ("ignored", "heavy_noise"),
)
SHOWN_GROUPS = 3
CRITIQUES_ARE_NEW = (
    "The critique loss jumps where joint training starts: the warm start taught captions and lists of changes, and "
    "critiques are texts of another kind."
)
# What the demo writes, beside its settings: in a folder without those, it is somebody else's.
MADE = ("data", "backbone", "warm-start", "model", "baseline", "report.html", "summary.json", "timings.json")


@dataclass(frozen=True)
class Recipe:
    """What the demo trains on."""

    name: str  # its training configs begin with it
    edits: EditSet
    train_pairs: int
    image_size: int
    about: str


SHAPES = Recipe(
    "shapes", SHAPE_EDITS, train_pairs=8_000, image_size=48, about="ShapeEdits, drawn edits of coloured shapes"
)
PHOTOS = Recipe(
    "photos", PHOTO_EDITS, train_pairs=4_000, image_size=96, about="PhotoEdits, edits of crops of real photographs"
)


class Stopped(Exception):
    """Training was interrupted; its checkpoint is saved."""


class Steps:
    """Says what is done, and keeps how long each step took, over several runs of the command."""

    def __init__(self, output: Path):
        self.file = output / "timings.json"
        self.seconds: dict[str, float] = read_json(self.file) if self.file.exists() else {}

    @contextmanager
    def step(self, name: str):
        print(f"\n== {name}", file=sys.stderr, flush=True)
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
            write_json(self.file, self.seconds)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, default=Path("demo-output"), help="folder to write (default: %(default)s)"
    )
    parser.add_argument("--photos", action="store_true", help="edits of photographs instead of coloured shapes")
    parser.add_argument("--compare", action="store_true", help="also train the alpha = 0 baseline and compare")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="times the usual number of steps (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of data and weights (default: %(default)s)")
    parser.add_argument(
        "--dimensions",
        nargs="+",
        choices=KNOWN_DIMENSIONS,
        default=[*DIMENSIONS],
        metavar="NAME",
        help=f"what the data are labelled in and the model scores, of {', '.join(KNOWN_DIMENSIONS)} "
        f"(default: {' '.join(DIMENSIONS)})",
    )


def run(options: argparse.Namespace) -> int:
    """The whole pipeline; leaves `report.html`, `summary.json` and `model/` in the output folder."""
    quiet()
    require("trl accelerate datasets matplotlib", "jrm demo", install="jrm-plugin[demo]")
    import torch

    torch.set_flush_denormal(True)  # tiny optimizer states slow a CPU down several times
    output, photos, compare = options.output, options.photos, options.compare
    scale, seed, dimensions = options.scale, options.seed, options.dimensions
    if len(set(dimensions)) < len(dimensions):
        raise JRMError(f"--dimensions names each once, got {' '.join(dimensions)}.")
    if not 0 < scale < math.inf:
        raise JRMError(f"--scale must be positive and finite, got {scale}.")
    if not 0 <= seed < 2**32:
        raise JRMError(f"--seed must be between 0 and {2**32 - 1}, got {seed}.")
    check_writable(output)
    with locked(output / LOCK_FILE):
        # Stages that are done are not done again, so they must have been done with the same options.
        settings = {"photos": photos, "scale": scale, "seed": seed}
        if dimensions != [*DIMENSIONS]:
            settings["dimensions"] = dimensions
        check_settings(output / "demo.json", settings, results=any((output / name).exists() for name in MADE))
        write_json(output / "demo.json", settings)
        recipe = PHOTOS if photos else SHAPES
        steps = Steps(output)
        try:
            _train_all(output, recipe, steps, compare, scale, seed, dimensions)
        except Stopped:
            print(f"jrm: stopped; the same command goes on from what is in {output}.", file=sys.stderr)
            return 130
        summary = _evaluate(output, recipe, steps, compare, scale, seed)
    _say(output, summary)
    return 0


# -- training


def _train_all(
    output: Path, recipe: Recipe, steps: Steps, compare: bool, scale: float, seed: int, dimensions: Sequence[str]
) -> None:
    data, backbone, warm = output / "data", output / "backbone", output / "warm-start"
    if not (data / "meta.json").exists():
        with steps.step("Making the data"):
            pairs = recipe.train_pairs
            recipe.edits.write(
                data, train=pairs, heldout=HELDOUT_PAIRS, language=pairs, seed=seed, dimensions=dimensions
            )
    if not backbone.exists():
        from jrm_plugin.model.tiny import write_tiny_backbone

        with steps.step("Making an untrained backbone"):
            staging = output / ".backbone"
            shutil.rmtree(staging, ignore_errors=True)
            texts = training_texts(data, dimensions)
            write_tiny_backbone(staging, texts, image_size=recipe.image_size, seed=seed)
            staging.rename(backbone)
    with steps.step("Language warm start"):
        layout = ["--dimensions", *dimensions] if [*dimensions] != [*DIMENSIONS] else []
        train_stage(recipe, "warm_start", backbone, data / "language.jsonl", warm, scale, seed, layout)
    heldout = read_edit_reward(data / "heldout.json", progress=False).examples
    curve = write_edit_reward(data / "curve.json", heldout[:CURVE_PAIRS])
    arms = {"model": 0.7, "baseline": 0.0} if compare else {"model": 0.7}
    for arm, alpha in arms.items():
        with steps.step(f"Joint training, alpha = {alpha}"):
            overrides = ["--alpha", str(alpha), "--eval_data", f"held_out={curve}"]
            train_stage(recipe, "joint", warm, data / "train.json", output / arm, scale, seed, overrides)


def training_texts(data: Path, dimensions: Sequence[str] = DIMENSIONS) -> list[str]:
    """All that the model will read and write."""
    texts = [line for task in default_rubrics("short", dimensions).values() for line in task.values()]
    for row in read_records(data / "language.jsonl"):
        texts += [row["prompt"], row["text"]]
    for row in read_records(data / "train_critiques.jsonl"):
        texts.append(row["prompt"])
        texts.append("\n".join(f"{d}: {Critique.parse(json.dumps(row[d])).to_json()}" for d in dimensions))
    return texts


def train_stage(
    recipe: Recipe,
    stage: str,
    model: Path,
    data: Path,
    output: Path,
    scale: float,
    seed: int,
    overrides: Sequence[str] = (),
) -> None:
    """A stage's `jrm train` run, `scale` times its number of steps; raises [`Stopped`] where that is stopped."""
    from jrm_plugin.integrations.trl.training import parse, train

    if (output / "trainer_state.json").exists():  # written last: this stage is done
        return
    paths = ["--model", model, "--train_data", data, "--output_dir", output, "--seed", seed]
    with as_file(files("jrm_plugin") / "resources" / "demo" / f"{recipe.name}_{stage}.yaml") as config:
        arguments, training = parse(config, [*map(str, paths), *overrides])
    training.max_steps = math.ceil(training.max_steps * scale)
    if train(arguments, training) is None:
        raise Stopped


# -- what came out


def _evaluate(output: Path, recipe: Recipe, steps: Steps, compare: bool, scale: float, seed: int) -> dict:
    from jrm_plugin.evaluation.critiques import evaluate_critiques
    from jrm_plugin.evaluation.pairs import evaluate_pairs, summarize
    from jrm_plugin.evaluation.representation import evaluate_representation
    from jrm_plugin.scoring.scorer import RewardScorer

    heldout = read_edit_reward(output / "data" / "heldout.json", progress=False).examples
    scorer = RewardScorer.from_pretrained(output / "model", device="cpu")
    with steps.step(f"Evaluating on {len(heldout)} held-out pairs"):
        results = evaluate_pairs(scorer, heldout, progress=True)
        summary = {"heldout": summarize(results, GROUPS)}
    with steps.step("Writing critiques"):
        summary["critiques"] = evaluate_critiques(scorer, heldout, CRITICISED_PAIRS, progress=True)
    with steps.step("Measuring the representation"):
        summary["effective_rank"] = evaluate_representation(scorer, heldout, bootstrap=100)
    comparison = None
    if compare:
        with steps.step("Evaluating the baseline"):
            comparison = _compare(output, heldout, results, summary)
            summary["comparison"] = comparison
    with steps.step("Writing the report"):
        facts = _facts(recipe, scorer)
        command = f"jrm demo{' --photos' * (recipe is PHOTOS)}{' --compare' * compare}"
        command += f"{f' --scale {scale:g}' * (scale != 1)}{f' --seed {seed}' * (seed != 0)}"
        if scorer.dimensions != [*DIMENSIONS]:
            command += f" --dimensions {' '.join(scorer.dimensions)}"
        summary |= {"facts": facts, "timings": steps.seconds, "versions": versions(), "seed": seed, "command": command}
        report = {
            "title": "Joint Reward Modeling, trained from scratch",
            "lead": f"A small reward model, trained on {recipe.about}, and what it says of edits it has not seen.",
            "facts": facts,
            "stages": [
                {"name": "Language warm start", "log": _log(output / "warm-start")},
                {"name": "Joint training", "log": _log(output / "model"), "note": CRITIQUES_ARE_NEW},
            ],
            "summary": summary["heldout"],
            "critique_quality": summary["critiques"],
            "effective_rank": summary["effective_rank"],
            "ranked": _ranked(scorer, recipe.edits, seed),
            "critiques": _criticised(scorer, heldout),
            "timings": steps.seconds,
            "versions": summary["versions"],
            "seed": seed,
            "command": command,
        }
        if comparison:
            report["comparison"] = comparison
        write_report(output, report)
    write_json(output / "summary.json", summary)
    return summary


def _compare(output: Path, heldout: list[PreferencePair], results: list, summary: dict) -> dict:
    from jrm_plugin.evaluation.pairs import evaluate_pairs, summarize
    from jrm_plugin.evaluation.representation import evaluate_representation
    from jrm_plugin.scoring.scorer import RewardScorer

    baseline = RewardScorer.from_pretrained(output / "baseline", device="cpu")
    other = evaluate_pairs(baseline, heldout, progress=True)
    arms = [
        {
            "name": "alpha = 0.7",
            "log": _log(output / "model"),
            "summary": summary["heldout"],
            "effective_rank": summary["effective_rank"],
        },
        {
            "name": "alpha = 0",
            "log": _log(output / "baseline"),
            "summary": summarize(other, GROUPS),
            "effective_rank": evaluate_representation(baseline, heldout, bootstrap=100),
        },
    ]
    difference = {}
    for name in summary["heldout"]["dimensions"]:
        decided = [k for k, r in enumerate(results) if r.labels.get(name)]
        if decided:
            difference[name] = accuracy_difference(
                *([_is_right(arm[k], name) for k in decided] for arm in (results, other))
            )
    return {"arms": arms, "accuracy_difference": difference}


def _is_right(result, name: str) -> bool:
    return (result.chosen.mu[name] - result.rejected.mu[name]) * result.labels[name] > 0


def _log(folder: Path) -> list[dict]:
    return read_json(folder / "trainer_state.json")["log_history"]


def _facts(recipe: Recipe, scorer: "RewardScorer") -> dict:
    return {
        "data": recipe.about,
        "training pairs": recipe.train_pairs,
        "texts of the warm start": recipe.train_pairs,
        "held-out pairs": HELDOUT_PAIRS,
        "parameters": sum(parameter.numel() for parameter in scorer.model.parameters()),
        "layout": f"{scorer.processor.order}, {scorer.processor.sequences}",
    }


def _ranked(scorer: "RewardScorer", edits: EditSet, seed: int) -> list[dict]:
    """Held-out instructions, each with one candidate for every outcome in `GROUP`, scored."""
    rng = np.random.default_rng([seed, 2])
    groups: dict[str, dict] = {}
    while len(groups) < SHOWN_GROUPS:
        edit = edits.draw(rng, heldout=True, outcomes=GROUP)
        if edit.kind in groups:
            continue
        scores = scorer.score([Sample.edit(edit.source, edit.instruction, c.image) for c in edit.candidates])
        candidates = [
            {
                "image": candidate.image,
                "score": score,
                "note": _note(candidate),
                "data_score": _data_score(candidate, scorer.dimensions),
            }
            for candidate, score in zip(edit.candidates, scores, strict=True)
        ]
        groups[edit.kind] = {"instruction": edit.instruction, "sources": [edit.source], "candidates": candidates}
    return list(groups.values())


def _data_score(candidate: Candidate, dimensions: Sequence[str]) -> int:
    return sum(candidate.scores(dimensions).values())


def _note(candidate: Candidate) -> str:
    failure = "as asked" if candidate.failure == "none" else candidate.failure
    return f"{failure}, {candidate.quality}".replace("_", " ")


def _criticised(scorer: "RewardScorer", pairs: list[PreferencePair]) -> list[dict]:
    chosen = [(pair.rejected, pair.rejected_critiques) for pair in pairs[:SHOWN_CRITIQUES]]
    written = scorer.critique([sample for sample, _ in chosen])
    return [
        {
            "instruction": sample.prompt_text,
            "sources": list(sample.prompt_images),
            "image": sample.response_images[0],
            "critiques": critiques,
            "expected": dict(expected),
        }
        for (sample, expected), critiques in zip(chosen, written, strict=True)
    ]


def _say(output: Path, summary: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="On held-out edits", title_justify="left")
    for column in ("what", "value", "95 % interval", "pairs"):
        table.add_column(column)
    rows = {f"accuracy, {name}": found for name, found in summary["heldout"]["accuracy"].items()}
    rows["critiques that are right"] = summary["critiques"]["right"]
    if "comparison" in summary:
        baseline = summary["comparison"]["arms"][1]
        rows |= {f"baseline (alpha = 0), {name}": found for name, found in baseline["summary"]["accuracy"].items()}
    for name, found in rows.items():
        table.add_row(name, f"{found['value']:.3f}", f"{found['low']:.3f} to {found['high']:.3f}", str(found["n"]))
    arms = {"effective rank": summary["effective_rank"]}
    if "comparison" in summary:
        arms["effective rank, baseline (alpha = 0)"] = summary["comparison"]["arms"][1]["effective_rank"]
    for name, found in arms.items():
        rank = found["raw"]["effective_rank"]
        table.add_row(name, f"{rank['value']:.1f}", f"{rank['low']:.1f} to {rank['high']:.1f}", str(found["n"] // 2))
    console = Console()
    console.print(table)
    minutes = sum(summary["timings"].values()) / 60
    console.print(f"Took {minutes:.1f} minutes. What was made:", highlight=False)
    for path, what in (
        ("report.html", "the report; open it in a browser"),
        ("summary.json", "every number in it"),
        ("model", f"the model; jrm score --model {output / 'model'} …"),
        ("data", "the edits it learned from and was tested on"),
    ):
        console.print(f"  {output / path}  {what}", highlight=False, soft_wrap=True)
