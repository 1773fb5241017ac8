"""Guards: what is counted, what they do when asked, and how often a wrong order is rewarded with and without them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import encode
from PIL import Image

from benchmarks.guards import measure
from jrm_plugin.errors import JRMError
from jrm_plugin.guards import is_decided, is_unedited
from jrm_plugin.judged_rollouts import RolloutJudge
from jrm_plugin.records.calibration import Calibration
from jrm_plugin.records.samples import Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.rollouts import RolloutReward


def score(mu: float, sigma: float = 1.0) -> RewardScore:
    return RewardScore({"a": mu}, {"a": sigma})


# --- an edit that shows its source ------------------------------------------------------------------------------------


def test_an_unedited_picture_is_told_by_its_pixels_in_whatever_form(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    source = tmp_path / "source.png"
    Image.fromarray(pixels).save(source)
    other = pixels.copy()
    other[3, 4, 1] ^= 1
    for same in (source, encode(pixels), encode(pixels, "BMP"), pixels, Image.fromarray(pixels)):
        assert is_unedited(Sample.edit(source, "x", same))
    for different in (other, pixels[:4], encode(other)):
        assert not is_unedited(Sample.edit(source, "x", different))
    assert is_unedited(Sample.edit([other, source], "merge", pixels))
    assert not is_unedited(Sample.generation("x", pixels))
    assert not is_unedited(Sample.edit(source, "x", b"no image")) and not is_unedited(
        Sample.edit("no.png", "x", source)
    )


class Judge:
    """A scorer whose mu is the picture's first red value, and its sigma what it was made with."""

    dimensions = ["a"]

    def __init__(self, sigma: float = 1.0, calibration: Calibration | None = None):
        self.sigma, self.calibration = sigma, calibration

    def score(self, samples, *, on_error="raise", progress=False):
        return [self._score(sample) for sample in samples]

    def _score(self, sample):
        image = sample.response_images[0]
        return JRMError("broken") if isinstance(image, bytes) else score(float(image.getpixel((0, 0))[0]), self.sigma)

    def rank(self, samples, *, dimension="overall", different_prompts=False):
        return []


def picture(value: int) -> Image.Image:
    return Image.new("RGB", (2, 2), (value, 0, 0))


def rows(*values: int | bytes) -> list[dict]:
    edited = [value if isinstance(value, bytes) else picture(value) for value in values]
    return [{"instruction": "x", "source_image": picture(7), "edited_image": image} for image in edited]


def judged(values, groups=(), *, scorer: Judge | None = None, **settings):
    judge = RolloutJudge(scorer or Judge(), [RolloutReward(**settings)])
    result = judge([""] * len(values), rows(*values), groups)
    return result.rewards["overall"], result.metrics


def test_an_unedited_edit_is_counted_and_earns_the_floor_when_asked():
    rewards, metrics = judged([7, 9, 7, 1])
    assert rewards == [7.0, 9.0, 7.0, 1.0] and metrics["unedited"] == 0.5
    rewards, metrics = judged([7, 9, 7, 1], unedited="floor", floor=-5.0)
    assert rewards == [-5.0, 9.0, -5.0, 1.0]
    assert (metrics["unedited"], metrics["invalid_answers"]) == (0.5, 0.0)
    wins, _ = judged([7, 9, 8], "ggg", mode="win_rate", unedited="floor")
    assert wins[0] == 0.0 and wins[1] == pytest.approx(score(9).reward("win_probability", against=score(8)))


# --- a group within the model's own uncertainty -----------------------------------------------------------------------


def test_an_undecided_group_is_counted_and_earns_equal_rewards_when_asked():
    values, groups = [1, 2, 0, 50], "uudd"
    rewards, metrics = judged(values, groups, scorer=Judge(sigma=3.0))
    assert rewards == [1.0, 2.0, 0.0, 50.0] and metrics["overall/undecided_groups"] == 0.5
    rewards, _ = judged(values, groups, scorer=Judge(sigma=3.0), undecided="equal")
    assert rewards == [1.5, 1.5, 0.0, 50.0]
    rewards, metrics = judged(values, groups, scorer=Judge(sigma=0.01), undecided="equal", win_threshold=0.7)
    assert rewards == [1.0, 2.0, 0.0, 50.0] and metrics["overall/undecided_groups"] == 0.0


def test_what_has_no_score_is_no_part_of_a_group():
    settings = {"on_error": "leave_out", "undecided": "equal", "scorer": Judge(sigma=9.0)}
    rewards, metrics = judged([1, b"broken", 3, 5], "gggh", **settings)
    assert rewards == [2.0, None, 2.0, 5.0]  # and the only candidate of a group has none to compare with
    assert metrics["overall/undecided_groups"] == 1.0


def test_a_calibrated_model_is_as_sure_as_its_temperature_says():
    one, other = score(1.5, 0.1), score(0.0, 0.1)
    assert is_decided([one, other], "a", 0.75)
    assert not is_decided([one, other], "a", 0.75, Calibration({"a": 3.0}, {}))
    warm = score(0.5, 0.1).reward("win_probability", against=score(0.0, 0.1))
    assert one.reward("win_probability", against=other, temperature=3.0) == pytest.approx(warm)


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0.01, 3)), min_size=2, max_size=6), st.floats(0.51, 0.99))
def test_a_group_is_decided_where_some_pair_is(values, threshold):
    scores = [score(*each) for each in values]
    pairs = [a.reward("win_probability", against=b) for a in scores for b in scores if a is not b]
    if abs(max(pairs) - threshold) > 1e-9:
        assert is_decided(scores, "overall", threshold) == (max(pairs) >= threshold)


def test_the_guard_acts_on_groups_that_are_noise_and_hardly_on_those_that_are_decided():
    """1,000 groups with known truth, in two arms; benchmarks/guards.py says what is counted."""
    shares = measure(threshold=0.95, noise=1.0)
    assert shares["wrong, noisy, without"] + shares["right, noisy, without"] == pytest.approx(1)
    assert shares["acted, noisy"] > 0.5 > 0.1 > shares["acted, clear"]
    assert shares["wrong, noisy, with"] < 0.5 * shares["wrong, noisy, without"]
    assert shares["right, clear, with"] > 0.9 * shares["right, clear, without"]


# --- samples of another kind, and another judge -----------------------------------------------------------------------


def test_the_share_of_sigmas_above_the_quantile_is_told_of_a_calibrated_model():
    calibration = Calibration({"a": 1.0}, {"a": {0.9: 0.5, 0.95: 2.0}, "overall": {0.95: 2.0}})
    for sigma, share in ((1.0, 0.0), (3.0, 1.0)):
        _, metrics = judged([1, 2], scorer=Judge(sigma, calibration))
        assert metrics["a/sigma_above"] == metrics["overall/sigma_above"] == share
    assert "a/sigma_above" not in judged([1, 2])[1]


def test_a_second_judge_sees_some_rollouts_and_earns_nothing():
    class Other(Judge):
        seen = 0

        def _score(self, sample):
            self.seen += 1
            return score(-super()._score(sample).mu["a"])

    other = Other()
    judge = RolloutJudge(Judge(), [RolloutReward(on_error="leave_out")], second=other, second_every=3)
    first = judge([""] * 4, rows(1, b"broken", 2, 3))
    assert first.rewards["overall"] == [1.0, None, 2.0, 3.0]
    assert (first.metrics["second_judge/mu"], first.metrics["second_judge/first_mu"]) == (-1.0, 1.0)
    second = judge([""] * 3, rows(4, 5, 6))  # numbers 3, 4 and 5 of those with a score
    assert (second.metrics["second_judge/mu"], second.metrics["second_judge/first_mu"]) == (-4.0, 4.0)
    assert "second_judge/mu" not in judge([""], rows(9)).metrics or other.seen == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unedited": "drop"}, "unedited must be count or floor"),
        ({"unedited": "floor"}, "unedited: floor needs a floor in the mode mean"),
        ({"unedited": "floor", "floor": 0.0, "task": "generation"}, "the task generation has no source to equal"),
        ({"undecided": "drop"}, "undecided must be count or equal"),
        ({"win_threshold": 0.5}, "win_threshold must be a probability above 0.5 and below 1, not 0.5"),
        ({"win_threshold": math.nan}, "win_threshold must be a probability above 0.5"),
    ],
)
def test_wrong_settings_are_one_sentence(settings, message):
    with pytest.raises(JRMError, match=message):
        RolloutReward(**settings)


def test_a_framework_without_groups_refuses_what_needs_them():
    with pytest.raises(JRMError, match="undecided: equal compares the candidates of a group, and it has none"):
        RolloutReward(undecided="equal").refuse_groups("it has none")
    with pytest.raises(JRMError, match="second_judge_every must be a whole number of at least 1"):
        RolloutJudge(Judge(), [RolloutReward()], second_every=0)
