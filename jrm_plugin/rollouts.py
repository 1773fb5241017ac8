"""What of a rollout is scored, and how its score becomes a reward: what the adapters to RL frameworks share."""

import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jrm_plugin.dotted_path import import_function
from jrm_plugin.errors import JRMError
from jrm_plugin.records.samples import TASKS, Sample
from jrm_plugin.records.scores import RewardScore, group_rewards

if TYPE_CHECKING:
    import numpy as np
    import torch


class RenderError(Exception):
    """A completion cannot be turned into an image, or is no answer: raised by `render`, rewarded with the floor."""


@dataclass(frozen=True)
class RolloutReward:
    """Makes a [`Sample`] of a rollout, and a reward of its score.

    What is scored is, with `render`, the image that it makes of the completion; with the task `response`, the
    completion itself; and otherwise the image `edited_image` of the rollout's row.

    Args:
        task: `edit`, `generation` (no source image) or `response` (with or without source images).
        render: a callable, or its dotted path (`package.module.name`, installed or in the current folder), that takes a
            completion's text and its row (a dict) and returns the image, or raises [`RenderError`].
        mode, k: as in `RewardScore.reward`.
        floor: the reward of a completion that cannot be rendered, or in the task `response` of an empty one, in the
            units of the model's score. `render` needs one; in the mode `win_probability` it is 0 by default.

    Raises:
        JRMError: an argument is wrong, or they do not go together.
    """

    task: str = "edit"
    render: str | Callable[[str, dict], Any] | None = None
    mode: str = "mean"
    k: float = 1.0
    floor: float | None = None
    options: dict[str, Any] = field(init=False, repr=False)  # of `RewardScore.reward`

    def __post_init__(self):
        if self.task not in TASKS:
            raise JRMError(
                f"the task of a JRM reward must be {', '.join(TASKS[:-1])} or {TASKS[-1]}, not {self.task!r}."
            )
        if self.render is not None and self.task == "response":
            raise JRMError("render makes an image of a completion, and the task response scores its text; drop one.")
        options = {"mode": self.mode} | ({"k": self.k} if self.mode == "lower_confidence_bound" else {})
        group_rewards([RewardScore({"any": 0.0}, {"any": 1.0})] * 2, **options)  # a wrong mode or k raises now
        object.__setattr__(self, "options", options)
        if self.render is not None and self.floor is None:
            if self.mode != "win_probability":
                raise JRMError(
                    f"render needs a floor in the mode {self.mode}: the reward of a completion that cannot be "
                    "rendered, in the units of the model's score and below what a bad image gets."
                )
            object.__setattr__(self, "floor", 0.0)
        if self.floor is not None and not math.isfinite(self.floor):
            raise JRMError(f"floor must be a finite number, not {self.floor}.")
        if isinstance(self.render, str):
            object.__setattr__(
                self, "render", import_function(self.render, "render", "a completion's text and its row")
            )

    def check_columns(self, columns: Collection[str]) -> None:
        """Raises a `JRMError` if a row with these columns lacks what the task needs."""
        missing = [] if "instruction" in columns else ["instruction"]
        if self.task == "edit" and not {"source_image", "source_images"} & set(columns):
            missing.append("source_image (or source_images)")
        if self.task != "response" and self.render is None and "edited_image" not in columns:
            missing.append("edited_image (or give render)")
        if missing:
            raise JRMError(
                f"a JRM reward with the task {self.task} needs {' and '.join(missing)} in the dataset, whose columns "
                f"are {', '.join(sorted(columns)) or 'none but the prompt'}."
            )

    def sample(self, text: str, row: Mapping[str, Any]) -> Sample:
        """The sample of one rollout.

        Args:
            text: the completion.
            row: `instruction`, `source_image` or `source_images` (a list), `edited_image` where it is scored, and
                whatever `render` reads. Images are what `Sample` takes, or a dict of `bytes` and `path`.

        Raises:
            RenderError: `render` raised it, or a text answer is empty and there is a floor for it.
            JRMError: something is missing, empty or no image.
        """
        sources = None
        if self.task != "generation":
            sources = row["source_images"] if "source_images" in row else row.get("source_image")
            sources = sources if isinstance(sources, (list, tuple)) else [sources]
            sources = [plain_image(one) for one in sources if one is not None]
            if self.task == "edit" and not sources:
                raise JRMError("its row has no source image.")
        if self.task == "response":
            if not text.strip():
                if self.floor is None:
                    raise JRMError("the answer is empty; give a floor, the reward of an answer that says nothing.")
                raise RenderError("the answer is empty")
            return Sample.text_response(sources, row["instruction"], text)
        edited = plain_image(row["edited_image"]) if self.render is None else self.render(text, row)
        return Sample.edit(sources, row["instruction"], edited)


def settings_from_environment(variables: Mapping[str, str], reader: str) -> dict[str, str]:
    """The settings in variables `JRM_…`, by the names that `variables` gives them; an empty one is as good as none.

    Raises:
        JRMError: there is one that `reader` does not know.
    """
    given = {name: value for name in os.environ if name.startswith("JRM_") and (value := os.environ[name])}
    if unknown := sorted(given.keys() - variables.keys()):
        raise JRMError(f"the variable {unknown[0]} means nothing to {reader}; it reads {', '.join(variables)}.")
    return {variables[name]: value for name, value in given.items()}


def plain_image(image: Any) -> Any:
    """`datasets` gives an image that it does not decode as a dict of `bytes` and `path`."""
    return (image.get("bytes") or image.get("path")) if isinstance(image, Mapping) else image


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
