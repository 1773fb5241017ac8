"""What a run of judges on benchmarks found, as plain JSON: for a table, a page, and whoever reads it later."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from jrm_plugin.chat_client import summarize_usage
from jrm_plugin.evaluation.agreement import (
    Judged,
    Statistic,
    best_threshold,
    decided,
    difference,
    is_right,
    rank_correlations,
    risk_coverage,
    with_interval,
)
from jrm_plugin.evaluation.benchmarks.benchmark import Benchmark, Column
from jrm_plugin.evaluation.judges import Judge, Row
from jrm_plugin.evaluation.judging import Verdicts
from jrm_plugin.evaluation.metrics import pairwise_accuracy, preference_calibration, proportion

_CURVE_POINTS = 200  # of a risk–coverage curve that are kept


def summarize_run(
    benchmarks: Sequence[Benchmark],
    judges: Sequence[Judge],
    verdicts: Mapping[str, Mapping[str, Verdicts]],
    *,
    resamples: int = 1000,
    prices: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """All numbers of a run, as a dict that `json.dumps` can write.

    Args:
        benchmarks, judges: of the run.
        verdicts: what `judge_all` returned.
        resamples: of each bootstrap interval.
        prices: of a million tokens of prompts and of answers, for what generative judges cost.
    """
    return {
        "benchmarks": {
            benchmark.name: {
                "title": benchmark.title,
                "pairs": len(benchmark.pairs),
                "note": benchmark.note,
                "columns": [column.title for column in benchmark.columns],
                "judges": {
                    judge.name: _of_judge(benchmark, judge, verdicts[benchmark.name][judge.name], resamples, prices)
                    for judge in judges
                },
                "published": _published(benchmark),
                "differences": _differences(benchmark, judges, verdicts[benchmark.name], resamples),
            }
            for benchmark in benchmarks
        },
        "settings": {judge.name: dict(judge.settings) for judge in judges},
        "resamples": resamples,
    }


def _published(benchmark: Benchmark) -> dict[str, Any] | None:
    if benchmark.published is None:
        return None
    titles = [column.title for column in benchmark.columns]
    rows = {judge: dict(zip(titles, values, strict=True)) for judge, values in benchmark.published.rows.items()}
    return {"source": benchmark.published.source, "judges": rows}


def _of_judge(
    benchmark: Benchmark, judge: Judge, said: Verdicts, resamples: int, prices: tuple[float, float] | None
) -> dict[str, Any]:
    failed = {k for name, judged in said.judged.items() for k in np.flatnonzero(np.isnan(judged.margin_N)).tolist()}
    result = {
        "columns": {column.title: with_interval(*_one(column, said.judged), resamples) for column in benchmark.columns},
        "dimensions": {
            name: {"by": said.by[name], **_of_dimension(benchmark, judged)} for name, judged in said.judged.items()
        },
        "correlations": _correlations(benchmark, said),
        "failed": len(failed),
    }
    rows = {row["key"]: row for pairs in said.answers.values() for pair in pairs for row in pair}
    if judge.compares:
        result["consistency"] = _consistency(rows.values())
    if any("seconds" in row for row in rows.values()):
        result["answers"] = _usage(rows.values(), prices)
    return result


def column_values(benchmark: Benchmark, judged: Mapping[str, Judged]) -> dict[str, float | None]:
    """The numbers of a benchmark's table alone."""
    values = {}
    for column in benchmark.columns:
        statistic, pairs = _one(column, judged)
        values[column.title] = statistic(pairs)
    return values


def _one(column: Column, judged: Mapping[str, Judged]) -> tuple[Statistic, Judged]:
    """A column's statistic and the pairs that it is about, of all of its dimensions together."""
    parts = column.of(judged)
    empty = np.zeros(0)
    if not parts:
        return column.statistic, Judged(empty, empty, empty, info={n: empty for n in ("task", "group", "group_size")})
    shared = [name for name in parts[0].info if all(name in part.info for part in parts)]
    return column.statistic, Judged(
        np.concatenate([part.label_N for part in parts]),
        np.concatenate([part.margin_N for part in parts]),
        np.concatenate([part.prompt_N for part in parts]),
        info={name: np.concatenate([part.info[name] for part in parts]) for name in shared},
    )


def _of_dimension(benchmark: Benchmark, judged: Judged) -> dict[str, Any]:
    answered = judged.take(~np.isnan(judged.margin_N))
    threshold, right = best_threshold(judged)
    result: dict[str, Any] = {
        "accuracy": _accuracy(judged),
        "with_ties": {**proportion(right, len(judged)), "threshold": threshold},
        "divisions": {
            name: {str(value): _accuracy(judged.where(name, value)) for value in np.unique(judged.info[name])}
            for name in benchmark.divisions
        },
    }
    sure = decided(answered)
    if sure.probability_N is not None and sure.sigma_N is not None and len(sure):
        chosen = np.where(sure.label_N > 0, sure.probability_N, 1 - sure.probability_N)
        favourite = np.maximum(sure.probability_N, 1 - sure.probability_N)
        result["calibration"] = preference_calibration(chosen)
        result["risk_coverage"] = {
            "sigma": _thinned(risk_coverage(sure, sure.sigma_N)),
            "probability": _thinned(risk_coverage(sure, -favourite)),
        }
    return result


def _accuracy(judged: Judged) -> dict:
    """As `pairwise_accuracy`; what was not answered counts as wrong."""
    return pairwise_accuracy(np.nan_to_num(judged.margin_N, nan=0.0), judged.label_N)


def _thinned(curve: dict | None) -> dict | None:
    if curve is None:
        return None
    n = curve["n"]
    kept = sorted({round(k) for k in np.linspace(0, n - 1, min(n, _CURVE_POINTS)).tolist()})
    return curve | {name: [curve[name][k] for k in kept] for name in ("coverage", "risk")}


def _correlations(benchmark: Benchmark, said: Verdicts) -> dict[str, dict]:
    """By dimension, where the benchmark rates single samples: over all samples, each once, whatever their prompts."""
    result = {}
    for name, pairs in said.answers.items():
        ratings: dict[str, tuple[float, float]] = {}
        for rows, position in zip(pairs, said.positions[name], strict=True):
            pair = benchmark.pairs[position]
            for row, known in zip(rows, (pair.chosen_scores, pair.rejected_scores), strict=False):
                column = f"mu_{said.by[name]}"
                if known and name in known and column in row:
                    ratings[row["key"]] = (row[column], known[name])
        if ratings:
            scores, known_N = np.array([*ratings.values()]).T
            result[name] = rank_correlations(scores, known_N)
    return result


def _consistency(rows: Sequence[Row]) -> dict:
    """How often a judge prefers the same of two, in whichever order they are shown."""
    votes = [row["votes"] for row in rows if "votes" in row]
    same = [first == second for orders in votes for first, second in zip(*orders, strict=True)]
    return proportion(sum(same), len(same))


def _usage(rows: Sequence[Row], prices: tuple[float, float] | None) -> dict[str, Any]:
    seconds = [second for row in rows for second in row.get("seconds", ())]
    tokens = {name: sum(row.get(name, 0) for row in rows) for name in ("prompt_tokens", "completion_tokens")}
    return summarize_usage(seconds, tokens, prices)


def _differences(
    benchmark: Benchmark, judges: Sequence[Judge], said: Mapping[str, Verdicts], resamples: int
) -> list[dict[str, Any]]:
    """Of every two judges, the first less the second, in each column of the table."""
    result = []
    for first, second in combinations([judge.name for judge in judges], 2):
        columns = {}
        for column in benchmark.columns:
            statistic, pairs = _one(column, said[first].judged)
            columns[column.title] = difference(statistic, pairs, _one(column, said[second].judged)[1], resamples)
        result.append({"first": first, "second": second, "columns": columns})
    return result


# --- one by one -------------------------------------------------------------------------------------------------------


def pair_records(
    benchmark: Benchmark, judges: Sequence[Judge], said: Mapping[str, Verdicts]
) -> Iterator[dict[str, Any]]:
    """A record for each pair, dimension and judge: what people say, and what the judge does."""
    for judge in judges:
        of_judge = said[judge.name]
        for name, judged in of_judge.judged.items():
            threshold, _ = best_threshold(judged)
            right_N, right_with_ties_N = is_right(judged), is_right(judged, threshold)
            for k, position in enumerate(of_judge.positions[name]):
                info = benchmark.pairs[position].info
                record = {
                    "benchmark": benchmark.name,
                    "pair": position + 1,
                    "id": info.get("id"),
                    "judge": judge.name,
                    "dimension": name,
                    "by": of_judge.by[name],
                    "label": int(judged.label_N[k]),
                    "margin": _number(judged.margin_N[k]),
                    "right": bool(right_N[k]) if judged.label_N[k] else None,
                    "right_with_ties": bool(right_with_ties_N[k]),
                }
                if judged.probability_N is not None:
                    record["probability"] = _number(judged.probability_N[k])
                sides = ("votes",) if judge.compares else ("first", "second")
                for side, row in zip(sides, of_judge.answers[name][k], strict=True):
                    record[side] = _said(row, of_judge.by[name])
                yield record


def _said(row: Row, dimension: str) -> Any:
    if "error" in row:
        return {"error": row["error"]}
    return row["votes"] if "votes" in row else {kind: row[f"{kind}_{dimension}"] for kind in ("mu", "sigma")}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def worst_mistakes(said: Verdicts, dimension: str, count: int) -> list[int]:
    """The pairs, by their place among those of a dimension, that a judge gets most wrong, the worst first."""
    judged = said.judged[dimension]
    against_N = np.where(judged.label_N == 0, np.nan, -judged.label_N * judged.margin_N)
    order = np.argsort(-np.nan_to_num(against_N, nan=-np.inf), kind="stable")
    return [int(k) for k in order[:count] if against_N[k] > 0]
