"""What consistency, a third dimension, is worth on over-edits: the same training with and without it.

    jrm demo                                # leaves demo-output/model
    python -m benchmarks.consistency --model demo-output/model --output outputs/consistency

Both arms begin with the backbone of the demo's model and new reward heads, and learn from the same pictures of
ShapeEdits by the demo's recipe at a constant learning rate; `with` has labels, critiques, a rubric and a head more. A
seed is one of training pairs, heads and dropout; 0 is the demo's own, whose model knows its head already. Measured on
held-out pairs of every kind, by each arm's own labels; on those of them in which one candidate did more than was asked;
and on `EditSet.over_edits`: as asked against overdone, with the same flaw or none in both, where nobody doubts which is
better. Beside them stands the demo's model itself.

Stopped at any point, the same command goes on. Rows go into `results/consistency.csv`.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import as_file, files
from itertools import product
from pathlib import Path

import torch
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import device_description, versions, write_csv
from jrm_plugin.data.editreward import read_edit_reward
from jrm_plugin.evaluation.metrics import mean_with_interval, pairwise_accuracy
from jrm_plugin.evaluation.pairs import PairResult, evaluate_pairs
from jrm_plugin.files import read_json, write_json
from jrm_plugin.integrations.trl.training import parse, train
from jrm_plugin.model.configuration import CHOSEN_FIELDS
from jrm_plugin.model.loading import load
from jrm_plugin.records.preferences import PreferencePair, in_dimensions
from jrm_plugin.records.samples import CONSISTENCY, DIMENSIONS, KNOWN_DIMENSIONS, OVERALL
from jrm_plugin.scoring.scorer import RewardScorer
from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS

RESULTS = Path(__file__).parent / "results"
ARMS = {"without": DIMENSIONS, "with": KNOWN_DIMENSIONS}
HELDOUT_SEED = 1000
PAIRS = {"all": "held-out pairs", "over_edit": "of them, one overdone", "compared": "as asked against overdone"}


def backbone_of(model_folder: Path, folder: Path) -> Path:
    """The backbone of a reward model as a folder of its own, from which one with other dimensions is trained."""
    if not (folder / "config.json").exists():
        model, processor = load(model_folder)
        for part in (processor.tokenizer, processor.image_processor, model.backbone):  # which writes the config
            part.save_pretrained(folder)
    return folder


def train_arm(arm: str, seed: int, model: Path, folder: Path, steps: int) -> Path:
    data, output = folder / f"data-{arm}-{seed}", folder / f"{arm}-{seed}"
    if (output / "trainer_state.json").exists():  # written last
        return output
    if not (data / "meta.json").exists():
        SHAPE_EDITS.write(data, train=8 * steps, heldout=0, language=0, seed=seed, dimensions=ARMS[arm])
    demo = files("jrm_plugin") / "resources" / "demo"
    head = yaml.safe_load((demo / "shapes_warm_start.yaml").read_text(encoding="utf-8"))
    given = {name: head[name] for name in (*CHOSEN_FIELDS, "order", "rubrics") if name in head}
    given |= {"model": backbone_of(model, folder / "backbone"), "train_data": data / "train.json", "seed": seed}
    given |= {"output_dir": output, "dimensions": ARMS[arm], "max_steps": steps, "eval_strategy": "no"}
    given |= {"lr_scheduler_type": "constant_with_warmup", "save_steps": 50, "disable_tqdm": True}
    overrides: list[str] = []
    for name, value in given.items():
        overrides += [f"--{name}", *map(str, value if isinstance(value, (list, tuple)) else [value])]
    with as_file(demo / "shapes_joint.yaml") as config:
        if train(*parse(config, overrides)) is None:
            raise SystemExit("stopped; the same command goes on")
    return output


def accuracies(model: Path, heldout: int, folder: Path) -> list[dict]:
    """By set of pairs and dimension, `pairwise_accuracy`; remembered beside the model's other results."""
    file = folder / f"accuracy-{heldout}-{model.name}.json"
    if not file.exists():
        scorer = RewardScorer.from_pretrained(model, device="cpu")
        data = folder / f"heldout-{heldout}"
        if not (data / "meta.json").exists():
            SHAPE_EDITS.write(
                data, train=0, heldout=heldout, language=0, seed=HELDOUT_SEED, dimensions=KNOWN_DIMENSIONS
            )
        pairs = read_edit_reward(data / "heldout.json", progress=False).examples
        compared = SHAPE_EDITS.over_edits(heldout // 2, dimensions=KNOWN_DIMENSIONS)
        results = _evaluated(scorer, pairs)
        one_overdone = [r for r in results if [r.info[f"failure{k}"] for k in (1, 2)].count("over_edit") == 1]
        sets = {"all": results, "over_edit": one_overdone, "compared": _evaluated(scorer, compared)}
        write_json(file, [row for name, members in sets.items() for row in _rows(name, members, scorer.dimensions)])
    return read_json(file)


def _evaluated(scorer: RewardScorer, pairs: Sequence[PreferencePair]) -> list[PairResult]:
    return evaluate_pairs(scorer, [labelled(pair, scorer.dimensions) for pair in pairs])


def labelled(pair: PreferencePair, dimensions: Sequence[str]) -> PreferencePair:
    """The pair as an annotator of these dimensions labels it; overall by the sum of their scores."""
    pair = in_dimensions(pair, dimensions)
    chosen, rejected = (
        sum(scores[name] for name in dimensions) for scores in (pair.chosen_scores, pair.rejected_scores)
    )
    return replace(pair, labels={**pair.labels, OVERALL: (chosen > rejected) - (chosen < rejected)})


def _rows(name: str, results: Sequence[PairResult], dimensions: Sequence[str]) -> list[dict]:
    rows = []
    for dimension in (*dimensions, OVERALL):
        labelled = [r for r in results if r.labels.get(dimension)]
        if labelled:
            margins = [r.chosen.mu[dimension] - r.rejected.mu[dimension] for r in labelled]
            found = pairwise_accuracy(margins, [r.labels[dimension] for r in labelled])
            row = {"pairs": name, "dimension": dimension, "n": found["n"], "correct": found["correct"]}
            rows.append(row | {key: round(found[key], 4) for key in ("value", "low", "high")})
    return rows


def print_table(rows: list[dict]) -> None:
    table = Table("pairs", "scored by", "the demo's model", *ARMS, "with, less without")
    keys = dict.fromkeys((row["pairs"], row["dimension"]) for row in rows)
    for pairs, dimension in keys:
        values: dict[str, dict] = {}
        for row in rows:
            if (row["pairs"], row["dimension"]) == (pairs, dimension):
                values.setdefault(row["arm"], {})[row["seed"]] = row["value"]
        cells = [_in_words([*values.get(arm, {}).values()]) for arm in ("demo", *ARMS)]
        seeds = [seed for seed in values.get("with", {}) if seed in values.get("without", {})]
        difference = _in_words([values["with"][seed] - values["without"][seed] for seed in seeds])
        table.add_row(PAIRS[pairs], dimension.replace("_", " "), *cells, difference)
    console = Console(width=150)
    console.print(table)
    compared = {(row["arm"], row["seed"], row["dimension"]): row["value"] for row in rows if row["pairs"] == "compared"}
    seeds = [seed for arm, seed, dimension in compared if dimension == CONSISTENCY]
    for other in (OVERALL, "instruction_following"):
        gains = [compared["with", seed, CONSISTENCY] - compared["without", seed, other] for seed in seeds]
        console.print(f"{PAIRS['compared']}: consistency of `with`, less {other} of `without`: {_in_words(gains)}")


def _in_words(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = mean_with_interval(values)
    return f"{mean['value']:.3f}" + (f" ({mean['low']:.3f} to {mean['high']:.3f})" if mean["n"] > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("demo-output/model"), help="that `jrm demo` left")
    parser.add_argument("--output", type=Path, default=Path("outputs/consistency"), help="folder for data and models")
    parser.add_argument("--seed", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=300, help="of joint training, 8 pairs each")
    parser.add_argument("--heldout", type=int, default=1000, help="pairs of every kind; half as many compared ones")
    parser.add_argument("--csv", type=Path, default=RESULTS / "consistency.csv")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    made_by = {"steps": options.steps, "device": device_description()} | versions()
    rows = [{"arm": "demo", "seed": None} | row for row in accuracies(options.model, options.heldout, options.output)]
    for seed, arm in product(options.seed, ARMS):
        model = train_arm(arm, seed, options.model, options.output, options.steps)
        rows += [{"arm": arm, "seed": seed} | row for row in accuracies(model, options.heldout, options.output)]
        print(f"{arm}, seed {seed} is done", flush=True)
        write_csv(options.csv, [row | made_by for row in rows])
    print_table(rows)


if __name__ == "__main__":
    main()
