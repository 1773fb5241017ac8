"""Accuracy of the four layouts on ShapeEdits: same data, seeds and steps.

    python -m benchmarks.layouts --output outputs/layouts --scale 0.5 --seed 0

Runs the demo's two stages for each layout and evaluates on the demo's held-out pairs. `per_dimension` computes two
sequences a sample, so its steps take twice as long.
Stopped at any point, the same command goes on.
"""

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.measuring import device_description, versions, write_csv
from jrm_plugin.cli.demo import HELDOUT_PAIRS, SHAPES, train_stage, training_texts
from jrm_plugin.data.editreward import read_edit_reward
from jrm_plugin.evaluation.pairs import evaluate_pairs, summarize
from jrm_plugin.model.processing import ORDERS, SEQUENCES
from jrm_plugin.model.tiny import write_tiny_backbone
from jrm_plugin.scoring.scorer import RewardScorer

RESULTS = Path(__file__).parent / "results"


def measure_layout(order: str, sequences: str, folder: Path, scale: float, seed: int) -> dict:
    data, warm, model = (folder / name for name in ("data", f"warm-{order}-{sequences}", f"{order}-{sequences}"))
    layout = ["--order", order, "--sequences", sequences]
    train_stage(SHAPES, "warm_start", folder / "backbone", data / "language.jsonl", warm, scale, seed, layout)
    train_stage(SHAPES, "joint", warm, data / "train.json", model, scale, seed)
    scorer = RewardScorer.from_pretrained(model, device="cpu")
    assert (scorer.processor.order, scorer.processor.sequences) == (order, sequences)
    heldout = read_edit_reward(data / "heldout.json", progress=False).examples
    accuracy = summarize(evaluate_pairs(scorer, heldout, progress=True))["accuracy"]
    row = {"order": order, "sequences": sequences, "seed": seed, "scale": scale}
    for name, found in accuracy.items():
        row |= {name: round(found["value"], 4), f"{name}_low": round(found["low"], 4)}
        row |= {f"{name}_high": round(found["high"], 4)}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/layouts"), help="folder for data and models")
    parser.add_argument("--scale", type=float, default=1.0, help="times the demo's number of steps")
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    rows = []
    for seed in options.seed:
        folder = options.output / f"seed-{seed}-scale-{options.scale:g}"
        data = folder / "data"
        if not (data / "meta.json").exists():
            pairs = SHAPES.train_pairs
            SHAPES.edits.write(data, train=pairs, heldout=HELDOUT_PAIRS, language=pairs, seed=seed)
        if not (folder / "backbone" / "config.json").exists():
            write_tiny_backbone(folder / "backbone", training_texts(data), image_size=SHAPES.image_size, seed=seed)
        for order in ORDERS:
            for sequences in SEQUENCES:
                rows.append(measure_layout(order, sequences, folder, options.scale, seed))
                print(json.dumps(rows[-1]), flush=True)
    table = Table("order", "sequences", "seed", "instruction following", "visual quality", "overall (95 % interval)")
    for row in rows:
        overall = f"{row['overall']:.3f} ({row['overall_low']:.3f} to {row['overall_high']:.3f})"
        following, quality = (f"{row[name]:.3f}" for name in ("instruction_following", "visual_quality"))
        table.add_row(row["order"], row["sequences"], str(row["seed"]), following, quality, overall)
    Console(width=120).print(table)
    write_csv(RESULTS / "layouts.csv", [row | {"device": device_description()} | versions() for row in rows])


if __name__ == "__main__":
    main()
