"""The numbers a report shows, in plain numpy: accuracy, calibration, and how many directions a representation uses.

Shape suffixes: N pairs or samples, H hidden, K bins. Every result is JSON-able: dicts of plain floats and integers,
`None` where there is nothing to divide by.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jrm_plugin.errors import JRMError
from jrm_plugin.extras import require

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
    hidden_NH = _matrix(hidden_NH)
    return np.linalg.svd(hidden_NH - hidden_NH.mean(0) if centred else hidden_NH, compute_uv=False)


def spectral_entropy(values) -> float:
    """Entropy in nats of the normalised singular values: p_k = s_k / sum s, -sum p_k log p_k (section 4.3)."""
    values = np.asarray(values, dtype=np.float64)
    if not values.sum() > 0:
        raise JRMError("All singular values are zero: every hidden state is the same, so no spectrum is defined.")
    share = values / values.sum()
    share = share[share > 0]
    return float(-(share * np.log(share)).sum())


def isotropy(values) -> float:
    """How evenly the energy s_k² spreads over d directions: 0 all in one, 1 the same in each (section 4.3).

    The paper does not define its score. This is IsoScore (Rudman et al. 2022) of the singular values, which comes to

        (E - 1) / (d - 1)   with   E = (sum s_k²)² / sum s_k⁴,   the number of directions that share the energy.
    """
    energy = np.square(np.asarray(values, dtype=np.float64))
    return float((energy.sum() ** 2 / np.square(energy).sum() - 1) / (len(energy) - 1))


# What is measured of singular values, largest first.
SPECTRAL_MEASURES: dict[str, Callable[[np.ndarray], float]] = {
    "effective_rank": lambda values: float(np.exp(spectral_entropy(values))),
    "spectral_entropy": lambda values: spectral_entropy(values) / float(np.log(len(values))),
    "isotropy": isotropy,
    "energy_of_three": lambda values: float(np.square(values[:3]).sum() / np.square(values).sum()),
}


@dataclass(frozen=True)
class Spectrum:
    """Singular values of hidden states, and what is measured of them in resamples of these.

    Attributes:
        values: the singular values, largest first.
        resampled: by name of [`SPECTRAL_MEASURES`], its value in each resample.
    """

    values: np.ndarray
    resampled: Mapping[str, np.ndarray]

    def measure(self, name: str) -> dict[str, float]:
        """A measure with its 95 % interval, value ± 1.96 bootstrap standard errors, within what it can be.

        Percentiles of the resamples would be wrong: a resample repeats rows, which lowers its rank so much that the
        percentile interval misses the value itself.
        """
        value, half = SPECTRAL_MEASURES[name](self.values), Z95 * float(np.std(self.resampled[name], ddof=1))
        least, most = (1.0, float(len(self.values))) if name == "effective_rank" else (0.0, 1.0)
        return {"value": value, "low": max(least, value - half), "high": min(most, value + half)}

    def less(self, other: "Spectrum", name: str) -> dict[str, float]:
        """This spectrum's measure less another's, of the same samples in the same resamples, with its interval."""
        value = SPECTRAL_MEASURES[name](self.values) - SPECTRAL_MEASURES[name](other.values)
        half = Z95 * float(np.std(self.resampled[name] - other.resampled[name], ddof=1))
        return {"value": value, "low": value - half, "high": value + half}

    def summary(self) -> dict[str, Any]:
        """Every measure, and the singular values as shares of their sum."""
        shares = [float(share) for share in self.values / self.values.sum()]
        return {name: self.measure(name) for name in SPECTRAL_MEASURES} | {"singular_values": shares}


def spectrum(hidden_NH, *, centred: bool, bootstrap: int = 200, group_size: int = 1, seed: int = 0) -> Spectrum:
    """Singular values of hidden states (section 4.3), and resamples for intervals.

    Args:
        hidden_NH: hidden states of the reward token, one row per sample.
        centred: less their mean.
        bootstrap: number of resamples.
        group_size: consecutive rows that belong together (2 for the candidates of a pair) and are resampled together.
        seed: of the resampling; with one seed, two models see the same resamples.
    """
    hidden_NH = np.asarray(hidden_NH, dtype=np.float64)
    if bootstrap < 2 or group_size < 1 or hidden_NH.ndim != 2 or len(hidden_NH) % group_size:
        raise JRMError(
            f"A spectrum needs bootstrap >= 2 and rows in whole groups, got bootstrap={bootstrap}, "
            f"group_size={group_size} and hidden states of shape {hidden_NH.shape}."
        )
    groups = len(hidden_NH) // group_size
    check_groups(groups)
    values = singular_values(hidden_NH, centred=centred)
    spectral_entropy(values)  # says so where every hidden state is the same
    if centred:
        hidden_NH = hidden_NH - hidden_NH.mean(0)
    resampled: dict[str, list[float]] = {name: [] for name in SPECTRAL_MEASURES}
    for count_G in resamples(groups, bootstrap, seed):
        of_resample = weighted_singular_values(hidden_NH, np.repeat(count_G, group_size), centred)
        for name, measure in SPECTRAL_MEASURES.items():
            resampled[name].append(measure(of_resample))
    return Spectrum(values, {name: np.array(found) for name, found in resampled.items()})


def check_groups(groups: int) -> None:
    """A [`JRMError`] where there are so few that a resample may hold one alone, which has no centred spectrum."""
    if groups < 8:
        raise JRMError(f"A spectrum needs at least 8 groups of samples, got {groups}; score more samples.")


def resamples(groups: int, bootstrap: int, seed: int) -> Iterator[np.ndarray]:
    """How often each group is drawn, `[G]`, for each resample."""
    rng = np.random.default_rng(seed)
    for _ in range(bootstrap):
        yield np.bincount(rng.integers(0, groups, groups), minlength=groups)


def weighted_singular_values(hidden_NH: np.ndarray, weight_N: np.ndarray, centred: bool) -> np.ndarray:
    """Singular values of the matrix in which row n stands `weight_N[n]` times.

    By the eigenvalues of the smaller of its two Gram matrices, which takes a fraction of the time of its own
    decomposition; what that loses is below 1e-7 of the largest singular value.
    """
    drawn = weight_N > 0
    rows, weight = hidden_NH[drawn], weight_N[drawn].astype(np.float64)
    if centred:
        rows = rows - weight @ rows / weight.sum()
    rows = rows * np.sqrt(weight)[:, None]
    gram = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0))
    most = min(len(hidden_NH), hidden_NH.shape[1])  # directions that all samples could take
    return np.pad(values, (0, most - len(values)))


def effective_rank(hidden_NH, *, bootstrap: int = 200, group_size: int = 1, seed: int = 0) -> dict:
    """How many directions a representation uses: exp of the spectral entropy (section 4.3; Roy & Vetterli 2007).

    Args: as of [`spectrum`].

    Returns:
        `{"n", "features", "raw", "centred"}`; `raw` and `centred` (mean subtracted) hold, each with its 95 % interval
        as `value`, `low`, `high`: `effective_rank`; `spectral_entropy`, the entropy divided by log(min(N, H)), so in
        [0, 1]; `isotropy`; `energy_of_three`, the share of the energy s² in the three largest directions. Beside them
        `singular_values` as shares of their sum, largest first.

    The effective rank of a finite sample is below that of the population: compare two models on the same samples only.
    """
    options = {"bootstrap": bootstrap, "group_size": group_size, "seed": seed}
    raw, centred = (spectrum(hidden_NH, centred=centred, **options).summary() for centred in (False, True))
    samples, features = np.shape(hidden_NH)
    return {"n": samples, "features": features, "raw": raw, "centred": centred}


def principal_components(hidden_NH, components: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of N hidden states along their first principal components, `[N, K]`, and the variance of each, `[K]`.

    As shares of the whole variance; with fewer samples or features than components, those that lack are zero.
    """
    hidden_NH = _matrix(hidden_NH)
    centred_NH = hidden_NH - hidden_NH.mean(0)
    left_NK, value_K, _ = np.linalg.svd(centred_NH, full_matrices=False)
    lacking = max(0, components - len(value_K))
    coordinate_NK = np.pad((left_NK * value_K)[:, :components], ((0, 0), (0, lacking)))
    energy_K = np.square(value_K)
    return coordinate_NK, np.pad(energy_K / (energy_K.sum() or 1.0), (0, lacking))[:components]


def procrustes(reference_NK, points_NK) -> tuple[np.ndarray, float]:
    """Points turned (and mirrored) onto a reference, row by row, and what of their shape is left different.

    Both are centred. The turn R is orthogonal and minimises ‖A - B R‖ (Schönemann 1966): R = U Vᵀ of BᵀA = U S Vᵀ.
    Nothing is scaled, so that how far each spreads can be compared. The disparity is what is left of the shape when
    scale is free, 1 - (sum S)² / (‖A‖² ‖B‖²): 0 the same shape, 1 nothing in common.

    Returns:
        B R, `[N, K]`, and the disparity.
    """
    reference_NK, points_NK = _matrix(reference_NK), _matrix(points_NK)
    if reference_NK.shape != points_NK.shape:
        raise JRMError(f"Points are turned onto as many, got {points_NK.shape} and {reference_NK.shape}.")
    reference_NK, points_NK = reference_NK - reference_NK.mean(0), points_NK - points_NK.mean(0)
    left_KK, value_K, right_KK = np.linalg.svd(points_NK.T @ reference_NK)
    scale = np.square(reference_NK).sum() * np.square(points_NK).sum()
    disparity = 1 - value_K.sum() ** 2 / scale if scale else 1.0
    return points_NK @ (left_KK @ right_KK), float(min(1.0, max(0.0, disparity)))


def mean_with_interval(values) -> dict:
    """The mean of independent values with Student's 95 % interval: `{"value", "low", "high", "n"}`.

    Of one value alone nothing is known beside it: `low` and `high` are None.
    """
    values = _vector(values, "values")
    if not len(values):
        raise JRMError("A mean needs at least one value.")
    mean = float(values.mean())
    if len(values) == 1:
        return {"value": mean, "low": None, "high": None, "n": 1}
    require("scipy", "an interval of few values", install="jrm-plugin[eval]")
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return {"value": mean, "low": mean - half, "high": mean + half, "n": len(values)}


def _matrix(values) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or min(values.shape) < 2:
        raise JRMError(f"Singular values need a matrix of at least 2 samples by 2 features, got {values.shape}.")
    if not np.isfinite(values).all():
        raise JRMError("The hidden states contain NaN or infinity; the model that made them has diverged.")
    return values


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
