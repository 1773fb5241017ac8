"""EditReward-Bench of TIGER-Lab (arXiv 2509.26346): rankings of 2, 3 and 4 candidates, as pairs.

On the hub a row is a pair of a group; in the local JSON files it is a whole group with its ranking, `C>A>B`, `A<B` or
`A=B=Good`. As in its script, groups of 2 are judged with ties and the searched threshold, and a group of 3 or 4 is
right if all of its pairs are.
"""

import re
from collections import Counter
from collections.abc import Mapping
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from jrm_plugin.data.columns import places_in_words
from jrm_plugin.data.reading import is_number, need
from jrm_plugin.data.tables import Table, read_table
from jrm_plugin.errors import JRMError, shortened
from jrm_plugin.evaluation.agreement import accuracy, accuracy_with_ties, group_accuracy
from jrm_plugin.evaluation.benchmarks.benchmark import (
    Benchmark,
    Column,
    TablePairs,
    file_in,
    one_of,
    pair_of,
    with_columns,
)
from jrm_plugin.records.preferences import PreferencePair
from jrm_plugin.records.samples import OVERALL

HUB = "TIGER-Lab/EditReward-Bench"
_ROW = ("id", "dataset", "instruction", "source_image", "candidate_1", "candidate_2", "ranking", "comparison_type")
_GROUP = ("prompt", "path_src", "paths_generated", "human_vote")
_SIZES = {"2pair": 2, "3pair": 3, "4pair": 4}
_LETTERS = "ABCD"
_COLUMNS = (
    Column("K=2", accuracy_with_ties, OVERALL, where=("dataset", "2pair"), ties=True),
    Column("K=3", group_accuracy, OVERALL, where=("dataset", "3pair"), ties=True),
    Column("K=4", group_accuracy, OVERALL, where=("dataset", "4pair"), ties=True),
    Column("Pairs", accuracy_with_ties, OVERALL, ties=True),
    Column("Pairs, no ties", accuracy, OVERALL),
)


def read(source: str | Path, *, progress: bool = True) -> Benchmark:
    table = read_table(file_in(source), progress=False)
    if {*_GROUP} <= {*table.names}:
        pairs = TablePairs(table, partial(_pairs_of_group, table=table), progress)
    else:
        hint = "name edit_score_bench for the data set of EditScore under that name"
        with_columns(table, "EditReward-Bench of TIGER-Lab", _ROW, hint=hint)
        pairs = TablePairs(table, partial(_pair, table=table), progress)
        _check_groups(table)
    return Benchmark("edit_reward_bench", "EditReward-Bench (TIGER-Lab)", pairs, _COLUMNS, divisions=("dataset",))


def _pair(row: Mapping[str, Any], table: Table) -> list[PreferencePair]:
    size = one_of(row, "dataset", _SIZES)
    sides = re.fullmatch(rf"([{_LETTERS[:size]}])vs([{_LETTERS[:size]}])", str(row["comparison_type"]))
    if not sides or sides[1] == sides[2]:
        raise JRMError(f"comparison_type must be AvsB, AvsC, …, not {shortened(row['comparison_type'])}")
    places = places_in_words(row["ranking"], "".join(sorted(sides.groups())))
    label = (places[sides[1]] < places[sides[2]]) - (places[sides[1]] > places[sides[2]])
    info = {name: str(row[name]) for name in ("model_1", "model_2") if row.get(name)}
    scores = [row.get("score_1"), row.get("score_2")]
    return [
        pair_of(
            table,
            row["instruction"],
            row["source_image"],
            (row["candidate_1"], row["candidate_2"]),
            {OVERALL: label},
            scores=scores if all(map(is_number, scores)) else None,
            id=str(row["id"]),
            dataset=row["dataset"],
            group=_group_of(row),
            group_size=size * (size - 1) // 2,
            **info,
        )
    ]


def _group_of(row: Mapping[str, Any]) -> str:
    """By which part of an id pairs of three and four candidates belong together; two candidates are one pair."""
    name = str(row["id"])
    if row["dataset"] != "2pair":
        name = name.split("_")[0] if "_" in name else name[:10]
    return f"{row['dataset']} {name}"


def _check_groups(table: Table) -> None:
    """A group of which pairs are missing would be right too easily."""
    counts = Counter(_group_of(table.rows[row]) for row in range(len(table.rows)))
    for group, count in counts.items():
        size = _SIZES[group.split()[0]]
        if (wanted := size * (size - 1) // 2) != count and size > 2:
            raise JRMError(f"{table.name} has {count} pairs of the group {group}, which needs {wanted}; mend the file.")


def _pairs_of_group(row: Mapping[str, Any], table: Table) -> list[PreferencePair]:
    need(dict(row), _GROUP)
    paths, vote = row["paths_generated"], row["human_vote"]
    if not isinstance(paths, list) or not 2 <= len(paths) <= len(_LETTERS):
        raise JRMError(f"paths_generated must be a list of 2 to 4 images, not {shortened(paths)}")
    if not isinstance(vote, Mapping) or "ranking" not in vote:
        raise JRMError(f"human_vote must be an object with ranking, not {shortened(vote)}")
    letters = _LETTERS[: len(paths)]
    places = places_in_words(vote["ranking"], letters)
    group = f"{len(paths)}pair {row.get('id') or (row['prompt'], row['path_src'], *paths)}"
    return [
        pair_of(
            table,
            row["prompt"],
            row["path_src"],
            (paths[i], paths[j]),
            {OVERALL: (places[letters[i]] < places[letters[j]]) - (places[letters[i]] > places[letters[j]])},
            id=f"{group} {letters[i]}vs{letters[j]}",
            dataset=f"{len(paths)}pair",
            group=group,
            group_size=len(paths) * (len(paths) - 1) // 2,
        )
        for i, j in combinations(range(len(paths)), 2)
    ]
