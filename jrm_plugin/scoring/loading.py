"""The one function that turns what a user names into a scorer; importing this imports no torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from jrm_plugin.scoring.protocol import Scorer

if TYPE_CHECKING:
    import torch


def load_scorer(model: "str | Path | Scorer", *, device: "str | torch.device | None" = None, **options: Any) -> Scorer:
    """The scorer that a user names.

    Args:
        model: a JRM folder, a LoRA folder that `jrm train` wrote, a hub name, the built-in `jrm-tiny`; or a [`Scorer`],
            which comes back as it is.
        device: where the model goes; by default the GPU if there is one.
        options: further arguments of `RewardScorer.from_pretrained`.

    Raises:
        JRMError: there is no such model, its weights do not fit, or the device cannot be used.
    """
    if isinstance(model, Scorer):
        return model
    from jrm_plugin.scoring.scorer import RewardScorer  # imports torch and transformers

    return RewardScorer.from_pretrained(model, device=device, **options)
