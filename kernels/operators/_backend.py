"""Which implementation of an operator runs: Triton where there is a device for it, torch everywhere else."""

import contextlib
import functools
import importlib.util
import os
from contextlib import AbstractContextManager
from typing import Any, Literal, TypeAlias, get_args

import torch

Backend: TypeAlias = Literal["auto", "triton", "torch"]
BACKENDS = get_args(Backend)

# device types whose torch builds bring a Triton backend; AMD's is "cuda" to torch
TRITON_DEVICES = ("cuda", "xpu")


@functools.cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, on CPU tensors. Triton reads the variable when it is imported."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def use_triton(backend: str, device: torch.device) -> bool:
    """Whether to launch the Triton kernel for tensors on `device`.

    Raises:
        ValueError: backend is "triton" and cannot be used here.
    """
    if backend != "triton":
        return backend == "auto" and device.type in TRITON_DEVICES and has_triton()
    if not has_triton():
        raise ValueError("backend='triton': Triton is not installed; install it, or use 'auto' or 'torch'.")
    if device.type not in TRITON_DEVICES and not interpreted():
        raise ValueError(
            f"backend='triton': the inputs are on {device.type}; move them to a GPU, use 'auto' or 'torch', "
            "or set TRITON_INTERPRET=1 before Python starts to run the kernel in Triton's interpreter."
        )
    return True


def device_guard(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Makes the tensor's device the current one, on which Triton launches."""
    return (
        torch.accelerator.device_index(tensor.device.index) if tensor.device.type != "cpu" else contextlib.nullcontext()
    )
