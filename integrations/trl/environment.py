"""A [`JRMReward`] that variables configure: `jrm_reward` for `trl grpo`, which takes rewards by dotted path."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from jrm_plugin.integrations.trl.reward import JRMReward
from jrm_plugin.rollouts import arguments_from_environment


def jrm_reward(prompts: Sequence, completions: Sequence, **columns: Any) -> list[float | None]:
    """[`JRMReward`] by dotted path, for `reward_funcs: [jrm_plugin.integrations.trl.jrm_reward]` of `trl grpo`.

    It is configured by the variables in `jrm_plugin.rollouts.VARIABLES`, such as `JRM_MODEL`, which the `env:` block of
    TRL's YAML file can set. They are read at every call; the reward is made anew, and the model loaded, when they have
    changed.

    Raises:
        JRMError: a variable has a wrong value, or what [`JRMReward`] raises.
    """
    return _reward(**arguments_from_environment("jrm_reward"))(prompts, completions, **columns)


@lru_cache(maxsize=1)  # a process has one set of variables; the model of the earlier set leaves its memory
def _reward(**arguments: Any) -> JRMReward:
    return JRMReward(**arguments)
