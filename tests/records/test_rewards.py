"""One number from a score, and a group's numbers as RL trainers take them."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jrm_plugin.errors import JRMError
from jrm_plugin.records.scores import RewardScore, group_advantages, group_rewards
from jrm_plugin.rollouts import RolloutReward

values = st.floats(-20, 20)
scores = st.builds(
    lambda a, b, c, d: RewardScore({"a": a, "b": b}, {"a": c, "b": d}), values, values, *[st.floats(0.01, 9)] * 2
)


@given(scores, st.floats(0, 4))
def test_mean_and_lower_confidence_bound(score, k):
    assert score.reward() == score.reward("mean") == score.mu["overall"]
    assert score.reward("mean", dimension="a") == score.mu["a"]
    assert score.reward("lower_confidence_bound", k=k) == score.mu["overall"] - k * score.sigma["overall"]
    assert score.reward("lower_confidence_bound", k=0) == score.reward()


@given(scores, scores)
def test_win_probability_is_between_two_and_sums_to_one(one, other):
    won, lost = one.reward("win_probability", against=other), other.reward("win_probability", against=other)
    assert 0 <= won <= 1 and lost == pytest.approx(0.5)
    assert won + other.reward("win_probability", against=one) == pytest.approx(1, abs=1e-9)
    if one.mu["overall"] > other.mu["overall"]:
        assert won >= 0.5


def test_win_probability_without_uncertainty_is_the_logistic():
    one, other = RewardScore({"a": 1.5}, {"a": 0}), RewardScore({"a": 0.5}, {"a": 0})
    assert one.reward("win_probability", against=other) == pytest.approx(1 / (1 + math.exp(-1)))


@given(st.lists(scores, min_size=2, max_size=5))
def test_in_a_group_everyone_is_compared_with_all_others(group):
    rewards = group_rewards(group, "win_rate")
    assert sum(rewards) == pytest.approx(len(group) / 2)  # P(i beats j) + P(j beats i) = 1
    first = [group[0].reward("win_probability", against=other) for other in group[1:]]
    assert rewards[0] == pytest.approx(sum(first) / len(first))
    assert group_rewards(group, "win_probability", against=group[0])[0] == pytest.approx(0.5)
    assert group_rewards(group) == [score.mu["overall"] for score in group]


# --- the modes against their definitions ------------------------------------------------------------------------------

# A standard Gaussian as 20,000 equally likely values: means over it are integrals, without chance.
GAUSSIAN = np.array([NormalDist().inv_cdf((k + 0.5) / 20_000) for k in range(20_000)])
QUADRATURE = np.polynomial.hermite_e.hermegauss(150)
moderate = st.builds(
    lambda a, b, c, d: RewardScore({"a": a, "b": b}, {"a": c, "b": d}),
    *[st.floats(-4, 4)] * 2,
    *[st.floats(0.01, 3)] * 2,
)


@given(moderate, st.floats(0, 3), st.sampled_from(["a", "b", "overall"]))
def test_mean_and_bound_are_the_mean_and_a_quantile_of_the_gaussian(score, k, dimension):
    values = score.mu[dimension] + score.sigma[dimension] * GAUSSIAN
    assert score.reward(dimension=dimension) == pytest.approx(values.mean(), abs=1e-6)
    bound = score.reward("lower_confidence_bound", k=k, dimension=dimension)
    assert np.mean(values > bound) == pytest.approx(NormalDist().cdf(k), abs=1e-3)


@given(moderate, st.floats(0.5, 20), st.sampled_from(["a", "b", "overall"]))
def test_entropic_is_the_certainty_equivalent(score, beta, dimension):
    """-beta log E[exp(-r / beta)], the expectation by Gauss-Hermite quadrature."""
    nodes, weights = QUADRATURE
    exponents = -(score.mu[dimension] + score.sigma[dimension] * nodes) / beta
    largest = exponents.max()
    mean = np.sum(weights / weights.sum() * np.exp(exponents - largest))
    expected = -beta * (largest + math.log(mean))
    assert score.reward("entropic", beta=beta, dimension=dimension) == pytest.approx(expected, abs=1e-8)


@given(moderate, st.floats(0.5, 20), st.floats(-5, 5), st.floats(0.05, 5))
def test_entropic_is_the_worst_mean_when_distance_costs_beta(score, beta, mean, deviation):
    """E_q[r] + beta KL(q || r) is nowhere below it, and it at the Gaussian that is sigma^2 / beta further down."""
    mu, sigma = score.mu["overall"], score.sigma["overall"]

    def price(m: float, s: float) -> float:
        divergence = math.log(sigma / s) + (s**2 + (m - mu) ** 2) / (2 * sigma**2) - 0.5
        return m + beta * divergence

    found = score.reward("entropic", beta=beta)
    assert price(mean, deviation) >= found - 1e-9
    assert price(mu - sigma**2 / beta, sigma) == pytest.approx(found)
    assert found <= score.reward() and score.reward("entropic", beta=1e12) == pytest.approx(mu, abs=1e-9)


@settings(max_examples=25)
@given(st.lists(moderate, min_size=2, max_size=5), st.integers(0, 2**32 - 1))
def test_win_rate_is_how_often_a_draw_beats_the_others_draws(group, seed):
    """Monte Carlo of its definition: every candidate draws a score, and sigmoid of the difference is who wins."""
    count = 40_000
    draws = np.random.default_rng(seed).standard_normal((len(group), count))
    mu, sigma = (np.array([getattr(score, name)["overall"] for score in group])[:, None] for name in ("mu", "sigma"))
    draws = mu + sigma * draws
    for number, found in enumerate(group_rewards(group, "win_rate")):
        wins = 1 / (1 + np.exp(np.delete(draws, number, axis=0) - draws[number]))
        assert found == pytest.approx(wins.mean(), abs=5 * 0.5 / math.sqrt(count))


@settings(max_examples=25)
@given(moderate, moderate, st.sampled_from(["a", "b", "overall"]))
def test_win_over_source_is_the_integral_of_the_logistic(edit, source, dimension):
    """The difference of two Gaussian scores is Gaussian; E[sigmoid] over its values."""
    difference = edit.mu[dimension] - source.mu[dimension]
    difference = difference + math.hypot(edit.sigma[dimension], source.sigma[dimension]) * GAUSSIAN
    found = RolloutReward(mode="win_over_source", dimension=dimension).reward(edit, source)
    assert found == pytest.approx(np.mean(1 / (1 + np.exp(-difference))), abs=1e-4)


# --- advantages -------------------------------------------------------------------------------------------------------

rewards_and_variances = st.lists(st.tuples(st.floats(-50, 50), st.floats(1e-3, 1e3)), min_size=2, max_size=8)


@given(rewards_and_variances, st.booleans())
def test_reliability_weights_are_those_of_the_least_squares_mean(pairs, scale):
    rewards, variances = map(np.array, zip(*pairs, strict=True))
    found = np.array(group_advantages(list(rewards), scale=scale, variances=list(variances)))
    weights = (1 / variances) / np.mean(1 / variances)
    expected = weights * (rewards - np.average(rewards, weights=1 / variances))
    if rewards.min() == rewards.max():
        expected = np.zeros(len(rewards))
    elif scale:
        expected = expected / math.sqrt(np.sum(expected**2 / weights) / (len(rewards) - 1))
    if not scale or rewards.max() - rewards.min() > 1e-3:
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)
        assert found.sum() == pytest.approx(0, abs=1e-6 * max(1, abs(found).max()))


@given(rewards_and_variances, st.floats(1e-3, 1e3))
def test_equal_variances_change_nothing(pairs, variance):
    rewards = [reward for reward, _ in pairs]
    equal = group_advantages(rewards, variances=[variance] * len(rewards))
    assert equal == pytest.approx(group_advantages(rewards), abs=1e-6)


def test_a_reward_that_is_hardly_known_moves_hardly_anything():
    surprising = group_advantages([0.0, 1.0, 100.0], variances=[1.0, 1.0, 1e9])
    assert abs(surprising[2]) < 1e-3
    assert surprising[1] == pytest.approx(-surprising[0], abs=1e-3) and surprising[1] > 0.1
    assert group_advantages([3.0], variances=[2.0]) == [0.0]
    assert group_advantages([1.0, 2.0], variances=[5e-324, 1e308]) == pytest.approx([0.0, 0.0], abs=1e-3)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=8))
def test_advantages_have_no_mean_and_unit_deviation(rewards):
    advantages = group_advantages(rewards)
    assert sum(advantages) == pytest.approx(0, abs=1e-6)
    if max(rewards) - min(rewards) > 1e-3:
        assert math.sqrt(sum(a * a for a in advantages) / (len(rewards) - 1)) == pytest.approx(1)
    mean = sum(rewards) / len(rewards)
    assert group_advantages(rewards, scale=False) == pytest.approx([r - mean for r in rewards], abs=1e-9)


def test_equal_rewards_have_no_advantage():
    assert group_advantages([0.3, 0.3, 0.3]) == [0, 0, 0]


SCORE = RewardScore({"a": 1}, {"a": 1})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SCORE.reward("median"), "unknown reward mode 'median'; use mean, lower_confidence_bound, entropic or"),
        (lambda: SCORE.reward(dimension="b"), "this score has no dimension 'b'; it has a, overall"),
        (lambda: SCORE.reward("lower_confidence_bound", k=-1), "k of a lower confidence bound must be at least 0"),
        (lambda: SCORE.reward("entropic", beta=0), "beta of an entropic reward must be above 0 and finite, got 0"),
        (lambda: SCORE.reward("entropic", beta=math.inf), "above 0 and finite, got inf"),
        (lambda: SCORE.reward("win_probability"), "against belongs to the mode win_probability"),
        (lambda: SCORE.reward("mean", against=SCORE), "against belongs to the mode win_probability"),
        (lambda: SCORE.reward("win_probability", against=[]), "against is empty"),
        (lambda: group_rewards([SCORE], "win_rate"), "compares the candidates of a group and needs at least 2"),
        (lambda: group_rewards([SCORE, SCORE], "win_probability"), "against belongs to the mode win_probability"),
        (lambda: SCORE.reward("win_rate"), "unknown reward mode 'win_rate'"),
        (lambda: group_advantages([]), "at least one reward"),
        (lambda: group_advantages([math.nan]), "all finite"),
        (lambda: group_advantages([1, 2], variances=[1]), "one variance above 0, finite, for each of 2 rewards"),
        (lambda: group_advantages([1, 2], variances=[1, 0]), "one variance above 0"),
        (lambda: group_advantages([1, 2], variances=[1, math.inf]), "one variance above 0"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(JRMError, match=message):
        call()
