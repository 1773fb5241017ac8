"""Wrong labels: what sigma learns of them under both objectives, and what `jrm audit` finds of them.

    make demo
    python -m benchmarks.label_noise --start demo-output/model --output outputs/label-noise

The scores of some training pairs of ShapeEdits are swapped, and the preference with them; for each seed the pairs and
their images are the same at every rate of noise. The model of `make demo`, which has not seen these pairs, is trained on
them for a short while, without critiques, which would tell the truth. Measured are, on held-out pairs whose labels are
right, accuracy, calibration and log loss (and against labels that are as noisy as those of training), and sigma on
training pairs that were swapped and on the others.

At one rate `jrm audit` then looks for the swapped pairs, by cross-fitted scores and by those of a model that is there,
`jrm-tiny`, which has not learned from them: precision and recall of what it proposes to drop, the average precision of
its order of all pairs and of others, and the accuracy after training without what it dropped.

Stopped at any point, the same command goes on from the runs that are done.
"""

import argparse
import json
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging

from benchmarks.measuring import versions, write_csv
from jrm_plugin.cli import main as main_of_jrm
from jrm_plugin.cli.demo import SHAPES, train_stage
from jrm_plugin.data.corrections import PairNames
from jrm_plugin.data.editreward import read_edit_reward
from jrm_plugin.evaluation.metrics import pairwise_accuracy, preference_calibration
from jrm_plugin.evaluation.pairs import PairResult, evaluate_pairs
from jrm_plugin.files import read_json, write_json
from jrm_plugin.records.preferences import PreferencePair
from jrm_plugin.records.samples import OVERALL
from jrm_plugin.runs import read_records
from jrm_plugin.scoring.scorer import RewardScorer

RESULTS = Path(__file__).parent / "results"
OBJECTIVES = ("marginal", "expected")
DATA_SEEDS = 100  # from here on, so that no pair is one of the demo's


def overrides_of(steps: int) -> list[str]:
    """The demo's joint stage, shorter and with smaller steps, on preferences alone."""
    rates = ["--learning_rate", "5e-4", "--muon_learning_rate", "5e-3"]
    return ["--alpha", "0", "--eval_strategy", "no", "--max_steps", str(steps), *rates]


def make_data(folder: Path, noise: float, seed: int, pairs: int, heldout: int) -> Path:
    if not (folder / "meta.json").exists():
        SHAPES.edits.write(folder, train=pairs, heldout=heldout, language=0, seed=DATA_SEEDS + seed, label_noise=noise)
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


# --- what `jrm audit` finds -------------------------------------------------------------------------------------------


def audit_run(options: argparse.Namespace, finder: str, seed: int) -> dict:
    """A row of the second table: what one way to score finds of the swapped pairs, and what training gains of it."""
    name = f"audit-{finder}-seed-{seed}"
    file = options.output / f"{name}.json"
    if file.exists():
        return read_json(file)
    noise = options.audit_noise
    data = make_data(options.output / f"data-{noise:g}-{seed}", noise, seed, options.pairs, options.heldout)
    folder = options.output / name
    command = ["audit", "--data", str(data / "train.json"), "--output", str(folder / "audit"), "--review", "20"]
    if finder == "cross-fitted":
        with as_file(files("jrm_plugin") / "resources" / "demo" / "shapes_joint.yaml") as config:
            command += ["--config", str(config), "--model", str(options.start), "--folds", str(options.folds)]
            run_command([*command, *overrides_of(options.fold_steps), "--seed", str(seed)])
    else:
        run_command([*command, "--model", finder, "--device", "cpu"])
    corrections = folder / "audit" / "corrections.jsonl"
    scorer = trained(options.start, data, folder / "model", seed, options.steps, ["--corrections", str(corrections)])
    held_out = evaluate_pairs(scorer, _pairs(data / "heldout.json"))
    row = {"scores": finder, "seed": seed, "noise": noise} | found_of(folder / "audit", _pairs(data / "train.json"))
    row |= {f"{key}_after": value for key, value in on_heldout(held_out, noise, seed).items() if "noisy" not in key}
    write_json(file, row)
    print(json.dumps(row), flush=True)
    return row


def found_of(folder: Path, pairs: Sequence[PreferencePair]) -> dict[str, float]:
    """Precision and recall of what is proposed to be dropped, and the average precision of orders of all pairs."""
    rows = read_records(folder / "pairs.jsonl")
    names = PairNames()
    swapped = {names(pair) for pair in pairs if pair.info["flipped"]}
    swapped_N = np.array([row["pair"] in swapped for row in rows])
    dropped_N = np.array([row["action"] == "drop" for row in rows])
    probability_N = {
        "p": [row["probability"] for row in rows],
        "overall_p": [row["probabilities"][OVERALL] for row in rows],
        "overall_margin": [row["margin"] for row in rows],
        "least_p": [min(row["probabilities"].values()) for row in rows],
    }
    return {
        "swapped": int(swapped_N.sum()),
        "dropped": int(dropped_N.sum()),
        "precision": float(swapped_N[dropped_N].mean()) if dropped_N.any() else None,
        "recall": float(dropped_N[swapped_N].mean()),
        **{
            f"average_precision_{name}": average_precision(swapped_N, -np.array(p)) for name, p in probability_N.items()
        },
        "agreement": read_json(folder / "summary.json")["agreement"][OVERALL]["value"],
    }


def average_precision(positive_N: np.ndarray, value_N: np.ndarray) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(positive_N, value_N))


def run_command(arguments: list[str]) -> None:
    try:
        main_of_jrm(arguments)
    except SystemExit as end:
        if end.code:
            raise


def _pairs(path: Path) -> Sequence[PreferencePair]:
    return read_edit_reward(path, progress=False).examples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, required=True, help="the model of `make demo`, or another")
    parser.add_argument("--output", type=Path, default=Path("outputs/label-noise"), help="folder for data and models")
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.1, 0.3])
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pairs", type=int, default=400, help="to train on")
    parser.add_argument("--heldout", type=int, default=300, help="to measure on; as many of those trained on")
    parser.add_argument("--steps", type=int, default=60, help="of 8 pairs")
    parser.add_argument("--audit-noise", type=float, default=0.1, help="at which `jrm audit` looks for swapped pairs")
    parser.add_argument("--folds", type=int, default=3, help="of `jrm audit`")
    parser.add_argument("--fold-steps", type=int, default=60, help="of 8 pairs, for each fold")
    parser.add_argument("--finder", nargs="*", default=["cross-fitted", "jrm-tiny"], help="or a model's name")
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
    found = [audit_run(options, finder, seed) for finder in options.finder for seed in options.seed]
    made_by |= {"folds": options.folds, "fold_steps": options.fold_steps}
    if found:
        write_csv(options.results / "label-noise-audit.csv", [_rounded(row) | made_by for row in found])


def _rounded(row: dict) -> dict:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}


if __name__ == "__main__":
    main()
