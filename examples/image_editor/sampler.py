"""Flow-GRPO's sampler (arXiv 2505.05470): some steps are stochastic, so that each of them has a probability.

An ordinary step of the sampler follows the ODE dx = v dt, from t to t + Δt with Δt < 0. The SDE

    dx = [v + σ²/(2t) (x + (1 - t) v)] dt + σ dw,        σ = a sqrt(t / (1 - t)),

has the same distribution of x at every t, and noise: the new x is a Gaussian around the step's mean,

    π(x' | x) = N(μ, s²),    μ = x + [v + σ²/(2t) (x + (1 - t) v)] Δt,    s = σ sqrt(-Δt).

At a = 0 that is the ODE's step. At t = 1, where σ is infinite, 1 - t is taken from the step after.

Shape suffixes: S stochastic steps, B pictures, C channels, H height, W width, T words.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

# (x_BCHW, source_BCHW, ids_BT, t_B) to dx/dt, as `Editor.velocity`
Velocity = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def times(steps: int, shift: float = 3.0) -> list[float]:
    """The t of each step, 1 first, and 0 behind them: those of diffusers' scheduler."""
    from diffusers import FlowMatchEulerDiscreteScheduler  # takes seconds to import

    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    return scheduler.sigmas.tolist()


class Step(NamedTuple):
    """A step in numbers: μ = of_x · x + of_v · v, and the deviation s."""

    of_x: float
    of_v: float
    deviation: float


def step_of(t: Sequence[float], k: int, noise: float) -> Step:
    """The step from t[k] to t[k + 1] with a = `noise`."""
    delta = t[k + 1] - t[k]
    sigma = noise * (t[k] / (1 - min(t[k], t[1]))) ** 0.5
    drift = sigma**2 / (2 * t[k])
    return Step(1 + drift * delta, (1 + drift * (1 - t[k])) * delta, sigma * (-delta) ** 0.5)


def log_probability(x_BCHW: torch.Tensor, mean_BCHW: torch.Tensor, deviation_B: torch.Tensor) -> torch.Tensor:
    """log N(x; μ, s²), `[B]`: the mean over the numbers of a picture, as Flow-GRPO takes it, not their sum."""
    log_s_B = torch.log(deviation_B) + 0.5 * np.log(2 * np.pi)
    return -((x_BCHW - mean_BCHW) ** 2).mean((1, 2, 3)) / (2 * deviation_B**2) - log_s_B


def divergence(mean_BCHW: torch.Tensor, other_BCHW: torch.Tensor, deviation_B: torch.Tensor) -> torch.Tensor:
    """KL(N(μ, s²) || N(μ', s²)) = |μ - μ'|² / 2s², `[B]`: likewise the mean over the numbers of a picture."""
    return ((mean_BCHW - other_BCHW) ** 2).mean((1, 2, 3)) / (2 * deviation_B**2)


class Samples(NamedTuple):
    """Pictures, and the stochastic steps that led to them."""

    x_BCHW: torch.Tensor
    before_SBCHW: torch.Tensor  # x of each stochastic step,
    after_SBCHW: torch.Tensor  # what was drawn of it,
    log_probability_SB: torch.Tensor  # and how probable that was


@torch.no_grad()
def sample(
    velocities: Sequence[Velocity],
    source_BCHW: torch.Tensor,
    ids_BT: torch.Tensor,
    t: Sequence[float],
    generator: torch.Generator,
    *,
    stochastic: int = 0,
    noise: float = 0.7,
    batch: int = 96,
) -> Samples:
    """Edited pictures from noise.

    Args:
        velocities: of each step; an editor may hand some of them to another one.
        t: of each step, and 0, as `times` gives them.
        stochastic: so many steps, the first ones, are the SDE's; the others are the ODE's.
        noise: a of the SDE.
        batch: pictures at once.
    """
    result = Samples(
        torch.empty_like(source_BCHW),
        torch.empty(stochastic, *source_BCHW.shape),
        torch.empty(stochastic, *source_BCHW.shape),
        torch.empty(stochastic, len(source_BCHW)),
    )
    for rows in torch.arange(len(source_BCHW)).split(batch):
        x_BCHW = torch.randn(source_BCHW[rows].shape, generator=generator)
        for k, velocity in enumerate(velocities):
            v_BCHW = velocity(x_BCHW, source_BCHW[rows], ids_BT[rows], torch.full((len(rows),), t[k]))
            step = step_of(t, k, noise if k < stochastic else 0.0)
            mean_BCHW = step.of_x * x_BCHW + step.of_v * v_BCHW
            if k < stochastic:
                result.before_SBCHW[k, rows] = x_BCHW
                x_BCHW = mean_BCHW + step.deviation * torch.randn(mean_BCHW.shape, generator=generator)
                result.after_SBCHW[k, rows] = x_BCHW
                deviation_B = torch.full((len(rows),), step.deviation)
                result.log_probability_SB[k, rows] = log_probability(x_BCHW, mean_BCHW, deviation_B)
            else:
                x_BCHW = mean_BCHW
        result.x_BCHW[rows] = x_BCHW
    return result
