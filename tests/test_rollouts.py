"""How a rollout's score becomes its reward: the modes, the floor, and what does not go together."""

import math
import re

import pytest

from jrm_plugin.errors import JRMError, reason
from jrm_plugin.records.samples import Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.rollouts import RolloutReward

GOOD, FAIR, BAD = (RewardScore({"a": mu}, {"a": sigma}) for mu, sigma in ((2.0, 0.5), (1.0, 0.0), (-1.0, 2.0)))
BROKEN = JRMError("its image is broken.")


def render(text, row):
    return row["source_image"]


def wins(score: RewardScore, *others: RewardScore) -> float:
    return score.reward("win_probability", against=others)


def test_mean_and_lower_confidence_bound_are_those_of_the_score():
    assert RolloutReward().rewards([GOOD, BAD]) == [2.0, -1.0]
    assert RolloutReward(mode="lower_confidence_bound", k=2.0).rewards([GOOD, BAD]) == [1.0, -5.0]
    assert RolloutReward(mode="lower_confidence_bound").reward(GOOD) == 1.5


def test_win_rate_is_the_mean_win_probability_against_the_others_of_the_group():
    rewards = RolloutReward(mode="win_rate").rewards([GOOD, BAD, FAIR, BAD, GOOD], groups="xyxyx")
    assert rewards == [wins(GOOD, FAIR, GOOD), 0.5, wins(FAIR, GOOD, GOOD), 0.5, wins(GOOD, GOOD, FAIR)]


def test_in_a_group_those_with_the_floor_are_not_compared_with():
    rollouts = RolloutReward(mode="win_rate", render=render)
    assert rollouts.rewards([GOOD, None, BAD], groups="xxx") == [wins(GOOD, BAD), 0.0, wins(BAD, GOOD)]
    assert rollouts.rewards([None, GOOD, None, None], groups="xxyy") == [0.0, 0.5, 0.0, 0.0]
    with pytest.raises(JRMError, match="a group has only one in this process; raise the number of generations"):
        rollouts.rewards([GOOD, BAD, GOOD], groups="xxy")


def test_win_over_source_is_the_win_probability_against_the_first_source_left_unedited():
    rollouts = RolloutReward(mode="win_over_source", render=render)
    edit = Sample.edit(["one.png", "two.png"], "merge them", "edited.png")
    unedited, missing = rollouts.unedited_sources([edit, None])
    assert unedited == Sample.edit(["one.png", "two.png"], "merge them", "one.png") and missing is None
    assert rollouts.reward(GOOD, FAIR) == wins(GOOD, FAIR)
    assert rollouts.rewards([GOOD, None], sources=[BAD, None]) == [wins(GOOD, BAD), 0.0]


@pytest.mark.parametrize("mode", ["mean", "lower_confidence_bound", "win_rate"])
def test_other_modes_need_no_score_of_the_source(mode):
    assert RolloutReward(mode=mode).unedited_sources([Sample.edit("a.png", "paint it", "b.png")]) == []


def test_what_cannot_be_scored_raises_or_gets_the_floor():
    assert RolloutReward(on_error="floor", floor=-3.0).rewards([GOOD, BROKEN, None]) == [2.0, -3.0, -3.0]
    with pytest.raises(JRMError, match="a rollout cannot be scored: its image is broken"):
        RolloutReward(render=render, floor=-3.0).reward(BROKEN)
    with pytest.raises(JRMError, match="completion 2 cannot be scored: its image is broken"):
        RolloutReward(render=render, floor=-3.0).rewards([GOOD, None, BROKEN], name="completion")


def test_a_source_that_cannot_be_scored_is_its_rollouts_error():
    rollouts = RolloutReward(mode="win_over_source", on_error="floor")
    assert rollouts.rewards([GOOD, GOOD], sources=[BROKEN, GOOD]) == [0.0, 0.5]


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyError("nope"), RecursionError("deep"), OSError(5, "EIO")])
def test_whatever_render_raises_is_its_rollouts_error(error):
    def fails(text, row):
        raise error

    with pytest.raises(JRMError, match=re.escape(f"render failed: {reason(error)}.")):
        RolloutReward(render=fails, floor=0.0).sample("text", {"source_image": b"1", "instruction": "x"})


def test_no_memory_left_is_no_rollouts_error():
    def fails(text, row):
        raise MemoryError

    with pytest.raises(MemoryError):
        RolloutReward(render=fails, floor=0.0).sample("text", {"source_image": b"1", "instruction": "x"})


def test_no_reward_leaves_that_is_not_finite():
    wide = RewardScore({"a": -1e308}, {"a": 1e308})
    careful = RolloutReward(mode="lower_confidence_bound", k=10.0, on_error="floor", floor=-9.0)
    assert careful.rewards([wide, GOOD])[0] == -9.0


@pytest.mark.parametrize("mode", ["win_rate", "win_over_source"])
def test_a_win_probability_has_the_floor_0_where_one_is_needed(mode):
    assert RolloutReward(mode=mode, render=render).floor == 0.0
    assert RolloutReward(mode=mode, render=render, floor=-1.0).floor == -1.0
    assert RolloutReward(mode=mode).floor is None


@pytest.mark.parametrize("task", ["edit", "response"])
def test_the_images_that_a_policy_sees_are_the_source(task):
    reward = RolloutReward(task)
    row = {"instruction": "draw", "edited_image": "b.png", "image": "seen.png"}
    reward.check_columns(row)
    assert reward.sample("done", row).prompt_images == ("seen.png",)
    assert reward.sample("done", row | {"source_images": ["x.png", "y.png"]}).prompt_images == ("x.png", "y.png")


def test_a_near_name_of_the_source_is_not_passed_over():
    RolloutReward("response").check_columns(["instruction", "source"])  # of which book, say
    with pytest.raises(JRMError, match="the column 'path_src' of the dataset may be the source image"):
        RolloutReward("response").check_columns(["instruction", "path_src"])
    with pytest.raises(JRMError, match="the column 'source_imgae' of the dataset may be the source image"):
        RolloutReward("response").check_columns(["instruction", "source_imgae"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "video"}, "must be edit, generation or response, not 'video'"),
        (
            {"mode": "win_probability"},
            "'win_probability'; use mean, lower_confidence_bound, entropic, win_rate or win_o",
        ),
        ({"mode": "lower_confidence_bound", "k": -1.0}, "k of a lower confidence bound must be at least 0"),
        ({"mode": "win_over_source", "task": "generation"}, "the task generation has none; use another mode"),
        ({"mode": "entropic", "beta": 0.0}, "beta of an entropic reward must be above 0 and finite, got 0.0"),
        ({"mode": "entropic", "render": render}, "render needs a floor in the mode entropic"),
        ({"on_error": "leave_out", "task": "response"}, "on_error: leave_out needs a floor in the mode mean"),
        ({"on_error": "skip"}, "on_error must be raise, floor or leave_out, not 'skip'"),
        ({"on_error": "floor"}, "on_error: floor needs a floor in the mode mean"),
        ({"render": render}, "render needs a floor in the mode mean"),
        ({"render": render, "task": "response"}, "drop one"),
        ({"render": render, "floor": math.nan}, "floor must be a finite number"),
        ({"floor": -1.0}, "floor has no use here"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(arguments, message):
    with pytest.raises(JRMError, match=message):
        RolloutReward(**arguments)


def test_a_framework_without_groups_says_so_and_names_the_modes_that_are_left():
    RolloutReward(mode="win_over_source").refuse_groups("it has none")
    with pytest.raises(JRMError, match="and it has none; use mean, lower_confidence_bound, entropic or win_over_sou"):
        RolloutReward(mode="win_rate").refuse_groups("it has none")


def test_a_framework_that_needs_a_number_for_each_rollout_says_so():
    RolloutReward().refuse_leaving_out("it needs one for each")
    with pytest.raises(
        JRMError, match="gives what cannot be scored no reward, and it needs one for each; use raise or"
    ):
        RolloutReward(on_error="leave_out").refuse_leaving_out("it needs one for each")


TWO = RewardScore({"a": 1.0, "b": 3.0}, {"a": 1.0, "b": 2.0})
OTHER = RewardScore({"a": 2.0, "b": 0.0}, {"a": 0.5, "b": 0.5})


@pytest.mark.parametrize("dimension", ["a", "b", "overall"])
def test_a_dimension_is_what_counts_in_every_mode(dimension):
    one = RewardScore({"x": TWO.mu[dimension]}, {"x": TWO.sigma[dimension]})
    other = RewardScore({"x": OTHER.mu[dimension]}, {"x": OTHER.sigma[dimension]})
    for mode in ("mean", "lower_confidence_bound", "entropic", "win_rate", "win_over_source"):
        given = {"mode": mode, "k": 0.5, "beta": 3.0}
        by_dimension = RolloutReward(dimension=dimension, **given)
        sources = ([OTHER] * 2, [other] * 2) if mode == "win_over_source" else ((), ())
        found = by_dimension.rewards([TWO, OTHER], "xx", sources[0])
        assert found == pytest.approx(RolloutReward(**given).rewards([one, other], "xx", sources[1]))
    with pytest.raises(JRMError, match="has no dimension 'c'; take a, b or overall"):
        RolloutReward(dimension="c").check_dimension(["a", "b"])


def test_entropic_takes_off_the_variance_over_twice_beta():
    assert RolloutReward(mode="entropic", beta=2.0).rewards([GOOD, FAIR, BAD]) == [2 - 0.25 / 4, 1.0, -1 - 4 / 4]
    overflowing = RewardScore({"a": 0.0}, {"a": 1e200})
    assert RolloutReward(mode="entropic", on_error="floor", floor=-9.0).reward(overflowing) == -9.0


def test_what_cannot_be_scored_may_have_no_reward_and_an_invalid_answer_keeps_its_floor():
    rollouts = RolloutReward(render=render, floor=-3.0, on_error="leave_out")
    assert rollouts.rewards([GOOD, BROKEN, None]) == [2.0, None, -3.0]
    wins_of_two = RolloutReward(mode="win_rate", render=render, on_error="leave_out").rewards
    assert wins_of_two([GOOD, BROKEN, BAD, None], "xxxx") == [wins(GOOD, BAD), None, wins(BAD, GOOD), 0.0]
