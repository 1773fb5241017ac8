"""The one place that reads a checkpoint's files: somebody else's data, checked before anything is made of it.

Values are checked by file and key, the weights' shapes against their headers before memory is asked for, and whatever
the libraries below still raise becomes one sentence. No code of a checkpoint is run, whatever its files name.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.activations import ACT2FN
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import cached_file, logging

from jrm_plugin.errors import JRMError, as_jrm_error, shortened
from jrm_plugin.files import read_json
from jrm_plugin.model import backbone

BUILT_IN_MODELS = ("jrm-tiny",)
CONFIG_FILE = "config.json"
_RESOURCES = Path(str(files("jrm_plugin") / "resources"))

# Every `from_pretrained` gets these: no Python of a checkpoint, no pickle.
NO_CODE = {"trust_remote_code": False, "use_safetensors": True}

# What a checkpoint may hold at most; real ones stay far below.
_MOST_BYTES = 64 * 2**20  # of a JSON file
_MOST_ITEMS = 1024  # of a list or of keys in config.json
_MOST_DEPTH = 16
_LARGEST_NUMBER = 2**31
_MOST_IMAGE_TOKENS = 4096  # that a small image is scaled up to
_MOST_PIXELS = 2**26  # that a large image is scaled down to

_SIZE, _COUNT = (1, 2**24), (1, 512)
# The sizes in the config of a backbone, with the smallest and the largest value of each.
_BOUNDS = {
    "num_hidden_layers": _COUNT,
    "depth": _COUNT,
    "num_labels": (0, _MOST_ITEMS),
    "num_attention_heads": _SIZE,
    "num_heads": _SIZE,
    "hidden_size": _SIZE,
    "intermediate_size": _SIZE,
    "embed_dim": _SIZE,
    "out_hidden_size": _SIZE,
    "vocab_size": _SIZE,
    "patch_size": (1, 1024),
    "spatial_merge_size": (1, 64),
    "temporal_patch_size": (1, 64),
    "window_size": _SIZE,
    "num_position_embeddings": _SIZE,
    "max_position_embeddings": (1, 2**30),
}
# What a config may not say, because it fetches code, changes which file is read, or changes what a forward pass gives.
_ATTENTION = (None, "eager", "sdpa")
_ONLY = {
    "attn_implementation": _ATTENTION,
    "_attn_implementation": _ATTENTION,
    "experts_implementation": (None,),
    "_experts_implementation": (None,),
    "quantization_config": (None,),
    "fusion_config": (None,),
    "transformers_weights": (None,),
    "return_dict": (None, True),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
    "gradient_checkpointing": (None, False),
}
CALIBRATION_FILE = "jrm_calibration.json"  # is no part of what a score comes from
_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast", "Qwen2Tokenizer", "Qwen2TokenizerFast")


# --- files ------------------------------------------------------------------------------------------------------------


def built_in_folder(path_or_name: str | Path) -> str | Path:
    """The folder in the package of a built-in model; any other path or name comes back as it is."""
    if str(path_or_name) in BUILT_IN_MODELS and not Path(path_or_name).exists():
        return _RESOURCES / str(path_or_name)
    return path_or_name


def named(path_or_name: str | Path) -> str:
    """How a model is named in what is made of it: a folder by its whole path, so that it is found from anywhere."""
    for name in BUILT_IN_MODELS:
        if Path(path_or_name) == _RESOURCES / name and built_in_folder(name) != name:
            return name
    return str(Path(path_or_name).resolve()) if Path(path_or_name).is_dir() else str(path_or_name)


def find_file(folder: str | Path, name: str, **hub: Any) -> Path | None:
    """A file of a folder or of a hub name (`revision`, `token`); None where there is none."""
    if Path(folder).is_dir():
        path = Path(folder, name)
        return path if path.is_file() else None
    with reading(folder, name):
        path = cached_file(str(folder), name, _raise_exceptions_for_missing_entries=False, **hub)
    return None if path is None else Path(path)


def read_object(path: Path) -> dict[str, Any]:
    """The keys and values of a checkpoint's JSON file.

    Raises:
        JRMError: it is no JSON object, too large, or too deep.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise JRMError(f"{path} is larger than {_MOST_BYTES // 2**20} MiB, which no file of its kind is.")
    content = read_json(path)
    if not isinstance(content, dict):
        raise JRMError(f"{path} must hold keys and values, not {shortened(content)}.")
    return content


@contextmanager
def reading(folder: str | Path, what: str) -> Iterator[None]:
    """Whatever is raised while a checkpoint's files are used becomes a [`JRMError`] that names folder and file."""
    with as_jrm_error(f"{what} of {folder} cannot be used"):
        yield


@contextmanager
def in_file(path: Path) -> Iterator[None]:
    """A [`JRMError`] about a value names the file that the value stands in."""
    try:
        yield
    except JRMError as error:
        if str(path.parent) in str(error):
            raise
        raise JRMError(f"{path}: {error}") from error


# --- config.json ------------------------------------------------------------------------------------------------------


def model_type(folder: str | Path, **hub: Any) -> str | None:
    """What the config of a folder, a hub name or a built-in model says that it is; None where nothing does."""
    folder = built_in_folder(folder)
    path = Path(folder)
    if not path.is_dir() and (path.is_absolute() or len(path.parts) != 2 or path.is_file()):
        return None
    file = find_file(folder, CONFIG_FILE, **hub)
    return None if file is None else read_object(file).get("model_type")


def load_config(folder: str | Path, **hub: Any) -> PreTrainedConfig:
    """The config of a folder, a hub name or a built-in model, every value checked.

    Args:
        folder: of a JRM checkpoint or of a backbone.
        hub: `revision`, `token` of a hub name.

    Raises:
        JRMError: there is none, or a value of it cannot be.
    """
    folder = built_in_folder(folder)
    path = Path(folder)
    if not path.is_dir() and (path.is_absolute() or len(path.parts) != 2 or path.is_file()):
        raise JRMError(
            f"there is no model folder {folder}; give a folder with a config.json, or a hub name owner/name."
        )
    file = find_file(folder, CONFIG_FILE, **hub)
    if file is None:
        raise JRMError(f"the folder {folder} holds no model: it has no config.json.")
    content = read_object(file)
    _check_numbers(content, str(file))
    config_class = CONFIG_MAPPING["jrm"]
    if content.get("model_type") != "jrm":
        config_class = CONFIG_MAPPING[backbone.check_backbone_family(content.get("model_type"))]
    elif not isinstance(content.get("backbone_config"), dict):
        raise JRMError(
            f"{file}: backbone_config must hold keys and values, not {shortened(content.get('backbone_config'))}."
        )
    _check_keys(content, config_class, str(file))
    with in_file(file), reading(folder, CONFIG_FILE):
        return config_class.from_dict(content)


def _check_numbers(value: Any, where: str, depth: int = 0) -> None:
    """No number, list or nesting that is out of any proportion."""
    if isinstance(value, (dict, list)):
        if len(value) > _MOST_ITEMS or depth > _MOST_DEPTH:
            raise JRMError(f"{where} holds more than {_MOST_ITEMS} items, or is nested deeper than {_MOST_DEPTH}.")
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _check_numbers(item, f"{where}, {str(key)[:60]}", depth + 1)
    elif isinstance(value, (int, float)) and not abs(value) <= _LARGEST_NUMBER:
        raise JRMError(f"{where} must be a number of at most {_LARGEST_NUMBER}, not {shortened(value)}.")


def _check_keys(content: dict[str, Any], config_class: type[PreTrainedConfig], where: str) -> None:
    """The values that decide sizes, code and files, in the config of a model and of its parts."""
    fields = config_class.__dataclass_fields__
    for key, value in content.items():
        place = f"{where}, {key}"
        if isinstance(value, dict) and key in config_class.sub_configs:
            part = config_class.sub_configs[key]
            if not issubclass(part, PreTrainedConfig):  # `AutoConfig`: which one, the part itself says
                part = CONFIG_MAPPING[backbone.check_backbone_family(value.get("model_type"))]
            _check_keys(value, part, place)
        elif key in config_class.sub_configs and value is not None:
            raise JRMError(f"{place} must hold keys and values, not {shortened(value)}.")
        elif key in _ONLY and value not in _ONLY[key]:
            raise JRMError(f"{place} must not be {shortened(value)} in a checkpoint; leave it out.")
        elif key in _BOUNDS and value is not None:
            _check_between(value, *_BOUNDS[key], place)
        elif key == "hidden_act" and (not isinstance(value, str) or value not in ACT2FN):
            raise JRMError(f"{place} must be the name of an activation, such as silu, not {shortened(value)}.")
        elif key in ("dtype", "torch_dtype") and not _is_dtype(value):
            raise JRMError(f"{place} must be float32, bfloat16 or float16, not {shortened(value)}.")
        elif key not in fields and callable(getattr(config_class, key, None)):
            raise JRMError(f"{place} is not a key of a config; leave it out.")


def _is_dtype(value: Any) -> bool:
    return value is None or value in ("float32", "bfloat16", "float16", "float64")


def _check_between(value: Any, smallest: float, largest: float, place: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not smallest <= value <= largest:
        raise JRMError(f"{place} must be a whole number between {smallest} and {largest}, not {shortened(value)}.")


# --- weights ----------------------------------------------------------------------------------------------------------


def load_checked(
    load: Callable, folder: str | Path, *, config: PreTrainedConfig, **options: Any
) -> tuple[PreTrainedModel, dict]:
    """Calls a `from_pretrained`, if every weight fits.

    The names and shapes in the headers of the files are compared with the model's before memory is asked for.

    Raises:
        JRMError: a file cannot be read; a weight is missing, unexpected or misshapen.
    """
    options |= NO_CODE | {"config": config, "output_loading_info": True}
    with reading(folder, "the weights"):
        if not is_deepspeed_zero3_enabled():  # which makes its own parts of every weight, and allows no device
            unplaced = {name: options[name] for name in options if name not in ("device_map", "quantization_config")}
            with _no_bar():
                _, info = load(folder, device_map="meta", ignore_mismatched_sizes=True, **unplaced)
            _check_weights(folder, info)
        model, info = load(folder, ignore_mismatched_sizes=True, **options)
    _check_weights(folder, info)
    _own_memory(model)
    return model, info


def _own_memory(model: PreTrainedModel) -> None:
    """Copies weights that are views of their file, in which a later write to it would change scores or end the process.

    transformers maps a file of weights into memory, and leaves those there that need no other device or dtype.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.numel():  # DeepSpeed's parts of a weight leave an empty one
            tensor.data = tensor.data.clone()


@contextmanager
def _no_bar() -> Iterator[None]:
    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def _check_weights(folder: str | Path, info: dict) -> None:
    wrong = {kind: sorted(info[f"{kind}_keys"]) for kind in ("missing", "unexpected", "mismatched")}
    wrong["mismatched"] = [f"{key} {list(saved)}, not {list(own)}" for key, saved, own in wrong["mismatched"]]
    check_names(folder, wrong)


def check_names(folder: str | Path, wrong: dict[str, list[str]]) -> None:
    """Raises a [`JRMError`] that names weights by what is wrong with them, if there are any."""
    if any(wrong.values()):
        named = "; ".join(f"{kind}: {_some(keys)}" for kind, keys in wrong.items() if keys)
        raise JRMError(
            f"the weights in {folder} do not fit the model ({named}); "
            "the checkpoint is damaged or was made by another version, so nothing was loaded."
        )


def _some(names: list[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# --- tokenizer and image processor ------------------------------------------------------------------------------------


def load_tokenizer(folder: str | Path, **hub: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint: one of the kinds that the backbones have, and none of somebody's own.

    Raises:
        JRMError: it is missing, broken, or of another kind.
    """
    file = find_file(folder, "tokenizer_config.json", **hub)
    content = {} if file is None else read_object(file)
    name = content.get("tokenizer_class")
    if name not in (None, *_TOKENIZERS):
        raise JRMError(f"{file}, tokenizer_class must be one of {', '.join(_TOKENIZERS)}, not {shortened(name)}.")
    for key in ("vocab_file", "merges_file", "tokenizer_file"):
        if content.get(key) is not None:
            raise JRMError(f"{file}, {key} names a file of its own; leave it out.")
    config = load_config(folder, **hub) if find_file(folder, CONFIG_FILE, **hub) else PreTrainedConfig()
    with reading(folder, "the tokenizer"):
        return AutoTokenizer.from_pretrained(folder, config=config, **NO_CODE, **hub)


def load_image_processor(folder: str | Path, **hub: Any) -> backbone.ImageProcessor:
    """The image processor of a checkpoint, every value checked.

    Raises:
        JRMError: it is missing, or a value of it cannot be.
    """
    file = find_file(folder, "preprocessor_config.json", **hub)
    if file is None:
        raise JRMError(f"{folder} has no image processor: there is no preprocessor_config.json.")
    content = read_object(file)
    for key, value in content.items():
        if callable(getattr(backbone.ImageProcessor, key, None)) or key.startswith("_"):
            raise JRMError(f"{file}, {key} is not a key of an image processor; leave it out.")
        place = f"{file}, {key}"
        if key in _BOUNDS or key == "merge_size":
            _check_between(value, *_BOUNDS.get(key, (1, 64)), place)
        elif key in ("image_mean", "image_std"):
            _check_colours(value, place, zero=key == "image_mean")
        elif key == "rescale_factor" and not (_is_number(value) and 0 < value <= 1):
            raise JRMError(f"{place} must be a number above 0 and at most 1, not {shortened(value)}.")
        elif key == "do_resize" and value is not True:
            raise JRMError(f"{place} must be true: images must fit whole patches.")
        elif key in ("do_rescale", "do_normalize", "do_convert_rgb") and not isinstance(value, bool):
            raise JRMError(f"{place} must be true or false, not {shortened(value)}.")
        elif key == "resample":
            _check_between(value, 0, 5, place)
    with reading(folder, "the image processor"):
        # A size of its own: else the bounds of an older file are written into the class's, for all that come after.
        size = dict(content.get("size") or backbone.ImageProcessor.size)
        processor = backbone.ImageProcessor.from_dict(content | {"size": size})
        smallest, largest = backbone.min_pixels(processor), backbone.max_pixels(processor)
    _check_between(largest, backbone.pixels_per_token(processor), _MOST_PIXELS, f"{file}, the largest size in pixels")
    most = min(largest, _MOST_IMAGE_TOKENS * backbone.pixels_per_token(processor))
    _check_between(smallest, 1, most, f"{file}, the smallest size in pixels")
    return processor


def _check_colours(value: Any, place: str, *, zero: bool) -> None:
    if not (isinstance(value, list) and len(value) == 3 and all(_is_number(x) and (x or zero) for x in value)):
        raise JRMError(f"{place} must be three numbers, not {shortened(value)}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
