"""What the corrections were worth: the paper's table 3."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from jrm_plugin.correction.rounds import START, CorrectionRound, best_round, overall
from jrm_plugin.errors import JRMError


def initial_quantiles(rounds: Iterable[CorrectionRound], quantiles: Sequence[float]) -> list[float]:
    """Thresholds for `correction_table`: these quantiles (0 to 1) of the overall scores before any correction."""
    if not all(0 < quantile < 1 for quantile in quantiles):
        raise JRMError(f"quantiles of thresholds must lie between 0 and 1, not {list(quantiles)}.")
    scores = [overall(start) for start in rounds if start.arm == START and start.score is not None]
    return [float(value) for value in np.quantile(scores, quantiles)] if scores and len(quantiles) else []


def correction_table(
    rounds: Iterable[CorrectionRound],
    thresholds: Sequence[float] = (),
    *,
    oracle: Callable[[CorrectionRound], float] | None = None,
) -> dict:
    """Mean change of the score, for all samples and for those that began below a threshold (paper table 3).

    Args:
        rounds: what `self_correct` gave.
        thresholds: of the overall score before any correction, in the model's own units; a sample counts where it began
            strictly below.
        oracle: the true score of a round's image, where there is one; it is asked once for each that counts.

    Returns:
        - `rounds`: corrections per sample; `arms`: their names;
        - `left_out`: the samples that have an error in any arm, and therefore count in none;
        - `rows`: for None (all) and each threshold, as `below`: `samples`, their number, and by arm what became of
          them. `last` is the image of the last round, `kept` the one the model scored highest, the start included. Each
          holds `delta`, the change of the overall mu, and with an oracle `oracle_delta`; a row then has
          `oracle_before` too. All are `{"mean", "half_width"}`: the mean, and 1.96 standard errors of it; None without
          samples, and half_width None below two.
    """
    rounds = list(rounds)
    by_key = {scored.key: scored for scored in rounds}
    samples = sorted({scored.sample for scored in rounds})
    arms = sorted({scored.arm for scored in rounds} - {START}, reverse=True)  # critique before control
    count = max((scored.number for scored in rounds), default=0)
    failed = {scored.sample for scored in rounds if scored.error is not None}
    before = {k: by_key[k, START, 0] for k in samples if k not in failed}
    ends: dict[str, dict[str, dict[int, CorrectionRound]]] = {}
    for arm in arms:
        histories = {k: [before[k], *(by_key[k, arm, number] for number in range(1, count + 1))] for k in before}
        kept = {k: best_round(history) for k, history in histories.items()}
        ends[arm] = {"last": {k: history[-1] for k, history in histories.items()}, "kept": kept}

    measures = {"delta": overall} | ({"oracle_delta": oracle} if oracle else {})
    values = {name: _ValueOf(measure) for name, measure in measures.items()}
    rows = []
    for threshold in (None, *thresholds):
        counted = [k for k, start in before.items() if threshold is None or overall(start) < threshold]
        row: dict[str, Any] = {"below": threshold, "samples": len(counted)}
        if oracle:
            row["oracle_before"] = _mean([values["oracle_delta"](before[k]) for k in counted])
        for arm, by_end in ends.items():
            row[arm] = {
                end: {name: _mean([of(final[k]) - of(before[k]) for k in counted]) for name, of in values.items()}
                for end, final in by_end.items()
            }
        rows.append(row)
    return {"rounds": count, "arms": arms, "left_out": sorted(failed), "rows": rows}


class _ValueOf:
    """A function of a round that is asked once for each: an oracle may be a person."""

    def __init__(self, function: Callable[[CorrectionRound], float]):
        self._function, self._known = function, {}

    def __call__(self, scored: CorrectionRound) -> float:
        if scored.key not in self._known:
            self._known[scored.key] = self._function(scored)
        return self._known[scored.key]


def _mean(values: list[float]) -> dict | None:
    if not values:
        return None
    half_width = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "half_width": half_width}


# --- in words ---------------------------------------------------------------------------------------------------------


def tables_in_words(table: dict) -> list[tuple[str, list[str], list[list[str]]]]:
    """What `correction_table` found, as titles, headers and rows: the model's score, then the oracle's, if any."""
    wanted = [("delta", f"Change of the model's overall score after {table['rounds']} rounds")]
    if "oracle_before" in table["rows"][0]:
        wanted.append(("oracle_delta", "Change of the oracle's overall score (2 to 8), which the loop never sees"))
    tables = []
    for name, title in wanted:
        columns = [(arm, end) for arm in table["arms"] for end in ("last", "kept")]
        header = ["initial score", "n", *(f"{arm}, {end}" for arm, end in columns)]
        if name == "oracle_delta":
            header.insert(2, "before")
        rows = []
        for row in table["rows"]:
            cells = ["all" if row["below"] is None else f"< {row['below']:.2f}", str(row["samples"])]
            if name == "oracle_delta":
                cells.append(_in_words(row["oracle_before"], signed=False))
            rows.append([*cells, *(_in_words(row[arm][end][name]) for arm, end in columns)])
        tables.append((title, header, rows))
    return tables


def _in_words(mean: dict | None, signed: bool = True) -> str:
    if mean is None:
        return "–"
    value = f"{mean['mean']:+.2f}" if signed else f"{mean['mean']:.2f}"
    return value if mean["half_width"] is None else f"{value}±{mean['half_width']:.2f}"
