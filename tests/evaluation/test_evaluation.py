"""Evaluation with a scorer that reads its scores off the samples' own text, so that every expected number is known."""

import json
import math

import pytest
import torch

from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation.critiques import evaluate_critiques
from jrm_plugin.evaluation.metrics import effective_rank
from jrm_plugin.evaluation.pairs import evaluate_pairs, summarize
from jrm_plugin.evaluation.representation import evaluate_representation
from jrm_plugin.records.critiques import Critique, EditRegion, UnparsedCritique
from jrm_plugin.records.preferences import PreferencePair
from jrm_plugin.records.samples import Sample
from jrm_plugin.records.scores import RewardScore

FOLLOWING, QUALITY = "instruction_following", "visual_quality"


class TextScorer:
    """Scores text responses "a b" as mu a and b, both with sigma 0.5; its critiques come from `written`."""

    def __init__(self, written=()):
        self.written = list(written)

    def score(self, samples, progress=False):
        values = [map(float, sample.response_text.split()) for sample in samples]
        sigma = {FOLLOWING: 0.5, QUALITY: 0.5}
        return [RewardScore(dict(zip((FOLLOWING, QUALITY), each, strict=True)), sigma) for each in values]

    def critique(self, samples, progress=False):
        return self.written[: len(samples)]

    def hidden_states(self, samples, progress=False):
        rows = [[float(value) for value in sample.response_text.split()] for sample in samples]
        return torch.tensor(rows, dtype=torch.bfloat16)


def pair(chosen: str, rejected: str, labels: dict | None = None, **more) -> PreferencePair:
    samples = (Sample.text_response(None, "which is better?", text) for text in (chosen, rejected))
    return PreferencePair(*samples, labels={"overall": 1} if labels is None else labels, **more)


def simulated_p(m: float, s: float) -> float:
    """E[sigmoid(m + s Z)] by brute force, independently of the kernels."""
    z = torch.linspace(-12, 12, 200001, dtype=torch.float64)
    density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return float(torch.trapezoid(torch.sigmoid(m + s * z) * density, z))


def test_a_pair_keeps_its_scores_labels_and_info_and_gets_its_probability():
    (result,) = evaluate_pairs(TextScorer(), [pair("2 1", "0 0", info={"edit": "move"})])
    assert result.chosen.mu == {FOLLOWING: 2, QUALITY: 1, "overall": 1.5}
    assert result.rejected.sigma["overall"] == pytest.approx(math.sqrt(0.5) / 2)
    assert result.labels == {"overall": 1} and result.info == {"edit": "move"}
    assert result.win_probability[FOLLOWING] == pytest.approx(simulated_p(2, math.sqrt(0.5)), abs=1e-6)
    assert result.win_probability["overall"] == pytest.approx(simulated_p(1.5, 0.5), abs=1e-6)


def test_accuracy_per_dimension_edit_and_failure():
    def info(edit, one, two):
        return {"edit": edit, "failure1": one, "failure2": two, "quality1": "clean", "quality2": "clean"}

    pairs = [
        pair("2 1", "0 2", {"overall": 1, FOLLOWING: 1, QUALITY: -1}, info=info("move", "none", "ignored")),
        pair("0 0", "2 1", {"overall": 1, FOLLOWING: 1, QUALITY: 0}, info=info("move", "none", "partial")),
        pair("1 1", "1 1", {"overall": 1, FOLLOWING: 0}, info=info("add", "partial", "partial")),
        pair("3 1", "0 0", {"overall": 0}),
    ]
    summary = summarize(evaluate_pairs(TextScorer(), pairs))
    assert summary["pairs"] == 4 and summary["dimensions"] == [FOLLOWING, QUALITY, "overall"]

    def counts(accuracy):
        return accuracy["correct"], accuracy["n"], accuracy["ties"]

    # Overall: right, wrong, equal scores (wrong), a tie.
    assert counts(summary["accuracy"]["overall"]) == (1, 3, 1)
    assert counts(summary["accuracy"][FOLLOWING]) == (1, 2, 1)
    assert counts(summary["accuracy"][QUALITY]) == (1, 1, 1)
    assert set(summary["by_edit"]) == {"move", "add"}
    assert counts(summary["by_edit"]["move"]["overall"]) == (1, 2, 0)
    assert set(summary["by_edit"]["add"]) == {FOLLOWING, "overall"}
    # Both candidates of the third pair are partial: it says nothing about telling partial from the rest.
    assert {name: counts(each["overall"]) for name, each in summary["by_failure"].items()} == {
        "ignored": (1, 1, 0),
        "none": (1, 2, 0),
        "partial": (0, 1, 0),
    }
    assert summary["by_quality"] == {}
    assert summary["mean_sigma"] == {FOLLOWING: 0.5, QUALITY: 0.5, "overall": pytest.approx(math.sqrt(0.5) / 2)}
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_calibration_does_not_depend_on_which_sample_stands_first():
    texts = [("2 1", "0 0"), ("0 1", "1 3"), ("4 4", "0 0"), ("0.1 0", "0 0")]
    forward = [pair(a, b, {"overall": 1, QUALITY: -1}) for a, b in texts]
    swapped = [pair(b, a, {"overall": -1, QUALITY: 1}) for a, b in texts]
    one, two = (summarize(evaluate_pairs(TextScorer(), pairs)) for pairs in (forward, swapped))
    assert one["calibration"] == two["calibration"]
    assert one["accuracy"] == two["accuracy"]
    overall = one["calibration"]["overall"]
    expected = [simulated_p(m, 0.5) for m in (1.5, -1.5, 4, 0.05)]
    assert overall["n"] == 4 == sum(each["n"] for each in overall["bins"])
    assert overall["log_loss"] == pytest.approx(-sum(map(math.log, expected)) / 4, abs=1e-6)
    assert overall["brier"] == pytest.approx(sum((1 - p) ** 2 for p in expected) / 4, abs=1e-6)


def test_a_sure_mistake_keeps_its_loss():
    summary = summarize(evaluate_pairs(TextScorer(), [pair("100 100", "0 0", {"overall": -1})]))
    # log P(-100) is m + s²/2 to this precision; 1 - P(100) would be 0.
    assert summary["calibration"]["overall"]["log_loss"] == pytest.approx(100 - 0.25 / 2, rel=1e-6)
    assert summary["calibration"][FOLLOWING]["n"] == 0


def test_what_cannot_be_evaluated_is_refused():
    with pytest.raises(JRMError, match="Pair 1 is labelled in 'taste'"):
        evaluate_pairs(TextScorer(), [pair("1 1", "0 0"), pair("1 1", "0 0", {"taste": 1})])
    for function in (lambda: evaluate_pairs(TextScorer(), []), lambda: summarize([])):
        with pytest.raises(JRMError, match="no pair"):
            function()
    with pytest.raises(JRMError, match="n=0"):
        evaluate_critiques(TextScorer(), [pair("1 1", "0 0")], n=0)


def test_critiques_agree_part_by_part():
    def following(label="red circle", box=(0, 0, 500, 500), finding="it is green", rest="the rest is unchanged"):
        return Critique(f"<|bbox_0|> {finding} <|global|> {rest}", (EditRegion(0, label, box),))

    clean = Critique("the image is clean")
    oracle = {FOLLOWING: following(), QUALITY: clean}
    pairs = [pair("1 1", "0 0", chosen_critiques=oracle, rejected_critiques=oracle)] * 2 + [pair("1 1", "0 0")]
    broken = UnparsedCritique("{", "not a valid critique")
    written = [
        {FOLLOWING: following(), QUALITY: clean},
        {FOLLOWING: following(box=(0, 0, 500, 250)), QUALITY: Critique("the image is blurred")},
        {FOLLOWING: following(label="blue square", finding="it is blue"), QUALITY: clean},
        {FOLLOWING: broken, QUALITY: clean},
        {FOLLOWING: following(), QUALITY: broken},  # the third pair has no critiques to compare with
        {FOLLOWING: following(), QUALITY: clean},
    ]
    result = evaluate_critiques(TextScorer(written), pairs)
    assert (result["parsed"]["correct"], result["parsed"]["n"]) == (10, 12)
    counts = {
        name: {part: (share["correct"], share["n"]) for part, share in each.items() if part != "box_iou"}
        for name, each in result["by_dimension"].items()
    }
    assert counts[FOLLOWING] == {
        "parsed": (5, 6),
        "label": (2, 4),
        "box": (2, 4),
        "finding": (2, 4),
        "global": (3, 4),
        "whole": (1, 4),
    }
    assert counts[QUALITY] == {
        "parsed": (5, 6),
        "label": (0, 0),
        "box": (0, 0),
        "finding": (3, 4),
        "global": (0, 0),
        "whole": (3, 4),
    }
    assert result["by_dimension"][FOLLOWING]["box_iou"] == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert result["by_dimension"][QUALITY]["box_iou"] is None
    assert evaluate_critiques(TextScorer(written), pairs, n=1)["parsed"]["n"] == 4
    assert json.dumps(result, allow_nan=False)


def test_representation_resamples_whole_pairs():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(20, 2, generator=generator).bfloat16()
    # Both samples of a pair are equal, so 20 pairs are 20 observations, not 40: value and interval are theirs.
    pairs = [pair(f"{a} {b}", f"{a} {b}") for a, b in values.tolist()]
    result = evaluate_representation(TextScorer(), pairs, bootstrap=50, seed=3)
    assert (result["n"], result["features"]) == (40, 2)
    alone = effective_rank(values.double().numpy(), bootstrap=50, seed=3)
    for kind in ("raw", "centred"):
        for key in ("value", "low", "high", "singular_values"):
            assert result[kind][key] == pytest.approx(alone[kind][key])
