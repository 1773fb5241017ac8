"""How many directions the reward token's hidden state uses, and how two models lay samples out (paper section 4.3).

Shape suffixes: N samples, H hidden, K principal components.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from jrm_plugin.evaluation.metrics import (
    SPECTRAL_MEASURES,
    Z95,
    effective_rank,
    mean_with_interval,
    principal_components,
    procrustes,
    resamples,
    spectrum,
)
from jrm_plugin.evaluation.pairs import check_pairs, samples_of
from jrm_plugin.records.preferences import PreferencePair

if TYPE_CHECKING:
    from jrm_plugin.scoring.scorer import RewardScorer

KINDS = {"raw": False, "centred": True}  # whether the mean is subtracted


def evaluate_representation(
    scorer: "RewardScorer",
    pairs: Sequence[PreferencePair],
    *,
    bootstrap: int = 200,
    seed: int = 0,
    progress: bool = False,
) -> dict:
    """`metrics.effective_rank` of the reward token's hidden state over both samples of all pairs (section 4.3).

    The two samples of a pair share their prompt, so the interval resamples whole pairs.

    Args:
        scorer: a scorer that shows its hidden states: of a `RewardScorer` it takes `hidden_states` only.
        pairs: whose samples are read; their labels are not.
        bootstrap: how often the pairs are resampled.
        seed: of the resampling.
        progress: show a bar.

    Raises:
        JRMError: there is no pair, or a sample cannot be read.
    """
    hidden_NH = hidden_states_of(scorer, pairs, progress=progress)
    # 2 rows a pair, or 2 per dimension where each dimension is read in a sequence of its own.
    return effective_rank(hidden_NH, bootstrap=bootstrap, group_size=len(hidden_NH) // len(pairs), seed=seed)


def hidden_states_of(scorer: "RewardScorer", pairs: Sequence[PreferencePair], *, progress: bool = False) -> np.ndarray:
    """The reward token's hidden states over both samples of all pairs, float32, in their order."""
    check_pairs(pairs)
    return scorer.hidden_states(samples_of(pairs), progress=progress).to("cpu", torch.float32).numpy()


def compare_representations(
    hidden: Mapping[str, np.ndarray], pairs: int, *, bootstrap: int = 200, seed: int = 0
) -> dict[str, Any]:
    """Spectra and 3-D pictures of models that read the same samples, each beside the first.

    Args:
        hidden: what `hidden_states_of` gave, by the name of the model.
        pairs: how many pairs that were.
        bootstrap: how often the pairs are resampled, the same ones for every model.
        seed: of the resampling.

    Returns:
        `models`: by name what `metrics.effective_rank` gives, and `projection`: `points`, the coordinates of every
        sample along the first three principal components, turned onto those of the first model (`metrics.procrustes`);
        `variance`, the shares of the three in the whole; `spread`, the mean distance of a sample from the mean of all
        over all H features, with its interval over pairs; of further models `disparity` with its interval.
        `differences`: by name of each further model, the first model's measures less this one's, with intervals.
    """
    first = next(iter(hidden))
    spectra = {
        name: {
            kind: spectrum(
                hidden_NH, centred=centred, bootstrap=bootstrap, group_size=len(hidden_NH) // pairs, seed=seed
            )
            for kind, centred in KINDS.items()
        }
        for name, hidden_NH in hidden.items()
    }
    # One row a sample, also of a model that reads each dimension in a sequence of its own.
    components = {name: principal_components(_per_sample(rows, 2 * pairs)) for name, rows in hidden.items()}
    reference_NK, _ = components[first]
    spread = {name: _spread(_per_sample(rows, 2 * pairs), pairs) for name, rows in hidden.items()}
    models = {}
    for name, (point_NK, variance_K) in components.items():
        aligned_NK, disparity = procrustes(reference_NK, point_NK)
        models[name] = {
            "n": len(hidden[name]),
            "features": hidden[name].shape[1],
            **{kind: of_kind.summary() for kind, of_kind in spectra[name].items()},
            "projection": {
                "points": np.round(aligned_NK, 5).tolist(),
                "variance": variance_K.tolist(),
                "spread": mean_with_interval(spread[name]),
            },
        }
        if name != first:
            models[name]["projection"]["disparity"] = _disparity(
                reference_NK, point_NK, disparity, pairs, bootstrap, seed
            )
    differences: dict[str, Any] = {
        name: {"spread": mean_with_interval(spread[first] - spread[name])}
        | {
            kind: {measure: spectra[first][kind].less(of_kind, measure) for measure in SPECTRAL_MEASURES}
            for kind, of_kind in of_model.items()
        }
        for name, of_model in spectra.items()
        if name != first
    }
    return {"models": models, "differences": differences}


def _per_sample(hidden_NH: np.ndarray, samples: int) -> np.ndarray:
    return hidden_NH.reshape(samples, -1, hidden_NH.shape[1]).mean(1)


def _spread(hidden_NH: np.ndarray, pairs: int) -> np.ndarray:
    """How far the samples of each pair are from the mean of all, in units of the hidden state."""
    return np.linalg.norm(hidden_NH - hidden_NH.mean(0), axis=1).reshape(pairs, 2).mean(1).astype(np.float64)


def _disparity(
    reference_NK: np.ndarray, point_NK: np.ndarray, value: float, pairs: int, bootstrap: int, seed: int
) -> dict[str, float]:
    """With its interval, value ± 1.96 bootstrap standard errors over whole pairs."""
    rows_GS = np.arange(len(point_NK)).reshape(pairs, -1)
    resampled = []
    for count_G in resamples(pairs, bootstrap, seed):
        rows = np.repeat(rows_GS, count_G, axis=0).ravel()
        resampled.append(procrustes(reference_NK[rows], point_NK[rows])[1])
    half = Z95 * float(np.std(resampled, ddof=1))
    return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half)}
