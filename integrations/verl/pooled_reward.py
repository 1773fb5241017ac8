"""One rollout in, its reward and what verl logs beside it out; the scores come from scorers that all rollouts share."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from numbers import Integral
from typing import Any, Protocol

from PIL import Image

from jrm_plugin.errors import JRMError, as_jrm_error
from jrm_plugin.guards import is_unedited
from jrm_plugin.integrations.ray import shared_pool
from jrm_plugin.integrations.verl.settings import RolloutSettings, settings_of
from jrm_plugin.records.calibration import Calibration
from jrm_plugin.records.images import load_image
from jrm_plugin.records.samples import OVERALL, Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.rollouts import InvalidAnswer, RolloutReward
from jrm_plugin.saved_rollouts import saved_rollouts


class Scorers(Protocol):
    """Who scores what many rollouts ask for: a [`ScorerPool`], or a model that a framework holds."""

    async def dimensions(self) -> list[str]: ...

    async def calibration(self) -> Calibration | None: ...

    async def score(self, samples: Sequence[Sample]) -> list[RewardScore | JRMError]: ...


class PooledReward:
    """The reward of one rollout at a time; concurrent ones are scored together by the scorers."""

    def __init__(self, settings: RolloutSettings, scorers: Scorers):
        self.settings, self.rollouts, self.scorers = settings, settings.rollouts(), scorers
        self._saved = saved_rollouts(settings.save_images, settings.save_folder)
        self._calibration: Calibration | None = None  # of the model, once it is known
        self._objectives: dict[str, RolloutReward] = {}  # the reward by dimension and overall, once they are known

    async def __call__(
        self, rollout: Callable[[], tuple[str, dict[str, Any]]], name: str = "a rollout"
    ) -> tuple[float, dict[str, float | str]]:
        """The reward, and `reward_extra_info`, which has the same keys for every rollout.

        For each dimension and `overall` these are `jrm_<dimension>`, the reward in the mode of the run, or the floor;
        and `jrm_<dimension>_mu` and `_sigma`, the floor and 0 where nothing was scored. Beside them are `jrm_mode`, and
        1 or 0 in `jrm_invalid_answer` and `jrm_unscorable` for a rollout that got the floor, in `jrm_unedited` for an
        edit that shows its source, and, of a calibrated model, in `jrm_<dimension>_sigma_above` for a sigma above the
        95 % quantile of its held-out set. No number is NaN: verl takes means of what it logs and whitens advantages
        over the batch, and one NaN would be all of it.

        Args:
            rollout: gives what the policy wrote, and its row as in `RolloutReward.sample`; what it raises is the
                rollout's error.
            name: of the rollout, in errors.

        Raises:
            JRMError: the rollout cannot be scored (with `on_error: raise`), or nothing can.
        """
        if not self._objectives:
            dimensions = await self.scorers.dimensions()
            self.rollouts.check_dimension(dimensions)
            self._calibration = await self.scorers.calibration()
            self._objectives = {name: replace(self.rollouts, dimension=name) for name in (*dimensions, OVERALL)}
        score, sources, unedited = None, [], False
        # drawing, decoding and writing files take a while, and the event loop has other rollouts to see to
        run = asyncio.get_running_loop().run_in_executor
        try:
            sample, text, row, unedited = await run(None, self._sample, rollout)
        except InvalidAnswer:
            pass
        except JRMError as error:
            score = error
        else:
            score, *sources = await self.scorers.score([sample, *self.rollouts.unedited_sources([sample])])
            score = next((error for error in sources if isinstance(error, JRMError)), score)
        earning = None if unedited and self.rollouts.unedited == "floor" else score
        reward = self.rollouts.reward(earning, *sources, name=name)
        if self._saved is not None and isinstance(score, RewardScore):
            await run(None, lambda: self._saved.save(sample, score, text, reward=reward, **_marks(row)))
        info = {f"jrm_{dimension}": o.reward(earning, *sources, name=name) for dimension, o in self._objectives.items()}
        return reward, info | self._told(score) | {"jrm_unedited": float(unedited)}

    def _sample(self, rollout: Callable[[], tuple[str, dict[str, Any]]]) -> tuple[Sample, str, dict[str, Any], bool]:
        """What is scored, the text and the row that it was made of, and whether it shows its source."""
        with as_jrm_error("it cannot be read", but=(InvalidAnswer,)):
            text, row = rollout()
            self.rollouts.check_columns(row)
            sample = self.rollouts.sample(text, row)
            # an opened file may still turn out to be damaged: now, as an error with a name, and not when it is sent
            sample = Sample(*(tuple(map(_decoded, blocks)) for blocks in (sample.prompt, sample.response)))
            return sample, text, row, is_unedited(sample)

    def _told(self, score: RewardScore | JRMError | None) -> dict[str, Any]:
        """What is told of a score, with the same keys where there is none."""
        info: dict[str, Any] = {"jrm_mode": self.settings.mode}
        scored = isinstance(score, RewardScore)
        for dimension in self._objectives:
            info[f"jrm_{dimension}_mu"] = score.mu[dimension] if scored else self.rollouts.floor
            info[f"jrm_{dimension}_sigma"] = score.sigma[dimension] if scored else 0.0
        if self._calibration is not None:
            above = self._calibration.sigma_above(score) if scored else {}
            for dimension in self._calibration.sigma:
                info[f"jrm_{dimension}_sigma_above"] = float(above.get(dimension, False))
        info["jrm_invalid_answer"] = float(score is None)
        info["jrm_unscorable"] = float(isinstance(score, JRMError))
        return info


@cache
def _reward(scorers: Scorers | None = None, **given: Any) -> PooledReward:
    if scorers is not None:
        return PooledReward(settings_of(given, RolloutSettings), scorers)
    settings = settings_of(given)
    return PooledReward(settings, shared_pool(settings.scorers()))


async def keyword_score(
    rollout: Callable[[], tuple[str, dict[str, Any]]],
    name: str,
    settings: Mapping[str, Any],
    scorers: Scorers | None = None,
) -> dict[str, float | str]:
    """What a reward function returns that is called by keywords: `score`, and `reward_extra_info` beside it.

    Args:
        rollout, name: as in [`PooledReward`].
        settings: the keys of [`JRMSettings`], and equal ones share a pool; with `scorers`, those of
            [`RolloutSettings`].
        scorers: instead of a pool.

    Raises:
        JRMError: a setting is wrong, or what [`PooledReward`] raises.
    """
    score, extra_info = await _reward(scorers, **settings)(rollout, name)
    return {"score": score, **extra_info}


def _marks(row: Mapping[str, Any]) -> dict[str, Any]:
    """What tells a kept rollout from others; verl's V1 trainer gives the step and the group's id, others may not."""
    step, uid = row.get("global_steps"), row.get("uid")
    return {"step": int(step) if isinstance(step, Integral) else None, "uid": None if uid is None else str(uid)}


def _decoded(block: dict) -> dict:
    opened = isinstance(block.get("image"), Image.Image)
    return {"type": "image", "image": load_image(block["image"])} if opened else block
