"""Wrong labels: what sigma learns of them under both objectives, and what `jrm audit` finds of them.

    make demo
    python -m benchmarks.label_noise --start demo-output/warm-start --output outputs/label-noise

The scores of some training pairs of ShapeEdits are swapped, and the preference with them; for each seed the pairs and
their images are the same at every rate of noise. From the language warm start of `make demo` a model is trained on them
for a short while, without critiques, which would tell the truth. Measured are, on held-out pairs whose labels are
right, accuracy, calibration and log loss (and against labels that are as noisy as those of training), and sigma on
training pairs that were swapped and on the others.

At one rate `jrm audit` then looks for the swapped pairs: precision and recall of what it proposes to drop, the average
precision of its order, and the accuracy after training without them, beside that with all pairs and that without the
pairs that were swapped in truth.

Stopped at any point, the same command goes on from the runs that are done.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging

from benchmarks.measuring import versions, write_csv
from jrm_plugin.cli.demo import SHAPES, train_stage
from jrm_plugin.data.editreward import read_edit_reward
from jrm_plugin.evaluation.metrics import pairwise_accuracy, preference_calibration
from jrm_plugin.evaluation.pairs import PairResult, evaluate_pairs
from jrm_plugin.files import read_json, write_json
from jrm_plugin.records.preferences import PreferencePair
from jrm_plugin.records.samples import OVERALL
from jrm_plugin.scoring.scorer import RewardScorer

RESULTS = Path(__file__).parent / "results"
OBJECTIVES = ("marginal", "expected")


def overrides_of(steps: int) -> list[str]:
    """The demo's joint stage, shorter, on preferences alone."""
    return ["--alpha", "0", "--eval_strategy", "no", "--max_steps", str(steps)]


def make_data(folder: Path, noise: float, seed: int, pairs: int, heldout: int) -> Path:
    if not (folder / "meta.json").exists():
        SHAPES.edits.write(folder, train=pairs, heldout=heldout, language=0, seed=seed, label_noise=noise)
    return folder


def trained(start: Path, data: Path, model: Path, seed: int, steps: int, more: Sequence[str] = ()) -> RewardScorer:
    train_stage(SHAPES, "joint", start, data / "train.json", model, 1.0, seed, [*overrides_of(steps), *more])
    return RewardScorer.from_pretrained(model, device="cpu")


def on_heldout(results: Sequence[PairResult], noise: float, seed: int) -> dict[str, float]:
    """Accuracy against right labels; calibration and log loss of P against right ones and against noisy ones."""
    margin_N = [result.chosen.mu[OVERALL] - result.rejected.mu[OVERALL] for result in results]
    right_N = np.array([result.win_probability[OVERALL] for result in results])
    swapped_N = np.random.default_rng([seed, 11]).random(len(results)) < noise
    measured = {"accuracy": pairwise_accuracy(margin_N, [result.labels[OVERALL] for result in results])["value"]}
    for name in ("instruction_following", "visual_quality"):
        of_name = [result for result in results if name in result.labels]
        margins = [result.chosen.mu[name] - result.rejected.mu[name] for result in of_name]
        measured[f"accuracy_{name}"] = pairwise_accuracy(margins, [r.labels[name] for r in of_name])["value"]
    for against, preferred_N in (("right", right_N), ("noisy", np.where(swapped_N, 1 - right_N, right_N))):
        found = preference_calibration(preferred_N)
        measured[f"ece_{against}_labels"] = found["expected_calibration_error"]
        measured[f"log_loss_{against}_labels"] = found["log_loss"]
    measured["sigma_heldout"] = mean_sigma(results)
    return measured


def mean_sigma(results: Sequence[PairResult]) -> float | None:
    sigma = [score.sigma[OVERALL] for result in results for score in (result.chosen, result.rejected)]
    return float(np.mean(sigma)) if sigma else None


def study_run(options: argparse.Namespace, noise: float, objective: str, seed: int) -> dict:
    """A row of the study: one model."""
    name = f"noise-{noise:g}-{objective}-seed-{seed}"
    file = options.output / f"{name}.json"
    if not file.exists():
        data = make_data(options.output / f"data-{noise:g}-{seed}", noise, seed, options.pairs, options.heldout)
        model = options.output / name
        scorer = trained(options.start, data, model, seed, options.steps, ["--objective", objective])
        held_out = evaluate_pairs(scorer, _pairs(data / "heldout.json"))
        learned = evaluate_pairs(scorer, _pairs(data / "train.json")[: options.heldout])
        row = {"noise": noise, "objective": objective, "seed": seed, **on_heldout(held_out, noise, seed)}
        for kind, is_flipped in (("swapped", True), ("others", False)):
            row[f"sigma_{kind}"] = mean_sigma([r for r in learned if r.info["flipped"] is is_flipped])
        write_json(file, row)
        print(json.dumps(row), flush=True)
    return read_json(file)


def _pairs(path: Path) -> Sequence[PreferencePair]:
    return read_edit_reward(path, progress=False).examples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, required=True, help="the language warm start of `make demo`")
    parser.add_argument("--output", type=Path, default=Path("outputs/label-noise"), help="folder for data and models")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.1, 0.3])
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pairs", type=int, default=800, help="to train on")
    parser.add_argument("--heldout", type=int, default=400, help="to measure on; as many of those trained on")
    parser.add_argument("--steps", type=int, default=150, help="of 8 pairs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the CSV files")
    options = parser.parse_args()
    torch.set_flush_denormal(True)  # tiny optimizer states slow a CPU down several times
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    options.output.mkdir(parents=True, exist_ok=True)
    rows = [
        study_run(options, noise, objective, seed)
        for seed in options.seed
        for noise in options.noise
        for objective in OBJECTIVES
    ]
    made_by = {"pairs": options.pairs, "steps": options.steps} | versions()
    write_csv(options.results / "label-noise.csv", [_rounded(row) | made_by for row in rows])


def _rounded(row: dict) -> dict:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}


if __name__ == "__main__":
    main()
