"""Accuracy with ties against every threshold there is, groups, macro averages, risk and coverage, and intervals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jrm_plugin.evaluation.agreement import (
    Judged,
    accuracy,
    accuracy_at,
    accuracy_with_ties,
    best_threshold,
    decided,
    difference,
    group_accuracy,
    is_right,
    macro,
    rank_correlations,
    risk_coverage,
    with_interval,
)

LABELS = st.sampled_from((-1, 0, 1))
# Few values, so that margins are equal, exactly 0, and of either sign.
MARGINS = st.one_of(st.sampled_from((-1.0, -0.5, 0.0, 0.5, 1.0)), st.floats(-2, 2), st.just(float("nan")))


def judged(labels, margins, **columns) -> Judged:
    info = {name: np.array(values) for name, values in columns.items()}
    return Judged(np.array(labels), np.array(margins, dtype=float), np.arange(len(labels)), info=info)


def share_of_right(labels, margins, threshold: float) -> float:
    """(C + Thm) / N as Deutsch et al. define it, pair by pair."""
    right = 0
    for label, margin in zip(labels, margins, strict=True):
        if np.isnan(margin):
            continue
        said = 0 if abs(margin) <= threshold else int(np.sign(margin))
        right += said == label
    return right / len(labels)


@settings(max_examples=1000)
@given(st.lists(st.tuples(LABELS, MARGINS), min_size=1, max_size=12), st.randoms())
def test_the_best_threshold_is_the_best_of_all_in_whatever_order_the_pairs_come(pairs, random):
    labels, margins = zip(*pairs, strict=True)
    sizes = sorted({0.0, *(abs(m) for m in margins if not np.isnan(m))})
    between = [(a + b) / 2 for a, b in zip(sizes, sizes[1:], strict=False)]
    every = [*sizes, *between, sizes[-1] + 1]
    expected = max(share_of_right(labels, margins, threshold) for threshold in every)
    value = accuracy_with_ties(judged(labels, margins))
    assert value == pytest.approx(expected)
    threshold, _ = best_threshold(judged(labels, margins))
    assert share_of_right(labels, margins, threshold) == pytest.approx(expected)
    shuffled = random.sample(pairs, len(pairs))
    assert best_threshold(judged(*zip(*shuffled, strict=True))) == best_threshold(judged(labels, margins))


def test_pairs_of_equal_margins_become_ties_together():
    assert accuracy_with_ties(judged([0, 1], [0.5, 0.5])) == 0.5
    assert accuracy_with_ties(judged([1, 0], [0.5, 0.5])) == 0.5


def test_a_margin_of_zero_is_wrong_without_ties():
    assert accuracy(judged([1, -1, 0], [0.0, -0.1, 0.0])) == 0.5


def test_a_fixed_rule_calls_every_tie_of_a_continuous_scorer_wrong():
    pairs = judged([0, 0, 1], [1e-3, -1e-3, 0.5])
    assert accuracy_at(1e-5)(pairs) == pytest.approx(1 / 3)
    assert accuracy_with_ties(pairs) == 1.0


def test_a_pair_without_an_answer_is_right_by_no_rule():
    pairs = judged([1, 0], [float("nan")] * 2)
    assert not is_right(pairs).any() and not is_right(pairs, 10.0).any()
    assert accuracy(pairs) == 0.0 and accuracy_with_ties(pairs) == 0.0


def test_a_group_is_right_if_all_of_its_pairs_are():
    pairs = judged([1, 1, 1, -1, 1, 1], [1, 1, 1, -1, 1, -1], group=list("aaabbb"), group_size=[3] * 6)
    assert group_accuracy(pairs) == pytest.approx(1 / 2)
    twice = np.array([0, 1, 2, 0, 1, 2, 3, 4, 5])
    assert group_accuracy(pairs.take(twice)) == pytest.approx(2 / 3)


def test_a_macro_average_counts_small_groups_like_large_ones():
    pairs = judged([1, 1, 1, 1, 0], [1, 1, 1, -1, 1], task=["a", "a", "a", "b", "c"])
    assert macro("task")(pairs) == 0.5
    assert accuracy(pairs) == 0.75


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=1, max_size=30))
def test_risk_at_full_coverage_is_the_error_and_no_order_beats_the_oracle(pairs):
    right, uncertainty = zip(*pairs, strict=True)
    curve = risk_coverage(judged([1] * len(pairs), [1.0 if r else -1.0 for r in right]), np.array(uncertainty))
    error = 1 - np.mean(right)
    assert curve["risk"][-1] == pytest.approx(error) and curve["area_random"] == pytest.approx(error)
    assert curve["area_oracle"] <= curve["area"] + 1e-9
    again = np.argsort(-np.array(uncertainty), kind="stable")
    pairs_again = judged([1] * len(pairs), np.where(np.array(right)[again], 1.0, -1.0))
    assert risk_coverage(pairs_again, np.array(uncertainty)[again])["risk"] == pytest.approx(curve["risk"])


def test_an_uncertainty_that_says_nothing_has_the_error_at_every_coverage():
    curve = risk_coverage(judged([1] * 4, [1, -1, 1, -1]), np.zeros(4))
    assert curve["risk"] == [0.5] * 4 and curve["area"] == 0.5


def test_rank_correlations_are_those_of_scipy_and_none_where_all_are_equal():
    rng = np.random.default_rng(0)
    scores, ratings = rng.normal(size=50), rng.integers(1, 5, 50)
    found = rank_correlations(scores, ratings)
    assert found["spearman"] == stats.spearmanr(scores, ratings).statistic
    assert found["kendall"] == stats.kendalltau(scores, ratings).statistic
    assert rank_correlations(scores, np.ones(50)) == {"spearman": None, "kendall": None, "n": 50}


def test_an_interval_holds_its_value_and_is_wider_where_pairs_share_prompts():
    rng = np.random.default_rng(0)
    right = np.repeat(rng.random(60) < 0.7, 5)
    pairs = judged(np.ones(300), np.where(right, 1.0, -1.0))
    alone = with_interval(accuracy, pairs, 300)
    shared = with_interval(accuracy, Judged(pairs.label_N, pairs.margin_N, np.repeat(np.arange(60), 5)), 300)
    assert alone["low"] < alone["value"] < alone["high"]
    assert shared["high"] - shared["low"] > 1.5 * (alone["high"] - alone["low"])


def test_where_everything_is_right_the_interval_is_not_a_point():
    figure = with_interval(accuracy, judged([1] * 20, [1.0] * 20), 50)
    assert figure["value"] == figure["high"] == 1.0 and 0.8 < figure["low"] < 0.9


def test_a_difference_is_paired():
    rng = np.random.default_rng(0)
    margins = rng.normal(size=400)
    better = np.where(np.arange(400) < 40, np.abs(margins), margins)
    pairs = [judged(np.ones(400), m) for m in (better, margins)]
    paired = difference(accuracy, *pairs, 300)
    assert 0 < paired["low"] < paired["value"] < paired["high"] < 0.1
    assert len(decided(pairs[0])) == 400
