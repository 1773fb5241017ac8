"""Weights of which each process holds a part: under DeepSpeed's ZeRO-3, and torch's FSDP2."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.integrations import is_deepspeed_zero3_enabled


@contextmanager
def whole(*parameters: nn.Parameter) -> Iterator[None]:
    """Gives parameters whole where they are divided; what is written to them is divided again, the first process's."""
    if not is_deepspeed_zero3_enabled():
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0):
        yield


def own_part(parameter: nn.Parameter) -> torch.Tensor:
    """What this process holds of a parameter: its part, or all of it where it is not divided."""
    if isinstance(parameter, DTensor):
        return parameter.detach().to_local()
    return getattr(parameter, "ds_tensor", parameter).detach()
