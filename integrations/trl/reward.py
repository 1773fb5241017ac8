"""JRM as a reward function of TRL's `GRPOTrainer` and `RLOOTrainer`."""

import json
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from jrm_plugin.errors import JRMError, as_jrm_error
from jrm_plugin.records.images import digest, plain_image
from jrm_plugin.records.samples import OVERALL, Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.rollouts import InvalidAnswer, RolloutReward
from jrm_plugin.saved_rollouts import saved_rollouts
from jrm_plugin.scoring.loading import load_scorer
from jrm_plugin.scoring.protocol import Scorer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class JRMReward:
    """A reward function that scores what the policy wrote, or the image that was made of it, with a JRM checkpoint.

    The dataset needs the column `instruction`, and for edits `source_image` (or `source_images`, with a list in each
    row): whatever `Sample` takes as an image. What is scored is

    - with `render`, the image that it makes of the completion;
    - with the task `response`, the completion itself, a text answer to the instruction;
    - otherwise the column `edited_image`, as a rollout function adds it.

    Args:
        model: a JRM folder, a LoRA folder, a hub name, `jrm-tiny`, or a [`Scorer`].
        task: `edit`, `generation` (no source image) or `response` (with or without source images).
        render: a callable, or its dotted path (`package.module.name`, installed or in the current folder), that takes a
            completion's text and its row of the dataset (a dict, with `prompt`) and returns the image, or raises
            [`InvalidAnswer`].
        mode, floor, k, dimension: as in [`RolloutReward`]. A group is all completions with the same prompt, instruction
            and source images in this process.
        device, dtype: as in `RewardScorer.from_pretrained`; `dtype` also by name.
        save_images, save_folder: keeps one of so many rollouts with its images, as [`SavedRollouts`] says.

    Logs the means of mu and sigma by dimension, and the share of those with the floor, as metrics, and, where TRL logs
    completions, one column `jrm` with each candidate's mu and sigma and, where it was kept, the path of its image in
    `save_folder`.

    Raises:
        JRMError: an argument is wrong or there is no such checkpoint; when called, a column is missing, a sample cannot
            be read, or a group for `win_rate` has one candidate.

    Example:
        >>> trainer = GRPOTrainer("Qwen/Qwen3-0.6B", JRMReward("outputs/jrm", task="response"), train_dataset=dataset)
    """

    def __init__(
        self,
        model: str | Path | Scorer = "jrm-tiny",
        *,
        task: str = "edit",
        render: str | Callable[[str, dict], Any] | None = None,
        mode: str = "mean",
        floor: float | None = None,
        k: float = 1.0,
        dimension: str = OVERALL,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        save_images: int | None = None,
        save_folder: str | Path | None = None,
    ):
        self.rollouts = RolloutReward(task, render, mode, k, floor, dimension=dimension)
        dtype = as_dtype(dtype)
        self._saved = saved_rollouts(save_images, save_folder)
        self.scorer = load_scorer(model, device=device, dtype=dtype)
        self.rollouts.check_dimension(self.scorer.dimensions)
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
    ) -> list[float]:
        """The reward of each completion; the arguments are those with which TRL calls a reward function."""
        self.rollouts.check_columns(columns)
        samples: list[Sample | None] = []
        for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            row = {name: values[number] for name, values in columns.items()} | {"prompt": prompt}
            try:
                samples.append(self.rollouts.sample(_text(completion), row))
            except InvalidAnswer:
                samples.append(None)
            except JRMError as error:
                raise JRMError(f"completion {number} cannot be scored: {error}") from error
        scores, sources = self._score(samples, self.rollouts.unedited_sources(samples))
        rewards = self.rollouts.rewards(scores, self._groups(prompts, columns), sources, name="completion")
        if log_metric is not None:
            self._log_metrics(scores, log_metric)
        step = None if trainer_state is None else trainer_state.global_step
        paths = self._save(samples, scores, rewards, completions, step)
        if log_extra is not None:
            log_extra("jrm", [self._candidate(*each) for each in zip(scores, paths, strict=True)])
        return rewards

    def _score(self, *lists: Sequence[Sample | None]) -> list[list[RewardScore | JRMError | None]]:
        """The scores of several lists of samples, computed together, or their errors; None stays None."""
        samples = [sample for samples in lists for sample in samples if sample is not None]
        scores = iter(self.scorer.score(samples, on_error="return"))
        return [[None if sample is None else next(scores) for sample in samples] for samples in lists]

    def _groups(self, prompts: Sequence, columns: Mapping[str, Any]) -> Iterator[Hashable]:
        """What the candidates of a group have in common, for each completion."""
        sources = columns.get("source_images", columns.get("source_image"))
        for number, prompt in enumerate(prompts):
            with as_jrm_error(f"completion {number}: its prompt and source images cannot be compared"):
                shown = None if sources is None else _source_key(sources[number])
                text = json.dumps(prompt, default=_content_key)
            yield text, columns["instruction"][number], shown

    # -- what is logged

    def _save(
        self,
        samples: Sequence[Sample | None],
        scores: Sequence[RewardScore | None],
        rewards: Sequence[float],
        completions: Sequence,
        step: int | None,
    ) -> list[str | None]:
        """The path of each candidate's image, where it was kept."""
        if self._saved is None:
            return [None] * len(scores)
        return [
            score and self._saved.save(sample, score, reward, _text(completion), step=step)
            for sample, score, reward, completion in zip(samples, scores, rewards, completions, strict=True)
        ]

    def _log_metrics(self, scores: Sequence[RewardScore | None], log_metric: Callable[[str, float], None]) -> None:
        scored = [score for score in scores if score is not None]
        for name in scored[0].mu if scored else ():
            log_metric(f"{self.__name__}/{name}/mu", math.fsum(score.mu[name] for score in scored) / len(scored))
            log_metric(f"{self.__name__}/{name}/sigma", math.fsum(score.sigma[name] for score in scored) / len(scored))
        if self.rollouts.floor is not None and scores:
            log_metric(f"{self.__name__}/invalid_answers", (len(scores) - len(scored)) / len(scores))

    def _candidate(self, score: RewardScore | None, path: str | None) -> "_Candidate":
        values: dict[str, Any] = {}
        for name in (OVERALL, *self.scorer.dimensions):
            values[f"mu_{name}"] = score and score.mu[name]
            values[f"sigma_{name}"] = score and score.sigma[name]
        return _Candidate(values, image=path)


class _Candidate(dict):
    """What the model thinks of a candidate: a record in TRL's Parquet file, and short lines in the table it prints."""

    def __str__(self) -> str:
        names = [name.removeprefix("mu_") for name in self if name.startswith("mu_")]
        if self[f"mu_{OVERALL}"] is None:
            return "no score"
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
