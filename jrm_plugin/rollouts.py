"""What of a rollout is scored, and how its score becomes a reward: what the adapters to RL frameworks share."""

import math
import os
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jrm_plugin.dotted_path import import_function
from jrm_plugin.errors import JRMError, as_jrm_error
from jrm_plugin.guards import is_decided, members_of
from jrm_plugin.records.calibration import Calibration
from jrm_plugin.records.names import is_near
from jrm_plugin.records.samples import OVERALL, TASKS, Sample
from jrm_plugin.records.scores import RewardScore, group_rewards
from jrm_plugin.scoring.remote import TOKEN_VARIABLE

if TYPE_CHECKING:
    import numpy as np
    import torch


class InvalidAnswer(Exception):
    """What the policy wrote is no answer: nothing can be made of it that could be scored, and it gets the floor.

    A `render` function raises it for a text of which it cannot make an image. An empty text is one in the task
    `response`.

    Example:
        >>> raise InvalidAnswer("nothing to draw")
    """


# What the source image of a row may be called; the first that is there counts. The last two are TRL's own names for the
# images that a policy sees.
SOURCE_COLUMNS = ("source_images", "source_image", "images", "image")
MODES = ("mean", "lower_confidence_bound", "entropic", "win_rate", "win_over_source")


@dataclass(frozen=True)
class RolloutReward:
    """Makes a [`Sample`] of a rollout, and a reward of its score.

    What is scored is, with `render`, the image that it makes of the completion; with the task `response`, the
    completion itself; and otherwise the image `edited_image` of the rollout's row.

    mu and sigma are those of the `dimension`, in the units of the model. A win probability is
    P(a beats b) = E[sigmoid(r_a - r_b)] over the two Gaussian scores (paper eq. 4), between 0 and 1. The modes:

    - `mean`: mu, in the model's units.
    - `lower_confidence_bound`: mu - k sigma, in the model's units; an uncertain score counts less.
    - `entropic`: mu - sigma^2 / (2 beta), in the model's units, as `beta` is: the certainty equivalent
      -beta log E[exp(-r / beta)] (arXiv 2606.09073).
    - `win_rate`: the mean of P(this beats j) over the other candidates j of the group, a probability (that of
      Pref-GRPO, arXiv 2508.20751, without its pairwise judge). It is computed from the scores of the group; no pair of
      candidates is read by the model. The only candidate of a group that has a score gets 0.5.
    - `win_over_source`: P(the edit beats its first source image, left unedited), a probability. The source is scored as
      a candidate of its own; only edits have one.

    Args:
        task: `edit`, `generation` (no source image) or `response` (with or without source images).
        render: a callable, or its dotted path (`package.module.name`, installed or in the current folder), that takes a
            completion's text and its row (a dict) and returns the image, or raises [`InvalidAnswer`].
        mode: one of the above.
        k, beta: of `lower_confidence_bound` and of `entropic`; the other modes do not read them.
        dimension: whose mu and sigma count: one of the model's, or `overall`.
        floor: the reward of an [`InvalidAnswer`], and of what cannot be scored with `on_error="floor"`; in the units of
            the mode. `render` needs one; with `win_rate` and `win_over_source` it is 0 by default.
        on_error: what is done with a rollout that cannot be scored, such as one with a broken image: `raise` its error,
            give it the `floor`, or `leave_out` its reward, which is then None.
        unedited: an edit that shows its source image, pixel for pixel, is counted (`count`), or earns the `floor` too.
        undecided: a group in which no candidate beats another one with a win probability of `win_threshold` is counted
            (`count`), or its candidates that have a score earn an `equal` reward, the mean of theirs; only where the
            framework shows a group as a whole.
        win_threshold: above 0.5 and below 1.

    Raises:
        JRMError: an argument is wrong, or they do not go together.
    """

    task: str = "edit"
    render: str | Callable[[str, dict], Any] | None = None
    mode: str = "mean"
    k: float = 1.0
    floor: float | None = None
    on_error: str = "raise"
    dimension: str = OVERALL
    beta: float = 1.0
    unedited: str = "count"
    undecided: str = "count"
    win_threshold: float = 0.9

    def __post_init__(self):
        if self.task not in TASKS:
            raise JRMError(
                f"the task of a JRM reward must be {', '.join(TASKS[:-1])} or {TASKS[-1]}, not {self.task!r}."
            )
        self._check_mode()
        self._check_guards()
        if self.render is not None and self.task == "response":
            raise JRMError("render makes an image of a completion, and the task response scores its text; drop one.")
        self._check_floor()
        if isinstance(self.render, str):
            object.__setattr__(
                self, "render", import_function(self.render, "render", "a completion's text and its row")
            )

    def _check_mode(self) -> None:
        if self.mode not in MODES:
            raise JRMError(f"unknown reward mode {self.mode!r}; use {', '.join(MODES[:-1])} or {MODES[-1]}.")
        if self.mode == "lower_confidence_bound" and not 0 <= self.k < math.inf:
            raise JRMError(f"k of a lower confidence bound must be at least 0 and finite, got {self.k!r}.")
        if self.mode == "entropic" and not 0 < self.beta < math.inf:
            raise JRMError(f"beta of an entropic reward must be above 0 and finite, got {self.beta!r}.")
        if self.mode == "win_over_source" and self.task != "edit":
            raise JRMError(
                f"the mode win_over_source compares an edit with its unedited source, and the task {self.task} has "
                "none; use another mode."
            )

    def _check_guards(self) -> None:
        if self.unedited not in ("count", "floor"):
            raise JRMError(f"unedited must be count or floor, not {self.unedited!r}.")
        if self.unedited == "floor" and self.task != "edit":
            raise JRMError(f"unedited: floor is for edits, and the task {self.task} has no source to equal; drop it.")
        if self.undecided not in ("count", "equal"):
            raise JRMError(f"undecided must be count or equal, not {self.undecided!r}.")
        if not 0.5 < self.win_threshold < 1:
            raise JRMError(f"win_threshold must be a probability above 0.5 and below 1, not {self.win_threshold!r}.")

    def _check_floor(self) -> None:
        if self.on_error not in ("raise", "floor", "leave_out"):
            raise JRMError(f"on_error must be raise, floor or leave_out, not {self.on_error!r}.")
        needs = f"on_error: {self.on_error}"
        needs = "unedited: floor" if self.unedited == "floor" else "render" if self.render is not None else needs
        # an empty answer is the policy's doing, and no reason to leave it out
        empty = self.on_error == "leave_out" and self.task == "response"
        needed = self.render is not None or "floor" in (self.on_error, self.unedited) or empty
        if self.floor is None and needed:
            if self.mode not in ("win_rate", "win_over_source"):
                raise JRMError(
                    f"{needs} needs a floor in the mode {self.mode}: the reward of what is no answer or cannot be "
                    "scored, in the units of the model's score and below what a bad image gets."
                )
            object.__setattr__(self, "floor", 0.0)
        elif self.floor is not None and not math.isfinite(self.floor):
            raise JRMError(f"floor must be a finite number, not {self.floor}.")
        elif self.floor is not None and not needed and self.task != "response":
            raise JRMError(
                "floor has no use here; it is for what render refuses, for an empty text answer, for what cannot be "
                "scored with on_error: floor, and for what unedited: floor says. Leave it out."
            )

    def check_dimension(self, dimensions: Sequence[str]) -> None:
        """Raises a `JRMError` if a model with these dimensions has no score for the reward."""
        if self.dimension not in (*dimensions, OVERALL):
            raise JRMError(
                f"the reward model has no dimension {self.dimension!r}; take {', '.join(dimensions)} or {OVERALL}."
            )

    def refuse_groups(self, reason: str) -> None:
        """For frameworks that do not show a group as a whole; `reason` is a clause that says why.

        Raises:
            JRMError: the mode or a guard compares the candidates of a group.
        """
        if self.undecided == "equal":
            raise JRMError(f"undecided: equal compares the candidates of a group, and {reason}; leave it out.")
        if self.mode == "win_rate":
            raise JRMError(
                f"the mode win_rate compares the candidates of a group, and {reason}; use mean, "
                "lower_confidence_bound, entropic or win_over_source."
            )

    def refuse_leaving_out(self, reason: str) -> None:
        """For frameworks that need a number for every rollout; `reason` is a clause that says so.

        Raises:
            JRMError: what cannot be scored is to have no reward.
        """
        if self.on_error == "leave_out":
            raise JRMError(
                f"on_error: leave_out gives what cannot be scored no reward, and {reason}; use raise or floor."
            )

    def check_columns(self, columns: Collection[str]) -> None:
        """Raises a `JRMError` if a row with these columns lacks what the task needs."""
        missing = [] if "instruction" in columns else ["instruction"]
        has_source = bool({*SOURCE_COLUMNS} & {*columns})
        if self.task == "edit" and not has_source:
            missing.append("source_image (or source_images)")
        if self.task != "response" and self.render is None and "edited_image" not in columns:
            missing.append("edited_image (or give render)")
        if missing:
            raise JRMError(
                f"a JRM reward with the task {self.task} needs {' and '.join(missing)} in the dataset, whose columns "
                f"are {', '.join(sorted(columns)) or 'none but the prompt'}."
            )
        # `source` alone may also say what a text was taken from
        near = [name for name in columns if is_near(name, "source") and name not in ("source", "sources")]
        if self.task == "response" and not has_source and near:
            raise JRMError(
                f"the column {near[0]!r} of the dataset may be the source image, which the answer is judged by; call "
                "it source_image, or rename it."
            )

    def sample(self, text: str, row: Mapping[str, Any]) -> Sample:
        """The sample of one rollout; whatever is raised on the way to it is this rollout's error.

        Args:
            text: the completion.
            row: `instruction`, the first of `SOURCE_COLUMNS` that is there (an image or a list), `edited_image` where
                it is scored, and whatever `render` reads. Images are what `Sample` takes, or a dict of `bytes` and
                `path`.

        Raises:
            InvalidAnswer: `render` raised it, or a text answer is empty and there is a floor for it.
            JRMError: something is missing, empty or no image, or `render` raised anything else.
        """
        with as_jrm_error("its row cannot be read", but=(InvalidAnswer,)):
            return self._sample(text, row)

    def _sample(self, text: str, row: Mapping[str, Any]) -> Sample:
        sources = None
        if self.task != "generation":
            sources = source_in(row)
            sources = sources if isinstance(sources, (list, tuple)) else [sources]
            sources = [source for source in sources if source is not None]
            if self.task == "edit" and not sources:
                raise JRMError("its row has no source image.")
        if self.task == "response":
            if not text.strip():
                if self.floor is None:
                    raise JRMError("the answer is empty; give a floor, the reward of an answer that says nothing.")
                raise InvalidAnswer("the answer is empty")
            return Sample.text_response(sources, row["instruction"], text)
        if self.render is None:
            edited = row["edited_image"]
        else:
            with as_jrm_error("render failed", but=(InvalidAnswer,)):
                edited = self.render(text, row)
        return Sample.edit(sources, row["instruction"], edited)

    def unedited_sources(self, samples: Sequence[Sample | None]) -> list[Sample | None]:
        """What else must be scored: in the mode `win_over_source` each sample's first source image, left as it is."""
        if self.mode != "win_over_source":
            return []
        return [
            sample and Sample(sample.prompt, ({"type": "image", "image": sample.prompt_images[0]},))
            for sample in samples
        ]

    def reward(
        self,
        score: RewardScore | JRMError | None,
        source: RewardScore | JRMError | None = None,
        *,
        name: str = "a rollout",
    ) -> float | None:
        """The reward of one rollout in every mode but `win_rate`: a finite number, or None with `leave_out`.

        Args:
            score: of its sample; None for an `InvalidAnswer`; the error of a sample that cannot be scored.
            source: the score of its unedited source, or its error, in the mode `win_over_source`.
            name: of the rollout, in errors.

        Raises:
            JRMError: the rollout cannot be scored, with `on_error="raise"`.
        """
        if score is None:
            return self.floor
        reward = error = next((each for each in (score, source) if isinstance(each, JRMError)), None)
        if error is None:
            if self.mode == "win_over_source":
                reward = score.reward("win_probability", dimension=self.dimension, against=source)
            else:
                reward = score.reward(self.mode, dimension=self.dimension, k=self.k, beta=self.beta)
            if not math.isfinite(reward):
                error = JRMError(f"its reward in the mode {self.mode} is {reward}, from {score}.")
        if error is None:
            return reward
        if self.on_error == "raise":
            raise JRMError(f"{name} cannot be scored: {error}") from error
        return self.floor if self.on_error == "floor" else None

    def rewards(
        self,
        scores: Sequence[RewardScore | JRMError | None],
        groups: Iterable[Hashable] = (),
        sources: Sequence[RewardScore | JRMError | None] = (),
        *,
        name: str = "rollout",
    ) -> list[float | None]:
        """The reward of each rollout, a finite number, or None with `leave_out`.

        Args:
            scores: as in `reward`.
            groups: what is equal for the candidates of a group and for no others, one for each rollout; read in the
                mode `win_rate` only.
            sources: the scores of `unedited_sources`.
            name: what the framework calls one of them; errors add its number.

        Raises:
            JRMError: a rollout cannot be scored, with `on_error="raise"`, or a group has one candidate in the mode
                `win_rate`.
        """
        if self.mode != "win_rate":
            pairs = zip(scores, sources or [None] * len(scores), strict=True)
            return [self.reward(*pair, name=f"{name} {number}") for number, pair in enumerate(pairs)]
        # The only score of a group has nothing to be compared with: it is as good as itself.
        rewards = [
            0.5 if isinstance(score, RewardScore) else self.reward(score, name=f"{name} {number}")
            for number, score in enumerate(scores)
        ]
        for numbers in members_of(groups, len(scores)):
            if len(numbers) == 1:
                raise JRMError(
                    "the mode win_rate compares the candidates of a group, and a group has only one in this process; "
                    "raise the number of generations or the batch size per device, or take another mode."
                )
            scored = [number for number in numbers if isinstance(scores[number], RewardScore)]
            if len(scored) > 1:
                values = group_rewards([scores[number] for number in scored], "win_rate", dimension=self.dimension)
                for number, value in zip(scored, values, strict=True):
                    rewards[number] = value
        return rewards

    def undecided_groups(
        self,
        scores: Sequence[RewardScore | JRMError | None],
        groups: Iterable[Hashable],
        calibration: Calibration | None = None,
    ) -> tuple[list[list[int]], int]:
        """The groups whose candidates the model cannot tell apart, and how many groups it could have told.

        Args:
            scores, groups: as in `rewards`. Only candidates with a score are compared; a group with fewer than two of
                them does not count.
            calibration: of the model, whose temperature the win probabilities have.

        Returns:
            The positions of the candidates with a score of each such group, and the number of groups.
        """
        members = [
            [number for number in numbers if isinstance(scores[number], RewardScore)]
            for numbers in members_of(groups, len(scores))
        ]
        members = [numbers for numbers in members if len(numbers) > 1]

        def decided(numbers: list[int]) -> bool:
            return is_decided([scores[k] for k in numbers], self.dimension, self.win_threshold, calibration)

        return [numbers for numbers in members if not decided(numbers)], len(members)

    def evened_out(self, rewards: Sequence[float | None], undecided: Iterable[Sequence[int]]) -> list[float | None]:
        """The rewards; with `undecided="equal"`, the candidates of each undecided group get the mean of theirs."""
        rewards = list(rewards)
        if self.undecided == "equal":
            for numbers in undecided:
                mean = math.fsum(rewards[number] for number in numbers) / len(numbers)
                for number in numbers:
                    rewards[number] = mean
        return rewards


# The variables that configure a reward where arguments cannot be given, and the argument that each one gives.
VARIABLES = {
    "JRM_MODEL": "model",
    "JRM_TASK": "task",
    "JRM_RENDER": "render",
    "JRM_MODE": "mode",
    "JRM_K": "k",
    "JRM_BETA": "beta",
    "JRM_DIMENSION": "dimension",
    "JRM_FLOOR": "floor",
    "JRM_ON_ERROR": "on_error",
    "JRM_UNEDITED": "unedited",
    "JRM_UNDECIDED": "undecided",
    "JRM_WIN_THRESHOLD": "win_threshold",
    "JRM_SECOND_JUDGE": "second_judge",
    "JRM_SECOND_JUDGE_EVERY": "second_judge_every",
    "JRM_DEVICE": "device",
    "JRM_DTYPE": "dtype",
    "JRM_SAVE_IMAGES": "save_images",
    "JRM_SAVE_FOLDER": "save_folder",
}
# Those that are numbers.
NUMBERS = {"JRM_K": float, "JRM_BETA": float, "JRM_FLOOR": float, "JRM_WIN_THRESHOLD": float}
NUMBERS |= {"JRM_SAVE_IMAGES": int, "JRM_SECOND_JUDGE_EVERY": int}


def arguments_from_environment(reader: str) -> dict[str, Any]:
    """The arguments of a reward that variables give, by name; an empty variable is as good as none.

    Raises:
        JRMError: a variable means nothing to `reader`, or one that must be a number is none.
    """
    arguments: dict[str, Any] = dict(settings_from_environment(VARIABLES, reader))
    for variable, number in NUMBERS.items():
        name = VARIABLES[variable]
        if name in arguments:
            try:
                arguments[name] = number(arguments[name])
            except ValueError:
                kind = "a whole number" if number is int else "a number"
                raise JRMError(f"the variable {variable} must be {kind}, not {arguments[name]!r}.") from None
    return arguments


def source_in(row: Mapping[str, Any]) -> Any:
    """The source image of a row, or its list of them; None where it has none."""
    return next((row[name] for name in SOURCE_COLUMNS if name in row), None)


def settings_from_environment(variables: Mapping[str, str], reader: str) -> dict[str, str]:
    """The settings in variables `JRM_…`, by the names that `variables` gives them; an empty one is as good as none.

    Raises:
        JRMError: there is one that `reader` does not know.
    """
    given = {name: value for name in os.environ if name.startswith("JRM_") and (value := os.environ[name])}
    given.pop(TOKEN_VARIABLE, None)  # of whichever model is behind a URL
    if unknown := sorted(given.keys() - variables.keys()):
        raise JRMError(f"the variable {unknown[0]} means nothing to {reader}; it reads {', '.join(variables)}.")
    return {variables[name]: value for name, value in given.items()}


def pictures_of(images_N3HW: "torch.Tensor", what: str) -> "list[np.ndarray]":
    """The images in a batch as policies make them, as uint8 arrays `[H, W, 3]`.

    Args:
        images_N3HW: uint8, or floats from 0 to 1, on any device.
        what: names the batch in errors.

    Raises:
        JRMError: another shape or dtype, or a float outside of 0 to 1.
    """
    import torch  # slow to import, and rows are read without it

    if images_N3HW.ndim != 4 or images_N3HW.shape[1] != 3:
        raise JRMError(f"a tensor of {what} must have the shape [N, 3, H, W], not {list(images_N3HW.shape)}.")
    if images_N3HW.dtype.is_floating_point:
        images_N3HW = (images_N3HW.float() * 255).round()
        good = ((images_N3HW >= 0) & (images_N3HW <= 255)).flatten(1).all(dim=1).tolist()  # NaN is neither
        if not all(good):
            raise JRMError(
                f"{what}: number {good.index(False)} of the float tensor holds values outside of 0 to 1, or NaN."
            )
    elif images_N3HW.dtype != torch.uint8:
        raise JRMError(f"a tensor of {what} must hold floats in [0, 1] or uint8, not {images_N3HW.dtype}.")
    return list(images_N3HW.to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy())
