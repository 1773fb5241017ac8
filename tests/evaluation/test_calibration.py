"""What makes P(A better than B) true: fitted where it is known, and measured on pairs that were not fitted on."""

import json
import math

import numpy as np
import pytest
import torch

from jrm_plugin import JRMError, RewardScorer
from jrm_plugin.evaluation.calibration import ScoredPair, fit, report, sigma_quantiles, split_by_prompt
from jrm_plugin.kernels import win_probability
from jrm_plugin.model.calibration_file import drop_calibration, read_calibration, write_calibration
from jrm_plugin.model.checkpoint import CALIBRATION_FILE, built_in_folder
from jrm_plugin.model.loading import checkpoint_digest
from jrm_plugin.records.calibration import Calibration
from jrm_plugin.records.scores import RewardScore


def drawn_pairs(count: int, temperature: float, *, seed: int = 0, ties: int = 0) -> list[ScoredPair]:
    """Pairs whose order is drawn with exactly the probability that a temperature gives."""
    rng = np.random.default_rng(seed)
    mu, sigma = torch.tensor(rng.normal(0, 2, (2, count))), torch.tensor(rng.uniform(0.1, 1, (2, count)))
    scaled_mu, log_sigma = mu / temperature, sigma.log()
    wins = win_probability(scaled_mu[0], log_sigma[0], scaled_mu[1], log_sigma[1]).numpy()
    labels = np.where(rng.random(count) < wins, 1, -1)
    labels[:ties] = 0
    first, second = (
        [RewardScore({"a": m}, {"a": s}) for m, s in zip(*columns, strict=True)]
        for columns in zip(mu.tolist(), sigma.tolist(), strict=True)
    )
    return [ScoredPair(f"prompt {k}", {"a": int(labels[k])}, first[k], second[k]) for k in range(count)]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_is_found_and_lowers_the_error_on_other_pairs(temperature):
    calibration = fit(drawn_pairs(1500, temperature, ties=50))
    assert calibration.temperature["a"] == pytest.approx(temperature, rel=0.2)
    row = report(calibration, drawn_pairs(1500, temperature, seed=1), resamples=40)["dimensions"]["a"]
    assert row["after"]["value"] < 0.05 and row["after"]["low"] <= row["after"]["value"] + 0.02
    assert row["after"]["log_loss"] <= row["before"]["log_loss"] + 1e-3
    if temperature != 1:
        assert row["after"]["high"] < row["before"]["low"]


def test_conformal_quantiles_hold_on_further_samples():
    rng = np.random.default_rng(0)
    quantiles = sigma_quantiles(rng.gamma(2, 1, 500))
    for level, quantile in quantiles.items():
        above = np.mean(rng.gamma(2, 1, 100_000) > quantile)
        assert above == pytest.approx(1 - level, abs=0.03)
    assert sigma_quantiles([3.0, 1.0, 2.0] * 3) == {0.9: 3.0}  # the ninth of nine; for the others there are too few
    assert sigma_quantiles([1.0]) == {}


def test_pairs_of_one_prompt_stay_on_one_side():
    pairs = [ScoredPair(f"{k % 30}", {}, *[RewardScore({"a": 0}, {"a": 1})] * 2) for k in range(120)]
    first, second = split_by_prompt(pairs, 0.5, seed=3)
    assert len(first) == len(second) == 60
    assert not {pair.prompt for pair in first} & {pair.prompt for pair in second}
    assert split_by_prompt(pairs, 0.5, seed=3) == (first, second)


def test_too_few_pairs_are_an_error():
    with pytest.raises(JRMError, match="needs at least 20 pairs that are no tie"):
        fit(drawn_pairs(30, 1.0, ties=11))
    with pytest.raises(JRMError, match="only 12 of the pairs to judge by are labelled in a and no tie"):
        report(fit(drawn_pairs(100, 1.0)), drawn_pairs(12, 1.0))


# --- with the checkpoint ----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for file in built_in_folder("jrm-tiny").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_it_lies_with_the_checkpoint_and_changes_no_score(folder, tiny, make_samples):
    samples = [sample for sample in make_samples(6) if sample.task == "edit"]
    calibration = Calibration({"overall": 2.0}, {"overall": {0.9: 1.0, 0.95: 1.5}})
    digest = checkpoint_digest(folder)
    write_calibration(folder, calibration, {"data": "x"})
    scorer = RewardScorer.from_pretrained(folder, device="cpu")
    assert scorer.calibration == calibration == Calibration.from_dict(json.loads(json.dumps(calibration.to_dict())))
    assert scorer.score(samples) == tiny.score(samples)
    assert checkpoint_digest(folder) == digest  # what was scored before is still this model's
    drop_calibration(folder)
    assert read_calibration(folder) is None and tiny.calibration is None


@pytest.mark.parametrize(
    "content", [[], {}, {"temperature": {"a": 0}, "sigma_quantiles": {}}, {"temperature": 1, "sigma_quantiles": {}}]
)
def test_a_broken_file_is_named(folder, content):
    (folder / CALIBRATION_FILE).write_text(json.dumps(content))
    with pytest.raises(JRMError, match=r"jrm_calibration.json .*"):
        RewardScorer.from_pretrained(folder, device="cpu")


def test_numbers_must_be_numbers():
    for number in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(JRMError, match="must be finite and above 0"):
            Calibration({"a": number}, {})
