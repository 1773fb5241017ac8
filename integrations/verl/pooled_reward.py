"""One rollout in, its reward and what verl logs beside it out; the scores come from the run's pool of scorers."""

import asyncio
import math
from typing import Any

from PIL import Image

from jrm_plugin.errors import JRMError
from jrm_plugin.integrations.ray import shared_pool
from jrm_plugin.integrations.verl.settings import JRMSettings
from jrm_plugin.records.images import load_image
from jrm_plugin.records.samples import OVERALL, Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.rollouts import RenderError


class PooledReward:
    """The reward of one rollout at a time; concurrent ones are scored together by the pool."""

    def __init__(self, settings: JRMSettings):
        self.settings, self.rollouts = settings, settings.rollouts()
        self.pool = shared_pool(settings.scorers())
        self._dimensions: list[str] | None = None

    async def __call__(self, text: str, row: dict[str, Any]) -> tuple[float, dict[str, float | str]]:
        """The reward, and `reward_extra_info`, which has the same keys for every rollout.

        These are `jrm_mode`; `jrm_<dimension>_mu` and `_sigma` for each dimension and `overall`, NaN where nothing was
        scored; and 1 or 0 in `jrm_render_error` and `jrm_unscorable` for a rollout that got the floor.

        Args:
            text: what the policy wrote.
            row: as in `RolloutReward.sample`.

        Raises:
            JRMError: the rollout cannot be scored (with `on_error: raise`), or nothing can.
        """
        if self._dimensions is None:
            self._dimensions = await self.pool.dimensions()
        render_error, unscorable, score = False, None, None
        try:
            # drawing and decoding take a while, and the event loop has other rollouts to see to
            sample = await asyncio.get_running_loop().run_in_executor(None, self._sample, text, row)
        except RenderError:
            render_error = True
        except JRMError as error:
            unscorable = error
        else:
            score, *against = await self.pool.score([sample, *self._compared(sample)])
            unscorable = next((found for found in (score, *against) if isinstance(found, JRMError)), None)
        if unscorable is not None:
            if self.settings.on_error == "raise":
                raise JRMError(f"a rollout cannot be scored, and on_error is raise: {unscorable}") from unscorable
            score = None
        if score is None:
            reward = self.rollouts.floor
        else:
            reward = score.reward(**self.rollouts.options, **({"against": against} if against else {}))
        return reward, self._extra_info(score, render_error=render_error, unscorable=unscorable is not None)

    def _sample(self, text: str, row: dict[str, Any]) -> Sample:
        self.rollouts.check_columns(row)
        sample = self.rollouts.sample(text, row)
        # an opened file may still turn out to be damaged: now, as an error with a name, and not when it is sent
        return Sample(*(tuple(map(_decoded, blocks)) for blocks in (sample.prompt, sample.response)))

    def _compared(self, sample: Sample) -> list[Sample]:
        """What the mode `win_probability` compares an edit with: its source, left as it is."""
        if self.settings.mode != "win_probability":
            return []
        return [Sample(sample.prompt, ({"type": "image", "image": sample.prompt_images[0]},))]

    def _extra_info(self, score: RewardScore | None, *, render_error: bool, unscorable: bool) -> dict[str, Any]:
        info: dict[str, Any] = {"jrm_mode": self.settings.mode}
        for name in (*self._dimensions, OVERALL):
            info[f"jrm_{name}_mu"] = math.nan if score is None else score.mu[name]
            info[f"jrm_{name}_sigma"] = math.nan if score is None else score.sigma[name]
        return info | {"jrm_render_error": float(render_error), "jrm_unscorable": float(unscorable)}


def _decoded(block: dict) -> dict:
    opened = isinstance(block.get("image"), Image.Image)
    return {"type": "image", "image": load_image(block["image"])} if opened else block
