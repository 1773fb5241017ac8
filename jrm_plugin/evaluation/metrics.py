"""The numbers a report shows, in plain numpy: accuracy, calibration, and how many directions a representation uses.

Shape suffixes: N pairs or samples, H hidden, K bins. Every result is JSON-able: dicts of plain floats and integers,
`None` where there is nothing to divide by.
"""

import numpy as np

from jrm_plugin.errors import JRMError

Z95 = 1.959963984540054  # the 97.5 % quantile of the standard normal law


def proportion(correct: float, n: int) -> dict:
    """A share with its Wilson 95 % score interval: `{"value", "low", "high", "correct", "n"}`.

    With p = correct / n and z = 1.96 (Wilson 1927, eq. for the score interval):

        centre = (p + z²/2n) / (1 + z²/n)      half = z · sqrt(p(1-p)/n + z²/4n²) / (1 + z²/n)

    It stays inside [0, 1] and is honest for small n and for shares near 0 or 1, where the usual p ± 1.96·SE is not.
    Without any trial the value is None and the interval says nothing: [0, 1].
    """
    if not 0 <= correct <= n:
        raise JRMError(f"A proportion needs 0 <= correct <= n, got {correct} of {n}.")
    if n == 0:
        return {"value": None, "low": 0.0, "high": 1.0, "correct": 0, "n": 0}
    p, z2 = correct / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * np.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At p = 0 and p = 1 the bound equals p exactly; rounding must not put p outside.
    low, high = min(p, float(centre - half)), max(p, float(centre + half))
    return {"value": p, "low": max(0.0, low), "high": min(1.0, high), "correct": correct, "n": int(n)}


def pairwise_accuracy(difference_N, label_N) -> dict:
    """Share of pairs ordered as their label says, as `proportion` gives it, plus `ties`: the pairs left out.

    Args:
        difference_N: mu(chosen) - mu(rejected), the score difference of each pair.
        label_N: 1 the first is better, -1 the second is better, 0 a tie.

    Pairs that people called a tie are left out and counted. A difference of exactly 0 decides nothing and counts as
    wrong, so a model that gives every image one score has accuracy 0 (Deutsch et al. 2023, the variant without ties).
    """
    difference_N, label_N = _vector(difference_N, "difference_N"), _vector(label_N, "label_N")
    if len(difference_N) != len(label_N):
        raise JRMError(f"Accuracy needs one label per pair, got {len(difference_N)} pairs and {len(label_N)} labels.")
    if not np.isin(label_N, (-1, 0, 1)).all():
        raise JRMError("Accuracy needs labels that are 1, 0 or -1.")
    decided_N = label_N != 0
    correct = int((np.sign(difference_N) == label_N)[decided_N].sum())
    return proportion(correct, int(decided_N.sum())) | {"ties": int((~decided_N).sum())}


def accuracy_difference(correct_first_N, correct_second_N) -> dict:
    """Accuracy of one model minus that of another on the same N pairs: `{"value", "low", "high", "n"}`.

    The pairs are the same, so only those count on which the models disagree: with b pairs right in the first model
    alone and c in the second alone, value = (b - c)/n and SE² = (b + c - (b - c)²/n) / n² (McNemar 1947; interval
    value ± 1.96·SE). For the interval half a pair is added to each of the four outcomes (b + 0.5, c + 0.5, n + 2;
    Agresti & Min 2005), so that few disagreements do not give an interval of width zero.
    """
    first_N, second_N = _vector(correct_first_N, "correct_first_N"), _vector(correct_second_N, "correct_second_N")
    if len(first_N) != len(second_N) or not len(first_N):
        raise JRMError(f"Two models are compared on the same pairs, got {len(first_N)} and {len(second_N)} results.")
    n = len(first_N)
    b, c = float(((first_N == 1) & (second_N == 0)).sum()), float(((first_N == 0) & (second_N == 1)).sum())
    b_adj, c_adj, n_adj = b + 0.5, c + 0.5, n + 2
    centre = (b_adj - c_adj) / n_adj
    half = Z95 * np.sqrt(b_adj + c_adj - (b_adj - c_adj) ** 2 / n_adj) / n_adj
    return {"value": (b - c) / n, "low": float(centre - half), "high": float(centre + half), "n": n}


def calibration_bins(probability_N, outcome_N, *, bins: int = 10, low: float = 0.0, high: float = 1.0) -> list[dict]:
    """Predicted probability against what happened, in K equal bins over [low, high].

    Args:
        probability_N: predicted P of the event, within [low, high].
        outcome_N: 1 it happened, 0 it did not, 0.5 undecided.

    Returns:
        One dict per bin: `low`, `high` (its edges, the upper one belongs to it only in the last bin), `n`, `predicted`
        (mean P), `observed` (mean outcome) and the Wilson interval `observed_low`, `observed_high`. In an empty bin
        `predicted` and `observed` are None.
    """
    probability_N, outcome_N = _probabilities(probability_N, outcome_N)
    if bins < 1 or not low < high:
        raise JRMError(f"Calibration needs bins >= 1 and low < high, got {bins}, {low} and {high}.")
    if len(probability_N) and (probability_N.min() < low or probability_N.max() > high):
        raise JRMError(f"Calibration bins over [{low}, {high}] do not hold every predicted probability.")
    edges = np.linspace(low, high, bins + 1)
    bin_N = np.clip(np.searchsorted(edges, probability_N, side="right") - 1, 0, bins - 1)
    result = []
    for k in range(bins):
        inside = bin_N == k
        observed = proportion(float(outcome_N[inside].sum()), int(inside.sum()))
        result.append(
            {
                "low": float(edges[k]),
                "high": float(edges[k + 1]),
                "n": observed["n"],
                "predicted": float(probability_N[inside].mean()) if observed["n"] else None,
                "observed": observed["value"],
                "observed_low": observed["low"],
                "observed_high": observed["high"],
            }
        )
    return result


def expected_calibration_error(bins: list[dict]) -> float | None:
    """Mean distance between predicted and observed over the bins of `calibration_bins`, weighted by their counts:

    ECE = sum_k (n_k / N) |observed_k - predicted_k|     (Naeini et al. 2015). None without any pair.
    """
    total = sum(b["n"] for b in bins)
    if not total:
        return None
    return float(sum(b["n"] * abs(b["observed"] - b["predicted"]) for b in bins if b["n"]) / total)


def brier_score(probability_N, outcome_N) -> float | None:
    """Mean squared error of the predicted probability, mean (P - y)² (Brier 1950): 0 perfect, 0.25 always ½."""
    probability_N, outcome_N = _probabilities(probability_N, outcome_N)
    return float(np.mean((probability_N - outcome_N) ** 2)) if len(probability_N) else None


def log_loss(probability_N, outcome_N) -> float | None:
    """Mean negative log likelihood in nats, -mean [y log P + (1 - y) log(1 - P)]: the marginal objective of eq. (5).

    ln 2 = 0.693 is a coin. A probability of exactly 0 for what happened is counted as the smallest normal float64
    (708 nats), so that the mean stays a number JSON can hold.
    """
    probability_N, outcome_N = _probabilities(probability_N, outcome_N)
    if not len(probability_N):
        return None
    tiny = np.finfo(np.float64).tiny
    log_p = np.log(np.maximum(probability_N, tiny))
    log_q = np.log(np.maximum(1 - probability_N, tiny))
    return float(-np.mean(outcome_N * log_p + (1 - outcome_N) * log_q))


def preference_calibration(preferred_N) -> dict:
    """Whether a model is as sure of its preferences as it is right: calibration, Brier score and log-loss of N pairs.

    Args:
        preferred_N: predicted P(i better than j), with i the sample of each pair that people prefer.

    Returns:
        `bins` (`calibration_bins`), `expected_calibration_error`, `brier`, `log_loss` and `n`.

    What people prefer always "happened", so these P cannot be binned as they are: that would call a model that says 0.8
    and is right in 80 % badly calibrated. Calibration is asked of the sample that the model favours: the bins run over
    its P, from 0.5 to 1, against the share of pairs in which people favour it too. So it does not matter which sample
    stands first. A P of exactly ½ favours neither and counts as half.
    """
    preferred_N = _vector(preferred_N, "preferred_N")
    ones_N = np.ones_like(preferred_N)
    agreed_N = (1 + np.sign(preferred_N - 0.5)) / 2
    bins = calibration_bins(np.maximum(preferred_N, 1 - preferred_N), agreed_N, low=0.5)
    return {
        "bins": bins,
        "expected_calibration_error": expected_calibration_error(bins),
        "brier": brier_score(preferred_N, ones_N),
        "log_loss": log_loss(preferred_N, ones_N),
        "n": len(preferred_N),
    }


def singular_values(hidden_NH, *, centred: bool) -> np.ndarray:
    """Singular values of the N×H matrix of hidden states, largest first (section 4.3); `centred`: less their mean."""
    hidden_NH = np.asarray(hidden_NH, dtype=np.float64)
    if hidden_NH.ndim != 2 or min(hidden_NH.shape) < 2:
        raise JRMError(f"Singular values need a matrix of at least 2 samples by 2 features, got {hidden_NH.shape}.")
    if not np.isfinite(hidden_NH).all():
        raise JRMError("The hidden states contain NaN or infinity; the model that made them has diverged.")
    return np.linalg.svd(hidden_NH - hidden_NH.mean(0) if centred else hidden_NH, compute_uv=False)


def spectral_entropy(values) -> float:
    """Entropy in nats of the normalised singular values: p_k = s_k / sum s, -sum p_k log p_k (section 4.3)."""
    values = np.asarray(values, dtype=np.float64)
    if not values.sum() > 0:
        raise JRMError("All singular values are zero: every hidden state is the same, so no spectrum is defined.")
    share = values / values.sum()
    share = share[share > 0]
    return float(-(share * np.log(share)).sum())


def effective_rank(hidden_NH, *, bootstrap: int = 200, group_size: int = 1, seed: int = 0) -> dict:
    """How many directions a representation uses: exp of the spectral entropy (section 4.3; Roy & Vetterli 2007).

    Args:
        hidden_NH: hidden states of the reward token, one row per sample.
        bootstrap: number of resamples for the intervals.
        group_size: consecutive rows that belong together (2 for the candidates of a pair) and are resampled together.
        seed: of the resampling.

    Returns:
        `{"n", "features", "raw", "centred"}`; `raw` and `centred` (mean subtracted) hold `value` with its 95 %
        interval `low`, `high`; `spectral_entropy`, the entropy divided by log(min(N, H)), so in [0, 1];
        `singular_values` as shares of their sum, largest first.

    The interval is value ± 1.96 bootstrap standard errors. Percentiles of the resamples would be wrong: a resample
    repeats rows, which lowers its rank so much that the percentile interval misses the value itself. The effective
    rank of a finite sample is below that of the population for the same reason: compare two models on the same
    samples only.
    """
    hidden_NH = np.asarray(hidden_NH, dtype=np.float64)
    if bootstrap < 2 or group_size < 1 or hidden_NH.ndim != 2 or len(hidden_NH) % group_size:
        raise JRMError(
            f"The effective rank needs bootstrap >= 2 and rows in whole groups, got bootstrap={bootstrap}, "
            f"group_size={group_size} and hidden states of shape {hidden_NH.shape}."
        )
    groups = len(hidden_NH) // group_size
    if groups < 8:  # fewer, and a resample may hold one group only, which has no centred spectrum
        raise JRMError(f"The effective rank needs at least 8 groups of samples, got {groups}; score more samples.")
    rows_GS = np.arange(len(hidden_NH)).reshape(groups, group_size)
    result = {"n": len(hidden_NH), "features": hidden_NH.shape[1]}
    for name, centred in (("raw", False), ("centred", True)):
        values = singular_values(hidden_NH, centred=centred)
        entropy = spectral_entropy(values)
        rng = np.random.default_rng(seed)
        resampled = []
        for _ in range(bootstrap):
            rows = rows_GS[rng.integers(0, groups, groups)].ravel()
            resampled.append(np.exp(spectral_entropy(singular_values(hidden_NH[rows], centred=centred))))
        value, half = float(np.exp(entropy)), float(Z95 * np.std(resampled, ddof=1))
        result[name] = {
            "value": value,
            "low": max(1.0, value - half),
            "high": min(float(len(values)), value + half),
            "spectral_entropy": entropy / float(np.log(len(values))),
            "singular_values": [float(v) for v in values / values.sum()],
        }
    return result


def _vector(values, name: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise JRMError(f"{name} must be one list of finite numbers.")
    return values


def _probabilities(probability_N, outcome_N) -> tuple[np.ndarray, np.ndarray]:
    probability_N, outcome_N = _vector(probability_N, "probability_N"), _vector(outcome_N, "outcome_N")
    if len(probability_N) != len(outcome_N):
        raise JRMError(f"Got {len(probability_N)} probabilities but {len(outcome_N)} outcomes.")
    for name, values in (("probability_N", probability_N), ("outcome_N", outcome_N)):
        if len(values) and not (values.min() >= 0 and values.max() <= 1):
            raise JRMError(f"{name} must lie in [0, 1].")
    return probability_N, outcome_N
