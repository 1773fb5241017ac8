"""The one function that turns what a user names into a scorer; importing this imports no torch."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jrm_plugin.scoring.protocol import Scorer

if TYPE_CHECKING:
    import torch


logger = logging.getLogger(__name__)

DEFAULT_MODEL = "jrm-tiny"


def named_model(model: str | None) -> str:
    """The model that a user named; where none is, the built-in one, and a warning says what it knows."""
    if model is None:
        logger.warning(
            "No model is named: %s scores, which knows coloured shapes (ShapeEdits) and nothing else.", DEFAULT_MODEL
        )
        return DEFAULT_MODEL
    return model


def load_scorer(
    model: "str | Path | Scorer | None", *, device: "str | torch.device | None" = None, **options: Any
) -> Scorer:
    """The scorer that a user names.

    Args:
        model: a JRM folder, a LoRA folder that `jrm train` wrote, a hub name, the built-in `jrm-tiny`; or a [`Scorer`],
            which comes back as it is; None as `named_model` takes it.
        device: where the model goes; by default the GPU if there is one.
        options: further arguments of `RewardScorer.from_pretrained`.

    Raises:
        JRMError: there is no such model, its weights do not fit, or the device cannot be used.
    """
    if isinstance(model, Scorer):
        return model
    model = model if isinstance(model, Path) else named_model(model)
    from jrm_plugin.scoring.scorer import RewardScorer  # imports torch and transformers

    return RewardScorer.from_pretrained(model, device=device, **options)
