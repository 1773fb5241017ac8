"""EditReward-Bench of EditScore (arXiv 2509.23909), another data set under that name; table 1 of the JRM paper.

The first of two output images is the preferred one. As in its script, outputs are resized to the input's size, a tie of
the judge is wrong, and a column is the mean over the types of tasks.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jrm_plugin.data.tables import Table
from jrm_plugin.evaluation.agreement import macro
from jrm_plugin.evaluation.benchmarks.benchmark import (
    Benchmark,
    Column,
    Published,
    TablePairs,
    benchmark_table,
    one_of,
    pair_of,
    two_images,
)
from jrm_plugin.records.images import load_image
from jrm_plugin.records.preferences import PreferencePair
from jrm_plugin.records.samples import OVERALL, Sample, image_block

HUB = "EditScore/EditReward-Bench"
_NEEDED = ("key", "task_type", "dimension", "instruction", "input_image", "output_images")
_DIMENSIONS = {name: name for name in ("prompt_following", "consistency", OVERALL)}
_COLUMNS = (
    Column("PF", macro("task"), "prompt_following"),
    Column("Cons.", macro("task"), "consistency"),
    Column("Overall", macro("task"), OVERALL),
)
_PUBLISHED = Published(
    "JRM paper, table 1",
    {
        "GPT-4.1": (0.673, 0.602, 0.705),
        "GPT-5": (0.777, 0.669, 0.755),
        "Gemini-2.5-Pro": (0.703, 0.560, 0.722),
        "EditScore-8B": (0.608, 0.594, 0.690),
        "EditScore-72B": (0.638, 0.586, 0.703),
        "PaCo-Reward-7B": (0.777, 0.709, 0.751),
        "Gemini-3.0-Flash": (0.717, 0.662, 0.769),
        "EditReward": (0.832, None, 0.792),
        "JRM": (0.854, None, 0.851),
    },
)


def read(source: str | Path, *, progress: bool = True) -> Benchmark:
    hint = "name edit_reward_bench for the data set of TIGER-Lab under that name"
    table = benchmark_table(source, "EditReward-Bench of EditScore", _NEEDED, hint=hint)
    return Benchmark(
        "edit_score_bench",
        "EditReward-Bench (EditScore)",
        TablePairs(table, partial(_pair, table=table), progress),
        _COLUMNS,
        divisions=("task",),
        published=_PUBLISHED,
        prepare=_output_as_large_as_input,
    )


def _pair(row: Mapping[str, Any], table: Table) -> list[PreferencePair]:
    key = row["key"]
    return [
        pair_of(
            table,
            row["instruction"],
            row["input_image"],
            two_images(row, "output_images"),
            {one_of(row, "dimension", _DIMENSIONS): 1},
            id=" ".join(map(str, key)) if isinstance(key, (list, tuple)) else str(key),
            task=str(row["task_type"]),
        )
    ]


def _output_as_large_as_input(sample: Sample) -> Sample:
    source, output = load_image(sample.prompt_images[0]), load_image(sample.response_images[0])
    return sample if output.size == source.size else Sample(sample.prompt, [image_block(output.resize(source.size))])
