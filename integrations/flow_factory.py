"""Flow-Factory: a JRM as a reward by dotted path, sample by sample or by group.

    rewards:
      - name: jrm
        reward_model: jrm_plugin.integrations.flow_factory.JRMPointwise
        model_path: outputs/jrm
        weight: 1.0

The prompt is the instruction, and `condition_images` are the source images of an edit. Every key that is none of
Flow-Factory's own is a setting: `model_path`, which is needed, and those in `SETTINGS`. Rewards with the same model
share it, and a sample is scored once for all of them, so an entry for each `dimension` costs one pass.
"""

from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from typing import Any

import torch
from flow_factory.rewards import GroupwiseRewardModel, PointwiseRewardModel, RewardModelOutput

from jrm_plugin.errors import JRMError
from jrm_plugin.judged_rollouts import RolloutJudge
from jrm_plugin.rollouts import RolloutReward
from jrm_plugin.scoring.loading import load_scorer
from jrm_plugin.scoring.protocol import Scorer
from jrm_plugin.scoring.remembered import RememberedScores

# Arguments of `RolloutReward`, but for the one that reads texts, and of `RolloutJudge.load`.
SETTINGS = [field.name for field in fields(RolloutReward) if field.name != "render"]
SETTINGS += ["save_images", "save_folder", "second_judge", "second_judge_every"]


class _JRMReward:
    """What both kinds of reward have in common; the judge can be pickled, its model is sent as its settings."""

    by_group = False

    def __init__(self, config: Any, accelerator: Any):
        super().__init__(config, accelerator)
        settings = dict(config.extra_kwargs)
        model = settings.pop("model_path", None)
        if not model:
            raise JRMError(f"the reward {config.name} has no model_path; give a JRM folder, a hub name, or jrm-tiny.")
        if unknown := sorted(settings.keys() - {*SETTINGS}):
            raise JRMError(f"the reward {config.name} has no key {unknown[0]}; JRM's are {', '.join(SETTINGS)}.")
        device, dtype = str(self.device), str(self.dtype).removeprefix("torch.")
        self.judge = RolloutJudge.load(_scorer(str(model), device, dtype), device=device, dtype=dtype, **settings)
        rollouts = self.judge.rollouts
        if rollouts.task == "response":
            raise JRMError("Flow-Factory makes images, and the task response scores texts; take edit or generation.")
        if not self.by_group:
            rollouts.refuse_groups("JRMPointwise sees samples one by one; JRMGroupwise sees a group")
        rollouts.refuse_leaving_out("Flow-Factory needs a number for every sample")
        self.required_fields = ("prompt", "image", *(["condition_images"] if rollouts.task == "edit" else []))

    def __call__(
        self,
        prompt: Sequence[str],
        image: Sequence[Any] | None = None,
        video: Sequence[Any] | None = None,
        condition_images: Sequence[Sequence[Any]] | None = None,
    ) -> RewardModelOutput:
        """The reward of each sample, float32, and the metrics of [`JudgedRollouts`] as `extra_info`."""
        if image is None:
            what = "JRM scores images, and was given videos" if video is not None else "there are no images to score"
            raise JRMError(f"{what}; check the model that is trained.")
        if self.judge.rollouts.task == "edit" and condition_images is None:
            raise JRMError("an edit needs its source, and a sample has no condition_images; or write task: generation.")
        sources = condition_images if self.judge.rollouts.task == "edit" else [[]] * len(prompt)
        rows = [
            {"instruction": text, "edited_image": picture, "source_images": list(pictures)}
            for text, picture, pictures in zip(prompt, image, sources, strict=True)
        ]
        judged = self.judge([""] * len(rows), rows, [0] * len(rows) if self.by_group else (), name="sample")
        (rewards,) = judged.rewards.values()
        return RewardModelOutput(rewards=torch.tensor(rewards, dtype=torch.float32), extra_info=dict(judged.metrics))


class JRMPointwise(_JRMReward, PointwiseRewardModel):
    """A reward of every sample by itself, in any mode but `win_rate`."""


class JRMGroupwise(_JRMReward, GroupwiseRewardModel):
    """A reward of the samples of a group, which are scored together: for the mode `win_rate`, and for guards."""

    by_group = True


@cache
def _scorer(model: str, device: str, dtype: str) -> Scorer:
    return RememberedScores(load_scorer(model, device=device, dtype=dtype))
