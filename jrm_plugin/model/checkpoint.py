"""What a checkpoint's files say, read with one clear sentence where they are missing, damaged or of something else."""

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from jrm_plugin.errors import JRMError

BUILT_IN_MODELS = ("jrm-tiny",)


def built_in_folder(path_or_name: str | Path) -> str | Path:
    """The folder in the package of a built-in model; any other path or name comes back as it is."""
    if str(path_or_name) in BUILT_IN_MODELS and not Path(path_or_name).exists():
        return Path(str(files("jrm_plugin") / "resources" / str(path_or_name)))
    return path_or_name


def load_config(folder: str | Path, **kwargs: Any) -> PreTrainedConfig:
    """The config of a folder, a hub name or a built-in model; one clear error where there is none."""
    folder = built_in_folder(folder)
    path = Path(folder)
    if path.is_dir() and not (path / "config.json").is_file():
        raise JRMError(f"the folder {folder} holds no model: it has no config.json.")
    if not path.is_dir() and (path.is_absolute() or len(path.parts) != 2 or path.is_file()):
        raise JRMError(
            f"there is no model folder {folder}; give a folder with a config.json, or a hub name owner/name."
        )
    try:
        return AutoConfig.from_pretrained(folder, **kwargs)
    except JRMError:
        raise
    except (OSError, ValueError) as error:
        raise JRMError(
            f"the model {folder} cannot be read or fetched ({first_line(error)}); "
            "give a folder with a config.json, or a hub name owner/name."
        ) from error


def load_checked(load: Callable, folder: str | Path, *args: Any, **kwargs: Any) -> tuple[PreTrainedModel, dict]:
    """Calls a `from_pretrained`; raises [`JRMError`] that names every weight that did not load as saved."""
    try:
        # Misshapen weights are let through here, because transformers' own error does not name them.
        model, info = load(folder, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
    except (OSError, SafetensorError) as error:
        raise JRMError(f"the weights in {folder} cannot be loaded: {first_line(error)}") from error
    wrong = {kind: sorted(info[f"{kind}_keys"]) for kind in ("missing", "unexpected", "mismatched")}
    wrong["mismatched"] = [f"{key} {list(saved)}, not {list(own)}" for key, saved, own in wrong["mismatched"]]
    if any(wrong.values()):
        named = "; ".join(f"{kind}: {', '.join(keys)}" for kind, keys in wrong.items() if keys)
        raise JRMError(
            f"the weights in {folder} do not fit the model ({named}); "
            "the checkpoint is damaged or was made by another version, so nothing was loaded."
        )
    return model, info


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
