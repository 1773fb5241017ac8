"""LoRA through peft: small adapters beside a frozen backbone; the reward token and head stay trainable."""

import copy
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from jrm_plugin.errors import JRMError, shortened
from jrm_plugin.model.backbone import LINEAR_MAPS
from jrm_plugin.model.checkpoint import (
    BUILT_IN_MODELS,
    CONFIG_FILE,
    check_names,
    find_file,
    load_config,
    read_object,
    reading,
)
from jrm_plugin.model.configuration import HEAD_FIELDS, JRMConfig
from jrm_plugin.model.modeling import JRMForRewardModeling
from jrm_plugin.model.processing import JRMProcessor
from jrm_plugin.model.trained_on import copy_fields

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig

logger = logging.getLogger(__name__)

ADAPTER_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
HEAD = "reward_head"
# The modules whose rows of the added tokens are trained: both ends, as the language head needs rows of its own to tell
# one region tag from another; tied, they stay so.
TOKEN_MODULES = ("embed_tokens", "backbone.lm_head")
LARGEST_RANK = 4096
LONGEST_CHAIN = 8  # of LoRA folders whose base is a LoRA folder


def lora_config(processor: JRMProcessor, *, r: int = 32, lora_alpha: int = 64, **kwargs: Any) -> "LoraConfig":
    """A peft config that adapts every linear map of the backbone and trains head and added tokens in full.

    Args:
        processor: names the tokens that it added (the reward token and the region tags).
        r, lora_alpha: rank and scale of the adapters.
        kwargs: further fields of `peft.LoraConfig`; `target_modules` replaces the choice of linear maps.
    """
    from peft import LoraConfig

    return complete_lora_config(LoraConfig(r=r, lora_alpha=lora_alpha, **kwargs), processor)


def complete_lora_config(config: "PeftConfig", processor: JRMProcessor) -> "LoraConfig":
    """A copy of a peft config in which the reward head and the added tokens are trained and saved.

    A fresh head that is neither would be drawn anew each time the adapters are loaded.

    Args:
        config: any `peft.LoraConfig`; without `target_modules`, or with `all-linear`, every linear map of the backbone
            is adapted.
        processor: names the tokens that it added.

    Raises:
        JRMError: it is no LoRA config, or one that cannot be completed.
    """
    from peft import LoraConfig

    if not isinstance(config, LoraConfig):
        raise JRMError(f"peft_config must be a peft.LoraConfig, not {type(config).__name__}; see lora_config.")
    config = copy.deepcopy(config)
    if config.target_modules in (None, "all-linear"):
        config.target_modules = LINEAR_MAPS
    if config.init_lora_weights not in _BEGINNINGS:
        raise JRMError(
            f"init_lora_weights={config.init_lora_weights!r} changes the base model, which is not saved; leave it out."
        )
    saved = list(config.modules_to_save or [])
    if whole := [name for name in saved if name.endswith(("embed_tokens", "lm_head"))]:
        raise JRMError(
            f"leave {', '.join(whole)} out of modules_to_save: the added tokens' rows of it are trained without that."
        )
    config.modules_to_save = saved if HEAD in saved else [*saved, HEAD]
    rows = config.trainable_token_indices or {}
    if isinstance(rows, list):
        rows = {"embed_tokens": rows}
    rows = {("backbone.lm_head" if name == "lm_head" else name): tokens for name, tokens in rows.items()}
    trained = {token for name in TOKEN_MODULES for token in rows.get(name, ())}
    for name in TOKEN_MODULES:  # the same rows at both ends, so that tied ones stay tied
        rows[name] = sorted(trained.union(processor.added_token_ids))
    config.trainable_token_indices = rows
    config.task_type = None  # peft's tasks expect other heads
    config.inference_mode = False
    return config


def check_adapters_train_all(model: nn.Module, processor: JRMProcessor) -> None:
    """Raises a [`JRMError`] if a peft model leaves out the reward head or the added tokens; any other model is fine."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not hasattr(model, "peft_config"):
        return
    if not any(f"{HEAD}.modules_to_save." in name for name in trained):
        raise JRMError("the peft model does not train the reward head; make it with lora_config(processor).")
    for config in model.peft_config.values():
        rows = getattr(config, "trainable_token_indices", None) or {}
        rows = rows if isinstance(rows, dict) else {"embed_tokens": rows}
        if not set(processor.added_token_ids) <= set(rows.get("embed_tokens", ())):
            raise JRMError("the peft model does not train the tokens of JRM; make it with lora_config(processor).")


# --- loading ----------------------------------------------------------------------------------------------------------


def is_lora_folder(folder: str | Path) -> bool:
    return (Path(folder) / ADAPTER_FILE).is_file()


def load_lora(folder: str | Path, *, _chain: int = 0, **kwargs: Any) -> JRMForRewardModeling:
    """Loads a LoRA folder that `jrm train` wrote, adapters merged into the weights: one plain model.

    `save_pretrained` of the result, and of its processor, makes a folder that needs neither peft nor the base model.

    Args:
        folder: holds the adapters, the config and the processor.
        kwargs: go to the base model's `from_pretrained` (`dtype`, `device_map`, ...).

    Raises:
        JRMError: peft is not installed, the base is not found, or the adapters lack what they must hold.
    """
    try:
        from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    except ImportError as error:
        raise JRMError(
            f"{folder} is a LoRA checkpoint; install peft to load it: pip install jrm-plugin[trl]."
        ) from error
    content = read_object(Path(folder, ADAPTER_FILE))
    shapes = _saved_shapes(folder)
    adapters = _adapter_config(folder, content, shapes)
    base = base_of(folder, content)
    if _chain > LONGEST_CHAIN:
        raise JRMError(f"{folder} is a LoRA checkpoint over a chain of others without an end; merge and save one.")
    if is_lora_folder(base):
        model = load_lora(base, _chain=_chain + 1, **kwargs)
    elif load_config(base).model_type == JRMConfig.model_type:
        model = JRMForRewardModeling.from_pretrained(base, **kwargs)
    else:
        config, processor = load_config(folder), JRMProcessor.from_pretrained(folder)
        _check_holds_all(folder, shapes, content, processor)
        fields = {name: getattr(config, name) for name in (*HEAD_FIELDS, "rope_positions")}
        model = JRMForRewardModeling.from_backbone(base, processor=processor, config=fields, **kwargs)
    with reading(folder, "the LoRA checkpoint"):
        model = get_peft_model(model, adapters)
        expected = {
            name: list(weight.shape)
            for name, weight in get_peft_model_state_dict(model, save_embedding_layers=False).items()
        }
        check_names(
            folder,
            {
                "missing": sorted(expected.keys() - shapes.keys()),
                "unexpected": sorted(shapes.keys() - expected.keys()),
                "mismatched": [
                    f"{name} {shapes[name]}, not {expected[name]}"
                    for name in sorted(expected.keys() & shapes.keys())
                    if shapes[name] != expected[name]
                ],
            },
        )
        set_peft_model_state_dict(model, load_file(Path(folder, WEIGHTS_FILE)))
        model = model.merge_and_unload()
    for parameter in model.parameters():  # peft has frozen them; one plain model is trained whole
        parameter.requires_grad_(parameter.is_floating_point())
    model.name_or_path = str(Path(folder).resolve())
    if find_file(folder, CONFIG_FILE) is not None:
        copy_fields(load_config(folder), model.config)
    return model


# What of an adapter's config decides what is computed. Which modules are adapted, the weights themselves say.
_HONOURED = ("r", "lora_alpha", "use_rslora", "use_dora", "bias", "lora_bias", "modules_to_save", "rank_pattern")
_HONOURED += ("alpha_pattern", "trainable_token_indices", "fan_in_fan_out", "ensure_weight_tying")
_UNKNOWN = ("use_qalora", "layer_replication", "target_parameters", "use_bdlora", "arrow_config", "kasa_config")
_UNKNOWN += ("alora_invocation_tokens", "monteclora_config", "velora_config")
# Other ways to begin change the base model's weights, which are not saved.
_BEGINNINGS = (None, True, False, "gaussian", "orthogonal")
_ADAPTED = re.compile(r"base_model\.model\.(.+)\.lora_(?:embedding_)?A(?:\.weight)?")


def _saved_shapes(folder: str | Path) -> dict[str, list[int]]:
    file = Path(folder, WEIGHTS_FILE)
    if not file.is_file():
        raise JRMError(f"{folder} holds no {WEIGHTS_FILE}; adapters are loaded from safetensors alone.")
    with reading(folder, WEIGHTS_FILE), safe_open(file, framework="pt") as weights:
        return {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118  no dict


def _adapter_config(folder: str | Path, content: dict[str, Any], shapes: dict[str, list[int]]) -> "LoraConfig":
    from peft import LoraConfig

    def refuse(key: str, rule: str) -> None:
        raise JRMError(f"{Path(folder, ADAPTER_FILE)}, {key} must {rule}, not {shortened(content.get(key))}.")

    if content.get("peft_type") != "LORA":
        refuse("peft_type", "be LORA")
    for key in _UNKNOWN:
        if content.get(key):
            refuse(key, "be left out")
    if content.get("init_lora_weights") not in _BEGINNINGS:
        refuse("init_lora_weights", "be one that leaves the base model as it is (true, false, gaussian, orthogonal)")
    if not _is_whole(content.get("r"), LARGEST_RANK, 1):
        refuse("r", f"be a whole number between 1 and {LARGEST_RANK}")
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = content.get(key) or {}
        if not isinstance(pattern, dict) or not all(
            re.fullmatch(r"[\w.^$]*", name) and _is_whole(value, LARGEST_RANK, 1) for name, value in pattern.items()
        ):
            refuse(key, "be whole numbers by names of modules")
    names = content.get("modules_to_save") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        refuse("modules_to_save", "be a list of names")
    rows = content.get("trainable_token_indices") or {}
    for tokens in rows.values() if isinstance(rows, dict) else [rows]:
        if not isinstance(tokens, list) or not all(_is_whole(token, 2**24) for token in tokens):
            refuse("trainable_token_indices", "be numbers of tokens, by names of modules")
    adapted = sorted({match[1] for match in map(_ADAPTED.fullmatch, shapes) if match})
    with reading(folder, ADAPTER_FILE):
        honoured = {name: content[name] for name in _HONOURED if content.get(name) is not None}
        return LoraConfig(**honoured, target_modules=adapted)


def _is_whole(value: Any, largest: int, smallest: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and smallest <= value <= largest


def _check_holds_all(
    folder: str | Path, shapes: dict[str, list[int]], content: dict[str, Any], processor: JRMProcessor
) -> None:
    """Over a plain backbone, head and added tokens are nowhere but in the adapters' weights."""
    missing = [] if HEAD in (content.get("modules_to_save") or []) else ["the reward head"]
    rows = content.get("trainable_token_indices") or {}
    rows = rows if isinstance(rows, dict) else {"embed_tokens": rows}
    for module in TOKEN_MODULES:
        end = module.rpartition(".")[2]
        tied = end == "lm_head" and "lm_head" not in " ".join(rows)  # then they are the embeddings'
        whole = any(name.endswith(f"{end}.weight") for name in shapes)
        of_module = [tokens for name, tokens in rows.items() if name.endswith(end)]
        if not tied and not whole and not set(processor.added_token_ids) <= {t for tokens in of_module for t in tokens}:
            missing.append(f"the added tokens' rows of {end}")
    if missing:
        raise JRMError(
            f"the adapters in {folder} lack {' and '.join(missing)}, which a model over a plain backbone has from "
            "nowhere else; train them with lora_config(processor)."
        )


def base_of(folder: str | Path, content: Mapping[str, Any]) -> str:
    """The base model of adapters as their config names it, or beside them, where both were moved together."""
    file, name = Path(folder, ADAPTER_FILE), content.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise JRMError(f"{file} does not name its base model; set base_model_name_or_path in it.")
    if Path(name).is_dir() or name in BUILT_IN_MODELS:
        return name
    own = Path(folder).resolve()
    might_be_hub_name = not Path(name).is_absolute() and len(Path(name).parts) == 2
    for parent in (own, *own.parents[:3]):
        for beside in [parent / name] + ([] if might_be_hub_name else [parent / Path(name).name]):
            if (beside / CONFIG_FILE).is_file() and beside.resolve() != own:
                logger.warning("The base model %s of %s was found at %s.", name, folder, beside)
                return str(beside)
    if not might_be_hub_name:
        raise JRMError(
            f"the base model {name} of {folder} is not there; put it back, beside the adapters, or set "
            f"base_model_name_or_path in {file}."
        )
    return name
