"""Pre-training of the editor by flow matching, on triples of which some have wrong targets.

Shape suffixes: B pictures, C channels, H height, W width, T words.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from examples.image_editor.data import draw_triples, to_tensor, word_ids
from examples.image_editor.editor import Editor
from examples.image_editor.states import read_state, write_state
from jrm_plugin.training.optimization import MuonWithAdamW


@dataclass(frozen=True)
class Pretraining:
    """Settings; the defaults take eight minutes of one core."""

    width: int = 96
    layers: int = 4
    triples: int = 12_000
    steps: int = 2400
    batch: int = 64
    muon: float = 0.02  # learning rates: of the matrices of the transformer's blocks,
    adamw: float = 2e-3  # and of the rest
    warm_up: int = 30
    shift: float = 3.0  # as in sampling: more of the steps are at large t
    least_t: float = 0.2  # below it, a picture counts as if it were at this t
    save_every: int = 100
    seed: int = 0


def pretrained(folder: Path, settings: Pretraining) -> Editor:
    """The pre-trained editor of a folder, trained here where it is not done; a run that was stopped goes on."""
    torch.manual_seed(settings.seed)
    editor = Editor(width=settings.width, layers=settings.layers)
    optimizer = _optimizer(editor, settings)
    state = read_state(folder / "pretraining.pt", asdict(settings))
    if state:
        editor.load_state_dict(state["editor"])
        optimizer.load_state_dict(state["optimizer"])
    done, losses = (state["step"], state["losses"]) if state else (0, [])
    if done < settings.steps:
        triples = draw_triples(settings.triples, settings.seed, heldout=False)
        ids_NT = word_ids(triples.instructions)
    for step in tqdm(range(done, settings.steps), desc="pre-training", initial=done, total=settings.steps):
        # Numbers of a step's own: a run that goes on draws what it would have drawn.
        rng, generator = np.random.default_rng([settings.seed, step]), torch.Generator().manual_seed(step)
        chosen = rng.integers(len(triples), size=settings.batch)
        source_BCHW, target_BCHW = (to_tensor(each[chosen]) for each in (triples.source_NHWC, triples.target_NHWC))
        uniform_B = torch.rand(settings.batch, generator=generator)
        t_B = settings.shift * uniform_B / (1 + (settings.shift - 1) * uniform_B)
        noise_BCHW = torch.randn(target_BCHW.shape, generator=generator)
        loss = flow_matching_loss(
            editor, source_BCHW, target_BCHW, ids_NT[chosen], t_B, noise_BCHW, least_t=settings.least_t
        )
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * _share(step, settings)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(editor.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            state = {"editor": editor.state_dict(), "optimizer": optimizer.state_dict()}
            write_state(folder / "pretraining.pt", asdict(settings), state | {"step": step + 1, "losses": losses})
            tqdm.write(f"pre-training step {step + 1}: loss {np.mean(losses[-settings.save_every :]):.4f}")
    return editor.eval()


def flow_matching_loss(
    editor: Editor,
    source_BCHW: torch.Tensor,
    target_BCHW: torch.Tensor,
    ids_BT: torch.Tensor,
    t_B: torch.Tensor,
    noise_BCHW: torch.Tensor,
    *,
    least_t: float,
) -> torch.Tensor:
    """Mean of |x0 predicted - target|² / max(t, least_t)²: above `least_t` that is the error of the velocity."""
    t_B111 = t_B[:, None, None, None]
    x_BCHW = (1 - t_B111) * target_BCHW + t_B111 * noise_BCHW
    error_BCHW = editor.clean(x_BCHW, source_BCHW, ids_BT, t_B) - target_BCHW
    return ((error_BCHW**2).mean((1, 2, 3)) / t_B.clamp(min=least_t) ** 2).mean()


def _optimizer(editor: Editor, settings: Pretraining) -> MuonWithAdamW:
    matrices, rest = [], []
    for name, parameter in editor.named_parameters():
        is_matrix = "transformer_blocks" in name and parameter.ndim == 2 and "norm" not in name
        (matrices if is_matrix else rest).append(parameter)
    groups = [{"params": matrices, "muon": True, "lr": settings.muon}, {"params": rest, "lr": settings.adamw}]
    optimizer = MuonWithAdamW(groups, lr=settings.adamw, weight_decay=0.01)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def _share(step: int, settings: Pretraining) -> float:
    """Of the learning rate: it rises in the beginning, and falls to nothing over the second half."""
    half = settings.steps / 2
    return min((step + 1) / settings.warm_up, 1.0, 1.02 - max(0.0, step - half) / half)
