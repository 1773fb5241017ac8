"""A [`JRMReward`] that variables configure: `jrm_reward` for `trl grpo`, which takes rewards by dotted path."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from jrm_plugin.errors import JRMError
from jrm_plugin.integrations.trl.reward import JRMReward
from jrm_plugin.rollouts import settings_from_environment

# The variables, and the argument of `JRMReward` that each one gives.
VARIABLES = {
    "JRM_MODEL": "model",
    "JRM_TASK": "task",
    "JRM_RENDER": "render",
    "JRM_MODE": "mode",
    "JRM_FLOOR": "floor",
    "JRM_DEVICE": "device",
}


def jrm_reward(prompts: Sequence, completions: Sequence, **columns: Any) -> list[float]:
    """[`JRMReward`] by dotted path, for `reward_funcs: [jrm_plugin.integrations.trl.jrm_reward]` of `trl grpo`.

    It is configured by the variables `JRM_MODEL`, `JRM_TASK`, `JRM_RENDER`, `JRM_MODE`, `JRM_FLOOR` and `JRM_DEVICE`,
    which the `env:` block of TRL's YAML file can set, and is made once per process, when it is first called.

    Raises:
        JRMError: a variable has a wrong value, or what [`JRMReward`] raises.
    """
    return reward_from_environment()(prompts, completions, **columns)


@cache
def reward_from_environment(**arguments: Any) -> JRMReward:
    """[`JRMReward`] with these arguments; those that are not given come from the variables, then from its defaults.

    An empty variable is as good as none. Equal arguments give the same reward again.

    Raises:
        JRMError: a variable is unknown or has a wrong value, or what [`JRMReward`] raises.
    """
    arguments = settings_from_environment(VARIABLES, "jrm_reward") | arguments
    if "floor" in arguments:
        try:
            arguments["floor"] = float(arguments["floor"])
        except ValueError:
            raise JRMError(f"the variable JRM_FLOOR must be a number, not {arguments['floor']!r}.") from None
    return JRMReward(**arguments)
