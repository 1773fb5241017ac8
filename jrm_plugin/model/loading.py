"""From what a user names to a model and its processor, in one call."""

from pathlib import Path
from typing import Any

from jrm_plugin.errors import JRMError
from jrm_plugin.model.checkpoint import built_in_folder
from jrm_plugin.model.lora import is_lora_folder, load_lora
from jrm_plugin.model.modeling import JRMForRewardModeling
from jrm_plugin.model.processing import JRMProcessor


def load(
    path_or_name: str | Path, *, revision: str | None = None, max_pixels: int | None = None, **options: Any
) -> tuple[JRMForRewardModeling, JRMProcessor]:
    """A model, adapters merged into it, and its processor.

    Args:
        path_or_name: a JRM folder, a LoRA folder that `jrm train` wrote, a hub name, or the built-in `jrm-tiny`.
        revision: of a hub name.
        max_pixels: overrides the checkpoint's; scores change with it.
        options: go to `from_pretrained` (`dtype`, `device_map`, `attn_implementation`, `quantization_config`, ...).

    Raises:
        JRMError: there is no such checkpoint, its weights do not fit, or its files do not belong together.
    """
    folder = built_in_folder(path_or_name)
    if revision is not None:
        options["revision"] = revision
    if is_lora_folder(folder):
        model = load_lora(folder, **options)
    else:
        model = JRMForRewardModeling.from_pretrained(folder, **options)
    processor = JRMProcessor.from_pretrained(folder, revision=revision, max_pixels=max_pixels)
    check_belong_together(model, processor)
    return model, processor


def check_belong_together(model: JRMForRewardModeling, processor: JRMProcessor) -> None:
    """Raises a [`JRMError`] if the processor is of another model."""
    if model.config.dimensions != processor.dimensions:
        raise JRMError(
            f"the model scores {', '.join(model.config.dimensions)} but its processor is for "
            f"{', '.join(processor.dimensions)}; the checkpoint's files do not belong together."
        )
    if model.config.reward_token_id != processor.reward_token_id:
        raise JRMError(
            f"the model scores token {model.config.reward_token_id} and its processor's reward token is "
            f"{processor.reward_token_id}; the checkpoint's files do not belong together."
        )
