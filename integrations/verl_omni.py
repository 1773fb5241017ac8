"""verl-omni: a keyword scorer and a reward manager for policies that make images.

Both score with the pool of scorers that [`jrm_plugin.integrations.ray`] describes. Nothing of verl-omni is imported:
its parents of reward managers add nothing that JRM needs to verl's own.
"""

import re
from typing import Any

import numpy as np
import torch
from verl import DataProto
from verl.protocol import DataProtoItem

from jrm_plugin.errors import JRMError
from jrm_plugin.integrations.verl.pooled_reward import keyword_score
from jrm_plugin.integrations.verl.reward_manager import JRMRewardManager, name_of, row_of
from jrm_plugin.rollouts import pictures_of

# What verl-omni hands to every scorer beside the keys of its config.
_ITS_OWN = ("reward_router_address", "reward_model_tokenizer", "model_name", "sampling_params")
# verl-omni numbers the images of a prompt by such labels in its text.
_LABEL = re.compile(r"^\s*Picture \d+:\s*", re.MULTILINE)


class JRMVisualRewardManager(JRMRewardManager):
    """Scores the image that the policy made, with the source images of the prompt; configured by `reward.jrm`.

    To be named in `reward.reward_manager` with the source `importlib`. The columns that [`JRMRewardManager`] reads
    count here too.
    """

    @classmethod
    def assemble_rm_scores(cls, data: DataProto, scores: list[float]) -> torch.Tensor:
        """`[B, 1]`: an image has one reward, not one at a token."""
        return torch.tensor(scores, dtype=torch.float32).unsqueeze(-1)

    def rollout(self, item: DataProtoItem) -> tuple[str, dict[str, Any]]:
        row = row_of(item.non_tensor_batch)
        row["instruction"] = _LABEL.sub("", row["instruction"])
        row["edited_image"] = _picture(item.batch["responses"])
        return "", row


async def compute_score_jrm(
    data_source: str, solution_image: torch.Tensor, ground_truth: str, extra_info: dict[str, Any], **settings: Any
) -> dict[str, float | str]:
    """One of several rewards in `reward.reward_functions`, whose further keys are those of `reward.jrm`.

    verl-omni does not hand the prompt's images to such a scorer: for edits, the source stands in `extra_info` as
    `source_image` (or `source_images`, or `source_img`), a path, bytes or an array. The instruction is
    `extra_info["instruction"]`, and otherwise the ground truth.

    Args:
        data_source: not read.
        solution_image: `[3, H, W]`, uint8, or float from 0 to 1.
        ground_truth: the instruction, where `extra_info` has none.
        extra_info: of the row.
        settings: the keys of [`JRMSettings`]; `model_path` is needed.

    Returns:
        `score`, and what [`PooledReward`] tells of it.

    Raises:
        JRMError: a setting is wrong, or the image cannot be scored (with `on_error: raise`).
    """
    for name in _ITS_OWN:
        settings.pop(name, None)

    def rollout() -> tuple[str, dict[str, Any]]:
        row = {"instruction": ground_truth, **extra_info, "edited_image": _picture(solution_image)}
        if "source_img" in row:
            row.setdefault("source_image", row["source_img"])
        return "", row

    return await keyword_score(rollout, name_of({"extra_info": extra_info}), settings)


def _picture(image: torch.Tensor) -> np.ndarray:
    image = torch.as_tensor(image)
    if image.ndim != 3:
        raise JRMError(f"JRM scores one image of shape [3, H, W], not {list(image.shape)}; videos are not scored.")
    return pictures_of(image[None], "responses")[0]
