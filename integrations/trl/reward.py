"""JRM as a reward function of TRL's `GRPOTrainer` and `RLOOTrainer`."""

import json
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from itertools import chain
from operator import is_
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from jrm_plugin.errors import JRMError, as_jrm_error
from jrm_plugin.records.images import digest, plain_image
from jrm_plugin.records.samples import OVERALL, Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.rollouts import InvalidAnswer, RolloutReward, source_in
from jrm_plugin.saved_rollouts import SavedRollouts, saved_rollouts
from jrm_plugin.scoring.loading import load_scorer
from jrm_plugin.scoring.protocol import Scorer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class JRMReward:
    """A reward function that scores what the policy wrote, or the image that was made of it, with a JRM checkpoint.

    The dataset needs the column `instruction`, and for edits `source_image` (or `source_images`, with a list in each
    row; without either, TRL's `image` or `images`): whatever `Sample` takes as an image. What is scored is

    - with `render`, the image that it makes of the completion;
    - with the task `response`, the completion itself, a text answer to the instruction;
    - otherwise the column `edited_image`, as a rollout function adds it.

    Args:
        model: a JRM folder, a LoRA folder, a hub name, `jrm-tiny` (the default, which knows
            coloured shapes only, and says so), or a [`Scorer`].
        task: `edit`, `generation` (no source image) or `response` (with or without source images).
        render: a callable, or its dotted path (`package.module.name`, installed or in the current folder), that takes a
            completion's text and its row of the dataset (a dict, with `prompt`) and returns the image, or raises
            [`InvalidAnswer`].
        mode, floor, k, beta, dimension: as in [`RolloutReward`]. A group is all completions with the same prompt,
            instruction and source images in this process.
        on_error: `raise` the error of a completion that cannot be scored, give it the `floor`, or `leave_out` its
            reward: it is None, which TRL leaves out of the group's mean and deviation.
        device, dtype: as in `RewardScorer.from_pretrained`; `dtype` also by name.
        save_images, save_folder: keeps one of so many rollouts with its images, as [`SavedRollouts`] says.

    Logs the means of mu and sigma by dimension, and the shares of invalid answers and of what could not be scored, as
    metrics, and, where TRL logs completions, one column with each candidate's mu and sigma, its error, and, where it
    was kept, the path of its image in `save_folder`.

    Raises:
        JRMError: an argument is wrong or there is no such checkpoint; when called, a column is missing, a sample cannot
            be scored (with `on_error="raise"`), or a group for `win_rate` has one candidate.

    Example:
        >>> trainer = GRPOTrainer("Qwen/Qwen3-0.6B", JRMReward("outputs/jrm", task="response"), train_dataset=dataset)
    """

    def __init__(
        self,
        model: str | Path | Scorer | None = None,
        *,
        task: str = "edit",
        render: str | Callable[[str, dict], Any] | None = None,
        mode: str = "mean",
        floor: float | None = None,
        on_error: str = "raise",
        k: float = 1.0,
        beta: float = 1.0,
        dimension: str = OVERALL,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        save_images: int | None = None,
        save_folder: str | Path | None = None,
    ):
        rollouts = RolloutReward(task, render, mode, k, floor, on_error, dimension, beta)
        dtype = as_dtype(dtype)
        saved = saved_rollouts(save_images, save_folder)
        self._judge = _Judge(load_scorer(model, device=device, dtype=dtype), [rollouts], saved)
        self._give(rollouts)

    def _give(self, rollouts: RolloutReward) -> None:
        self.dimension = rollouts.dimension
        # what TRL calls this reward in its logs
        self.__name__ = "jrm_reward" if self.dimension == OVERALL else f"jrm_{self.dimension}"

    def __call__(
        self,
        prompts: Sequence,
        completions: Sequence,
        completion_ids: Sequence | None = None,
        trainer_state: Any = None,
        log_extra: Callable[[str, list], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """The reward of each completion; the arguments are those with which TRL calls a reward function."""
        step = None if trainer_state is None else trainer_state.global_step
        name = self.__name__ if len(self._judge.objectives) == 1 else "jrm_reward"  # what they log is one for all
        return self._judge.rewards(name, self.dimension, prompts, completions, columns, step, log_extra, log_metric)


def jrm_rewards(
    model: str | Path | Scorer | None = None,
    dimensions: Sequence[str] | None = None,
    *,
    on_error: str = "leave_out",
    **options: Any,
) -> list[JRMReward]:
    """One reward function for each dimension; what TRL asks them in one step is scored once.

    For `multi_objective_aggregation="normalize_then_sum"` of `GRPOConfig` (GDPO, arXiv 2601.05242), which normalises
    each function's rewards within the group before it adds them up.

    Args:
        model: as in [`JRMReward`].
        dimensions: in this order; by default all of the model's. `overall` may be one.
        on_error: as in [`JRMReward`]; by default a completion that cannot be scored has no reward.
        options: the other arguments of [`JRMReward`], but `dimension`.

    Raises:
        JRMError: a dimension is unknown or there twice, there is none, or what [`JRMReward`] raises.

    Example:
        >>> rewards = jrm_rewards("outputs/jrm", render=draw, floor=-5.0)
        >>> trainer = GRPOTrainer("Qwen/Qwen3-0.6B", rewards, GRPOConfig(…), train_dataset=dataset)
    """
    first = JRMReward(model, on_error=on_error, dimension=OVERALL, **options)
    names = first._judge.scorer.dimensions if dimensions is None else list(dimensions)
    if not names or len({*names}) < len(names):
        raise JRMError(f"the dimensions of JRM rewards must be one or more, each once, not {names}.")
    (rollouts,) = first._judge.objectives.values()
    objectives = [replace(rollouts, dimension=name) for name in names]
    judge = _Judge(first._judge.scorer, objectives, first._judge.saved)
    rewards = [copy(first) for _ in names]
    for reward, objective in zip(rewards, objectives, strict=True):
        reward._judge = judge
        reward._give(objective)
    return rewards


class _Judge:
    """Scores the completions of a step, once for all objectives that are asked about them one after the other."""

    def __init__(self, scorer: Scorer, objectives: Sequence[RolloutReward], saved: SavedRollouts | None):
        for rollouts in objectives:
            rollouts.check_dimension(scorer.dimensions)
        self.scorer, self.saved = scorer, saved
        self.objectives = {rollouts.dimension: rollouts for rollouts in objectives}
        self.rollouts = objectives[0]  # they differ in the dimension only
        self._asked: list = []  # the arguments of the last call
        self._rewards: dict[str, list[float | None]] = {}  # of those objectives that have not got them yet

    def rewards(
        self,
        name: str,
        dimension: str,
        prompts: Sequence,
        completions: Sequence,
        columns: Mapping[str, Any],
        step: int | None,
        log_extra: Callable[[str, list], None] | None,
        log_metric: Callable[[str, float], None] | None,
    ) -> list[float | None]:
        """The rewards of one objective. The first that is asked has them computed for all, and logged as `name`."""
        asked = [prompts, *prompts, completions, *completions, *chain(*columns.values())]
        same = len(asked) == len(self._asked) and all(map(is_, asked, self._asked))
        if not same or dimension not in self._rewards:
            self.rollouts.check_columns(columns)
            samples = self._samples(prompts, completions, columns)
            unedited = self.rollouts.unedited_sources(
                [sample if isinstance(sample, Sample) else None for sample in samples]
            )
            scores, sources = self._score(samples, unedited)
            groups = [*self._groups(prompts, columns)] if self.rollouts.mode == "win_rate" else []
            self._rewards = {
                objective.dimension: objective.rewards(scores, groups, sources, name="completion")
                for objective in self.objectives.values()
            }
            self._asked = asked
            if log_metric is not None:
                self._log_metrics(name, scores, log_metric)
            paths = self._save(samples, scores, completions, step)
            if log_extra is not None:
                candidates = [self._candidate(*each) for each in zip(scores, paths, strict=True)]
                log_extra(f"{name} scores", candidates)
        rewards = self._rewards.pop(dimension)
        if not self._rewards:
            self._asked = []  # images are large
        return rewards

    def _samples(
        self, prompts: Sequence, completions: Sequence, columns: Mapping[str, Any]
    ) -> list[Sample | JRMError | None]:
        """The sample of each completion, or its error; None for an invalid answer."""
        samples: list[Sample | JRMError | None] = []
        for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            row = {name: values[number] for name, values in columns.items()} | {"prompt": prompt}
            try:
                samples.append(self.rollouts.sample(_text(completion), row))
            except InvalidAnswer:
                samples.append(None)
            except JRMError as error:
                samples.append(error)
        return samples

    def _score(self, *lists: Sequence[Sample | JRMError | None]) -> list[list[RewardScore | JRMError | None]]:
        """The scores of several lists of samples, computed together, or their errors; None stays None."""
        samples = [sample for samples in lists for sample in samples if isinstance(sample, Sample)]
        scores = iter(self.scorer.score(samples, on_error="return"))
        return [[next(scores) if isinstance(sample, Sample) else sample for sample in samples] for samples in lists]

    def _groups(self, prompts: Sequence, columns: Mapping[str, Any]) -> Iterator[Hashable]:
        """What the candidates of a group have in common, for each completion."""
        sources = source_in(columns)
        for number, prompt in enumerate(prompts):
            with as_jrm_error(f"completion {number}: its prompt and source images cannot be compared"):
                shown = None if sources is None else _source_key(sources[number])
                text = json.dumps(prompt, default=_content_key)
            yield text, columns["instruction"][number], shown

    # -- what is logged

    def _save(
        self,
        samples: Sequence[Sample | JRMError | None],
        scores: Sequence[RewardScore | JRMError | None],
        completions: Sequence,
        step: int | None,
    ) -> list[str | None]:
        """The path of each candidate's image, where it was kept."""
        paths: list[str | None] = [None] * len(scores)
        for number, (sample, score) in enumerate(zip(samples, scores, strict=True)):
            if self.saved is not None and isinstance(score, RewardScore):
                several = len(self.objectives) > 1
                rewards = {
                    f"reward_{name}" if several else "reward": rewards[number]
                    for name, rewards in self._rewards.items()
                }
                paths[number] = self.saved.save(sample, score, _text(completions[number]), **rewards, step=step)
        return paths

    def _log_metrics(
        self, name: str, scores: Sequence[RewardScore | JRMError | None], log_metric: Callable[[str, float], None]
    ) -> None:
        scored = [score for score in scores if isinstance(score, RewardScore)]
        for dimension in scored[0].mu if scored else ():
            for kind in ("mu", "sigma"):
                total = math.fsum(getattr(score, kind)[dimension] for score in scored)
                log_metric(f"{name}/{dimension}/{kind}", total / len(scored))
        invalid = scores.count(None)
        if self.rollouts.floor is not None and scores:
            log_metric(f"{name}/invalid_answers", invalid / len(scores))
        if self.rollouts.on_error != "raise" and scores:
            log_metric(f"{name}/unscorable", (len(scores) - len(scored) - invalid) / len(scores))

    def _candidate(self, score: RewardScore | JRMError | None, path: str | None) -> "_Candidate":
        values: dict[str, Any] = {}
        for name in (OVERALL, *self.scorer.dimensions):
            values[f"mu_{name}"] = score.mu[name] if isinstance(score, RewardScore) else None
            values[f"sigma_{name}"] = score.sigma[name] if isinstance(score, RewardScore) else None
        return _Candidate(values, error=str(score) if isinstance(score, JRMError) else None, image=path)


class _Candidate(dict):
    """What the model thinks of a candidate: a record in TRL's Parquet file, and short lines in the table it prints."""

    def __str__(self) -> str:
        names = [name.removeprefix("mu_") for name in self if name.startswith("mu_")]
        if self[f"mu_{OVERALL}"] is None:
            return "invalid answer" if self["error"] is None else "cannot be scored"
        values = (f"{self[f'mu_{name}']:+.2f} ±{self[f'sigma_{name}']:.2f}" for name in names)
        lines = [f"{name.replace('_', ' ')}\n{value}" for name, value in zip(names, values, strict=True)]
        return "\n".join([*lines, Path(self["image"]).name] if self["image"] else lines)


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Raises a `JRMError` for a name that is none of `DTYPES`."""
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise JRMError(f"dtype must be {', '.join(DTYPES)} or left out, not {dtype!r}.")
    return DTYPES[dtype] if isinstance(dtype, str) else dtype


def _text(completion: Any) -> str:
    """The text of a completion in either of TRL's forms."""
    if isinstance(completion, (list, tuple)) and completion and isinstance(completion[-1], Mapping):
        completion = completion[-1].get("content")
    if not isinstance(completion, str):
        raise JRMError(f"it must be text or messages with text, not {str(completion)[:80]}.")
    return completion


def _content_key(value: Any) -> str:
    """Of what stands in a prompt beside text: an image is what it shows, not which object it is."""
    return digest(value).hex() if isinstance(value, (bytes, np.ndarray, Image.Image)) else str(value)


def _source_key(sources: Any) -> tuple[bytes, ...]:
    """Equal for equal source images."""
    images = map(plain_image, sources if isinstance(sources, (list, tuple)) else [sources])
    return tuple(digest(image) for image in images if image is not None)
