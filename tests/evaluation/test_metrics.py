"""The formulas against hand-worked values, published examples and their own contracts."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation.metrics import (
    SPECTRAL_MEASURES,
    accuracy_difference,
    brier_score,
    calibration_bins,
    effective_rank,
    expected_calibration_error,
    isotropy,
    log_loss,
    mean_with_interval,
    pairwise_accuracy,
    preference_calibration,
    principal_components,
    procrustes,
    proportion,
    singular_values,
    spectral_entropy,
    spectrum,
    weighted_singular_values,
)


def test_wilson_interval_of_a_published_example():
    # Newcombe 1998, table I, method 3 (Wilson without continuity correction).
    for correct, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        result = proportion(correct, n)
        assert result["low"] == pytest.approx(low, abs=5e-5)
        assert result["high"] == pytest.approx(high, abs=5e-5)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_share_and_mirrors(case):
    correct, n = case
    result, mirrored = proportion(correct, n), proportion(n - correct, n)
    assert 0 <= result["low"] <= result["value"] <= result["high"] <= 1
    assert result["low"] < result["high"]
    assert result["low"] == pytest.approx(1 - mirrored["high"], abs=1e-12)


def test_no_trial_says_nothing():
    assert proportion(0, 0) == {"value": None, "low": 0.0, "high": 1.0, "correct": 0, "n": 0}
    with pytest.raises(JRMError, match="0 <= correct <= n"):
        proportion(3, 2)


def test_pairwise_accuracy_leaves_ties_out_and_counts_equal_scores_as_wrong():
    result = pairwise_accuracy([1.0, -1.0, 0.0, 5.0, -2.0], [1, 1, 1, 0, -1])
    assert (result["correct"], result["n"], result["ties"]) == (2, 4, 1)
    assert pairwise_accuracy([0.0, 0.0], [1, -1])["value"] == 0
    assert pairwise_accuracy([0.3], [0])["value"] is None


@pytest.mark.parametrize(
    ("difference", "label", "message"),
    [([1.0], [1, 1], "one label per pair"), ([1.0], [2], "1, 0 or -1"), ([math.nan], [1], "finite")],
)
def test_pairwise_accuracy_refuses(difference, label, message):
    with pytest.raises(JRMError, match=message):
        pairwise_accuracy(difference, label)


def test_accuracy_difference_counts_only_disagreements():
    first = [1] * 60 + [1] * 12 + [0] * 2 + [0] * 26
    second = [1] * 60 + [0] * 12 + [1] * 2 + [0] * 26
    result = accuracy_difference(first, second)
    # b = 12, c = 2, n = 100; Agresti-Min: (12.5 - 2.5) / 102 ± 1.96 sqrt(15 - 100/102) / 102
    half = 1.959963984540054 * math.sqrt(15 - 100 / 102) / 102
    assert result == {
        "value": pytest.approx(0.1),
        "low": pytest.approx(10 / 102 - half),
        "high": pytest.approx(10 / 102 + half),
        "n": 100,
    }
    reversed_ = accuracy_difference(second, first)
    assert (reversed_["low"], reversed_["high"]) == (pytest.approx(-result["high"]), pytest.approx(-result["low"]))
    agreeing = accuracy_difference([1, 0, 1], [1, 0, 1])
    assert agreeing["value"] == 0 and agreeing["low"] < 0 < agreeing["high"]
    with pytest.raises(JRMError, match="same pairs"):
        accuracy_difference([1], [1, 0])


def test_calibration_bins_put_each_pair_in_one_bin():
    bins = calibration_bins([0.0, 0.05, 0.1, 0.55, 1.0], [0, 1, 0, 0.5, 1], bins=10)
    assert [b["n"] for b in bins] == [2, 1, 0, 0, 0, 1, 0, 0, 0, 1]
    assert bins[0]["predicted"] == pytest.approx(0.025) and bins[0]["observed"] == 0.5
    assert bins[5]["observed"] == 0.5 and bins[2]["observed"] is None
    # |0.5 - 0.025|·2 + |0 - 0.1| + |0.5 - 0.55| + 0, over 5 pairs
    assert expected_calibration_error(bins) == pytest.approx((0.95 + 0.1 + 0.05) / 5)
    assert expected_calibration_error(calibration_bins([], [])) is None
    with pytest.raises(JRMError, match="do not hold"):
        calibration_bins([0.2], [1], low=0.5)


def test_a_calibrated_forecast_has_a_small_error_and_a_boast_a_large_one():
    rng = np.random.default_rng(0)
    probability = rng.uniform(0.5, 1, 20000)
    outcome = (rng.random(20000) < probability).astype(float)
    honest = expected_calibration_error(calibration_bins(probability, outcome, low=0.5))
    boast = expected_calibration_error(calibration_bins(np.full(20000, 0.99), outcome, low=0.5))
    assert honest < 0.02 and boast == pytest.approx(0.24, abs=0.02)
    assert brier_score(probability, outcome) < brier_score(np.full(20000, 0.99), outcome)
    assert log_loss(probability, outcome) < log_loss(np.full(20000, 0.99), outcome)


def test_a_model_that_says_80_percent_and_is_right_in_80_percent_is_calibrated():
    result = preference_calibration([0.8] * 80 + [0.2] * 20)
    assert result["expected_calibration_error"] == pytest.approx(0)
    assert [b["n"] for b in result["bins"] if b["n"]] == [100]
    assert result["brier"] == pytest.approx(0.8 * 0.04 + 0.2 * 0.64)
    coin = preference_calibration([0.5] * 10)
    assert coin["expected_calibration_error"] == 0 and coin["log_loss"] == pytest.approx(math.log(2))
    assert preference_calibration([])["expected_calibration_error"] is None


def test_brier_and_log_loss_by_hand():
    assert brier_score([0.8, 0.4], [1, 0]) == pytest.approx((0.04 + 0.16) / 2)
    assert log_loss([0.8, 0.4], [1, 0]) == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2)
    assert log_loss([0.5], [1]) == pytest.approx(math.log(2))
    assert 700 < log_loss([0.0], [1]) < 710
    assert brier_score([], []) is None and log_loss([], []) is None
    with pytest.raises(JRMError, match=r"\[0, 1\]"):
        brier_score([1.2], [1])


@given(st.integers(2, 12), st.integers(0, 2**32 - 1), st.floats(0.01, 100))
def test_effective_rank_of_equal_directions_is_their_number(directions, seed, scale):
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.standard_normal((16, 16)))
    hidden = np.zeros((40, 16))
    hidden[np.arange(directions), np.arange(directions)] = scale
    assert math.exp(spectral_entropy(singular_values(hidden @ rotation, centred=False))) == pytest.approx(directions)


def test_effective_rank_sees_a_collapse_and_ignores_the_mean_when_centred():
    rng = np.random.default_rng(0)
    spread = rng.standard_normal((300, 16))
    collapsed = rng.standard_normal((300, 2)) @ rng.standard_normal((2, 16)) + 1e-3 * spread
    wide, narrow = effective_rank(spread, bootstrap=20), effective_rank(collapsed, bootstrap=20)
    assert wide["centred"]["effective_rank"]["value"] > 15 and narrow["centred"]["effective_rank"]["value"] < 2.1
    assert wide["centred"]["spectral_entropy"]["value"] > 0.98 > narrow["centred"]["spectral_entropy"]["value"]
    shifted = effective_rank(spread + 100, bootstrap=20)
    assert shifted["raw"]["effective_rank"]["value"] < 4
    centred = [result["centred"]["effective_rank"]["value"] for result in (shifted, wide)]
    assert centred[0] == pytest.approx(centred[1])
    assert sum(wide["raw"]["singular_values"]) == pytest.approx(1)
    assert wide == effective_rank(spread, bootstrap=20) and json.dumps(wide)


def test_effective_rank_interval_covers_what_another_sample_of_that_size_gives():
    rng = np.random.default_rng(1)
    scale = np.exp(-0.1 * np.arange(16))
    draws = [rng.standard_normal((150, 16)) * scale for _ in range(60)]
    results = [effective_rank(hidden, bootstrap=40)["raw"]["effective_rank"] for hidden in draws]
    expected = np.mean([r["value"] for r in results])
    assert np.mean([r["low"] <= expected <= r["high"] for r in results]) > 0.85
    assert all(r["low"] < r["value"] < r["high"] for r in results)


def test_rows_that_belong_together_widen_the_interval():
    hidden = np.repeat(np.random.default_rng(2).standard_normal((60, 8)) * np.arange(1, 9), 2, axis=0)
    alone, paired = (effective_rank(hidden, group_size=size)["raw"]["effective_rank"] for size in (1, 2))
    assert alone["value"] == paired["value"]
    width = [interval["high"] - interval["low"] for interval in (alone, paired)]
    assert width[1] > 1.2 * width[0]


def test_isotropy_is_one_where_all_directions_are_alike_and_zero_where_there_is_one():
    assert isotropy([2.0] * 7) == pytest.approx(1)
    assert isotropy([3.0, 0, 0, 0]) == pytest.approx(0)
    assert isotropy([1.0, 1.0, 0, 0, 0]) == pytest.approx((2 - 1) / (5 - 1))  # two of five share the energy


@given(st.integers(2, 9), st.integers(2, 9), st.booleans(), st.integers(0, 2**32 - 1))
def test_a_resample_has_the_singular_values_of_the_rows_that_were_drawn(rows, features, centred, seed):
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((rows, features))
    weight = np.bincount(rng.integers(0, rows, rows), minlength=rows)
    repeated = np.repeat(hidden, weight, axis=0)
    expected = np.linalg.svd(repeated - repeated.mean(0) if centred else repeated, compute_uv=False)
    found = weighted_singular_values(hidden, weight, centred)
    assert found == pytest.approx(expected, abs=1e-6)


@given(st.integers(2, 5), st.floats(0.1, 10), st.integers(0, 2**32 - 1))
def test_procrustes_undoes_a_turn_and_a_mirror_and_keeps_the_scale(dimensions, scale, seed):
    rng = np.random.default_rng(seed)
    reference = rng.standard_normal((30, dimensions))
    rotation, _ = np.linalg.qr(rng.standard_normal((dimensions, dimensions)))
    aligned, disparity = procrustes(reference, scale * reference @ rotation + rng.standard_normal(dimensions))
    np.testing.assert_allclose(aligned, scale * (reference - reference.mean(0)), atol=1e-8 * scale + 1e-9)
    assert disparity == pytest.approx(0, abs=1e-9)
    aligned, disparity = procrustes(reference, rng.standard_normal((30, dimensions)))
    assert 0 < disparity < 1


def test_components_hold_the_variance_in_order():
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((200, 8)) * [5, 3, 2, 1, 0.1, 0.1, 0.1, 0.1] + 7
    points, share = principal_components(hidden)
    assert share == pytest.approx([25 / 39.04, 9 / 39.04, 4 / 39.04], abs=0.06)
    assert points.var(0).sum() / hidden.var(0).sum() == pytest.approx(share.sum())
    assert principal_components(hidden[:, :2])[0].shape == (200, 3)  # the third lacks, and is zero


def test_a_difference_is_of_the_same_resamples():
    rng = np.random.default_rng(3)
    hidden = rng.standard_normal((100, 12)) * np.exp(-0.2 * np.arange(12))
    first, same, flat = (
        spectrum(values, centred=True, bootstrap=50) for values in (hidden, 3 * hidden, rng.standard_normal((100, 12)))
    )
    for name in SPECTRAL_MEASURES:
        assert first.less(same, name) == pytest.approx({"value": 0, "low": 0, "high": 0}, abs=1e-6)
    difference = flat.less(first, "effective_rank")
    assert 0 < difference["low"] < difference["value"] < difference["high"]


def test_the_interval_of_a_mean_is_students():
    assert mean_with_interval([1, 2, 3]) == pytest.approx(
        {"value": 2, "low": -0.4841, "high": 4.4841, "n": 3}, abs=1e-4
    )
    assert mean_with_interval([5.0]) == {"value": 5.0, "low": None, "high": None, "n": 1}


@pytest.mark.parametrize(
    ("hidden", "options", "message"),
    [
        (np.ones((20, 4)), {}, "every hidden state is the same"),
        (np.full((20, 4), np.nan), {}, "diverged"),
        (np.ones((21, 4)), {"group_size": 2}, "whole groups"),
        (np.ones((6, 4)), {}, "at least 8"),
        (np.ones(20), {}, "shape"),
    ],
)
def test_effective_rank_refuses(hidden, options, message):
    with pytest.raises(JRMError, match=message):
        effective_rank(hidden, **options)
