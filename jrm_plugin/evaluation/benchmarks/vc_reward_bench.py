"""VCReward-Bench, part of GEditBench v2: what experts say of visual consistency, over 21 types of edits."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jrm_plugin.data.tables import Table
from jrm_plugin.evaluation.agreement import accuracy, macro
from jrm_plugin.evaluation.benchmarks.benchmark import (
    Benchmark,
    Column,
    TablePairs,
    benchmark_table,
    one_of,
    pair_of,
    two_images,
)
from jrm_plugin.records.preferences import PreferencePair

HUB = None
_NEEDED = ("key", "instruction", "source_image", "edited_images", "winner", "task")
_WINNERS = {"Image A": 1, "Image B": -1}
_DIMENSION = "visual_consistency"
_COLUMNS = (Column("All", accuracy, _DIMENSION), Column("Mean over tasks", macro("task"), _DIMENSION))


def read(source: str | Path, *, progress: bool = True) -> Benchmark:
    table = benchmark_table(source, "VCReward-Bench", _NEEDED)
    pairs = TablePairs(table, partial(_pair, table=table), progress)
    return Benchmark("vc_reward_bench", "VCReward-Bench", pairs, _COLUMNS, divisions=("task",))


def _pair(row: Mapping[str, Any], table: Table) -> list[PreferencePair]:
    return [
        pair_of(
            table,
            row["instruction"],
            row["source_image"],
            two_images(row, "edited_images"),
            {_DIMENSION: one_of(row, "winner", _WINNERS)},
            id=str(row["key"]),
            task=str(row["task"]),
        )
    ]
