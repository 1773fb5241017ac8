"""One rollout in, its reward and what verl logs beside it out; the scores come from the run's pool of scorers."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from numbers import Integral
from typing import Any

from PIL import Image

from jrm_plugin.errors import JRMError, as_jrm_error
from jrm_plugin.integrations.ray import shared_pool
from jrm_plugin.integrations.verl.settings import JRMSettings, settings_of
from jrm_plugin.records.images import load_image
from jrm_plugin.records.samples import OVERALL, Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.rollouts import InvalidAnswer, RolloutReward
from jrm_plugin.saved_rollouts import saved_rollouts


class PooledReward:
    """The reward of one rollout at a time; concurrent ones are scored together by the pool."""

    def __init__(self, settings: JRMSettings):
        self.settings, self.rollouts = settings, settings.rollouts()
        self.pool = shared_pool(settings.scorers())
        self._saved = saved_rollouts(settings.save_images, settings.save_folder)
        self._objectives: dict[str, RolloutReward] = {}  # the reward by dimension and overall, once they are known

    async def __call__(
        self, rollout: Callable[[], tuple[str, dict[str, Any]]], name: str = "a rollout"
    ) -> tuple[float, dict[str, float | str]]:
        """The reward, and `reward_extra_info`, which has the same keys for every rollout.

        For each dimension and `overall` these are `jrm_<dimension>`, the reward in the mode of the run, or the floor;
        and `jrm_<dimension>_mu` and `_sigma`, the floor and 0 where nothing was scored. Beside them are `jrm_mode`, and
        1 or 0 in `jrm_invalid_answer` and `jrm_unscorable` for a rollout that got the floor. No number is NaN: verl
        takes means of what it logs and whitens advantages over the batch, and one NaN would be all of it.

        Args:
            rollout: gives what the policy wrote, and its row as in `RolloutReward.sample`; what it raises is the
                rollout's error.
            name: of the rollout, in errors.

        Raises:
            JRMError: the rollout cannot be scored (with `on_error: raise`), or nothing can.
        """
        if not self._objectives:
            dimensions = await self.pool.dimensions()
            self.rollouts.check_dimension(dimensions)
            self._objectives = {name: replace(self.rollouts, dimension=name) for name in (*dimensions, OVERALL)}
        score, sources = None, []
        # drawing, decoding and writing files take a while, and the event loop has other rollouts to see to
        run = asyncio.get_running_loop().run_in_executor
        try:
            sample, text, row = await run(None, self._sample, rollout)
        except InvalidAnswer:
            pass
        except JRMError as error:
            score = error
        else:
            score, *sources = await self.pool.score([sample, *self.rollouts.unedited_sources([sample])])
            score = next((error for error in sources if isinstance(error, JRMError)), score)
        reward = self.rollouts.reward(score, *sources, name=name)
        if self._saved is not None and isinstance(score, RewardScore):
            await run(None, lambda: self._saved.save(sample, score, text, reward=reward, **_marks(row)))
        return reward, self._extra_info(score, sources, name)

    def _sample(self, rollout: Callable[[], tuple[str, dict[str, Any]]]) -> tuple[Sample, str, dict[str, Any]]:
        """What is scored, and the text and the row that it was made of."""
        with as_jrm_error("it cannot be read", but=(InvalidAnswer,)):
            text, row = rollout()
            self.rollouts.check_columns(row)
            sample = self.rollouts.sample(text, row)
            # an opened file may still turn out to be damaged: now, as an error with a name, and not when it is sent
            sample = Sample(*(tuple(map(_decoded, blocks)) for blocks in (sample.prompt, sample.response)))
            return sample, text, row

    def _extra_info(
        self, score: RewardScore | JRMError | None, sources: Sequence[RewardScore | JRMError], name: str
    ) -> dict[str, Any]:
        info: dict[str, Any] = {"jrm_mode": self.settings.mode}
        scored = isinstance(score, RewardScore)
        for dimension, objective in self._objectives.items():
            info[f"jrm_{dimension}"] = objective.reward(score, *sources, name=name)
            info[f"jrm_{dimension}_mu"] = score.mu[dimension] if scored else self.rollouts.floor
            info[f"jrm_{dimension}_sigma"] = score.sigma[dimension] if scored else 0.0
        info["jrm_invalid_answer"] = float(score is None)
        info["jrm_unscorable"] = float(isinstance(score, JRMError))
        return info


@cache
def _reward(**settings: Any) -> PooledReward:
    return PooledReward(settings_of(settings))


async def keyword_score(
    rollout: Callable[[], tuple[str, dict[str, Any]]], name: str, settings: Mapping[str, Any]
) -> dict[str, float | str]:
    """What a reward function returns that is called by keywords: `score`, and `reward_extra_info` beside it.

    Args:
        rollout, name: as in [`PooledReward`].
        settings: the keys of [`JRMSettings`]; equal ones share a pool.

    Raises:
        JRMError: a setting is wrong, or what [`PooledReward`] raises.
    """
    score, extra_info = await _reward(**settings)(rollout, name)
    return {"score": score, **extra_info}


def _marks(row: Mapping[str, Any]) -> dict[str, Any]:
    """What tells a kept rollout from others; verl's V1 trainer gives the step and the group's id, others may not."""
    step, uid = row.get("global_steps"), row.get("uid")
    return {"step": int(step) if isinstance(step, Integral) else None, "uid": None if uid is None else str(uid)}


def _decoded(block: dict) -> dict:
    opened = isinstance(block.get("image"), Image.Image)
    return {"type": "image", "image": load_image(block["image"])} if opened else block
