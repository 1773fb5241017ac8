"""That the benchmarks of sigma and of reward hacking run to their ends, and measure what they say."""

import csv
import sys

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("trl")
pytest.importorskip("sklearn")

from benchmarks import reward_hacking, uncertainty  # noqa: E402
from jrm_plugin.synthetic.preferences import Edit  # noqa: E402
from jrm_plugin.synthetic.shape_edits import draw_edit  # noqa: E402


def read(path) -> list[dict]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_uncertainty_gives_a_row_for_each_head_and_score(tmp_path, monkeypatch):
    arms = [
        "ties left out",
        "sigma after mu, wide bound, by failure",
        "sigma after mu, wide bound, pictures from outside",
    ]
    options = ["--output", str(tmp_path), "--csv", str(tmp_path / "rows.csv"), "--seed", "3", "--steps", "3"]
    monkeypatch.setattr(sys, "argv", ["uncertainty", *options, "--train", "12", "--heldout", "30", "--arm", *arms])
    uncertainty.main()
    rows = read(tmp_path / "rows.csv")
    heads = ["shipped", *arms[:2], arms[1], arms[2]]  # against truth, and against annotators who disagree
    assert [row["head"] for row in rows] == [head for head in heads for _ in uncertainty.NAMES] + [
        "distance of the hidden state"
    ]
    shipped = next(row for row in rows if (row["head"], row["score"]) == ("shipped", "overall"))
    assert 0 < float(shipped["sigma_p50"]) < 1.65 and 0 <= float(shipped["outside_noise"]) <= 1
    assert float(rows[-1]["outside_photographs"]) > 0.9  # the hidden state does tell photographs apart


def test_a_fixed_mu_stays_what_it_was(tiny):
    arm = uncertainty.Arm("x", fixed_mu=True)
    hidden = {"train": torch.randn(20, 128, generator=torch.Generator().manual_seed(0))}
    head = uncertainty.train_head(tiny, arm, hidden, np.sign(np.random.default_rng(0).normal(size=(10, 3))), 0, 5)
    (mu, sigma), (shipped_mu, shipped_sigma) = head(hidden["train"]), tiny.model.reward_head(hidden["train"])
    assert torch.equal(mu, shipped_mu) and not torch.equal(sigma, shipped_sigma)


def edits(count: int) -> list[Edit]:
    rng = np.random.default_rng(0)
    return [draw_edit(rng, heldout=True) for _ in range(count)]


def test_annotators_disagree_where_they_are_said_to():
    drawn = edits(300)
    truth = uncertainty.annotated(drawn, "agree", np.random.default_rng(1))
    by_kind = uncertainty.annotated(drawn, "kind", np.random.default_rng(1))
    by_failure = uncertainty.annotated(drawn, "failure", np.random.default_rng(1))
    kinds = np.array([edit.kind for edit in drawn])
    swapped = (by_kind != truth).any(axis=1)
    assert not swapped[kinds == "recolour"].any() and 0.25 < swapped[kinds == "move"].mean() < 0.55
    disputed = np.array([any(c.failure in uncertainty.IN_DISPUTE for c in edit.candidates) for edit in drawn])
    assert not (by_failure != truth)[~disputed].any() and (by_failure != truth)[disputed].any()
    assert (by_failure[:, 1] == truth[:, 1]).all()  # they agree on visual quality


def test_reward_hacking_runs_to_its_end_and_goes_on_from_what_is_done(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reward_hacking, "PAIRS", 8)
    monkeypatch.setattr(reward_hacking, "HELDOUT_PAIRS", 64)
    monkeypatch.delitem(reward_hacking.ARMS, "acting")
    options = ["--output", str(tmp_path), "--results", str(tmp_path), "--picture", str(tmp_path / "picture.png")]
    options += ["--seed", "0", "--steps", "1", "--warm-up-steps", "30", "--heldout", "8", "--scale", "0.001"]
    monkeypatch.setattr(sys, "argv", ["reward_hacking", *options])
    reward_hacking.main()
    steps = read(tmp_path / "reward-hacking-steps.csv")
    assert [(row["guards"], row["step"]) for row in steps] == [("counting", "1"), ("acting at 0.75", "1")]
    assert all(0 <= float(row["undecided groups"]) <= 1 for row in steps)
    ends = read(tmp_path / "reward-hacking.csv")
    assert {row["when"] for row in ends} == {"start", "end", "the weak model's accuracy"}
    assert Image.open(tmp_path / "picture.png").width > 500
    capsys.readouterr()
    reward_hacking.main()
    assert "warm-up" not in capsys.readouterr().out
