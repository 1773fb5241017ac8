"""What a score may not depend on: state that others have set around it, for this thread or for the whole process."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from jrm_plugin.switches import WARNINGS_AS_ERRORS, Switch

_DEFAULT_DTYPE = Switch(torch.get_default_dtype, torch.set_default_dtype)
# Whether float32 may be multiplied in fewer bits.
_FLOAT32_PRECISIONS = [
    Switch(lambda backend=backend: backend.fp32_precision, partial(setattr, backend, "fp32_precision"))
    for backend in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv)
]


def _convolutions_in_tf32() -> bool | str | None:
    """What lets a GPU convolve float32 in fewer bits, as it does unless somebody says no; None where nothing does."""
    try:
        return torch.backends.cudnn.allow_tf32 or None
    except RuntimeError:  # somebody has set torch's newer switches, so that the older one cannot be asked
        precision = torch.backends.cudnn.conv.fp32_precision
        return None if precision == "ieee" else precision


def _set_convolutions(given: bool | str | None) -> None:
    """By the switch that is in use: where it is the older one, libraries ask for it, and it fails beside the newer."""
    if isinstance(given, str):
        torch.backends.cudnn.conv.fp32_precision = given
    elif isinstance(_convolutions_in_tf32(), str):
        torch.backends.cudnn.conv.fp32_precision = "ieee"
    else:
        torch.backends.cudnn.allow_tf32 = bool(given)


# Held at None: with TF32 an image would have other scores than on a CPU.
_CONVOLUTIONS_IN_TF32 = Switch(_convolutions_in_tf32, _set_convolutions)

# One pass over a model at a time, whoever scores with it: its mode, an engine's cache and the memory are for one.
_LOCKS: "WeakKeyDictionary[nn.Module, threading.Lock]" = WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


@contextmanager
def usual_process() -> Iterator[None]:
    """The process as it is where nobody has touched it: switches of torch, numpy and warnings; then as it was."""
    with ExitStack() as stack:
        stack.enter_context(_DEFAULT_DTYPE.held(torch.float32))
        for switch in _FLOAT32_PRECISIONS:
            stack.enter_context(switch.held("ieee"))
        stack.enter_context(_CONVOLUTIONS_IN_TF32.held(None))
        stack.enter_context(WARNINGS_AS_ERRORS.held(None))
        stack.enter_context(np.errstate(all="ignore"))
        yield


@contextmanager
def scoring_with(model: nn.Module) -> Iterator[None]:
    """A place to compute scores in: no autocast, no gradients, dropout off, usual defaults, one thread at a time.

    Afterwards everything is as it was, and every module in the mode in which it was.
    """
    with _LOCKS_LOCK:
        lock = _LOCKS.setdefault(model, threading.Lock())
    with ExitStack() as stack:
        stack.enter_context(lock)
        stack.enter_context(usual_process())
        stack.enter_context(torch.inference_mode())
        for device in {"cpu", model.device.type}:
            stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        training = [module for module in model.modules() if module.training]
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True
