"""Wrong labels: what sigma learns of them under both objectives, and what `jrm audit` finds of them.

    make demo
    python -m benchmarks.label_noise --start demo-output/model --output outputs/label-noise

First the objectives. The hidden states of the reward tokens of `jrm-tiny` are computed once for each seed, and on them
a reward head is trained anew, with sigma free in wide bounds, once with the paper's objective (`marginal`,
-log E[sigmoid]) and once with that of the sampled loss (`expected`, E[-log sigmoid]). Annotators err: they swap the
scores of a pair, and the preference with them, in a share of all pairs, or more often in some kinds of edits than in
others (`by kind`). Measured are, on held-out pairs, accuracy, calibration and log loss against right labels and against
labels as noisy as those of training, and sigma: of training pairs that were swapped and of the others, of kinds of
edits in which annotators err often and in which they err seldom.

Then `jrm audit` looks for swapped pairs in a set of pairs that no model here has seen: by the scores of `jrm-tiny`, and
cross-fitted from the model of `make demo`. Measured are precision and recall of what it proposes to drop, the average
precision of its order of all pairs and of others, and the accuracy after the demo's model was trained on all pairs, and
without those that the cross-fitted scores contradict.

Stopped at any point, the same command goes on from what is done.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging

from benchmarks.measuring import versions, write_csv
from benchmarks.uncertainty import BY_KIND, NAMES, annotated, samples_of, scored
from jrm_plugin.cli import main as main_of_jrm
from jrm_plugin.cli.demo import SHAPES, train_stage
from jrm_plugin.data.corrections import PairNames
from jrm_plugin.data.editreward import read_edit_reward
from jrm_plugin.evaluation.metrics import pairwise_accuracy, preference_calibration
from jrm_plugin.evaluation.pairs import evaluate_pairs, summarize
from jrm_plugin.files import read_json, write_json
from jrm_plugin.kernels import win_probability
from jrm_plugin.model.modeling import RewardHead
from jrm_plugin.records.preferences import PreferencePair
from jrm_plugin.records.samples import OVERALL
from jrm_plugin.runs import read_records
from jrm_plugin.scoring.scorer import RewardScorer
from jrm_plugin.synthetic.preferences import Edit
from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS
from jrm_plugin.training.losses import ranking_loss, ranking_loss_per_label, ranks_of_labels

RESULTS = Path(__file__).parent / "results"
OBJECTIVES = ("marginal", "expected")
NOISE = ("0", "0.1", "0.3", "by kind")
OFTEN = tuple(kind for kind, rate in BY_KIND.items() if rate >= 0.3)
WIDE = (-0.5, 3.0)  # centre and half range of log sigma: from 0.03 to 12
DATA_SEEDS = 100  # from here on, so that no pair is one of the demo's


# --- the objectives ---------------------------------------------------------------------------------------------------


def swapped(edits: Sequence[Edit], noise: str, rng: np.random.Generator) -> np.ndarray:
    """`[N]`: whether the annotator of a pair took one sample for the other."""
    rate_N = [BY_KIND[edit.kind] if noise == "by kind" else float(noise) for edit in edits]
    return rng.random(len(edits)) < rate_N


def hidden_states(
    scorer: RewardScorer, options: argparse.Namespace, seed: int
) -> tuple[dict[str, torch.Tensor], dict[str, list[Edit]]]:
    """Of both samples of every pair, one after another, and the pairs."""
    rng = np.random.default_rng([seed, 21])
    edits = {
        "train": [SHAPE_EDITS.draw(rng, heldout=False) for _ in range(options.train)],
        "heldout": [SHAPE_EDITS.draw(rng, heldout=True) for _ in range(options.measured)],
    }
    hidden = {}
    for name, of_name in edits.items():
        file = options.output / f"{name}-{len(of_name)}-seed-{seed}.pt"
        if not file.exists():
            print(f"seed {seed}: hidden states of {len(of_name)} pairs ({name})", flush=True)
            states = scorer.hidden_states(samples_of(of_name))
            torch.save(states, file.with_suffix(".unfinished"))
            file.with_suffix(".unfinished").rename(file)
        hidden[name] = torch.load(file, weights_only=True)
    return hidden, edits


def train_head(
    scorer: RewardScorer, hidden_SH: torch.Tensor, label_NC: np.ndarray, objective: str, seed: int, steps: int
) -> RewardHead:
    config = type(scorer.model.config).from_dict(scorer.model.config.to_dict() | {"log_sigma_bound": list(WIDE)})
    torch.manual_seed(seed)
    head = RewardHead(config)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng = np.random.default_rng([seed, 22])
    hidden_N2H, labels_NC = hidden_SH.view(len(label_NC), 2, -1), torch.tensor(label_NC, dtype=torch.float32)
    for _ in range(steps):
        rows = torch.tensor(rng.integers(len(labels_NC), size=128))
        mu, log_sigma = head(hidden_N2H[rows].flatten(0, 1))
        scores = (x.unflatten(0, (-1, 2)) for x in (mu, log_sigma))
        rank_N2C = ranks_of_labels(labels_NC[rows])
        losses = ranking_loss_per_label(*scores, rank_N2C, objective=objective)
        ranking_loss(losses, rank_N2C).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return head.eval()


def study(options: argparse.Namespace) -> list[dict]:
    scorer = RewardScorer.from_pretrained("jrm-tiny", device="cpu")
    rows = []
    for seed in options.seed:
        hidden, edits = hidden_states(scorer, options, seed)
        right = {name: annotated(of_name, "agree", np.random.default_rng(0)) for name, of_name in edits.items()}
        for noise in NOISE:
            wrong = {
                name: swapped(of_name, noise, np.random.default_rng([seed, number]))
                for number, (name, of_name) in enumerate(edits.items())
            }
            label_NC = np.where(wrong["train"][:, None], -right["train"], right["train"])
            for objective in OBJECTIVES:
                head = train_head(scorer, hidden["train"], label_NC, objective, seed, options.head_steps)
                row = {"noise": noise, "objective": objective, "seed": seed}
                row |= on_heldout(head, hidden["heldout"], right["heldout"], wrong["heldout"])
                row |= sigmas(head, hidden, edits, wrong["train"])
                rows.append(row)
        print(f"seed {seed} is done", flush=True)
    return rows


def on_heldout(head: RewardHead, hidden_SH: torch.Tensor, right_NC: np.ndarray, wrong_N: np.ndarray) -> dict:
    """Accuracy against right labels; overall calibration and log loss of P against right ones and noisy ones."""
    mu_SC, sigma_SC = scored(head, hidden_SH)
    margin_NC = mu_SC[0::2] - mu_SC[1::2]
    measured = {
        f"accuracy_{name}": pairwise_accuracy(margin_NC[:, k], right_NC[:, k])["value"] for k, name in enumerate(NAMES)
    }
    sides = [torch.tensor(values[side::2, -1]) for side in (0, 1) for values in (mu_SC, np.log(sigma_SC))]
    first_wins_N = win_probability(*sides).numpy()
    for against, label_N in (
        ("right", right_NC[:, -1]),
        ("noisy", np.where(wrong_N, -right_NC[:, -1], right_NC[:, -1])),
    ):
        found = preference_calibration(np.where(label_N > 0, first_wins_N, 1 - first_wins_N)[label_N != 0])
        measured[f"calibration_error_{against}_labels"] = found["expected_calibration_error"]
        measured[f"log_loss_{against}_labels"] = found["log_loss"]
    return measured


def sigmas(
    head: RewardHead,
    hidden: Mapping[str, torch.Tensor],
    edits: Mapping[str, Sequence[Edit]],
    wrong_N: np.ndarray,
) -> dict[str, float | None]:
    """Mean overall sigma of samples; `least` and `most` are the 5th and 95th percentile of held-out ones."""
    of_train, of_heldout = (scored(head, hidden[name])[1][:, -1] for name in ("train", "heldout"))
    often_N = np.array([edit.kind in OFTEN for edit in edits["heldout"]])
    groups = {"swapped": of_train[np.repeat(wrong_N, 2)], "others": of_train[np.repeat(~wrong_N, 2)]}
    groups |= {"often": of_heldout[np.repeat(often_N, 2)], "seldom": of_heldout[np.repeat(~often_N, 2)]}
    least, most = np.percentile(of_heldout, [5, 95]).tolist()
    means = {f"sigma_{name}": float(values.mean()) if len(values) else None for name, values in groups.items()}
    return means | {"sigma_least": least, "sigma_most": most}


# --- what `jrm audit` finds -------------------------------------------------------------------------------------------


def make_data(options: argparse.Namespace, seed: int) -> Path:
    folder = options.output / f"data-{seed}"
    if not (folder / "meta.json").exists():
        SHAPES.edits.write(
            folder,
            train=options.pairs,
            heldout=options.measured,
            language=0,
            seed=DATA_SEEDS + seed,
            label_noise=options.noise,
        )
    return folder


def training_flags(options: argparse.Namespace, seed: int) -> list[str]:
    """The demo's joint stage, shorter and with smaller steps, on preferences alone: its critiques tell the truth."""
    flags = ["--alpha", "0", "--eval_strategy", "no", "--max_steps", str(options.steps), "--warmup_steps", "5"]
    return [*flags, "--learning_rate", "5e-4", "--muon_learning_rate", "5e-3"]


def accuracy_after(options: argparse.Namespace, name: str, seed: int, more: Sequence[str] = ()) -> dict[str, float]:
    """Accuracy on held-out pairs after the start model was trained on the pairs of a seed."""
    model = options.output / f"{name}-seed-{seed}"
    file = model.with_name(f"{model.name}.json")
    if not file.exists():
        data = make_data(options, seed)
        flags = [*training_flags(options, seed), *more]
        train_stage(SHAPES, "joint", options.start, data / "train.json", model, 1.0, seed, flags)
        results = evaluate_pairs(RewardScorer.from_pretrained(model, device="cpu"), _pairs(data / "heldout.json"))
        accuracy = {f"accuracy_{dimension}": of["value"] for dimension, of in summarize(results)["accuracy"].items()}
        write_json(file, accuracy)
        print(f"{name}, seed {seed}: {json.dumps(accuracy)}", flush=True)
    return read_json(file)


def audited(options: argparse.Namespace, scores: str, seed: int) -> Path:
    """The folder of an audit of the pairs of a seed."""
    folder = options.output / f"audit-{scores}-seed-{seed}"
    if not (folder / "summary.json").exists():
        command = ["audit", "--data", str(make_data(options, seed) / "train.json"), "--output", str(folder)]
        command += ["--review", "20", "--device", "cpu"]
        if scores == "cross-fitted":
            with as_file(files("jrm_plugin") / "resources" / "demo" / "shapes_joint.yaml") as config:
                command += ["--config", str(config), "--model", str(options.start), "--folds", str(options.folds)]
                run_jrm([*command, *training_flags(options, seed), "--seed", str(seed)])
        else:
            run_jrm([*command, "--model", scores])
    return folder


def run_jrm(arguments: list[str]) -> None:
    try:
        main_of_jrm(arguments)
    except SystemExit as end:
        if end.code:
            raise


def found_of(folder: Path, pairs: Sequence[PreferencePair]) -> dict[str, float | None]:
    """Precision and recall of what is proposed to be dropped, and the average precision of orders of all pairs."""
    rows, names = read_records(folder / "pairs.jsonl"), PairNames()
    wrong = {names(pair) for pair in pairs if pair.info["flipped"]}
    wrong_N = np.array([row["pair"] in wrong for row in rows])
    dropped_N = np.array([row["action"] == "drop" for row in rows])
    orders = {
        "p": [row["probability"] for row in rows],
        "overall_p": [row["probabilities"][OVERALL] for row in rows],
        "overall_margin": [row["margin"] for row in rows],
    }
    return {
        "swapped": int(wrong_N.sum()),
        "dropped": int(dropped_N.sum()),
        "precision": float(wrong_N[dropped_N].mean()) if dropped_N.any() else None,
        "recall": float(dropped_N[wrong_N].mean()),
        **{f"average_precision_{name}": average_precision(wrong_N, -np.array(p)) for name, p in orders.items()},
        "agreement": read_json(folder / "summary.json")["agreement"][OVERALL]["value"],
    }


def average_precision(positive_N: np.ndarray, value_N: np.ndarray) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(positive_N, value_N))


def audits(options: argparse.Namespace) -> list[dict]:
    """A row for each seed with all pairs, and for each seed and way to score what its audit found."""
    rows: list[dict] = []
    for scores in (None, "cross-fitted", "jrm-tiny"):
        for seed in options.seed:
            row: dict = {"scores": scores, "seed": seed}
            if scores is None:
                rows.append(row | accuracy_after(options, "all-pairs", seed))
                continue
            folder = audited(options, scores, seed)
            row |= found_of(folder, _pairs(make_data(options, seed) / "train.json"))
            if scores == "cross-fitted":
                row |= accuracy_after(options, scores, seed, ["--corrections", str(folder / "corrections.jsonl")])
            rows.append(row)
    columns = dict.fromkeys(key for row in rows for key in row)
    return [dict.fromkeys(columns) | row for row in rows]


def _pairs(path: Path) -> Sequence[PreferencePair]:
    return read_edit_reward(path, progress=False).examples


# --- the run ----------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, help="the model of `make demo`; without it the audits are left out")
    parser.add_argument("--output", type=Path, default=Path("outputs/label-noise"), help="folder for data and models")
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train", type=int, default=1000, help="pairs to train a head on")
    parser.add_argument("--measured", type=int, default=400, help="held-out pairs to measure on")
    parser.add_argument("--head-steps", type=int, default=200, help="of 128 pairs")
    parser.add_argument("--pairs", type=int, default=300, help="to audit, and to train a model on")
    parser.add_argument("--noise", type=float, default=0.1, help="the share of these that is swapped")
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40, help="of 8 pairs, of each training of a model")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the CSV files")
    options = parser.parse_args()
    torch.set_flush_denormal(True)  # tiny optimizer states slow a CPU down several times
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    options.output.mkdir(parents=True, exist_ok=True)
    made_by = {"train": options.train, "measured": options.measured, "steps": options.head_steps} | versions()
    write_csv(options.results / "label-noise.csv", [_rounded(row) | made_by for row in study(options)])
    if options.start:
        made_by = {"pairs": options.pairs, "measured": options.measured, "steps": options.steps} | versions()
        write_csv(options.results / "label-noise-audit.csv", [_rounded(row) | made_by for row in audits(options)])


def _rounded(row: dict) -> dict:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}


if __name__ == "__main__":
    main()
