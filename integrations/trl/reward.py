"""JRM as a reward function of TRL's `GRPOTrainer` and `RLOOTrainer`."""

import json
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import chain
from operator import is_
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from jrm_plugin.errors import JRMError, as_jrm_error
from jrm_plugin.judged_rollouts import JudgedRollouts, RolloutJudge
from jrm_plugin.records.images import digest, plain_image
from jrm_plugin.records.samples import OVERALL
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.rollouts import source_in
from jrm_plugin.scoring.protocol import Scorer


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
        mode, floor, k, beta, dimension, unedited, undecided, win_threshold: as in [`RolloutReward`]. A group is all
            completions with the same prompt, instruction and source images in this process.
        on_error: `raise` the error of a completion that cannot be scored, give it the `floor`, or `leave_out` its
            reward: it is None, which TRL leaves out of the group's mean and deviation.
        device, dtype: as in `load_scorer`.
        second_judge, second_judge_every: another model, that scores one of so many completions, and of which only the
            log speaks.
        save_images, save_folder: keeps one of so many rollouts with its images, as [`SavedRollouts`] says.

    It can be pickled: the model is sent as its settings, and loads where it is read.

    Logs the metrics of [`JudgedRollouts`], and, where TRL logs completions, one column with each candidate's mu and
    sigma, its error, and, where it was kept, the path of its image in `save_folder`.

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
        unedited: str = "count",
        undecided: str = "count",
        win_threshold: float = 0.9,
        second_judge: str | Path | Scorer | None = None,
        second_judge_every: int = 8,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        save_images: int | None = None,
        save_folder: str | Path | None = None,
    ):
        settings = dict(locals())
        del settings["self"]
        self._take(_Shared(RolloutJudge.load(**settings)), dimension)

    def _take(self, shared: "_Shared", dimension: str) -> None:
        self._shared, self.dimension = shared, dimension
        # what TRL calls this reward in its logs
        self.__name__ = "jrm_reward" if dimension == OVERALL else f"jrm_{dimension}"

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
        name = (
            self.__name__ if len(self._shared.judge.objectives) == 1 else "jrm_reward"
        )  # what they log is one for all
        return self._shared.rewards(name, self.dimension, prompts, completions, columns, step, log_extra, log_metric)


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
    dimensions = "all" if dimensions is None else dimensions
    shared = _Shared(RolloutJudge.load(model, dimensions=dimensions, on_error=on_error, **options))
    rewards = []
    for objective in shared.judge.objectives:
        reward = JRMReward.__new__(JRMReward)
        reward._take(shared, objective.dimension)
        rewards.append(reward)
    return rewards


class _Shared:
    """Has the completions of a step judged once for all rewards that are asked about them, in turn or side by side."""

    def __init__(self, judge: RolloutJudge):
        self.judge = judge
        self._lock = threading.Lock()
        self._asked: list = []  # the arguments of the last call
        self._rewards: dict[str, Sequence[float | None]] = {}  # of those objectives that have not got them yet

    def __reduce__(self) -> tuple[type, tuple[RolloutJudge]]:
        return _Shared, (self.judge,)

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
        with self._lock:
            same = len(asked) == len(self._asked) and all(map(is_, asked, self._asked))
            if not same or dimension not in self._rewards:
                judged = self._judged(prompts, completions, columns, step)
                self._asked, self._rewards = asked, dict(judged.rewards)
                if log_metric is not None:
                    for metric, value in judged.metrics.items():
                        log_metric(f"{name}/{metric}", value)
                if log_extra is not None:
                    candidates = [self._candidate(*each) for each in zip(judged.scores, judged.paths, strict=True)]
                    log_extra(f"{name} scores", candidates)
            rewards = self._rewards.pop(dimension)
            if not self._rewards:
                self._asked = []  # images are large
            return list(rewards)

    def _judged(
        self, prompts: Sequence, completions: Sequence, columns: Mapping[str, Any], step: int | None
    ) -> JudgedRollouts:
        self.judge.rollouts.check_columns(columns)
        texts = [_text(completion) for completion in completions]
        rows = [
            {name: values[number] for name, values in columns.items()} | {"prompt": prompt}
            for number, prompt in enumerate(prompts)
        ]
        groups = [*self._groups(prompts, columns)]
        return self.judge(texts, rows, groups, name="completion", marks={"step": step})

    def _groups(self, prompts: Sequence, columns: Mapping[str, Any]) -> Iterator[Hashable]:
        """What the candidates of a group have in common, for each completion."""
        sources = source_in(columns)
        for number, prompt in enumerate(prompts):
            try:
                with as_jrm_error(f"completion {number}: its prompt and source images cannot be compared"):
                    shown = None if sources is None else _source_key(sources[number])
                    text = json.dumps(prompt, default=_content_key)
            except JRMError:
                if self.judge.rollouts.mode == "win_rate" or self.judge.rollouts.undecided == "equal":
                    raise
                yield number  # no reward needs its group, and scoring says what is wrong with its images
            else:
                yield text, columns["instruction"][number], shown

    def _candidate(self, score: RewardScore | JRMError | None, path: str | None) -> "_Candidate":
        values: dict[str, Any] = {}
        for name in (OVERALL, *self.judge.scorer.dimensions):
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


def _text(completion: Any) -> str | JRMError:
    """The text of a completion in either of TRL's forms; anything else is its error."""
    if isinstance(completion, (list, tuple)) and completion and isinstance(completion[-1], Mapping):
        completion = completion[-1].get("content")
    if not isinstance(completion, str):
        return JRMError(f"it must be text or messages with text, not {str(completion)[:80]}.")
    return completion


def _content_key(value: Any) -> str:
    """Of what stands in a prompt beside text: an image is what it shows, not which object it is."""
    return digest(value).hex() if isinstance(value, (bytes, np.ndarray, Image.Image)) else str(value)


def _source_key(sources: Any) -> tuple[bytes, ...]:
    """Equal for equal source images."""
    images = map(plain_image, sources if isinstance(sources, (list, tuple)) else [sources])
    return tuple(digest(image) for image in images if image is not None)
