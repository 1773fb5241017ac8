"""One number from a score, and a group's numbers as RL trainers take them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jrm_plugin.errors import JRMError
from jrm_plugin.records.scores import RewardScore, group_advantages, group_rewards

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
        (lambda: SCORE.reward("median"), "unknown reward mode 'median'; use mean, lower_confidence_bound or win_prob"),
        (lambda: SCORE.reward(dimension="b"), "this score has no dimension 'b'; it has a, overall"),
        (lambda: SCORE.reward("lower_confidence_bound", k=-1), "k of a lower confidence bound must be at least 0"),
        (lambda: SCORE.reward("win_probability"), "against belongs to the mode win_probability"),
        (lambda: SCORE.reward("mean", against=SCORE), "against belongs to the mode win_probability"),
        (lambda: SCORE.reward("win_probability", against=[]), "against is empty"),
        (lambda: group_rewards([SCORE], "win_rate"), "compares the candidates of a group and needs at least 2"),
        (lambda: group_rewards([SCORE, SCORE], "win_probability"), "against belongs to the mode win_probability"),
        (lambda: SCORE.reward("win_rate"), "unknown reward mode 'win_rate'"),
        (lambda: group_advantages([]), "at least one reward"),
        (lambda: group_advantages([math.nan]), "all finite"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(JRMError, match=message):
        call()
