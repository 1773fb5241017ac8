"""Where a model is put, and in which precision, where a user does not say."""

import torch

from jrm_plugin.errors import JRMError


def check_device(device: str | torch.device) -> None:
    """Raises a [`JRMError`] if the device cannot be used here."""
    try:
        torch.empty(0, device=device)
    except Exception as error:  # no such device, not on this machine, not in this torch: each raises another
        reason = str(error).split("\n")[0].rstrip(".")
        raise JRMError(f"the device {device} cannot be used here ({reason}); use cpu, or leave it out.") from error


def default_device() -> str:
    """The GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def default_dtype(device: str | torch.device | None) -> torch.dtype:
    """bfloat16 on a GPU that has it and float32 elsewhere; `None` is wherever a device map puts the model."""
    on_gpu = torch.cuda.is_available() and (device is None or torch.device(device).type == "cuda")
    return torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported() else torch.float32
