"""LoRA through peft: small adapters beside a frozen backbone; the reward token and head stay trainable."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jrm_plugin.errors import JRMError
from jrm_plugin.model.backbone import LINEAR_MAPS
from jrm_plugin.model.checkpoint import load_config
from jrm_plugin.model.configuration import HEAD_FIELDS, JRMConfig
from jrm_plugin.model.modeling import JRMForRewardModeling
from jrm_plugin.model.processing import JRMProcessor

if TYPE_CHECKING:
    from peft import LoraConfig

ADAPTER_FILE = "adapter_config.json"


def lora_config(processor: JRMProcessor, *, r: int = 32, lora_alpha: int = 64, **kwargs: Any) -> "LoraConfig":
    """A peft config that adapts every linear map of the backbone and trains head and added tokens in full.

    Args:
        processor: names the tokens that it added (the reward token and the region tags).
        r, lora_alpha: rank and scale of the adapters.
        kwargs: further fields of `peft.LoraConfig`; `target_modules` replaces the choice of linear maps.
    """
    from peft import LoraConfig

    kwargs.setdefault("target_modules", LINEAR_MAPS)
    return LoraConfig(
        r=r,
        lora_alpha=lora_alpha,
        modules_to_save=["reward_head"],
        # Both ends, as the language head needs rows of its own to tell one region tag from another; tied, they stay so.
        trainable_token_indices={name: processor.added_token_ids for name in ("embed_tokens", "backbone.lm_head")},
        **kwargs,
    )


def is_lora_folder(folder: str | Path) -> bool:
    return (Path(folder) / ADAPTER_FILE).is_file()


def load_lora(folder: str | Path, **kwargs: Any) -> JRMForRewardModeling:
    """Loads a LoRA folder that `jrm train` wrote, adapters merged into the weights: one plain model.

    `save_pretrained` of the result, and of its processor, makes a folder that needs neither peft nor the base model.

    Args:
        folder: holds the adapters, the config and the processor.
        kwargs: go to the base model's `from_pretrained` (`dtype`, `device_map`, ...).
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise JRMError(
            f"{folder} is a LoRA checkpoint; install peft to load it: pip install jrm-plugin[trl]."
        ) from error
    base = json.loads((Path(folder) / ADAPTER_FILE).read_text())["base_model_name_or_path"]
    if not base:
        raise JRMError(f"{folder}/{ADAPTER_FILE} does not name its base model; set base_model_name_or_path in it.")
    if load_config(base).model_type == JRMConfig.model_type:
        model = JRMForRewardModeling.from_pretrained(base, **kwargs)
    else:
        config = load_config(folder)
        model = JRMForRewardModeling.from_backbone(
            base,
            processor=JRMProcessor.from_pretrained(folder),
            config={name: getattr(config, name) for name in HEAD_FIELDS},
            **kwargs,
        )
    return PeftModel.from_pretrained(model, folder).merge_and_unload()
