"""Flow-GRPO: the editor learns from nothing but the judge's scores of its own pictures.

For each prompt a group of G pictures is sampled, the first steps by the SDE. With the reward r_i of picture i, its
advantage A_i = (r_i - mean r) / std r, and the ratio ρ = exp(log π_θ(x'|x) - log π_old(x'|x)) of each stochastic step,

    loss = mean over pictures and steps of
           -min(ρ A, clip(ρ, 1 - ε_low, 1 + ε_high) A) + β KL(π_θ(.|x) || π_base(.|x))

with ε_low = 1e-4 and ε_high = 5e-4 as in the paper (section 4.5, appendix B.2). Log-probability and KL are means over
the 6912 numbers of a picture, so ρ stays near 1, and β = 0.3 asks for little: a nat of the picture costs 0.3 / 6912.

All weights learn, and KL is to a frozen copy of the base. With `lora`, LoRA factors of that rank learn instead, as in
the paper, and the base is the editor with its factors left out, so that no second copy stands in memory.
The steps that are not trained on, those of the ODE, are the base's: weights are shared over the steps, so that they
would drift, and no reward sees the speckle that comes of it.

Shape suffixes: S stochastic steps, B pictures, P prompts, G pictures of a prompt, K those of them that are trained on,
C channels, H height, W width, T words.
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from examples.image_editor.data import Triples, draw_triples, to_pictures, to_tensor, word_ids
from examples.image_editor.editor import Editor, WithoutLoRA
from examples.image_editor.reward import judge_pictures
from examples.image_editor.sampler import Samples, Step, Velocity, divergence, log_probability, sample, step_of, times
from examples.image_editor.states import read_state, write_state
from jrm_plugin.errors import JRMError
from jrm_plugin.judged_rollouts import RolloutJudge
from jrm_plugin.records.scores import group_advantages


@dataclass(frozen=True)
class FlowGRPO:
    """Settings of a run."""

    kinds: Sequence[str] = ("recolour", "remove")
    iterations: int = 20  # more of them go on from fewer
    prompts: int = 8  # P, an iteration
    group: int = 12  # G
    kept: int = 8  # K: of a group, those of largest |advantage|
    updates: int = 2  # an iteration, each of its share of the prompts
    steps: int = 10
    stochastic: int = 4  # of the steps, the first ones; these are trained on
    noise: float = 0.7  # a of the SDE
    learning_rate: float = 3e-4
    lora: int | None = None  # rank of the factors that learn; None: all weights learn
    clip_low: float = 1e-4
    clip_high: float = 5e-4
    beta: float = 0.3  # of the KL to the base
    frozen_late: bool = True  # the other steps are the base's
    pool: int = 1500  # training prompts to draw from
    save_every: int = 5
    seed: int = 0


Base = Editor | WithoutLoRA
# Called with the number of iterations done, the editor, and the base: what it returns is kept in the run's history.
Measure = Callable[[int, Editor, Base], dict[str, Any]]
# Called with the number of iterations done before, the prompts, and the pictures `[B, 48, 48, 3]` of the iteration.
Collect = Callable[[int, Triples, np.ndarray], None]


@dataclass
class Run:
    """What a run leaves.

    Attributes:
        editor: after the last iteration.
        base: before the first one.
        iterations: of each, its mean reward, what the guards saw, KL, the share of clipped ratios, and the seconds of
            the process (over all threads, so that other work on the machine counts little) by part.
        measured: what `measure` returned, each with its `iteration`.
    """

    editor: Editor
    base: Base
    iterations: list[dict[str, float]]
    measured: list[dict[str, Any]]


def train(
    editor: Editor,
    judge: RolloutJudge,
    file: Path,
    settings: FlowGRPO,
    *,
    named: str,
    measure: Measure | None = None,
    measure_every: int = 10,
    collect: Collect | None = None,
) -> Run:
    """Trains a copy of the editor, or goes on where an earlier call with this file was stopped.

    Args:
        editor: the base.
        judge: gives the rewards.
        file: where the state is kept, every `save_every` iterations.
        named: the judge's name, which the state is of as well.
        measure: called at the beginning and after every `measure_every` iterations.
        collect: called in every iteration, with the pictures that were judged.
    """
    if settings.prompts % settings.updates:
        raise JRMError(f"{settings.prompts} prompts do not divide into {settings.updates} updates of equal size.")
    if settings.lora is not None and settings.lora < 1:
        raise JRMError(f"LoRA factors have a rank of at least 1, not {settings.lora}.")
    policy = copy.deepcopy(editor).requires_grad_(True).eval()
    if settings.lora is None:
        base: Base = copy.deepcopy(editor).requires_grad_(False).eval()
    else:
        torch.manual_seed(settings.seed)
        policy.add_lora(settings.lora)
        base = WithoutLoRA(policy)
    learned = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=1e-4)
    identity = asdict(settings) | {"kinds": list(settings.kinds), "judge": named}
    left_out = {"iterations", "save_every"} | ({"lora"} if settings.lora is None else set())
    identity = {name: identity[name] for name in identity if name not in left_out}
    run = Run(policy, base, [], [])
    state = read_state(file, identity)
    if state:
        policy.load_state_dict(state["editor"])
        optimizer.load_state_dict(state["optimizer"])
        run.iterations, run.measured = state["iterations"], state["measured"]
    if len(run.iterations) > settings.iterations:
        raise JRMError(f"{file} has {len(run.iterations)} iterations, more than {settings.iterations}; remove it.")
    if len(run.iterations) == settings.iterations:
        return run
    if measure and not run.measured:
        run.measured.append({"iteration": 0} | measure(0, policy, base))
    pool = draw_triples(settings.pool, 100 + settings.seed, heldout=False, right=1.0, blurred=0.0, kinds=settings.kinds)
    t = times(settings.steps)
    bar = tqdm(range(len(run.iterations), settings.iterations), desc=file.stem, leave=False)
    for iteration in bar:
        line = _iterate(iteration, policy, base, optimizer, judge, pool, t, settings, collect)
        run.iterations.append(line)
        done = iteration + 1
        bar.set_postfix(reward=f"{line['reward']:.2f}")
        if measure and (done % measure_every == 0 or done == settings.iterations):
            run.measured.append({"iteration": done} | measure(done, policy, base))
        if done % settings.save_every == 0 or done == settings.iterations:
            kept = {"editor": policy.state_dict(), "optimizer": optimizer.state_dict()}
            write_state(file, identity, kept | {"iterations": run.iterations, "measured": run.measured})
    return run


def _iterate(
    iteration: int,
    policy: Editor,
    base: Base,
    optimizer: torch.optim.Optimizer,
    judge: RolloutJudge,
    pool: Triples,
    t: Sequence[float],
    settings: FlowGRPO,
    collect: Collect | None,
) -> dict[str, float]:
    """Sampling, reward, updates; what is to be logged."""
    started = time.process_time()
    rollouts = sample_groups(iteration, policy, base, pool, t, settings)
    sampled = time.process_time()
    judged = judge_pictures(judge, rollouts.prompts.source_NHWC, rollouts.prompts.instructions, rollouts.pictures_BHWC)
    if collect:
        collect(iteration, rollouts.prompts, rollouts.pictures_BHWC)
    rewarded = time.process_time()
    logged = update(policy, base, optimizer, rollouts, advantages(judged.rewards, settings.group), t, settings)
    logged |= {
        "reward": float(np.mean([value for rewards in judged.rewards.values() for value in rewards])),
        "seconds_sampling": sampled - started,
        "seconds_reward": rewarded - sampled,
        "seconds_training": time.process_time() - rewarded,
    }
    return logged | dict(judged.metrics)


class Rollouts(NamedTuple):
    """The pictures of an iteration, B = P · G of them, those of a prompt one after the other."""

    prompts: Triples  # B rows
    source_BCHW: torch.Tensor
    ids_BT: torch.Tensor
    samples: Samples
    pictures_BHWC: np.ndarray


def sample_groups(
    iteration: int, policy: Editor, base: Base, pool: Triples, t: Sequence[float], settings: FlowGRPO
) -> Rollouts:
    """G pictures for each of P prompts, each from noise of its own."""
    # Numbers of an iteration's own: a run that goes on draws what it would have drawn.
    rng = np.random.default_rng([settings.seed, iteration])
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    prompts = pool.rows(np.repeat(rng.choice(len(pool), settings.prompts, replace=False), settings.group))
    source_BCHW, ids_BT = to_tensor(prompts.source_NHWC), word_ids(prompts.instructions)
    samples = sample(
        velocities(policy, base, settings),
        source_BCHW,
        ids_BT,
        t,
        generator,
        stochastic=settings.stochastic,
        noise=settings.noise,
    )
    return Rollouts(prompts, source_BCHW, ids_BT, samples, to_pictures(samples.x_BCHW))


def advantages(rewards: Mapping[str, Sequence[float | None]], group: int) -> torch.Tensor:
    """`[P, G]`: rewards normalised within their groups; of several dimensions each by itself, added up (GDPO)."""
    total = 0.0
    for values in rewards.values():
        groups = np.array(values, dtype=float).reshape(-1, group)
        total += torch.tensor([group_advantages(values_G.tolist()) for values_G in groups])
    return total


def update(
    policy: Editor,
    base: Base,
    optimizer: torch.optim.Optimizer,
    rollouts: Rollouts,
    advantages_PG: torch.Tensor,
    t: Sequence[float],
    settings: FlowGRPO,
) -> dict[str, float]:
    """The updates of an iteration, each by some of the prompts; means of what `step_loss` measured."""
    best_PK = advantages_PG.abs().topk(settings.kept, dim=1).indices
    rows_PK = best_PK + settings.group * torch.arange(settings.prompts)[:, None]
    steps = [step_of(t, k, settings.noise) for k in range(settings.stochastic)]
    logged = {"kl": 0.0, "clipped": 0.0}
    for rows in rows_PK.flatten().chunk(settings.updates):
        for k, step in enumerate(steps):
            loss, measured = step_loss(policy, base, rollouts, advantages_PG.flatten(), rows, k, t[k], step, settings)
            (loss / len(steps)).backward()
            for name, value in measured.items():
                logged[name] += value / (len(steps) * settings.updates)
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return logged


def velocities(policy: Editor, base: Base, settings: FlowGRPO) -> list[Velocity]:
    """Of each step: the policy's where it is trained, the base's in the others (`frozen_late`)."""
    late = base if settings.frozen_late else policy
    others = settings.steps - settings.stochastic
    return [policy.velocity] * settings.stochastic + [late.velocity] * others


def step_loss(
    policy: Editor,
    base: Base,
    rollouts: Rollouts,
    advantages_B: torch.Tensor,
    rows: torch.Tensor,
    k: int,
    t: float,
    step: Step,
    settings: FlowGRPO,
) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of stochastic step k, at time t, over some of the pictures; its mean KL and share of clipped ratios."""
    samples, deviation_B = rollouts.samples, torch.full((len(rows),), step.deviation)
    x_BCHW, given = samples.before_SBCHW[k, rows], (rollouts.source_BCHW[rows], rollouts.ids_BT[rows])
    t_B = torch.full((len(rows),), t)
    mean_BCHW = step.of_x * x_BCHW + step.of_v * policy.velocity(x_BCHW, *given, t_B)
    with torch.no_grad():
        base_mean_BCHW = step.of_x * x_BCHW + step.of_v * base.velocity(x_BCHW, *given, t_B)
    log_probability_B = log_probability(samples.after_SBCHW[k, rows], mean_BCHW, deviation_B)
    ratio_B = (log_probability_B - samples.log_probability_SB[k, rows]).exp()
    kl_B = divergence(mean_BCHW, base_mean_BCHW, deviation_B)
    low, high = 1 - settings.clip_low, 1 + settings.clip_high
    gain_B = torch.minimum(ratio_B * advantages_B[rows], ratio_B.clamp(low, high) * advantages_B[rows])
    clipped = ((ratio_B < low) | (ratio_B > high)).float().mean().item()
    return (settings.beta * kl_B - gain_B).mean(), {"kl": kl_B.mean().item(), "clipped": clipped}
