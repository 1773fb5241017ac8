"""The ranking loss by brute force: what `uncertainty_ranking_loss` must equal. Slow, NumPy float64, obviously right.

With z ~ N(m, s^2) and the Rao-Kupper outcome probabilities

    win   sigmoid(z - threshold)
    tie   1 - sigmoid(z - threshold) - sigmoid(-z - threshold)

the loss of an outcome is -log E[p(z)] (marginal) or E[-log p(z)] (expected). The expectation is the trapezoidal rule on
z = m + s t, fine enough for the logistic (whose poles lie pi from the real axis) and for the normal, wide enough for
the tilted peak of the tails; such a rule is exact to rounding for analytic integrands. Derivatives are taken under the
integral sign: d z / d m = 1, d z / d log s = s t.
"""

import math
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Outcome: TypeAlias = Literal["win", "tie"]


def log_outcome(
    z: NDArray[np.floating[Any]], outcome: Outcome, threshold: float
) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
    """log p(z) and its derivative in z for outcome "win" or "tie"; z is an array."""
    log_win = -np.logaddexp(0.0, threshold - z)
    lose_given_threshold = np.exp(-np.logaddexp(0.0, z - threshold))  # 1 - sigmoid(z - threshold)
    if outcome == "win":
        return log_win, lose_given_threshold
    log_lose = -np.logaddexp(0.0, threshold + z)
    win_given_threshold = np.exp(-np.logaddexp(0.0, -z - threshold))
    slope = lose_given_threshold - win_given_threshold
    if threshold == 0.0:  # half a win each way
        return 0.5 * (log_win + log_lose), 0.5 * slope
    return log_win + log_lose + math.log(math.expm1(2 * threshold)), slope


def reference_loss(
    m: float,
    log_s: float,
    *,
    objective: Literal["marginal", "expected"] = "marginal",
    outcome: Outcome = "win",
    threshold: float = 0.0,
) -> tuple[float, float, float]:
    """(loss, d loss / d m, d loss / d log s) for one pair, as floats; m and log_s are floats, s at most 1e4.

    A tie with threshold 0 is half a win each way in both objectives: 0.5 loss(m) + 0.5 loss(-m).
    """
    if objective == "marginal" and outcome == "tie" and threshold == 0.0:
        ahead, behind = (reference_loss(x, log_s) for x in (m, -m))
        loss, dm, dlog_s = (0.5 * (a + sign * b) for a, b, sign in zip(ahead, behind, (1, -1, 1), strict=True))
        return loss, dm, dlog_s
    s = math.exp(log_s)
    reach = math.sqrt(abs(m) + threshold) + 12.0  # the tilted integrand peaks at |t| <= sqrt(|m| + threshold)
    step = min(0.25, 0.25 / s)
    count = math.ceil(reach / step)
    t = np.arange(-count, count + 1) * step
    log_p, slope = log_outcome(m + s * t, outcome, threshold)
    log_weight = -0.5 * t * t - 0.5 * math.log(2 * math.pi) + math.log(step)
    if objective == "expected":
        weight, loss = np.exp(log_weight), -math.fsum(np.exp(log_weight) * log_p)
    else:
        log_mass = log_weight + log_p
        peak = log_mass.max()
        total = math.fsum(np.exp(log_mass - peak))
        weight, loss = np.exp(log_mass - peak) / total, -(peak + math.log(total))
    return float(loss), -math.fsum(weight * slope), -math.fsum(weight * slope * s * t)
