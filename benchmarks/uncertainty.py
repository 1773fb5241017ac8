"""What sigma is worth, and why: does it tell wrong pairs from right ones better than the margin, and know strangers?

    python -m benchmarks.uncertainty --output outputs/uncertainty

The hidden states of the reward tokens of `jrm-tiny` are computed once, which takes minutes a seed on one core. On them
a reward head is trained anew in several ways (`ARMS`), so that one cause after the other is taken away. In some of them
annotators disagree: by kind of edit, the scores of a pair are swapped, more often for some kinds than for others; by
failure, everyone has a mind of their own about edits that are half done or overdone.

Measured on held-out pairs: how well the margin |mu difference|, P (paper eq. 4) and sigma tell wrong pairs from right
ones (AUROC), the area under risk and coverage; `against` the truth, and against annotators who disagree as those of
training did. And how well sigma tells samples from outside from held-out ones (AUROC; 0.5 is chance): noise in place of
the edited picture, inverted pictures, and edits of photographs, which no arm trains on. A seed is one of data, weights
and annotators.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import versions, write_csv
from jrm_plugin.evaluation.agreement import Judged, is_right, risk_coverage
from jrm_plugin.kernels import win_probability
from jrm_plugin.model.modeling import RewardHead
from jrm_plugin.records.samples import DIMENSIONS, OVERALL, Sample
from jrm_plugin.scoring.scorer import RewardScorer
from jrm_plugin.synthetic.photo_edits import PHOTO_EDITS
from jrm_plugin.synthetic.preferences import FAILURE_SCORES, QUALITY_SCORES, Edit
from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS
from jrm_plugin.training.losses import ranking_loss, ranking_loss_per_label, ranks_of_labels, with_overall

RESULTS = Path(__file__).parent / "results"
NAMES = (*DIMENSIONS, OVERALL)
# How often an annotator swaps the scores of a pair.
BY_KIND = {"recolour": 0.0, "remove": 0.1, "add": 0.3, "move": 0.4}
# Of edits with these failures an annotator thinks anything from 1 to 4.
IN_DISPUTE = ("partial", "over_edit")
OUTSIDE = ("noise", "inverted", "photographs")
RESAMPLES = 200  # of a bootstrap


@dataclass(frozen=True)
class Arm:
    """A way to train the head."""

    name: str
    bound: tuple[float, float] = (-0.5, 1.0)
    overall: bool = True
    ties: bool = True
    tie_threshold: float = 0.0
    annotators: str = "agree"
    fixed_mu: bool = False  # mu is the checkpoint's, and sigma alone is learned
    outside: bool = False  # noise and inverted pictures against others, with a coin as the annotator


ARMS = (
    Arm("as trained today"),
    Arm("wide bound", bound=(-0.5, 3.0)),
    Arm("no overall label", overall=False),
    Arm("ties left out", ties=False),
    Arm("tie threshold 1", tie_threshold=1.0),
    Arm("disagreement by kind of edit", annotators="kind"),
    Arm("disagreement by failure", annotators="failure"),
    Arm("sigma after mu", fixed_mu=True),
    Arm("sigma after mu, wide bound", fixed_mu=True, bound=(0.5, 3.0)),
    Arm("sigma after mu, wide bound, by failure", fixed_mu=True, bound=(0.5, 3.0), annotators="failure"),
    Arm("sigma after mu, wide bound, by kind of edit", fixed_mu=True, bound=(0.5, 3.0), annotators="kind"),
    Arm("sigma after mu, wide bound, pictures from outside", fixed_mu=True, bound=(0.5, 3.0), outside=True),
)


# --- data -------------------------------------------------------------------------------------------------------------


def samples_of(edits: Sequence[Edit]) -> list[Sample]:
    return [Sample.edit(edit.source, edit.instruction, c.image) for edit in edits for c in edit.candidates]


def outside_samples(kind: str, edits: Sequence[Edit], rng: np.random.Generator) -> list[Sample]:
    """Pictures of another kind than ShapeEdits', with instructions of its own kind."""
    if kind == "photographs":
        return samples_of([PHOTO_EDITS.draw(rng, heldout=True) for _ in edits])
    if kind == "noise":
        shape = edits[0].source.shape
        return [
            Sample.edit(edit.source, edit.instruction, rng.integers(0, 256, shape, np.uint8))
            for edit in edits
            for _ in edit.candidates
        ]
    return [
        Sample.edit(_inverted(edit.source), edit.instruction, _inverted(c.image))
        for edit in edits
        for c in edit.candidates
    ]


def _inverted(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(ImageOps.invert(Image.fromarray(pixels)))


def annotated(edits: Sequence[Edit], annotators: str, rng: np.random.Generator) -> np.ndarray:
    """`[N, 3]`: the label of every pair in each dimension and overall, 1, 0 or -1, by annotators that agree or not."""
    labels = []
    for edit in edits:
        scores = np.array([[FAILURE_SCORES[c.failure], QUALITY_SCORES[c.quality]] for c in edit.candidates])
        if annotators == "failure":
            for candidate, score in zip(edit.candidates, scores, strict=True):
                if candidate.failure in IN_DISPUTE:
                    score[0] = rng.integers(1, 5)
        difference = scores[0] - scores[1]
        if annotators == "kind" and rng.random() < BY_KIND[edit.kind]:
            difference = -difference
        labels.append(np.sign([*difference, difference.sum()]))
    return np.array(labels)


# --- the head ---------------------------------------------------------------------------------------------------------


class SigmaAfterMu(torch.nn.Module):
    """mu of one head, and sigma of another."""

    def __init__(self, mu_head: RewardHead, sigma_head: RewardHead):
        super().__init__()
        self.sigma_head, self._mu = sigma_head, lambda hidden: mu_head(hidden)[0].detach()

    def forward(self, hidden_BH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self._mu(hidden_BH), self.sigma_head(hidden_BH)[1]


def train_head(
    scorer: RewardScorer, arm: Arm, hidden: Mapping[str, torch.Tensor], label_NC: np.ndarray, seed: int, steps: int
) -> torch.nn.Module:
    """A fresh reward head, trained on frozen hidden states of pairs, whose two samples stand next to each other."""
    config = type(scorer.model.config).from_dict(scorer.model.config.to_dict() | {"log_sigma_bound": list(arm.bound)})
    torch.manual_seed(seed)
    head: torch.nn.Module = RewardHead(config)
    if arm.fixed_mu:
        head = SigmaAfterMu(scorer.model.reward_head, head)
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng = np.random.default_rng([seed, 2])
    hidden_N2H = hidden["train"].view(len(label_NC), 2, -1)
    if arm.outside:
        strangers_SH = torch.cat([hidden["noise to learn"], hidden["inverted to learn"]])
        others = torch.tensor(rng.integers(len(hidden["train"]), size=len(strangers_SH)))
        hidden_N2H = torch.cat([hidden_N2H, torch.stack([strangers_SH, hidden["train"][others]], dim=1)])
        label_NC = np.concatenate([label_NC, rng.choice([-1, 1], size=(len(strangers_SH), len(NAMES)))])
    labels_NC = torch.tensor(label_NC, dtype=torch.float32)
    if not arm.overall:
        labels_NC[:, -1] = torch.nan
    if not arm.ties:
        labels_NC[labels_NC == 0] = torch.nan
    for _ in range(steps):
        rows = torch.tensor(rng.integers(len(labels_NC), size=128))
        mu, log_sigma = head(hidden_N2H[rows].flatten(0, 1))
        scores = (x.unflatten(0, (-1, 2)) for x in (mu, log_sigma))
        rank_N2C = ranks_of_labels(labels_NC[rows])
        losses = ranking_loss_per_label(*scores, rank_N2C, tie_threshold=arm.tie_threshold)
        ranking_loss(losses, rank_N2C).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return head.eval()


@torch.no_grad()
def scored(head: torch.nn.Module, hidden_SH: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """mu and sigma of every sample, `[S, 3]` each: the dimensions and overall."""
    mu_SC, log_sigma_SC = with_overall(*head(hidden_SH))
    return mu_SC.double().numpy(), log_sigma_SC.double().exp().numpy()


# --- what it is worth -------------------------------------------------------------------------------------------------


def measure(head: torch.nn.Module, hidden: Mapping[str, torch.Tensor], label_NC: np.ndarray) -> list[dict]:
    """A row for each dimension and overall; `hidden` has the held-out pairs, and samples from outside."""
    mu_SC, sigma_SC = scored(head, hidden["heldout"])
    outside = {name: scored(head, hidden[name])[1] for name in OUTSIDE}
    rows = []
    for k, name in enumerate(NAMES):
        kept = label_NC[:, k] != 0
        margin_N = (mu_SC[0::2, k] - mu_SC[1::2, k])[kept]
        first_N, second_N = (torch.tensor(sigma_SC[side::2, k][kept]) for side in (0, 1))
        size_N = torch.tensor(abs(margin_N))
        probability_N = win_probability(size_N, first_N.log(), torch.zeros_like(size_N), second_N.log()).numpy()
        judged = Judged(label_NC[kept, k], margin_N, np.arange(len(margin_N)))
        wrong_N = ~is_right(judged)
        unsure = {"margin": -abs(margin_N), "p": -probability_N, "sigma": torch.hypot(first_N, second_N).numpy()}
        row: dict = {"score": name, "pairs": len(margin_N), "wrong": int(wrong_N.sum())}
        row |= {f"auroc_{what}": auroc(wrong_N, values_N) for what, values_N in unsure.items()}
        row |= {f"risk_area_{what}": risk_coverage(judged, values_N)["area"] for what, values_N in unsure.items()}
        row |= _gain(wrong_N, unsure["p"], unsure["margin"])
        row |= {f"sigma_p{q}": float(np.percentile(sigma_SC[:, k], q)) for q in (5, 50, 95)}
        row |= {f"outside_{where}": auroc_outside(sigma_SC[:, k], sigma[:, k]) for where, sigma in outside.items()}
        rows.append(row)
    return rows


def auroc(positive_N: np.ndarray, value_N: np.ndarray) -> float | None:
    """The chance that a positive has the larger value; None where all are of one kind."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive_N, value_N)) if 0 < positive_N.sum() < len(positive_N) else None


def auroc_outside(inside_S: np.ndarray, outside_S: np.ndarray) -> float | None:
    return auroc(np.arange(len(inside_S) + len(outside_S)) >= len(inside_S), np.concatenate([inside_S, outside_S]))


def distance(hidden_SH: torch.Tensor, like_SH: torch.Tensor) -> np.ndarray:
    """`[S]`: Mahalanobis distances of hidden states from others."""
    like = like_SH.double()
    inverse = torch.linalg.inv(torch.cov(like.T) + 1e-3 * torch.eye(like.shape[1], dtype=torch.float64))
    centred = hidden_SH.double() - like.mean(0)
    return ((centred @ inverse) * centred).sum(1).sqrt().numpy()


def _gain(wrong_N: np.ndarray, p_N: np.ndarray, margin_N: np.ndarray) -> dict:
    """AUROC of P less that of the margin, with the 95 % interval of a bootstrap over pairs."""
    if not 0 < wrong_N.sum() < len(wrong_N):
        return {"gain": None, "gain_low": None, "gain_high": None}
    rng = np.random.default_rng(0)
    gains = []
    for rows in (rng.integers(len(wrong_N), size=len(wrong_N)) for _ in range(RESAMPLES)):
        if 0 < wrong_N[rows].sum() < len(rows):
            gains.append(auroc(wrong_N[rows], p_N[rows]) - auroc(wrong_N[rows], margin_N[rows]))
    low, high = np.percentile(gains, [2.5, 97.5]).tolist()
    return {"gain": auroc(wrong_N, p_N) - auroc(wrong_N, margin_N), "gain_low": low, "gain_high": high}


# --- the run ----------------------------------------------------------------------------------------------------------


def hidden_states(
    scorer: RewardScorer, seed: int, folder: Path, train: int, heldout: int
) -> tuple[dict[str, torch.Tensor], list[Edit], list[Edit]]:
    """Hidden states of the training pairs' samples, the held-out pairs' and pictures from outside; and the pairs."""
    rng = np.random.default_rng([seed, 7])
    edits = [SHAPE_EDITS.draw(rng, heldout=False) for _ in range(train)]
    tested = [SHAPE_EDITS.draw(rng, heldout=True) for _ in range(heldout)]
    strangers = [SHAPE_EDITS.draw(rng, heldout=True) for _ in range(max(1, heldout // 5))]
    sets = {"train": samples_of(edits), "heldout": samples_of(tested)}
    sets |= {kind: outside_samples(kind, strangers, rng) for kind in OUTSIDE}
    strangers = [SHAPE_EDITS.draw(rng, heldout=False) for _ in range(max(1, heldout // 5))]
    sets |= {f"{kind} to learn": outside_samples(kind, strangers, rng) for kind in OUTSIDE[:2]}
    hidden = {}
    for name, samples in sets.items():
        file = folder / f"{name}-{len(samples)}-seed-{seed}.pt"
        if not file.exists():
            print(f"seed {seed}: hidden states of {len(samples)} samples ({name})", flush=True)
            torch.save(scorer.hidden_states(samples), file)
        hidden[name] = torch.load(file, weights_only=True)
    return hidden, edits, tested


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="jrm-tiny")
    parser.add_argument("--output", type=Path, default=Path("outputs/uncertainty"), help="folder for hidden states")
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train", type=int, default=2500, help="pairs to train the head on")
    parser.add_argument("--heldout", type=int, default=1000, help="pairs to measure on")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--arm", nargs="+", choices=[arm.name for arm in ARMS], help="some of the ways only")
    parser.add_argument("--csv", type=Path, default=RESULTS / "uncertainty.csv")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.set_flush_denormal(True)
    scorer = RewardScorer.from_pretrained(options.model, device="cpu")
    rows = []
    for seed in options.seed:
        hidden, edits, tested = hidden_states(scorer, seed, options.output, options.train, options.heldout)
        for arm in (None, *ARMS):
            if arm is not None and options.arm is not None and arm.name not in options.arm:
                continue
            head, annotators = scorer.model.reward_head, ["agree"]
            if arm is not None:
                label_NC = annotated(edits, arm.annotators, np.random.default_rng([seed, 1]))
                head = train_head(scorer, arm, hidden, label_NC, seed, options.steps)
                annotators = list(dict.fromkeys(["agree", arm.annotators]))
            for kind in annotators:
                truth = "truth" if kind == "agree" else "annotators"
                label_NC = annotated(tested, kind, np.random.default_rng([seed, 3]))
                for row in measure(head, hidden, label_NC):
                    rows.append({"head": "shipped" if arm is None else arm.name, "seed": seed, "against": truth} | row)
        away = {kind: distance(hidden[kind], hidden["train"]) for kind in OUTSIDE}
        near = distance(hidden["heldout"], hidden["train"])
        rows.append(dict.fromkeys(rows[0]) | {"head": "distance of the hidden state", "seed": seed})
        rows[-1] |= {f"outside_{kind}": auroc_outside(near, values) for kind, values in away.items()}
        print(f"seed {seed} is done", flush=True)
    rows = [{key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()} for row in rows]
    made_by = {"steps": options.steps} | versions()
    write_csv(options.csv, [row | made_by for row in rows])
    print_table(rows)


def print_table(rows: list[dict]) -> None:
    """Means over the seeds, with the smallest and the largest."""
    table = Table("head", "against", "score", "margin", "P", "gain", "sigma", "median sigma", *OUTSIDE)
    keys = ("auroc_margin", "auroc_p", "gain", "auroc_sigma", "sigma_p50", *(f"outside_{kind}" for kind in OUTSIDE))
    for group in dict.fromkeys((row["head"], row["against"], row["score"]) for row in rows):
        members = [row for row in rows if (row["head"], row["against"], row["score"]) == group]
        cells = []
        for key in keys:
            values = [row[key] for row in members if row[key] is not None]
            cells.append(f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})" if values else "")
        table.add_row(*(str(part or "") for part in group), *cells)
    Console(width=220).print(table)


if __name__ == "__main__":
    main()
