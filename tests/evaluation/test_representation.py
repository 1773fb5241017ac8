"""The effective rank of hidden states that are read off the samples' own text."""

import pytest
import torch

from jrm_plugin.evaluation.metrics import SPECTRAL_MEASURES, effective_rank
from jrm_plugin.evaluation.representation import evaluate_representation


class Hidden:
    """The hidden state of a text "a b" is (a, b)."""

    def hidden_states(self, samples, *, progress=False):
        rows = [[float(value) for value in sample.response_text.split()] for sample in samples]
        return torch.tensor(rows, dtype=torch.bfloat16)


def test_representation_resamples_whole_pairs(make_pair):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(20, 2, generator=generator).bfloat16()
    # Both samples of a pair are equal, so 20 pairs are 20 observations, not 40: value and interval are theirs.
    pairs = [make_pair(f"{a} {b}", f"{a} {b}") for a, b in values.tolist()]
    result = evaluate_representation(Hidden(), pairs, bootstrap=50, seed=3)
    assert (result["n"], result["features"]) == (40, 2)
    alone = effective_rank(values.double().numpy(), bootstrap=50, seed=3)
    for kind in ("raw", "centred"):
        assert result[kind]["singular_values"] == pytest.approx(alone[kind]["singular_values"])
        for measure in SPECTRAL_MEASURES:
            assert result[kind][measure] == pytest.approx(alone[kind][measure])
