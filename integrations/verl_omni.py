"""verl-omni: a keyword scorer, a reward manager, a named reward model and batch hooks for policies that make images.

Scorer and manager score with the pool of scorers that [`jrm_plugin.integrations.ray`] describes; the scorer also with a
model that verl-omni holds, [`JRMNativeModel`]. Nothing of verl-omni is imported: its parents of reward managers add
nothing that JRM needs to verl's own.
"""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.metadata import version
from typing import Any, ClassVar, NamedTuple

import aiohttp
import numpy as np
import torch
from verl import DataProto
from verl.protocol import DataProtoItem
from verl.utils.device import get_device_name

from jrm_plugin.errors import JRMError, shortened
from jrm_plugin.integrations.verl.pooled_reward import Scorers, keyword_score
from jrm_plugin.integrations.verl.reward_manager import JRMRewardManager, name_of, row_of
from jrm_plugin.integrations.verl.settings import RolloutSettings, settings_of
from jrm_plugin.judged_rollouts import RolloutJudge
from jrm_plugin.model.checkpoint import load_config
from jrm_plugin.records.calibration import Calibration
from jrm_plugin.records.samples import Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.records.wire import sample_to_json
from jrm_plugin.rollouts import pictures_of
from jrm_plugin.scoring.loading import load_scorer, model_calibration, model_digest
from jrm_plugin.scoring.micro_batches import MicroBatches

# What verl-omni hands to every scorer beside the keys of its config.
_ITS_OWN = ("reward_model_tokenizer", "sampling_params")
# verl-omni numbers the images of a prompt by such labels in its text.
_LABEL = re.compile(r"^\s*Picture \d+:\s*", re.MULTILINE)


class JRMVisualRewardManager(JRMRewardManager):
    """Scores the image that the policy made, with the source images of the prompt; configured by `reward.jrm`.

    To be named in `reward.reward_manager` with the source `importlib`. The columns that [`JRMRewardManager`] reads
    count here too.
    """

    @classmethod
    def assemble_rm_scores(cls, data: DataProto, scores: list[float]) -> torch.Tensor:
        """`[B, 1]`: an image has one reward, not one at a token."""
        return torch.tensor(scores, dtype=torch.float32).unsqueeze(-1)

    def rollout(self, item: DataProtoItem) -> tuple[str, dict[str, Any]]:
        return "", _row(item)


class JRMNativeModel:
    """A JRM as a model of `reward.models` (verl-omni 0.3, `backend: native`), for [`compute_score_jrm`].

    verl-omni places it, makes it before a batch is scored and closes it afterwards (`offload: true`), or keeps it.
    Concurrent calls are computed together. Pickled, it is its settings, and loads where it is read.

    Args:
        model_path: of `reward.models.<name>`: a JRM folder, a LoRA folder, a hub name, or `jrm-tiny`.
        device: verl-omni gives that of the worker.
        batch_window, max_batch: as in [`ScorerSettings`].
        options: further `executor.kwargs` are arguments of `RewardScorer.from_pretrained`; `dtype` by name.

    Raises:
        JRMError: there is no such checkpoint, or the device cannot be used.

    Example:
        >>> model = JRMNativeModel("jrm-tiny", "cpu")
        >>> asyncio.run(model.infer(samples)).scores
    """

    def __init__(
        self,
        model_path: str,
        device: torch.device | str,
        *,
        batch_window: float = 0.02,
        max_batch: int = 64,
        **options: Any,
    ):
        self._settings = {"model_path": model_path, "device": device, "batch_window": batch_window}
        self._settings |= {"max_batch": max_batch, **options}
        scorer = load_scorer(model_path, device=device, **options)
        self.dimensions, self._calibration = scorer.dimensions, getattr(scorer, "calibration", None)
        self._batches: MicroBatches | None = MicroBatches(scorer, batch_window=batch_window, max_batch=max_batch)

    def __reduce__(self) -> tuple:
        return partial(JRMNativeModel, **self._settings), ()

    async def infer(self, samples: Sequence[Sample]) -> "Inferred":
        """What [`compute_score_jrm`] asks for; of no samples, what the model is.

        Raises:
            JRMError: the model was closed.
        """
        if self._batches is None:
            raise JRMError("this reward model was closed; make another.")
        scores = await self._batches.score(samples, samples[0].prompt_key()) if samples else []
        return Inferred(self.dimensions, self._calibration, scores)

    def close(self) -> None:
        """Gives up the model's memory."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None


class Inferred(NamedTuple):
    """The model's dimensions and calibration, and the score of each sample or what is wrong with it."""

    dimensions: list[str]
    calibration: Calibration | None
    scores: list[RewardScore | JRMError]


class _NamedModel:
    """The handle that verl-omni gives of a [`JRMNativeModel`], as [`PooledReward`] asks its scorers."""

    def __init__(self, handle: Any):
        self._handle = handle

    async def dimensions(self) -> list[str]:
        return (await self._handle.infer([])).dimensions

    async def calibration(self) -> Calibration | None:
        return (await self._handle.infer([])).calibration

    async def score(self, samples: Sequence[Sample]) -> list[RewardScore | JRMError]:
        return (await self._handle.infer(samples)).scores


@cache
def _named_model(handle: Any) -> _NamedModel:
    return _NamedModel(handle)


class _ServedModel:
    """A JRM that verl-omni serves by vLLM with the plug-in `jrm`, as [`PooledReward`] asks its scorers."""

    def __init__(self, address: str, model: str):
        self._address, self._model = address, model

    async def dimensions(self) -> list[str]:
        return await asyncio.to_thread(lambda: load_config(self._model).dimensions)

    async def calibration(self) -> Calibration | None:
        return await asyncio.to_thread(model_calibration, self._model)

    async def score(self, samples: Sequence[Sample]) -> list[RewardScore | JRMError]:
        records = await asyncio.to_thread(lambda: [sample_to_json(sample) for sample in samples])
        body = {"model": self._model, "data": {"samples": records}}
        url, patience = f"http://{self._address}/pooling", aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(timeout=patience) as session, session.post(url, json=body) as response:
            if response.status != 200:  # the router says no more of a request that vLLM refuses
                text = shortened(await response.text())
                return [JRMError(f"vLLM at {self._address} answers {response.status}: {text}.")] * len(samples)
            answer = await response.json()
        return [RewardScore.from_dict(score) for score in answer["data"]["scores"]]


@cache
def _served_model(address: str, model: str) -> _ServedModel:
    return _ServedModel(address, model)


async def compute_score_jrm(
    data_source: str,
    solution_image: torch.Tensor,
    ground_truth: str,
    extra_info: dict[str, Any],
    reward_model: Any = None,
    reward_router_address: str | None = None,
    model_name: str | None = None,
    **settings: Any,
) -> dict[str, float | str]:
    """One of several rewards in `reward.reward_functions`, whose further keys are those of `reward.jrm`.

    Where its model is one of `reward.models`, a [`JRMNativeModel`] or one that vLLM serves (`backend: engine`), that
    one scores and verl-omni holds it; the keys are then those of [`RolloutSettings`]. With `model_path`, the run's pool
    of scorers does.

    verl-omni does not hand the prompt's images to such a scorer: for edits, the source stands in `extra_info` as
    `source_image` (or `source_images`, or `source_img`), a path, bytes or an array. The instruction is
    `extra_info["instruction"]`, and otherwise the ground truth.

    Args:
        data_source: not read.
        solution_image: `[3, H, W]`, uint8, or float from 0 to 1.
        ground_truth: the instruction, where `extra_info` has none.
        extra_info: of the row.
        reward_model: verl-omni's handle of the named model.
        reward_router_address, model_name: of the engine, where the named model is one.
        settings: the keys of [`JRMSettings`], of which `model_path` is needed; or of [`RolloutSettings`].

    Returns:
        `score`, and what [`PooledReward`] tells of it.

    Raises:
        JRMError: a setting is wrong, or the image cannot be scored (with `on_error: raise`).
    """
    for name in _ITS_OWN:
        settings.pop(name, None)

    def rollout() -> tuple[str, dict[str, Any]]:
        row = {"instruction": ground_truth, **extra_info, "edited_image": _picture(solution_image)}
        if "source_img" in row:
            row.setdefault("source_image", row["source_img"])
        return "", row

    scorers: Scorers | None = None
    if reward_model is not None:
        scorers = _named_model(reward_model)
    elif reward_router_address and model_name and "model_path" not in settings:
        scorers = _served_model(reward_router_address, model_name)
    return await keyword_score(rollout, name_of({"extra_info": extra_info}), settings, scorers)


# --- the hooks of a module in `reward.reward_functions`, with `reward.aggregation: preserve_components` ---------------


@dataclass(frozen=True)
class ComponentSettings(RolloutSettings):
    """What an entry of `reward.reward_functions` holds beside verl-omni's own keys.

    Args:
        model_path: a JRM folder, a LoRA folder, a hub name, or `jrm-tiny`.
        dtype: of the backbone, by name.
        task … save_folder: as in [`RolloutSettings`].

    Raises:
        JRMError: a value is missing or wrong.
    """

    model_path: str | None = None
    dtype: str | None = None

    section: ClassVar[str] = "the settings of a component of the reward"
    owner: ClassVar[str] = "a component of the reward"

    def __post_init__(self):
        if not self.model_path:
            raise JRMError(f"{self.section} have no model_path; give a JRM folder, a hub name, or jrm-tiny.")
        super().__post_init__()


class Component:
    """A reward that verl-omni keeps apart from the others; it holds a model between `activate` and `deactivate`."""

    def __init__(self, settings: ComponentSettings):
        self.settings, self.judge = settings, None
        self.model_revision = model_digest(settings.model_path).hex()[:16]


def initialize(**settings: Any) -> Component:
    """The state of an entry whose `path` is this module.

    Two entries that differ in `dimension` are two components; verl-omni has one at a time on the device, so each loads
    the model and scores the batch.

    Args:
        settings: those of [`ComponentSettings`].

    Raises:
        JRMError: a setting is wrong.
    """
    return Component(settings_of(settings, ComponentSettings))


def activate(component: Component, device: torch.device | str | int) -> None:
    """Loads the model on a device, which verl-omni names by its number."""
    name = f"{get_device_name()}:{device}" if isinstance(device, int) else device
    settings = asdict(component.settings)
    component.judge = RolloutJudge.load(settings.pop("model_path"), device=name, **settings)


def score_batch(
    component: Component, batch: DataProto, micro_batch_size: int | None = None, **_: Any
) -> dict[str, Any]:
    """The rewards of a batch, each in the entry's mode, or the floor.

    Args:
        batch: `responses` `[B, 3, H, W]`, and the columns that [`JRMVisualRewardManager`] reads.
        micro_batch_size: not needed, since the scorer fills its passes by the memory that they take.

    Returns:
        `scores` `[B]` float32, all finite; `valid_mask` `[B]`, all true, since what cannot be scored is an error or has
        the floor; `metrics` of [`JudgedRollouts`]; `model_revision` and `definition_version`.

    Raises:
        JRMError: a rollout cannot be scored (with `on_error: raise`), or the component is not active.
    """
    if component.judge is None:
        raise JRMError("this component of the reward is not active; activate it before a batch is scored.")
    rows = [_row(batch[number]) for number in range(len(batch))]
    judged = component.judge([""] * len(rows), rows)
    (rewards,) = judged.rewards.values()
    return {
        "scores": torch.tensor(rewards, dtype=torch.float32),
        "valid_mask": torch.ones(len(rows), dtype=torch.bool),
        "metrics": dict(judged.metrics),
        "model_revision": component.model_revision,
        "definition_version": f"jrm-plugin {version('jrm-plugin')}",
    }


def deactivate(component: Component) -> None:
    """Gives up the model's memory."""
    component.judge = None


finalize = deactivate


def _row(item: DataProtoItem) -> dict[str, Any]:
    """The row of `RolloutReward.sample` of one rollout."""
    row = row_of(item.non_tensor_batch)
    row["instruction"] = _LABEL.sub("", row["instruction"])
    row["edited_image"] = _picture(item.batch["responses"])
    return row


def _picture(image: torch.Tensor) -> np.ndarray:
    image = torch.as_tensor(image)
    if image.ndim != 3:
        raise JRMError(f"JRM scores one image of shape [3, H, W], not {list(image.shape)}; videos are not scored.")
    return pictures_of(image[None], "responses")[0]
