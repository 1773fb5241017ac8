"""What an editor is worth: its pictures for held-out instructions, as the oracle and a reward model judge them.

Every editor edits the same sources by the same instructions from the same noise, so that differences are paired.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from examples.image_editor.data import Triples, draw_triples, to_pictures, to_tensor, word_ids
from examples.image_editor.reward import judge_pictures
from examples.image_editor.sampler import Velocity, sample, times
from jrm_plugin.cli.env import versions
from jrm_plugin.evaluation.metrics import Z95, proportion
from jrm_plugin.files import replacing
from jrm_plugin.judged_rollouts import RolloutJudge
from jrm_plugin.synthetic.shape_reader import judge_generated


def heldout_prompts(count: int, kinds: Sequence[str]) -> Triples:
    """Of instructions and scenes that no training has seen; the targets are what is asked for."""
    return draw_triples(count, 5, heldout=True, right=1.0, blurred=0.0, kinds=kinds)


def edit(velocities: Sequence[Velocity], prompts: Triples) -> np.ndarray:
    """One picture for each prompt, `[N, 48, 48, 3]`, by the ODE; `velocities` as in `sample`."""
    source_BCHW, ids_BT = to_tensor(prompts.source_NHWC), word_ids(prompts.instructions)
    generator = torch.Generator().manual_seed(1)
    return to_pictures(sample(velocities, source_BCHW, ids_BT, times(len(velocities)), generator).x_BCHW)


def measured(judge: RolloutJudge, prompts: Triples, pictures: np.ndarray) -> dict[str, Any]:
    """Lists by prompt, plain numbers: failure, scores of the oracle, success, and the judge's mu and sigma.

    Success is an edit as asked and nothing else (instruction following 4) in a flawless picture (visual quality 4).
    """
    edits = zip(prompts.source_NHWC, prompts.instructions, pictures, strict=True)
    truth = [judge_generated(*edit) for edit in edits]
    scores = judge_pictures(judge, prompts.source_NHWC, prompts.instructions, pictures).scores
    return {
        "kind": prompts.kinds,
        "failure": [edit.failure for edit in truth],
        "instruction_following": [edit.instruction_following for edit in truth],
        "visual_quality": [edit.visual_quality for edit in truth],
        "success": [int(edit.instruction_following == edit.visual_quality == 4) for edit in truth],
        "reward": [score.mu["overall"] for score in scores],
        "sigma": [score.sigma["overall"] for score in scores],
    }


class Mean(NamedTuple):
    """A mean over prompts with its 95 % interval; of several seeds, each prompt counts with its mean over them."""

    value: float
    low: float
    high: float


def mean_over_prompts(values_SN: Sequence[Sequence[float]]) -> Mean:
    """Of S runs on the same N prompts: mean ± 1.96 deviations / sqrt(N) of the prompts' means over the runs.

    The runs' prompts are the same, so S runs are no S times as many prompts; what varies between runs (seeds of
    training) is told by their own means, not by this interval.
    """
    by_prompt_N = np.mean(np.asarray(values_SN, dtype=float), axis=0)
    half = Z95 * by_prompt_N.std(ddof=1) / len(by_prompt_N) ** 0.5
    value = float(by_prompt_N.mean())
    return Mean(value, value - float(half), value + float(half))


def share(true_N: Sequence[bool] | np.ndarray) -> Mean:
    """How many of N prompts, with Wilson's interval."""
    found = proportion(int(np.sum(true_N)), len(true_N))
    return Mean(found["value"], found["low"], found["high"])


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of one table as CSV, with the versions that decide what comes of a seed; None is an empty field."""
    made_by = {name: versions()[name] for name in ("torch", "python")}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as staging, staging.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=[*rows[0], *made_by], lineterminator="\n")
        writer.writeheader()
        writer.writerows(dict(row) | made_by for row in rows)
