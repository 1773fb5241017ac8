"""GenAI-Bench, image editing (arXiv 2406.04485): votes for one of two outputs, or for neither.

The split must be named, because there are two: `test` (983 votes) and `test_v1` (919).
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jrm_plugin.data.tables import Table
from jrm_plugin.evaluation.agreement import accuracy, accuracy_with_ties
from jrm_plugin.evaluation.benchmarks.benchmark import Benchmark, Column, TablePairs, benchmark_table, one_of, pair_of
from jrm_plugin.records.preferences import PreferencePair
from jrm_plugin.records.samples import OVERALL

HUB = None  # of the hub's data set it is one part among three
_NEEDED = ("instruct_prompt", "source_image", "left_output_image", "right_output_image", "vote_type")
_VOTES = {"leftvote": 1, "rightvote": -1, "tie": 0, "tievote": 0, "bothbad": 0, "bothbad_vote": 0, "bothbadvote": 0}
_COLUMNS = (Column("With ties", accuracy_with_ties, OVERALL, ties=True), Column("No ties", accuracy, OVERALL))


def read(source: str | Path, *, progress: bool = True) -> Benchmark:
    table = benchmark_table(source, "GenAI-Bench, image editing", _NEEDED)
    pairs = TablePairs(table, partial(_pair, table=table), progress)
    return Benchmark("gen_ai_bench", "GenAI-Bench, image editing", pairs, _COLUMNS)


def _pair(row: Mapping[str, Any], table: Table) -> list[PreferencePair]:
    models = {name: str(row[name]) for name in ("left_model", "right_model") if row.get(name)}
    return [
        pair_of(
            table,
            row["instruct_prompt"],
            row["source_image"],
            (row["left_output_image"], row["right_output_image"]),
            {OVERALL: one_of(row, "vote_type", _VOTES)},
            **models,
        )
    ]
