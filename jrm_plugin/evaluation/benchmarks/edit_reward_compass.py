"""EditReward-Compass: pairs as a sampler of RL draws them, one dimension a pair, ties included.

Its own rule calls a tie right only where scores differ by less than 1e-5, so that a judge with continuous scores gets
every tie wrong. Beside that rule stand the accuracy without ties and the one with the searched threshold.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jrm_plugin.data.tables import Table
from jrm_plugin.evaluation.agreement import accuracy, accuracy_at, accuracy_with_ties
from jrm_plugin.evaluation.benchmarks.benchmark import Benchmark, Column, TablePairs, benchmark_table, one_of, pair_of
from jrm_plugin.records.preferences import PreferencePair

HUB = None
_NEEDED = ("dimension", "source_image", "prompt", "winner", "loser", "label")
_DIMENSIONS = {"IA": "instruction_adherence", "VC": "visual_consistency", "VQ": "visual_quality"}
_LABELS = {"preference": 1, "tie": 0}
_COLUMNS = (
    *(Column(f"{short}, no ties", accuracy, name) for short, name in _DIMENSIONS.items()),
    Column("All, no ties", accuracy, None),
    Column("All, its rule", accuracy_at(1e-5), None, ties=True),
    Column("All, searched", accuracy_with_ties, None, ties=True),
)


def read(source: str | Path, *, progress: bool = True) -> Benchmark:
    table = benchmark_table(source, "EditReward-Compass", _NEEDED)
    return Benchmark(
        "edit_reward_compass",
        "EditReward-Compass",
        TablePairs(table, partial(_pair, table=table), progress),
        _COLUMNS,
        note="By its own rule scores that differ by 1e-5 are no tie, which no continuous score keeps.",
    )


def _pair(row: Mapping[str, Any], table: Table) -> list[PreferencePair]:
    return [
        pair_of(
            table,
            row["prompt"],
            row["source_image"],
            (row["winner"], row["loser"]),
            {one_of(row, "dimension", _DIMENSIONS): one_of(row, "label", _LABELS)},
        )
    ]
