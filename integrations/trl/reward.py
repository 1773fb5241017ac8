"""JRM as a reward function of TRL's `GRPOTrainer` and `RLOOTrainer`."""

import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from jrm_plugin.errors import JRMError
from jrm_plugin.records.images import digest, load_image
from jrm_plugin.records.samples import Sample
from jrm_plugin.records.scores import RewardScore, group_rewards
from jrm_plugin.rollouts import RenderError, RolloutReward, plain_image, settings_from_environment
from jrm_plugin.scoring.scorer import RewardScorer

# The variables that configure `jrm_reward`, and the argument of `JRMReward` that each one gives.
VARIABLES = {
    "JRM_MODEL": "model",
    "JRM_TASK": "task",
    "JRM_RENDER": "render",
    "JRM_MODE": "mode",
    "JRM_FLOOR": "floor",
    "JRM_DEVICE": "device",
}
THUMBNAIL = 256  # longest edge in pixels of an image in the log of completions


class JRMReward:
    """A reward function that scores what the policy wrote, or the image that was made of it, with a JRM checkpoint.

    The dataset needs the column `instruction`, and for edits `source_image` (or `source_images`, with a list in each
    row): whatever `Sample` takes as an image. What is scored is

    - with `render`, the image that it makes of the completion;
    - with the task `response`, the completion itself, a text answer to the instruction;
    - otherwise the column `edited_image`, as a rollout function adds it.

    Args:
        model: a JRM folder, a LoRA folder, a hub name, `jrm-tiny`, or a [`RewardScorer`].
        task: `edit`, `generation` (no source image) or `response` (with or without source images).
        render: a callable, or its dotted path (`package.module.name`, installed or in the current folder), that takes a
            completion's text and its row of the dataset (a dict, with `prompt`) and returns the image, or raises
            [`RenderError`].
        mode: as in `RewardScore.reward`; `win_probability` compares each candidate with the others of its group, which
            are those with an equal prompt, instruction and source images in this process.
        floor: as in [`RolloutReward`]. A candidate that is the only one of its group without it has the win
            probability 0.5.
        k: of the mode `lower_confidence_bound`.
        device, dtype: as in `RewardScorer.from_pretrained`.

    Logs the means of mu and sigma by dimension, and the share of those with the floor, as metrics, and, where TRL logs
    completions, each candidate's mu and sigma and a thumbnail of its image (PNG).

    Raises:
        JRMError: an argument is wrong or there is no such checkpoint; when called, a column is missing, a sample cannot
            be read, or a group for `win_probability` has one candidate.

    Example:
        >>> trainer = GRPOTrainer("Qwen/Qwen3-0.6B", JRMReward("outputs/jrm", task="response"), train_dataset=dataset)
    """

    def __init__(
        self,
        model: str | Path | RewardScorer = "jrm-tiny",
        *,
        task: str = "edit",
        render: str | Callable[[str, dict], Any] | None = None,
        mode: str = "mean",
        floor: float | None = None,
        k: float = 1.0,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ):
        if render is None and floor is not None and task != "response":
            raise JRMError("floor is the reward of a completion that cannot be rendered; give render with it.")
        self.rollouts = RolloutReward(task, render, mode, k, floor)
        self.__name__ = "jrm_reward"  # what TRL calls this reward in its logs
        if isinstance(model, RewardScorer):
            self.scorer = model
        else:
            if device is not None:
                _check_device(device)
            self.scorer = RewardScorer.from_pretrained(model, device=device, dtype=dtype)

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
            except RenderError:
                samples.append(None)
            except JRMError as error:
                raise JRMError(f"completion {number} cannot be scored: {error}") from error
        found = iter(self.scorer.score([sample for sample in samples if sample is not None]))
        scores = [None if sample is None else next(found) for sample in samples]
        if log_metric is not None:
            self._log_metrics(scores, log_metric)
        if log_extra is not None:
            self._log_candidates(samples, scores, log_extra)
        return self._rewards(prompts, scores, columns)

    # -- from scores to rewards

    def _rewards(
        self,
        prompts: Sequence,
        scores: Sequence[RewardScore | None],
        columns: Mapping[str, Any],
    ) -> list[float]:
        if self.rollouts.mode != "win_probability":
            return [self.rollouts.floor if score is None else score.reward(**self.rollouts.options) for score in scores]
        rewards = [self.rollouts.floor] * len(scores)
        groups = defaultdict(list)
        sources = columns.get("source_images", columns.get("source_image"))
        for number, prompt in enumerate(prompts):
            shown = None if sources is None else _source_key(sources[number])
            groups[json.dumps(prompt, default=str), columns["instruction"][number], shown].append(number)
        for group in groups.values():
            if len(group) == 1:
                raise JRMError(
                    "win_probability compares the candidates of a group, and a group has only one in this process; "
                    "raise num_generations or the batch size per device, or take another mode."
                )
            scored = [number for number in group if scores[number] is not None]
            if len(scored) == 1:
                rewards[scored[0]] = 0.5  # nothing to compare with: as good as itself
            elif scored:
                values = group_rewards([scores[number] for number in scored], **self.rollouts.options)
                for number, value in zip(scored, values, strict=True):
                    rewards[number] = value
        return rewards

    # -- what is logged

    def _log_metrics(self, scores: Sequence[RewardScore | None], log_metric: Callable[[str, float], None]) -> None:
        scored = [score for score in scores if score is not None]
        for name in scored[0].mu if scored else ():
            log_metric(f"{self.__name__}/{name}/mu", math.fsum(score.mu[name] for score in scored) / len(scored))
            log_metric(f"{self.__name__}/{name}/sigma", math.fsum(score.sigma[name] for score in scored) / len(scored))
        if self.rollouts.floor is not None and scores:
            log_metric(f"{self.__name__}/render_errors", (len(scores) - len(scored)) / len(scores))

    def _log_candidates(
        self,
        samples: Sequence[Sample | None],
        scores: Sequence[RewardScore | None],
        log_extra: Callable[[str, list], None],
    ) -> None:
        for name in self.scorer.dimensions:
            log_extra(f"{self.__name__}/{name}/mu", [score and score.mu[name] for score in scores])
            log_extra(f"{self.__name__}/{name}/sigma", [score and score.sigma[name] for score in scores])
        if self.rollouts.task != "response":
            pictures = [sample and _Thumbnail.of(sample.response_images[0]) for sample in samples]
            log_extra(f"{self.__name__}/image", pictures)


def jrm_reward(prompts: Sequence, completions: Sequence, **columns: Any) -> list[float]:
    """[`JRMReward`] by dotted path, for `reward_funcs: [jrm_plugin.integrations.trl.jrm_reward]` of `trl grpo`.

    It is configured by the variables `JRM_MODEL`, `JRM_TASK`, `JRM_RENDER`, `JRM_MODE`, `JRM_FLOOR` and `JRM_DEVICE`,
    which the `env:` block of TRL's YAML file can set, and is made once per process, when it is first called.

    Raises:
        JRMError: a variable has a wrong value, or what [`JRMReward`] raises.
    """
    return reward_from_environment()(prompts, completions, **columns)


@cache
def reward_from_environment() -> JRMReward:
    """The one [`JRMReward`] of this process that `jrm_reward` calls; an empty variable is as good as none."""
    arguments: dict[str, Any] = settings_from_environment(VARIABLES, "jrm_reward")
    if "floor" in arguments:
        try:
            arguments["floor"] = float(arguments["floor"])
        except ValueError:
            raise JRMError(f"the variable JRM_FLOOR must be a number, not {arguments['floor']!r}.") from None
    return JRMReward(**arguments)


class _Thumbnail(bytes):
    """A PNG file for the log of completions, which prints its name and not its bytes."""

    @classmethod
    def of(cls, image: Any) -> "_Thumbnail":
        small = load_image(image)
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        buffer = io.BytesIO()
        small.save(buffer, "PNG")
        return cls(buffer.getvalue())

    def __str__(self) -> str:
        return "[image]"


def _text(completion: Any) -> str:
    """The text of a completion in either of TRL's forms."""
    if isinstance(completion, (list, tuple)) and completion and isinstance(completion[-1], Mapping):
        completion = completion[-1].get("content")
    if not isinstance(completion, str):
        raise JRMError(f"it must be text or messages with text, not {str(completion)[:80]}.")
    return completion


def _source_key(sources: Any) -> tuple[bytes, ...]:
    """Equal for equal source images."""
    images = map(plain_image, sources if isinstance(sources, (list, tuple)) else [sources])
    return tuple(digest(image) for image in images if image is not None)


def _check_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # no such device, not on this machine, or not in this torch
        reason = str(error).split("\n")[0].rstrip(".")
        raise JRMError(f"the reward model cannot use the device {device} ({reason}).") from error
