"""Preferences as one batch: pairs and groups of any size, as rows of the model and what is known of their order.

Shape suffixes: S samples, N groups (a pair is one of two), G candidates of the largest, C dimensions and overall.
"""

from collections.abc import Sequence
from typing import Any

import torch

from jrm_plugin.model.backbone import TokenCosts
from jrm_plugin.model.processing import JRMProcessor
from jrm_plugin.records.preferences import PreferencePair, RankedGroup
from jrm_plugin.records.samples import OVERALL


def group_batch(
    processor: JRMProcessor,
    examples: Sequence[PreferencePair | RankedGroup],
    *,
    with_critiques: bool = True,
    costs: TokenCosts | None = None,
) -> dict[str, Any]:
    """What the model takes, with two tensors beside it that say which sample belongs where.

    The samples are the first candidates of all groups, then the second ones of all, and so on: of pairs, the chosen
    ones and then the rejected ones.

    Args:
        costs: as `JRMProcessor.collate` takes them.

    Returns:
        The processor's batch, and `sample_NG`, the number of each candidate's sample, -1 where a group has fewer, and
        `rank_NGC`, the candidates' places, NaN where they have none.
    """
    largest = max(len(example.candidates) for example in examples)
    places = [(n, g) for g in range(largest) for n, e in enumerate(examples) if g < len(e.candidates)]
    candidates = [examples[n].candidates[g] for n, g in places]
    critiques = [examples[n].critiques[g] if with_critiques else {} for n, g in places]
    names = [*processor.dimensions, OVERALL]
    sample_NG = torch.full((len(examples), largest), -1)
    rank_NGC = torch.full((len(examples), largest, len(names)), float("nan"))
    for s, (n, g) in enumerate(places):
        sample_NG[n, g] = s
    for n, example in enumerate(examples):
        for c, name in enumerate(names):
            for g, rank in enumerate(example.ranks.get(name, ())):
                if rank is not None:
                    rank_NGC[n, g, c] = rank
    return processor(candidates, critiques, costs=costs) | {"sample_NG": sample_NG, "rank_NGC": rank_NGC}


def in_groups(x_SD: torch.Tensor, sample_NG: torch.Tensor) -> torch.Tensor:
    """A value of each sample as `[N, G, D]`; where a group has fewer candidates, that of any sample."""
    return x_SD[sample_NG.clamp(min=0)]
