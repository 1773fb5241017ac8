"""What a sweep over alpha shows: accuracy and losses of training logs, by alpha, over seeds (paper section 4.2)."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation.charts import series_of
from jrm_plugin.evaluation.metrics import mean_with_interval
from jrm_plugin.records.samples import OVERALL

# The quantities of the paper's figures 5, 10 and 11, by their names in a trainer's log.
CURVES = {
    "rank_loss": "ranking loss (nats per pair)",
    "critique_loss": "critique loss (nats per token)",
    "loss": "total loss",
    "grad_norm": "norm of the gradient",
    f"accuracy/{OVERALL}": "overall accuracy in training (%)",
}

Log = Sequence[Mapping[str, Any]]  # a trainer's log history


def summarize_sweep(logs: Mapping[tuple[float, int], Log]) -> dict[str, Any]:
    """Accuracy by alpha with intervals over seeds, differences to the first alpha, and curves.

    Args:
        logs: the log history of the finished run of each alpha and seed; every alpha has the same seeds.

    Returns:
        `alphas`, `seeds`, and `sets`: by name of the evaluation set and dimension, `last` (at the end of training) and
        `best` (the best of a run's evaluations, as the paper's figure 4 has it, which flatters), each by alpha with
        `value`, `low`, `high` and `seeds`; and `difference`, of the last evaluation, each further alpha less the first
        one of the same seed. `losses` at the end by alpha, likewise. `curves` by quantity and alpha: `step`, and
        `mean`, `least` and `most` over seeds.

    Intervals are Student's over seeds: what another seed, which is another order of the data and, of a new head, other
    weights, would give on the same evaluation set.

    Raises:
        JRMError: a run has evaluated nothing that the others have.
    """
    alphas, seeds = (list(dict.fromkeys(key[k] for key in logs)) for k in (0, 1))
    keys = [set(_evaluated(log)) for log in logs.values()]
    common = [key for key in _evaluated(next(iter(logs.values()))) if all(key in of_run for of_run in keys)]
    if not common:
        raise JRMError("the runs of the sweep have no accuracy of an evaluation in common; evaluate at their end.")
    sets: dict[str, dict[str, Any]] = {}
    for key in common:
        name, dimension = _name_and_dimension(key)
        last, best = (
            {a: {seed: choose(_values(logs[a, seed], key)) for seed in seeds} for a in alphas}
            for choose in (lambda values: values[-1], max)
        )
        sets.setdefault(name, {})[dimension] = {
            "last": {a: _over_seeds(values) for a, values in last.items()},
            "best": {a: _over_seeds(values) for a, values in best.items()},
            "difference": {
                a: mean_with_interval([last[a][seed] - last[alphas[0]][seed] for seed in seeds]) for a in alphas[1:]
            },
        }
    losses = {}
    for key in ("rank_loss", "critique_loss"):
        for name, of_key in ((n, f"eval_{n}_{key}" if n != "evaluation" else f"eval_{key}") for n in sets):
            values = {a: {seed: _values(logs[a, seed], of_key) for seed in seeds} for a in alphas}
            losses[f"{key}, {name}"] = {
                a: _over_seeds({seed: found[-1] for seed, found in by_seed.items()})
                for a, by_seed in values.items()
                if all(by_seed.values())
            }
    return {
        "alphas": alphas,
        "seeds": seeds,
        "sets": sets,
        "losses": losses,
        "curves": {key: curves for key in CURVES if (curves := _curves(logs, alphas, seeds, key))},
    }


def named(alpha: float) -> str:
    return f"alpha = {alpha:g}"


def _evaluated(log: Log) -> list[str]:
    names = dict.fromkeys(name for row in log for name in row)
    accuracies = [name for name in names if re.match(r"eval_(.+_)?accuracy/", name)]
    return sorted(accuracies, key=lambda name: not name.endswith(f"/{OVERALL}"))


def _name_and_dimension(key: str) -> tuple[str, str]:
    before, _, dimension = key.partition("accuracy/")
    return before.removeprefix("eval_").removesuffix("_") or "evaluation", dimension


def _values(log: Log, key: str) -> list[float]:
    return [float(row[key]) for row in log if key in row]


def _over_seeds(by_seed: Mapping[int, float]) -> dict[str, Any]:
    return mean_with_interval(list(by_seed.values())) | {"seeds": dict(by_seed)}


def _curves(
    logs: Mapping[tuple[float, int], Log], alphas: Sequence[float], seeds: Sequence[int], key: str
) -> dict[str, dict[str, list[float]]]:
    """Of training batches, at the steps that every seed has logged."""
    curves = {}
    for alpha in alphas:
        runs = [dict(series_of(list(logs[alpha, seed]), key).get("training", [])) for seed in seeds]
        steps = sorted(set.intersection(*(set(run) for run in runs)))
        if not steps:  # no critique loss where alpha is 0
            continue
        scale = 100 if key.startswith("accuracy/") else 1
        value_SK = scale * np.array([[run[step] for run in runs] for step in steps])
        curves[named(alpha)] = {
            "step": steps,
            "mean": value_SK.mean(1).tolist(),
            "least": value_SK.min(1).tolist(),
            "most": value_SK.max(1).tolist(),
        }
    return curves
