"""What a user names as a model, turned into a scorer, or asked what it is; importing this imports no torch."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jrm_plugin.errors import JRMError
from jrm_plugin.records.calibration import Calibration
from jrm_plugin.scoring.protocol import Scorer
from jrm_plugin.scoring.remote import RewardClient, is_server

if TYPE_CHECKING:
    import torch


logger = logging.getLogger(__name__)

DEFAULT_MODEL = "jrm-tiny"
DTYPES = ("float32", "bfloat16", "float16")


def named_model(model: str | None) -> str:
    """The model that a user named; where none is, the built-in one, and a warning says what it knows."""
    if model is None:
        logger.warning(
            "No model is named: %s scores, which knows coloured shapes (ShapeEdits) and nothing else.", DEFAULT_MODEL
        )
        return DEFAULT_MODEL
    return model


def as_dtype(dtype: "torch.dtype | str | None") -> "torch.dtype | None":
    """The dtype that is named; raises a `JRMError` for a name that is none of `DTYPES`."""
    if not isinstance(dtype, str):
        return dtype
    if dtype not in DTYPES:
        raise JRMError(f"dtype must be {', '.join(DTYPES)} or left out, not {dtype!r}.")
    import torch  # slow to import

    named: torch.dtype = getattr(torch, dtype)
    return named


def load_scorer(
    model: "str | Path | Scorer | None",
    *,
    device: "str | torch.device | None" = None,
    dtype: "torch.dtype | str | None" = None,
    **options: Any,
) -> Scorer:
    """The scorer that a user names: a JRM, or what its config says that it is.

    Args:
        model: a JRM folder, a LoRA folder that `jrm train` wrote, a hub name, the built-in `jrm-tiny`; a PickScore's
            folder or hub name; the address of a reward server, `http://host:8000`; or a [`Scorer`], which comes back as
            it is; None as `named_model` takes it.
        device: where the model goes; by default the GPU if there is one. A server's model is where the server put it.
        dtype: of the backbone, also by name; likewise.
        options: further arguments of `RewardScorer.from_pretrained`, as far as the model has a use for them. With
            `engine="vllm"` vLLM computes, and they are those of `VLLMScorer.from_pretrained`.

    Raises:
        JRMError: there is no such model, its weights do not fit, or the device or the dtype cannot be used.
    """
    dtype = as_dtype(dtype)
    if isinstance(model, Scorer):
        return model
    if isinstance(model, str) and is_server(model):
        if given := [name for name, value in options.items() if value is not None]:
            raise JRMError(f"the model of {model} is loaded by its server, which {given[0]} must be given to.")
        return RewardClient(model)
    model = model if isinstance(model, Path) else named_model(model)
    from jrm_plugin.model.checkpoint import model_type  # slow to import, as all that follows
    from jrm_plugin.scoring.pick_score import PickScorer
    from jrm_plugin.scoring.scorer import RewardScorer

    if model_type(model, revision=options.get("revision")) == "clip":
        return PickScorer.from_pretrained(model, device=device, dtype=dtype, **options)
    if options.get("engine") == "vllm":
        from jrm_plugin.scoring.vllm_scorer import VLLMScorer

        return VLLMScorer.from_pretrained(model, device=device, dtype=dtype, **options | {"engine": None})
    return RewardScorer.from_pretrained(model, device=device, dtype=dtype, **options)


def model_digest(model: str) -> bytes:
    """What tells a model's weights and settings from others': of its files, or as its server says.

    Raises:
        JRMError: the server cannot be asked.
    """
    if is_server(model):
        return RewardClient(model).digest
    from jrm_plugin.model.loading import checkpoint_digest  # slow to import

    return checkpoint_digest(model)


def model_calibration(model: str) -> Calibration | None:
    """What `jrm calibrate` saved with a model; None where there is nothing.

    Raises:
        JRMError: the file holds something else, or the server cannot be asked.
    """
    if is_server(model):
        return RewardClient(model).calibration
    from jrm_plugin.model.calibration_file import read_calibration  # slow to import

    return read_calibration(model)
