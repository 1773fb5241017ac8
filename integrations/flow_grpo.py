"""flow_grpo: a JRM as one of the reward functions that its `multi_score` weighs.

flow_grpo keeps its rewards in a dict inside `multi_score` (`flow_grpo/rewards.py`), so a reward of one's own is a line
there, and for edits one branch more, because `multi_score` keeps the source images of its editing scripts to itself:

    score_functions = {..., "jrm": jrm_score}                                           # to the dict
    elif score_name == "jrm":                                                           # to the branches, for edits
        scores, rewards = score_fns[score_name](images, prompts, metadata, ref_images)

Then `config.reward_fn = {"jrm": 1.0}` chooses it. Nothing here imports flow_grpo.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jrm_plugin.errors import JRMError
from jrm_plugin.judged_rollouts import RolloutJudge
from jrm_plugin.records.images import is_data_url
from jrm_plugin.records.samples import OVERALL
from jrm_plugin.rollouts import RolloutReward, pictures_of, settings_from_environment
from jrm_plugin.scoring.loading import load_scorer
from jrm_plugin.scoring.protocol import Scorer

# The variables that configure `jrm_score`, and the argument that each one gives.
VARIABLES = {
    "JRM_MODEL": "model",
    "JRM_TASK": "task",
    "JRM_MODE": "mode",
    "JRM_IMAGE_FOLDER": "image_folder",
}


def jrm_score(
    device: str | torch.device,
    *,
    model: str | Path | Scorer | None = None,
    task: str | None = None,
    mode: str | None = None,
    k: float = 1.0,
    beta: float = 1.0,
    dimension: str = OVERALL,
    image_folder: str | Path | None = None,
) -> Callable[..., tuple[list[float], dict]]:
    """A reward function for flow_grpo that scores generated or edited images with a JRM checkpoint.

    `multi_score` gives the device and nothing else; the other settings come from the variables `JRM_MODEL`, `JRM_TASK`,
    `JRM_MODE` and `JRM_IMAGE_FOLDER`, of which an empty one is as good as none, or from a function of your own that
    calls this one with arguments. Arguments go before variables. flow_grpo makes its rewards twice, for training and
    for evaluation; the model is loaded once per process and device.

    Args:
        device: where the model goes; one that is loaded already stays where it is.
        model: a JRM folder, a LoRA folder, a hub name, `jrm-tiny`, or a [`Scorer`] made with options of its own.
        task: `edit` (default) or `generation`.
        mode, k, beta, dimension: as in [`RolloutReward`]; `mean` by default. The mode `win_rate` cannot be offered,
            since flow_grpo spreads the images of one prompt over calls and processes.
        image_folder: where the paths in flow_grpo's metadata start: the folder of its data set.

    Returns:
        `reward(images, prompts, metadata, ref_images=None)`, which returns one float for each image, in their order,
        and an empty dict. N is the number of images.

        - images: a float tensor `[N, 3, H, W]` in [0, 1], a uint8 tensor of that shape, an array `[N, H, W, 3]` (uint8,
          or floats in [0, 1]), or a sequence of N images as `Sample` takes them.
        - prompts: N instructions.
        - metadata: N dicts; read for edits without `ref_images`, where `image` is the source image: a path, or what
          `Sample` takes.
        - ref_images: the source images, in any form of `images`, or N lists where an edit has several sources.

    Raises:
        JRMError: a setting is wrong, no model is named or there is no such checkpoint; when called, an image or a
            source image is missing, has a wrong shape, dtype or range, or there are not N of everything.

    Example:
        >>> reward = jrm_score("cpu", model="jrm-tiny", task="generation")
        >>> scores, _ = reward(torch.rand(2, 3, 48, 48), ["a red circle", "a blue square"], [{}, {}])
    """
    given = {"model": model, "task": task, "mode": mode, "image_folder": image_folder}
    settings = settings_from_environment(VARIABLES, "jrm_score") | {
        name: value for name, value in given.items() if value is not None
    }
    if "model" not in settings:
        raise JRMError("no reward model is named: set the variable JRM_MODEL, or call jrm_score with model=….")
    task = settings.get("task", "edit")
    rollouts = RolloutReward(task, mode=settings.get("mode", "mean"), k=k, beta=beta, dimension=dimension)
    if rollouts.task == "response":
        raise JRMError("flow_grpo makes images, and the task response scores texts; take edit or generation.")
    rollouts.refuse_groups("flow_grpo spreads the images of one prompt over calls and processes")
    scorer = settings["model"]
    if not isinstance(scorer, Scorer):
        scorer = _scorer(str(scorer), str(device))
    return FlowGRPOReward(RolloutJudge(scorer, [rollouts]), settings.get("image_folder", ""))


class FlowGRPOReward:
    """What [`jrm_score`] returns; pickled, its model is its settings, and loads where it is read."""

    def __init__(self, judge: RolloutJudge, image_folder: str | Path):
        self._judge, self._image_folder = judge, image_folder

    def __call__(
        self, images: Any, prompts: Sequence[str], metadata: Sequence[Mapping], ref_images: Any = None
    ) -> tuple[list[float], dict]:
        rows = [{"edited_image": image} for image in _pictures(images, "images")]
        _add(rows, "instruction", prompts, "prompts")
        if self._judge.rollouts.task == "edit":
            if ref_images is None:
                sources = [_source(number, row, self._image_folder) for number, row in enumerate(metadata)]
                _add(rows, "source_image", sources, "metadata")
            else:
                _add(rows, "source_images", _pictures(ref_images, "ref_images"), "ref_images")
        judged = self._judge([""] * len(rows), rows, name="image")
        (rewards,) = judged.rewards.values()
        return list(rewards), {}


@cache
def _scorer(model: str, device: str) -> Scorer:
    return load_scorer(model, device=device)


def _add(rows: list[dict], name: str, values: Sequence, what: str) -> None:
    if len(values) != len(rows):
        raise JRMError(
            f"flow_grpo gave {len(rows)} images and {len(values)} {what}; a reward needs one for each image."
        )
    for row, value in zip(rows, values, strict=True):
        row[name] = value


def _source(number: int, row: Mapping, folder: str | Path) -> Any:
    """The source image that a row of flow_grpo's metadata holds or names."""
    image = row.get("image") if isinstance(row, Mapping) else None
    if image is None:
        raise JRMError(
            f"image {number} has no source image: call the reward with ref_images (a branch in multi_score, see "
            f'jrm_plugin.integrations.flow_grpo), or put its path into the metadata as "image".'
        )
    return os.path.join(folder, image) if isinstance(image, (str, os.PathLike)) and not is_data_url(image) else image


def _pictures(images: Any, what: str) -> Sequence:
    """One image for each of a batch, in forms that `Sample` takes."""
    if isinstance(images, torch.Tensor):
        return pictures_of(images, what)
    if isinstance(images, np.ndarray):
        if images.ndim != 4 or images.shape[3] != 3:
            raise JRMError(f"an array of {what} must have the shape [N, H, W, 3], not {list(images.shape)}.")
        return list(images)
    return images
