"""Weights of any size, one tensor at a time: read from whatever files hold them, and written as one file."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from jrm_plugin.errors import JRMError
from jrm_plugin.model.checkpoint import read_object, reading

INDEX_FILE = "model.safetensors.index.json"
# What a folder's weights are called: ours and those of other projects.
WEIGHT_FILES = (INDEX_FILE, "model.safetensors", "model.pth", "final_model.pth", "HPSv3.safetensors")
ADAPTER_FILES = ("adapter_model.safetensors", "non_lora_state_dict.pth")
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read when it is asked for."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


Weights = Mapping[str, LazyTensor]


def find_weights(source: Path) -> Path:
    """The file with a folder's weights, or their index; a file is itself.

    Raises:
        JRMError: there is none, or there are several.
    """
    if source.is_file():
        return source
    files = [source / name for name in WEIGHT_FILES if (source / name).is_file()]
    if not files:
        raise JRMError(f"{source} holds no weights: none of {', '.join(WEIGHT_FILES)}; give their file or folder.")
    if len(files) > 1:
        raise JRMError(f"{source} holds {' and '.join(file.name for file in files)}; give the file that is meant.")
    return files[0]


def read_weights(file: Path) -> dict[str, LazyTensor]:
    """The tensors of a file, or of the shards of an index, by name. No pickle is run.

    Raises:
        JRMError: it cannot be read.
    """
    if file.name.endswith(".index.json"):
        names = read_object(file).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise JRMError(f"{file}, weight_map must give files by names of weights.")
        if outside := [name for name in names.values() if Path(name).name != name]:
            raise JRMError(f"{file} names {outside[0]}, which is not in its folder.")
        shards = {name: _read_safetensors(file.with_name(name)) for name in sorted({*names.values()})}
        if missing := [name for name, shard in names.items() if name not in shards[shard]]:
            raise JRMError(f"{file} names {missing[0]}, which {names[missing[0]]} does not hold.")
        return {name: shards[shard][name] for name, shard in names.items()}
    return _read_safetensors(file) if file.suffix == ".safetensors" else _read_pth(file)


def _read_safetensors(file: Path) -> dict[str, LazyTensor]:
    if not file.is_file():
        raise JRMError(f"{file} is not there: the checkpoint is not whole.")
    tensors = {}
    with reading(file.parent, file.name):
        handle = safe_open(file, framework="pt")
        for name in handle.keys():  # noqa: SIM118  no dict
            part = handle.get_slice(name)
            if part.get_dtype() not in _DTYPES:
                raise JRMError(f"{file}, {name} is of the type {part.get_dtype()}; only floating numbers are weights.")
            tensors[name] = LazyTensor(
                _DTYPES[part.get_dtype()], tuple(part.get_shape()), lambda name=name: handle.get_tensor(name)
            )
    return tensors


def _read_pth(file: Path) -> dict[str, LazyTensor]:
    with reading(file.parent, file.name):
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise JRMError(f"{file} must hold weights by their names, and nothing else.")
    for name, value in content.items():
        if value.dtype not in _NAMES:
            raise JRMError(f"{file}, {name} is of the type {value.dtype}; only floating numbers are weights.")
    return {
        str(name): LazyTensor(value.dtype, tuple(value.shape), lambda value=value: value)
        for name, value in content.items()
    }


def write_weights(file: Path, weights: Weights) -> None:
    """Writes a safetensors file tensor by tensor; the library's own function wants them all at once."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in weights.items():
        start, end = end, end + tensor.dtype.itemsize * torch.Size(tensor.shape).numel()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of 8 bytes
    with file.open("wb") as output:
        output.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in weights.items():
            value = tensor.read()
            if value.dtype != tensor.dtype or tuple(value.shape) != tensor.shape:
                raise ValueError(f"{name} is {value.dtype} {list(value.shape)}, not what was announced")
            output.write(value.detach().contiguous().flatten().view(torch.uint8).numpy().data)


# --- changes ----------------------------------------------------------------------------------------------------------


def with_rows(tensor: LazyTensor, kept: int, rows: int) -> LazyTensor:
    """The first `kept` rows, and as many of their mean as make it `rows`; the last kept one has no part in the mean."""

    def read() -> torch.Tensor:
        weight = tensor.read()[:kept]
        mean = weight[: kept - 1].mean(0, keepdim=True, dtype=torch.float32).to(weight.dtype)
        return torch.cat([weight, mean.expand(rows - kept, -1)])

    return LazyTensor(tensor.dtype, (rows, *tensor.shape[1:]), read)


def zeros(dtype: torch.dtype, *shape: int) -> LazyTensor:
    return LazyTensor(dtype, shape, lambda: torch.zeros(shape, dtype=dtype))


def padded(tensor: LazyTensor, rows: int) -> LazyTensor:
    """With rows of zeros behind its own."""
    if tensor.shape[0] == rows:
        return tensor

    def read() -> torch.Tensor:
        value = tensor.read()
        return torch.cat([value, value.new_zeros(rows - len(value), *value.shape[1:])])

    return LazyTensor(tensor.dtype, (rows, *tensor.shape[1:]), read)


def first_rows(tensor: LazyTensor, rows: int) -> LazyTensor:
    return LazyTensor(tensor.dtype, (rows, *tensor.shape[1:]), lambda: tensor.read()[:rows])


_LORA = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")


def merged(base: Weights, adapters: Weights, others: Weights, scale: float, rename: Callable[[str], str]) -> Weights:
    """The weights of a base model with LoRA adapters merged into them, and whatever else was trained in its place.

    Args:
        base: by our names.
        adapters, others: by peft's names of their modules.
        scale: of the adapters' product.
        rename: their names of weights into ours.

    Raises:
        JRMError: an adapter has only one of its matrices, or is of no weight of the base.
    """
    weights, pairs = dict(base), {}
    for name, tensor in others.items():
        plain = name.removeprefix("base_model.model.").replace(".modules_to_save.default.", ".")
        weights[rename(plain.replace(".base_layer.", ".").replace(".original_module.", "."))] = tensor
    for name, tensor in adapters.items():
        match = _LORA.fullmatch(name)
        if match is None:
            raise JRMError(f"{name} is no matrix of a LoRA adapter; only plain LoRA can be merged.")
        pairs.setdefault(rename(match[1] + ".weight"), {})[match[2]] = tensor
    for name, pair in pairs.items():
        if pair.keys() != {"A", "B"} or name not in weights:
            raise JRMError(
                f"the adapter of {name} has lora_{' and lora_'.join(pair)}, and needs both and a base weight."
            )
        weights[name] = _adapted(weights[name], pair["A"], pair["B"], scale)
    return weights


def _adapted(weight: LazyTensor, a: LazyTensor, b: LazyTensor, scale: float) -> LazyTensor:
    def read() -> torch.Tensor:
        change = scale * (b.read().float() @ a.read().float())
        return (weight.read().float() + change).to(weight.dtype)

    return LazyTensor(weight.dtype, weight.shape, read)
