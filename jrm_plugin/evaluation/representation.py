"""How many directions the reward token's hidden state uses (paper section 4.3)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from jrm_plugin.evaluation.metrics import effective_rank
from jrm_plugin.evaluation.pairs import check_pairs, samples_of
from jrm_plugin.records.preferences import PreferencePair

if TYPE_CHECKING:
    from jrm_plugin.scoring.scorer import RewardScorer


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
    check_pairs(pairs)
    hidden = scorer.hidden_states(samples_of(pairs), progress=progress).to("cpu", torch.float64).numpy()
    # 2 rows a pair, or 2 per dimension where each dimension is read in a sequence of its own.
    return effective_rank(hidden, bootstrap=bootstrap, group_size=len(hidden) // len(pairs), seed=seed)
