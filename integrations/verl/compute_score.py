"""JRM as one of several rewards in verl: a function for `reward.custom_reward_function`, or for a function of yours."""

from typing import Any

from jrm_plugin.integrations.verl.pooled_reward import keyword_score
from jrm_plugin.integrations.verl.reward_manager import name_of

# What verl hands to every such function beside the keys of its config.
_ITS_OWN = ("reward_router_address", "reward_model_tokenizer")


async def compute_score_jrm(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict[str, Any], **settings: Any
) -> dict[str, float | str]:
    """The score of what the policy wrote, or of the image that was made of it, as verl's reward managers ask for one.

    verl hands no prompt to such a function, so `extra_info` holds what is read of a row: `instruction`, and, as the
    task needs them, `source_image` (or `source_images`) and `edited_image`.

    The settings are the keys of [`JRMSettings`], of which `model_path` is needed; data source and ground truth are not
    read. Returns `score` and what [`PooledReward`] tells of it; raises a `JRMError` for a wrong setting, and with
    `on_error: raise` for a rollout that cannot be scored.

    Example:
        >>> async def my_reward(data_source, solution_str, ground_truth, extra_info, **settings):
        ...     jrm = await compute_score_jrm(data_source, solution_str, ground_truth, extra_info, **settings)
        ...     return jrm | {"score": jrm["score"] + 0.1 * brevity(solution_str)}
    """
    for name in _ITS_OWN:
        settings.pop(name, None)
    return await keyword_score(lambda: (solution_str, extra_info), name_of({"extra_info": extra_info}), settings)
