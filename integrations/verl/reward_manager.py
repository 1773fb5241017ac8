"""verl's reward manager `jrm`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
from verl.experimental.reward_loop.reward_manager.registry import register
from verl.protocol import DataProtoItem

from jrm_plugin.integrations.ray import shared_pool
from jrm_plugin.integrations.verl.pooled_reward import PooledReward
from jrm_plugin.integrations.verl.settings import settings_of


@register("jrm")
class JRMRewardManager(RewardManagerBase):
    """Scores what the policy wrote, or the image that was made of it, with a JRM checkpoint.

    The section `reward.jrm` of the config ([`JRMSettings`]) says which checkpoint and how. What is scored, and for what
    instruction and source images, is read from the dataset's columns and from `extra_info`: `instruction`,
    `source_image` or `source_images`, `edited_image`. Where there are none, the instruction is the text of the prompt's
    last user message, and the source images are those of the prompt.

    Raises:
        JRMError: `reward.jrm` is wrong, or the cluster has fewer GPUs than it asks for.
    """

    def __init__(self, config, tokenizer, compute_score, reward_router_address=None, reward_model_tokenizer=None):
        super().__init__(config, tokenizer, compute_score)
        settings = settings_of(config.reward.get("jrm"))
        self.reward = PooledReward(settings, shared_pool(settings.scorers()))

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """The reward of the last sequence in `data`, the end of one rollout.

        Returns:
            `reward_score`, and `reward_extra_info` as in [`PooledReward`].
        """
        item = data[-1:][0]
        reward, extra_info = await self.reward(lambda: self.rollout(item), name_of(item.non_tensor_batch))
        return {"reward_score": reward, "reward_extra_info": extra_info}

    def rollout(self, item: DataProtoItem) -> tuple[str, dict[str, Any]]:
        """The text that the policy wrote, and its row."""
        response = item.batch["responses"]
        length = int(item.batch["attention_mask"][-len(response) :].sum())
        text = self.tokenizer.decode(response[:length], skip_special_tokens=True)
        return text, row_of(item.non_tensor_batch)


def name_of(columns: Mapping[str, Any]) -> str:
    """What tells a rollout in an error: the number of its row in the data set, and verl's id of its group."""
    extra_info = columns.get("extra_info")
    index = extra_info.get("index") if isinstance(extra_info, Mapping) else None
    index = columns.get("index") if index is None else index
    marks = [f"of row {index}" if index is not None else "", f"with uid {columns['uid']}" if "uid" in columns else ""]
    return " ".join(["a rollout", *filter(None, marks)])


def row_of(columns: Mapping[str, Any]) -> dict[str, Any]:
    """The row of `RolloutReward.sample`, with `prompt`, of the columns that verl hands to a reward."""
    columns = {name: value.item() if _is_scalar_array(value) else value for name, value in columns.items()}
    row = {**(columns.get("extra_info") or {}), **columns}
    row["prompt"] = [dict(message) for message in columns.get("raw_prompt", ())]
    if "instruction" not in row:
        questions = [message["content"] for message in row["prompt"] if message.get("role") == "user"]
        row["instruction"] = text_of(questions[-1]) if questions else ""
    if "source_image" not in row and "source_images" not in row:
        blocks = [block for message in row["prompt"] for block in _blocks(message["content"])]
        # the file's bytes are smaller to send than the picture that verl made of them
        images = [block.get("bytes") or block["image"] for block in blocks if block["type"] == "image"]
        row["source_images"] = images or _handed_images(columns.get("multi_modal_data") or {})
    return row


def text_of(content: str | Sequence[Mapping]) -> str:
    """The text of a message in either of its forms."""
    texts = [content] if isinstance(content, str) else [b["text"] for b in _blocks(content) if b["type"] == "text"]
    return "\n".join(text.strip() for text in texts if text.strip())


def _blocks(content: str | Sequence[Mapping]) -> Sequence[Mapping]:
    return [] if isinstance(content, str) else content


def _handed_images(multi_modal_data: Mapping[str, Any]) -> list:
    images = multi_modal_data.get("images", multi_modal_data.get("image", []))
    return list(images) if isinstance(images, (list, tuple, np.ndarray)) else [images]


def _is_scalar_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 0
