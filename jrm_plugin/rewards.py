"""Rewards of a group of candidates for one prompt, as RL trainers take them."""

import math
from collections.abc import Sequence

from jrm_plugin.errors import JRMError
from jrm_plugin.samples import RewardScore


def group_rewards(scores: Sequence[RewardScore], mode: str = "mean", **options) -> list[float]:
    """`RewardScore.reward` of every candidate; in mode `win_probability` against all the others of the group.

    `options` are `reward`'s. A given `against` is what all are compared with instead.
    """
    if mode != "win_probability" or "against" in options:
        return [score.reward(mode, **options) for score in scores]
    if len(scores) < 2:
        raise JRMError("win_probability within a group needs at least 2 candidates; give against, or another mode.")
    others = [[*scores[:k], *scores[k + 1 :]] for k in range(len(scores))]
    return [score.reward(mode, against=rest, **options) for score, rest in zip(scores, others, strict=True)]


def group_advantages(rewards: Sequence[float], *, scale: bool = True) -> list[float]:
    """(r - mean) / standard deviation within the group (GRPO); without `scale` only the mean is taken off (Dr. GRPO).

    The deviation is the sample's (over G - 1). Equal rewards have advantage 0, and so has a group of one.
    """
    if not rewards or not all(map(math.isfinite, rewards)):
        raise JRMError(f"a group needs at least one reward, all finite, not {list(rewards)}.")
    if min(rewards) == max(rewards):  # their mean may be rounded to another number
        return [0.0] * len(rewards)
    mean = math.fsum(rewards) / len(rewards)
    centred = [reward - mean for reward in rewards]
    if not scale:
        return centred
    # in units of the largest, whose square neither overflows nor vanishes
    largest = max(map(abs, centred))
    deviation = math.sqrt(math.fsum((c / largest) ** 2 for c in centred) / (len(rewards) - 1))
    return [c / largest / deviation for c in centred]
