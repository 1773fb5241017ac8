"""Muon for the matrices inside the transformer blocks, AdamW for all else, as one optimizer."""

from collections.abc import Callable, Iterable

import torch
from torch import nn


class MuonWithAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` and `torch.optim.AdamW` behind one set of parameter groups and one state.

    Small models trained from scratch learn several times faster with it than with AdamW alone. Groups with
    `muon=True` are updated by Muon, the others by AdamW. All state lives in this object, so that state dicts, learning
    rate schedulers and exact resumption work as with any single optimizer.
    """

    def __init__(
        self,
        groups: Iterable[dict],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
    ):
        adamw = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__([{**group} for group in groups], {**adamw, "muon": False})
        placeholder = [nn.Parameter(torch.zeros(1, 1))]
        self._adamw = torch.optim.AdamW(placeholder, **adamw)
        self._muon = torch.optim.Muon(placeholder, lr=lr, weight_decay=weight_decay, momentum=momentum)
        for group in self.param_groups:
            inner = self._muon if group["muon"] else self._adamw
            for name, value in inner.defaults.items():
                group.setdefault(name, value)

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for inner, is_muon in ((self._muon, True), (self._adamw, False)):
            inner.param_groups = [group for group in self.param_groups if group["muon"] is is_muon]
            inner.state = self.state
            inner.step()
        return loss


def muon_groups(model: nn.Module, decayed: set[str], *, muon_lr: float, weight_decay: float) -> list[dict]:
    """Parameter groups for [`MuonWithAdamW`].

    Muon gets the two-dimensional weights except embeddings, the language head and the reward head, whose rows are
    lookups or few and not linear maps of the residual stream.
    """
    muon, adamw, undecayed = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_lookup = any(part in name for part in ("embed", "lm_head", "reward_head"))
        if parameter.ndim == 2 and not is_lookup:
            muon.append(parameter)
        else:
            (adamw if name in decayed else undecayed).append(parameter)
    return [
        {"params": muon, "muon": True, "lr": muon_lr, "weight_decay": weight_decay},
        {"params": adamw, "weight_decay": weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
