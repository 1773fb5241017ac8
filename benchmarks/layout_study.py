"""Accuracy of the four layouts on ShapeEdits and PhotoEdits, at equal steps and at equal cost.

    python -m benchmarks.layout_study --output outputs/layout-study

For each set of edits and order, a tiny backbone goes through the demo's language warm start, or a part of it. From
there each layout is trained on preferences and critiques by the demo's recipe, with a constant learning rate after its
warm-up, and evaluated on held-out pairs a few times (`SCALES`). One run gives both readings: after equal steps, and
where each layout has cost as many FLOPs as the cheapest one cost at its end, between two evaluations on the line that
joins them. A seed is one of the pairs that are trained on, of those held out, and of dropout.

FLOPs are torch's count with eager attention: forward and backward of training batches, with what their sequences share
computed once, as `jrm train` does (an optimizer's are the same in all layouts), and of scoring a group of 12.

Stopped at any point, the same command goes on. Rows go into `results/layout-study.csv`, the tables to the terminal.
"""

import argparse
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import as_file, files
from itertools import product
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import device_description, versions, write_csv
from jrm_plugin.cli.demo import PHOTOS, SHAPES, Recipe, train_stage, training_texts
from jrm_plugin.data.editreward import read_edit_reward
from jrm_plugin.evaluation.metrics import mean_with_interval
from jrm_plugin.files import read_json, write_json
from jrm_plugin.integrations.trl.joint_reward_trainer import JointRewardCollator
from jrm_plugin.integrations.trl.training import parse, train
from jrm_plugin.model.backbone import BackboneParts
from jrm_plugin.model.loading import load
from jrm_plugin.model.processing import LAYOUT_FILE, ORDERS, SEQUENCES
from jrm_plugin.model.tiny import write_tiny_backbone
from jrm_plugin.records.samples import DIMENSIONS, OVERALL, Sample
from jrm_plugin.scoring.scorer import RewardScorer

RESULTS = Path(__file__).parent / "results"
RECIPES = {"shapes": SHAPES, "photos": PHOTOS}
LAYOUTS = [*product(ORDERS, SEQUENCES)]
NAMES = (*DIMENSIONS, OVERALL)
GROUP = 12  # candidates of a group that is scored
COUNTED = 4  # training batches whose FLOPs are counted


@dataclass(frozen=True)
class Scale:
    """How much is trained and measured."""

    warm: float  # times the steps of the demo's warm start
    steps: int  # of joint training
    eval_every: int
    heldout: int  # pairs
    language: int  # texts of the warm start


# Enough for instruction following to leave chance, and little enough for 24 runs in an hour.
SCALES = {
    "shapes": Scale(warm=1.0, steps=480, eval_every=160, heldout=400, language=12_000),
    "photos": Scale(warm=0.4, steps=160, eval_every=80, heldout=400, language=6_000),
}


# --- training ---------------------------------------------------------------------------------------------------------


def warm_start(recipe: Recipe, order: str, folder: Path, scale: Scale) -> Path:
    """A model that has learned to say what it sees, in one order; what it was made of lies beside it."""
    data, backbone, warm = folder / "data", folder / "backbone", folder / f"warm-{order}"
    if not (data / "meta.json").exists():
        recipe.edits.write(data, train=scale.language, heldout=0, language=scale.language, seed=1000)
    if not (backbone / "config.json").exists():
        write_tiny_backbone(backbone, training_texts(data), image_size=recipe.image_size, seed=0)
    language = data / "language.jsonl"
    train_stage(recipe, "warm_start", backbone, language, warm, scale.warm, 0, ["--order", order])
    return warm


def with_sequences(warm: Path, sequences: str, folder: Path) -> Path:
    """The same weights under another `sequences`: texts to learn are one sequence in both."""
    if not (folder / LAYOUT_FILE).exists():
        staging = folder.with_name(f".{folder.name}")
        shutil.rmtree(staging, ignore_errors=True)
        shutil.copytree(warm, staging, ignore=shutil.ignore_patterns("checkpoint-*", "*.png", "training_args.bin"))
        write_json(staging / LAYOUT_FILE, read_json(staging / LAYOUT_FILE) | {"sequences": sequences})
        staging.rename(folder)
    return folder


def train_joint(recipe: Recipe, start: Path, data: Path, output: Path, scale: Scale, seed: int) -> list[dict]:
    """A joint run by the demo's recipe at a constant learning rate; the log of its evaluations."""
    if not (output / "trainer_state.json").exists():  # written last
        given = {"model": start, "train_data": data / "train.json", "output_dir": output, "seed": seed}
        given |= {"eval_data": f"held_out={data / 'heldout.json'}", "lr_scheduler_type": "constant_with_warmup"}
        given |= {"max_steps": scale.steps, "eval_steps": scale.eval_every, "save_steps": scale.eval_every}
        given |= {"disable_tqdm": True, "logging_steps": scale.eval_every, "per_device_eval_batch_size": 32}
        overrides = [text for name, value in given.items() for text in (f"--{name}", str(value))]
        with as_file(files("jrm_plugin") / "resources" / "demo" / f"{recipe.name}_joint.yaml") as config:
            if train(*parse(config, overrides)) is None:
                raise SystemExit("stopped; the same command goes on")
    log = read_json(output / "trainer_state.json")["log_history"]
    return [row for row in log if f"eval_held_out_accuracy/{OVERALL}" in row]


# --- cost -------------------------------------------------------------------------------------------------------------


def gigaflops_of_a_step(model_folder: Path, data: Path, batch: int = 8) -> float:
    """Of forward and backward of a training batch, the mean of a few."""
    model, processor = load(model_folder, attn_implementation="eager")
    costs = replace(BackboneParts(model.backbone).costs(), attention="sdpa")  # planned as for the attention of training
    collate = JointRewardCollator(processor, costs=costs)
    pairs = read_edit_reward(data / "train.json", progress=False).examples[: COUNTED * batch]

    def step(rows: Sequence) -> None:
        inputs = collate(rows)
        for name in ("sample_NG", "rank_NGC"):
            inputs.pop(name)
        output = model(**inputs)
        (output.mu_SD.sum() + output.log_sigma_SD.sum() + output.critique_loss_T.sum()).backward()

    return float(np.mean([_gigaflops(partial(step, pairs[k : k + batch])) for k in range(0, len(pairs), batch)]))


def gigaflops_of_a_group(model_folder: Path, recipe: Recipe) -> float:
    edit = recipe.edits.draw(
        np.random.default_rng(0), heldout=True, outcomes=[("none", "mild_noise"), ("ignored", "heavy_noise")] * 6
    )
    group = [Sample.edit(edit.source, edit.instruction, candidate.image) for candidate in edit.candidates]
    assert len(group) == GROUP
    scorer = RewardScorer(*load(model_folder, attn_implementation="eager"), cache_bytes=0)
    return _gigaflops(lambda: scorer.score(group))


def _gigaflops(function: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 1e9


# --- what came out ----------------------------------------------------------------------------------------------------


def rows_of(recipe: Recipe, layout: tuple[str, str], seed: int, folder: Path, scale: Scale) -> list[dict]:
    """A row for each evaluation of one run, which is made if it is not there."""
    order, sequences = layout
    warm = warm_start(recipe, order, folder, scale)
    start = with_sequences(warm, sequences, folder / f"start-{order}-{sequences}")
    data = folder / f"data-{seed}"
    if not (data / "meta.json").exists():
        recipe.edits.write(data, train=8 * scale.steps, heldout=scale.heldout, language=0, seed=seed)
    log = train_joint(recipe, start, data, folder / f"{order}-{sequences}-{seed}", scale, seed)
    file = folder / f"cost-{order}-{sequences}.json"
    if not file.exists():
        cost = {"step": gigaflops_of_a_step(start, data), "group": gigaflops_of_a_group(start, recipe)}
        write_json(file, cost)
    cost = read_json(file)
    return [
        {"data": recipe.name, "order": order, "sequences": sequences, "seed": seed, "step": row["step"]}
        | {"train_gigaflops": round(row["step"] * cost["step"], 1), "group_gigaflops": round(cost["group"], 4)}
        | {name: round(row[f"eval_held_out_accuracy/{name}"], 4) for name in NAMES}
        | {f"{name}_pairs": row[f"eval_held_out_pairs/{name}"] for name in NAMES}
        for row in log
    ]


def at_equal_steps(run: list[dict], name: str) -> float:
    return run[-1][name]


def at_equal_cost(run: list[dict], name: str, budget: float) -> float:
    """The accuracy after so many FLOPs, on the line between two evaluations."""
    return float(np.interp(budget, [row["train_gigaflops"] for row in run], [row[name] for row in run]))


def print_tables(rows: list[dict]) -> None:
    console = Console(width=170)
    for data in dict.fromkeys(row["data"] for row in rows):
        runs: dict[tuple, dict[int, list[dict]]] = {}
        for row in rows:
            if row["data"] == data:
                of_layout = runs.setdefault((row["order"], row["sequences"]), {})
                of_layout.setdefault(row["seed"], []).append(row)
        budget = min(run[-1]["train_gigaflops"] for of_layout in runs.values() for run in of_layout.values())
        readings = {
            f"after {max(row['step'] for row in rows if row['data'] == data)} steps": at_equal_steps,
            f"after {budget / 1000:.2f} TFLOP": partial(at_equal_cost, budget=budget),
        }
        for title, read in readings.items():
            table = Table("layout", "seeds", "GFLOP a step", "MFLOP a group", *NAMES, "overall, less the first")
            table.title = f"{data}, {title}"
            first = next(iter(runs.values()))
            for layout, of_layout in runs.items():
                last = next(iter(of_layout.values()))[-1]
                cells = ["/".join(layout), ", ".join(map(str, of_layout))]
                cells += [f"{last['train_gigaflops'] / last['step']:.2f}", f"{1000 * last['group_gigaflops']:.0f}"]
                cells += [_in_words([read(run, name) for run in of_layout.values()]) for name in NAMES]
                both = [seed for seed in of_layout if seed in first]
                cells.append(_in_words([read(of_layout[s], OVERALL) - read(first[s], OVERALL) for s in both]))
                table.add_row(*cells)
            console.print(table)


def _in_words(values: Sequence[float]) -> str:
    mean = mean_with_interval(values)
    return f"{mean['value']:.3f}" + (f" ({mean['low']:.3f} to {mean['high']:.3f})" if mean["n"] > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/layout-study"), help="folder for data and models")
    parser.add_argument("--data", nargs="+", choices=RECIPES, default=[*RECIPES])
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--csv", type=Path, default=RESULTS / "layout-study.csv")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    rows: list[dict] = []
    made_by = {"device": device_description()} | versions()
    for seed, data, layout in product(options.seed, options.data, LAYOUTS):
        of_run = rows_of(RECIPES[data], layout, seed, options.output / data, SCALES[data])
        rows += of_run
        print(f"{data}, {'/'.join(layout)}, seed {seed}: {of_run[-1][OVERALL]:.3f}", flush=True)
        write_csv(options.csv, [row | made_by for row in rows])
    print_tables(rows)


if __name__ == "__main__":
    main()
