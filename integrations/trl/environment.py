"""A [`JRMReward`] that variables configure: `jrm_reward` for `trl grpo`, which takes rewards by dotted path."""

from collections.abc import Sequence
from functools import lru_cache
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
    "JRM_K": "k",
    "JRM_BETA": "beta",
    "JRM_DIMENSION": "dimension",
    "JRM_FLOOR": "floor",
    "JRM_ON_ERROR": "on_error",
    "JRM_DEVICE": "device",
    "JRM_DTYPE": "dtype",
    "JRM_SAVE_IMAGES": "save_images",
    "JRM_SAVE_FOLDER": "save_folder",
}
# Those that are numbers.
NUMBERS = {"JRM_K": float, "JRM_BETA": float, "JRM_FLOOR": float, "JRM_SAVE_IMAGES": int}


def jrm_reward(prompts: Sequence, completions: Sequence, **columns: Any) -> list[float | None]:
    """[`JRMReward`] by dotted path, for `reward_funcs: [jrm_plugin.integrations.trl.jrm_reward]` of `trl grpo`.

    It is configured by the variables in `VARIABLES`, such as `JRM_MODEL`, which the `env:` block of TRL's YAML file can
    set. They are read at every call; the reward is made anew, and the model loaded, when they have changed.

    Raises:
        JRMError: a variable has a wrong value, or what [`JRMReward`] raises.
    """
    return _reward(**arguments_from_environment())(prompts, completions, **columns)


def arguments_from_environment() -> dict[str, Any]:
    """The arguments of [`JRMReward`] that variables give; an empty variable is as good as none.

    Raises:
        JRMError: a variable is unknown, or one that must be a number is none.
    """
    arguments: dict[str, Any] = dict(settings_from_environment(VARIABLES, "jrm_reward"))
    for variable, number in NUMBERS.items():
        name = VARIABLES[variable]
        if name in arguments:
            try:
                arguments[name] = number(arguments[name])
            except ValueError:
                kind = "a whole number" if number is int else "a number"
                raise JRMError(f"the variable {variable} must be {kind}, not {arguments[name]!r}.") from None
    return arguments


@lru_cache(maxsize=1)  # a process has one set of variables; the model of the earlier set leaves its memory
def _reward(**arguments: Any) -> JRMReward:
    return JRMReward(**arguments)
