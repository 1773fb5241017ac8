"""Muon for the matrices inside the transformer blocks, AdamW for all else, as one optimizer."""

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import nn

# The quintic of Jordan et al. 2024 (Muon): maps singular values in (0, 1] close to 1 in five steps.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) and AdamW behind one set of parameter groups and one state.

    Small models trained from scratch learn several times faster with it than with AdamW alone. `torch.optim.Muon` is
    not used because it orthogonalises one matrix after the other in bfloat16, which takes a second a step on a CPU
    without bfloat16 units; here matrices of one shape go together, in float32 on a CPU. All state lives in this
    object, so that state dicts, learning rate schedulers and exact resumption work as with any optimizer.

    Args:
        groups: parameter groups; those with `muon=True` hold matrices that Muon updates, AdamW updates the others.
        lr, betas, eps, weight_decay: as in AdamW; a group may have its own `lr` and `weight_decay`.
        momentum: of Muon.
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
        # AdamW's own defaults (`amsgrad` and the like) are part of every group, so that it can step on ours.
        adamw = torch.optim.AdamW(
            [nn.Parameter(torch.zeros(1))], lr=lr, betas=betas, eps=eps, weight_decay=weight_decay
        )
        super().__init__(groups, {**adamw.defaults, "muon": False, "momentum": momentum})
        self._adamw = adamw

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["muon"]:
                self._muon_step(group)
        self._adamw.param_groups = [group for group in self.param_groups if not group["muon"]]
        self._adamw.state = self.state
        self._adamw.step()
        return loss

    def _muon_step(self, group: dict) -> None:
        by_shape = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape[parameter.shape].append(parameter)
        for (rows, columns), parameters in by_shape.items():
            updates = []
            for parameter in parameters:
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                updates.append(parameter.grad.lerp(buffer, group["momentum"]))  # Nesterov
            rate = group["lr"] * max(1.0, rows / columns) ** 0.5
            for parameter, update in zip(parameters, orthogonalise(torch.stack(updates)), strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update.to(parameter.dtype), alpha=rate)


def orthogonalise(matrices_KMN: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Each of K matrices with its singular values moved close to 1, by Newton-Schulz.

    In five steps, singular values of at least 0.002 of the matrix's Frobenius norm come to between 0.68 and 1.21.
    """
    a, b, c = _NEWTON_SCHULZ
    x = matrices_KMN.float() if matrices_KMN.device.type == "cpu" else matrices_KMN.bfloat16()
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def muon_groups(model: nn.Module, decayed: set[str], *, muon_lr: float, weight_decay: float) -> list[dict]:
    """Parameter groups for [`MuonWithAdamW`].

    Muon gets the two-dimensional weights except embeddings, the language head and the reward head, whose rows are
    lookups or few and not linear maps of the residual stream, and LoRA's factors, whose product is such a map.

    Args:
        model: its trainable parameters are grouped.
        decayed: names of the parameters that decay.
        muon_lr: Muon's learning rate; AdamW's is the optimizer's.
        weight_decay: of the decayed parameters.
    """
    muon, adamw, undecayed = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_excepted = any(part in name for part in ("embed", "lm_head", "reward_head", "lora_"))
        if parameter.ndim == 2 and not is_excepted:
            muon.append(parameter)
        else:
            (adamw if name in decayed else undecayed).append(parameter)
    return [
        {"params": muon, "muon": True, "lr": muon_lr, "weight_decay": weight_decay},
        {"params": adamw, "weight_decay": weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
