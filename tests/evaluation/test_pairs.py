"""Accuracy, groups and calibration of scores that are read off the samples' own text, so that every number is known."""

import json
import math

import pytest
import torch

from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation.pairs import evaluate_pairs, summarize
from jrm_plugin.records.scores import RewardScore

FOLLOWING, QUALITY = "instruction_following", "visual_quality"
GROUPS = {
    "edit": {"title": "Kind of edit", "column": "Edit", "keys": ("edit",)},
    "failure": {"title": "Failure of one", "column": "Failure", "keys": ("failure1", "failure2")},
    "weather": {"title": "Weather", "column": "Weather", "keys": ("weather",)},
}


class TextScorer:
    """Scores text responses "a b" as mu a and b, both with sigma 0.5."""

    def score(self, samples, *, progress=False):
        values = [map(float, sample.response_text.split()) for sample in samples]
        sigma = {FOLLOWING: 0.5, QUALITY: 0.5}
        return [RewardScore(dict(zip((FOLLOWING, QUALITY), mu, strict=True)), sigma) for mu in values]


def simulated_p(m: float, s: float) -> float:
    """E[sigmoid(m + s Z)] by brute force, independently of the kernels."""
    z = torch.linspace(-12, 12, 200001, dtype=torch.float64)
    density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return float(torch.trapezoid(torch.sigmoid(m + s * z) * density, z))


def test_a_pair_keeps_its_scores_labels_and_info_and_gets_its_probability(make_pair):
    (result,) = evaluate_pairs(TextScorer(), [make_pair("2 1", "0 0", info={"edit": "move"})])
    assert result.chosen.mu == {FOLLOWING: 2, QUALITY: 1, "overall": 1.5}
    assert result.rejected.sigma["overall"] == pytest.approx(math.sqrt(0.5) / 2)
    assert result.labels == {"overall": 1} and result.info == {"edit": "move"}
    assert result.win_probability[FOLLOWING] == pytest.approx(simulated_p(2, math.sqrt(0.5)), abs=1e-6)
    assert result.win_probability["overall"] == pytest.approx(simulated_p(1.5, 0.5), abs=1e-6)


def test_accuracy_per_dimension_and_group(make_pair):
    def info(edit, chosen, rejected):
        return {"edit": edit, "failure1": chosen, "failure2": rejected}

    pairs = [
        make_pair("2 1", "0 2", {"overall": 1, FOLLOWING: 1, QUALITY: -1}, info=info("move", "none", "ignored")),
        make_pair("0 0", "2 1", {"overall": 1, FOLLOWING: 1, QUALITY: 0}, info=info("move", "none", "partial")),
        make_pair("1 1", "1 1", {"overall": 1, FOLLOWING: 0}, info=info("add", "partial", "partial")),
        make_pair("3 1", "0 0", {"overall": 0}),
    ]
    summary = summarize(evaluate_pairs(TextScorer(), pairs), GROUPS)
    assert summary["pairs"] == 4 and summary["dimensions"] == [FOLLOWING, QUALITY, "overall"]

    def counts(accuracy):
        return accuracy["correct"], accuracy["n"], accuracy["ties"]

    # Overall: right, wrong, equal scores (wrong), a tie.
    assert counts(summary["accuracy"]["overall"]) == (1, 3, 1)
    assert counts(summary["accuracy"][FOLLOWING]) == (1, 2, 1)
    assert counts(summary["accuracy"][QUALITY]) == (1, 1, 1)
    assert {name: (group["title"], group["column"]) for name, group in summary["groups"].items()} == {
        name: (group["title"], group["column"]) for name, group in GROUPS.items()
    }
    by_edit, by_failure, by_weather = (group["accuracy"] for group in summary["groups"].values())
    assert set(by_edit) == {"move", "add"}
    assert counts(by_edit["move"]["overall"]) == (1, 2, 0)
    assert set(by_edit["add"]) == {FOLLOWING, "overall"}
    # Both candidates of the third pair are partial: it says nothing about telling partial from the rest.
    assert {name: counts(accuracy["overall"]) for name, accuracy in by_failure.items()} == {
        "ignored": (1, 1, 0),
        "none": (1, 2, 0),
        "partial": (0, 1, 0),
    }
    assert by_weather == {}
    assert summary["mean_sigma"] == {FOLLOWING: 0.5, QUALITY: 0.5, "overall": pytest.approx(math.sqrt(0.5) / 2)}
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_calibration_does_not_depend_on_which_sample_stands_first(make_pair):
    texts = [("2 1", "0 0"), ("0 1", "1 3"), ("4 4", "0 0"), ("0.1 0", "0 0")]
    forward = [make_pair(a, b, {"overall": 1, QUALITY: -1}) for a, b in texts]
    swapped = [make_pair(b, a, {"overall": -1, QUALITY: 1}) for a, b in texts]
    summary, of_swapped = (summarize(evaluate_pairs(TextScorer(), pairs)) for pairs in (forward, swapped))
    assert summary == of_swapped
    overall = summary["calibration"]["overall"]
    expected = [simulated_p(m, 0.5) for m in (1.5, -1.5, 4, 0.05)]
    assert overall["n"] == 4 == sum(level["n"] for level in overall["bins"])
    assert overall["log_loss"] == pytest.approx(-sum(map(math.log, expected)) / 4, abs=1e-6)
    assert overall["brier"] == pytest.approx(sum((1 - p) ** 2 for p in expected) / 4, abs=1e-6)


def test_a_sure_mistake_keeps_its_loss(make_pair):
    summary = summarize(evaluate_pairs(TextScorer(), [make_pair("100 100", "0 0", {"overall": -1})]))
    # log P(-100) is m + s²/2 to this precision; 1 - P(100) would be 0.
    assert summary["calibration"]["overall"]["log_loss"] == pytest.approx(100 - 0.25 / 2, rel=1e-6)
    assert summary["calibration"][FOLLOWING]["n"] == 0


def test_what_cannot_be_evaluated_is_refused(make_pair):
    with pytest.raises(JRMError, match="Pair 1 is labelled in 'taste'"):
        evaluate_pairs(TextScorer(), [make_pair("1 1", "0 0"), make_pair("1 1", "0 0", {"taste": 1})])
    for function in (lambda: evaluate_pairs(TextScorer(), []), lambda: summarize([])):
        with pytest.raises(JRMError, match="no pair"):
            function()
