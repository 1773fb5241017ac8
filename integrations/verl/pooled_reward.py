"""One rollout in, its reward and what verl logs beside it out; the scores come from the run's pool of scorers."""

import asyncio
from collections.abc import Callable
from typing import Any

from PIL import Image

from jrm_plugin.errors import JRMError, as_jrm_error
from jrm_plugin.integrations.ray import shared_pool
from jrm_plugin.integrations.verl.settings import JRMSettings
from jrm_plugin.records.images import load_image
from jrm_plugin.records.samples import OVERALL, Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.rollouts import InvalidAnswer


class PooledReward:
    """The reward of one rollout at a time; concurrent ones are scored together by the pool."""

    def __init__(self, settings: JRMSettings):
        self.settings, self.rollouts = settings, settings.rollouts()
        self.pool = shared_pool(settings.scorers())
        self._dimensions: list[str] | None = None

    async def __call__(
        self, rollout: Callable[[], tuple[str, dict[str, Any]]], name: str = "a rollout"
    ) -> tuple[float, dict[str, float | str]]:
        """The reward, and `reward_extra_info`, which has the same keys for every rollout.

        These are `jrm_mode`; `jrm_<dimension>_mu` and `_sigma` for each dimension and `overall`; and 1 or 0 in
        `jrm_invalid_answer` and `jrm_unscorable` for a rollout that got the floor, whose mu is the floor too, with a
        sigma of 0: verl takes means of what it logs, and one NaN would be the mean of all.

        Args:
            rollout: gives what the policy wrote, and its row as in `RolloutReward.sample`; what it raises is the
                rollout's error.
            name: of the rollout, in errors.

        Raises:
            JRMError: the rollout cannot be scored (with `on_error: raise`), or nothing can.
        """
        if self._dimensions is None:
            self._dimensions = await self.pool.dimensions()
        score, sources = None, []
        try:
            # drawing and decoding take a while, and the event loop has other rollouts to see to
            sample = await asyncio.get_running_loop().run_in_executor(None, self._sample, rollout)
        except InvalidAnswer:
            pass
        except JRMError as error:
            score = error
        else:
            score, *sources = await self.pool.score([sample, *self.rollouts.unedited_sources([sample])])
            score = next((error for error in sources if isinstance(error, JRMError)), score)
        reward = self.rollouts.reward(score, *sources, name=name)
        return reward, self._extra_info(score)

    def _sample(self, rollout: Callable[[], tuple[str, dict[str, Any]]]) -> Sample:
        with as_jrm_error("it cannot be read", but=(InvalidAnswer,)):
            text, row = rollout()
            self.rollouts.check_columns(row)
            sample = self.rollouts.sample(text, row)
            # an opened file may still turn out to be damaged: now, as an error with a name, and not when it is sent
            return Sample(*(tuple(map(_decoded, blocks)) for blocks in (sample.prompt, sample.response)))

    def _extra_info(self, score: RewardScore | JRMError | None) -> dict[str, Any]:
        info: dict[str, Any] = {"jrm_mode": self.settings.mode}
        scored = isinstance(score, RewardScore)
        for name in (*self._dimensions, OVERALL):
            info[f"jrm_{name}_mu"] = score.mu[name] if scored else self.rollouts.floor
            info[f"jrm_{name}_sigma"] = score.sigma[name] if scored else 0.0
        info["jrm_invalid_answer"] = float(score is None)
        info["jrm_unscorable"] = float(isinstance(score, JRMError))
        return info


def _decoded(block: dict) -> dict:
    opened = isinstance(block.get("image"), Image.Image)
    return {"type": "image", "image": load_image(block["image"])} if opened else block
