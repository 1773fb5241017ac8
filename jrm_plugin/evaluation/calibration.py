"""What P(A better than B) needs to be true, fitted on held-out pairs and measured on others.

Shape suffixes: N pairs or samples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation.metrics import log_loss, preference_calibration, proportion
from jrm_plugin.kernels import win_probability
from jrm_plugin.records.calibration import LEVELS, Calibration
from jrm_plugin.records.scores import RewardScore

FEWEST = 20  # pairs that are no tie, in each part
LOG_TEMPERATURES = (-5.0, 5.0)  # what is searched: from 0.0067 to 148
BINS = 121  # of one search


@dataclass(frozen=True)
class ScoredPair:
    """A labelled pair and what the model said of it; pairs with one `prompt` are not told apart when a set is split."""

    prompt: str
    labels: Mapping[str, int]
    chosen: RewardScore
    rejected: RewardScore


def split_by_prompt(pairs: Sequence[ScoredPair], share: float, seed: int) -> tuple[list[ScoredPair], list[ScoredPair]]:
    """Two parts with no prompt in common; `share` of the prompts are in the first."""
    prompts = sorted({pair.prompt for pair in pairs})
    order = np.random.default_rng(seed).permutation(len(prompts))
    first = {prompts[k] for k in order[: round(share * len(prompts))]}
    return [pair for pair in pairs if pair.prompt in first], [pair for pair in pairs if pair.prompt not in first]


def fit(pairs: Sequence[ScoredPair]) -> Calibration:
    """The temperature with the least log loss of each dimension that enough pairs are labelled in, and the quantiles.

    Raises:
        JRMError: no dimension has `FEWEST` pairs that are no tie.
    """
    names = pairs[0].chosen.names if pairs else []
    labelled = {name: _Preferences(pairs, name) for name in names if len(_decided(pairs, name)) >= FEWEST}
    temperature = {name: preferences.temperature() for name, preferences in labelled.items()}
    if not temperature:
        raise JRMError(
            f"a calibration needs at least {FEWEST} pairs that are no tie in each of its two parts, for a dimension or "
            "overall; give more data."
        )
    samples = [score for pair in pairs for score in (pair.chosen, pair.rejected)]
    return Calibration(temperature, {name: sigma_quantiles([s.sigma[name] for s in samples]) for name in names})


def sigma_quantiles(sigma_N: Sequence[float]) -> dict[float, float]:
    """Split-conformal quantiles: the ceil((N + 1) level)-th smallest value, by level.

    A further value that is exchangeable with these is larger with a probability of at most 1 - level (Vovk et al. 2005;
    Lei et al. 2018). A level for which N is too small is missing.
    """
    ordered = sorted(sigma_N)
    ranks = {level: math.ceil((len(ordered) + 1) * level) for level in LEVELS}
    return {level: ordered[rank - 1] for level, rank in ranks.items() if rank <= len(ordered)}


def report(calibration: Calibration, pairs: Sequence[ScoredPair], *, resamples: int = 500, seed: int = 0) -> dict:
    """What the calibration does on pairs that it was not fitted on, by dimension: JSON-able.

    `before` and `after`, without and with the temperature, hold the expected calibration error of the favoured sample's
    P in ten bins (`value`, and the 95 % interval `low`, `high` of a bootstrap over prompts) and the `log_loss`, in
    nats. `pairs` are those that are no tie; `accuracy` is the share that is ordered right, which no temperature
    changes; `sigma_above` is the share of samples above each quantile of sigma. With few pairs the error of a perfect
    model is above 0 too, by chance.
    """
    samples = [score for pair in pairs for score in (pair.chosen, pair.rejected)]
    result: dict[str, Any] = {}
    for name, temperature in calibration.temperature.items():
        preferences = _Preferences(pairs, name)
        if len(preferences) < FEWEST:
            raise JRMError(
                f"only {len(preferences)} of the pairs to judge by are labelled in {name} and no tie, and {FEWEST} are "
                "needed; give more data, or a smaller --share to fit on."
            )
        result[name] = {
            "pairs": len(preferences),
            "temperature": temperature,
            "accuracy": proportion(preferences.right, len(preferences)),
            "before": preferences.errors(1.0, resamples, seed),
            "after": preferences.errors(temperature, resamples, seed),
        }
    return {
        "dimensions": result,
        "sigma_above": {
            name: {
                str(level): proportion(sum(s.sigma[name] > quantile for s in samples), len(samples))
                for level, quantile in levels.items()
            }
            for name, levels in calibration.sigma.items()
        },
    }


class _Preferences:
    """The pairs that are no tie in a dimension: scores of what people prefer and of the other, `[N]` each, float64."""

    def __init__(self, pairs: Sequence[ScoredPair], dimension: str):
        pairs = _decided(pairs, dimension)
        sides = [(p.chosen, p.rejected) if p.labels[dimension] > 0 else (p.rejected, p.chosen) for p in pairs]
        self._columns = [
            torch.tensor([getattr(both[side], kind)[dimension] for both in sides], dtype=torch.float64)
            for side in (0, 1)
            for kind in ("mu", "sigma")
        ]
        self.right = int((self._columns[0] > self._columns[2]).sum())
        rows: dict[str, list[int]] = {}
        for row, pair in enumerate(pairs):
            rows.setdefault(pair.prompt, []).append(row)
        self.rows_of_prompts = list(rows.values())

    def __len__(self) -> int:
        return len(self._columns[0])

    def preferred(self, temperature: float) -> np.ndarray:
        """`[N]`: P of what people prefer."""
        mu_N, sigma_N, other_mu_N, other_sigma_N = self._columns
        wins_N = win_probability(mu_N / temperature, sigma_N.log(), other_mu_N / temperature, other_sigma_N.log())
        return wins_N.numpy()

    def temperature(self) -> float:
        """Of least log loss: the best of a coarse grid, and of a fine one around it.

        What happened counts as (N + 1) / (N + 2) instead of 1 (Platt 1999): a set without a wrong pair does
        not ask for certainty.
        """
        outcome_N = np.full(len(self), (len(self) + 1) / (len(self) + 2))
        low, high = LOG_TEMPERATURES
        for _ in range(2):
            grid = np.linspace(low, high, BINS)
            best = grid[int(np.argmin([log_loss(p, outcome_N) for p in map(self.preferred, np.exp(grid))]))]
            step = grid[1] - grid[0]
            low, high = max(LOG_TEMPERATURES[0], best - step), min(LOG_TEMPERATURES[1], best + step)
        return math.exp(best)

    def errors(self, temperature: float, resamples: int, seed: int) -> dict[str, float]:
        preferred_N = self.preferred(temperature)
        rng = np.random.default_rng(seed)
        count = len(self.rows_of_prompts)
        resampled = []
        for _ in range(resamples):
            chosen = [row for k in rng.integers(0, count, count) for row in self.rows_of_prompts[k]]
            resampled.append(preference_calibration(preferred_N[chosen])["expected_calibration_error"])
        low, high = np.percentile(resampled, [2.5, 97.5])
        measured = preference_calibration(preferred_N)
        value = measured["expected_calibration_error"]
        return {"value": value, "low": float(low), "high": float(high), "log_loss": measured["log_loss"]}


def _decided(pairs: Sequence[ScoredPair], dimension: str) -> list[ScoredPair]:
    return [pair for pair in pairs if pair.labels.get(dimension, 0) != 0]
