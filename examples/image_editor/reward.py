"""Who judges the editor's pictures: a JRM by any of the doors that `jrm_plugin` has, or the oracle of ShapeEdits.

Nothing here is the example's own but the oracle: a `RolloutJudge` scores a batch of rollouts, makes their rewards,
a group's shared beginning computed once, and tells what the guards see.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from jrm_plugin import RewardScore, Sample
from jrm_plugin.judged_rollouts import JudgedRollouts, RolloutJudge
from jrm_plugin.records.samples import DIMENSIONS, OVERALL
from jrm_plugin.rollouts import arguments_from_environment
from jrm_plugin.scoring.protocol import Ranked, ranked
from jrm_plugin.synthetic.shape_reader import judge_generated

ORACLE = "oracle"


class Oracle:
    """A scorer that knows the truth: `judge_generated`'s scores of 1 to 4, with sigma 0. It is the ceiling.

    It has the members of `jrm_plugin.Scorer`, so it goes wherever a JRM goes.
    """

    dimensions = [*DIMENSIONS]

    def score(self, samples: Sequence[Sample], *, on_error: str = "raise", progress: bool = False) -> list[RewardScore]:
        scores = []
        for sample in samples:
            judged = judge_generated(sample.prompt_images[0], sample.prompt_text, sample.response_images[0])
            mu = dict(zip(DIMENSIONS, (judged.instruction_following, judged.visual_quality), strict=True))
            scores.append(RewardScore(mu, dict.fromkeys(DIMENSIONS, 0.0)))
        return scores

    def rank(
        self, samples: Sequence[Sample], *, dimension: str = OVERALL, different_prompts: bool = False
    ) -> list[Ranked]:
        return ranked(self.score(samples), dimension)


def load_judge(model: str | None, **settings: Any) -> RolloutJudge:
    """The judge of a run.

    Args:
        model: a JRM folder, `jrm-tiny`, a hub name, a server's address, or `oracle`; None where the variables
            `JRM_MODEL`, `JRM_MODE` and so on say it all.
        settings: arguments of `RolloutJudge.load` and of `RolloutReward`, such as `mode`, `dimensions`, `unedited`,
            `undecided` and `second_judge`.
    """
    if model is None:
        settings = arguments_from_environment("the image editor") | settings
        model = settings.pop("model", None)
    return RolloutJudge.load(Oracle() if model == ORACLE else model, **settings)


def judge_pictures(
    judge: RolloutJudge, sources_BHWC: np.ndarray, instructions: Sequence[str], pictures_BHWC: np.ndarray
) -> JudgedRollouts:
    """Scores and rewards of pictures; those with one source and instruction are a group."""
    images: dict[bytes, Image.Image] = {}  # a group's source is one object, which is encoded once
    rows, groups = [], []
    for source, instruction, picture in zip(sources_BHWC, instructions, pictures_BHWC, strict=True):
        key = source.tobytes()
        image = images.setdefault(key, Image.fromarray(source))
        rows.append({"source_image": image, "instruction": instruction, "edited_image": Image.fromarray(picture)})
        groups.append((key, instruction))
    return judge([""] * len(rows), rows, groups, name="picture")
