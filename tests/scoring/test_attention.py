"""How the reward token attends to images: against whole matrices of attention that transformers makes itself."""

import numpy as np
import pytest
import torch
from PIL import Image

from jrm_plugin.errors import JRMError
from jrm_plugin.model.backbone import FAMILIES
from jrm_plugin.records.samples import Sample
from jrm_plugin.scoring.scorer import RewardScorer

WIDE, HIGH = (64, 32, 3), (32, 64, 3)  # rows and columns of pixels, of which no image is scaled


@pytest.fixture
def samples():
    rng = np.random.default_rng(0)
    source, *edited = (Image.fromarray(rng.integers(0, 255, size, np.uint8)) for size in (WIDE, HIGH, HIGH))
    return [Sample.edit(source, "make the red circle blue", image) for image in edited]


def of_transformers(scorer: RewardScorer, sample: Sample) -> list[torch.Tensor]:
    """The reward token's row of every sequence, mean over layers and heads, from the backbone's own forward pass."""
    rows = []
    for sequence in scorer.processor.encode(sample):
        inputs = scorer.processor.collate([sequence])
        inputs.pop("dimension_ids", None)
        is_image = inputs["input_ids"] == scorer.processor.image_token_id
        reward = sequence.prompt.index(scorer.processor.reward_token_id)
        attentions = scorer.model.backbone.model(
            **inputs, mm_token_type_ids=is_image.int(), output_attentions=True, use_cache=False
        ).attentions
        share_L = torch.stack(attentions)[:, 0, :, reward].mean((0, 1))
        rows.append(share_L[is_image[0]])
    return rows


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sequences", ["joint", "per_dimension"])
@torch.no_grad()
def test_attention_is_that_of_the_whole_matrix(make_scorer, samples, family, sequences):
    scorer = make_scorer(family, sequences=sequences)
    before = scorer.score(samples)
    shown = dict(scorer.attention(samples))
    implementations = [config._attn_implementation for config in configs(scorer)]
    assert scorer.score(samples) == before
    scorer.model.backbone.set_attn_implementation("eager")
    for position, sample in enumerate(samples):
        source, edited = shown[position]
        assert source.shape == edited.T.shape and source.shape[0] > source.shape[1]
        expected = torch.stack(of_transformers(scorer, sample)).mean(0)
        torch.testing.assert_close(torch.cat([source.flatten(), edited.flatten()]), expected, rtol=1e-4, atol=1e-6)
        assert 0 < expected.sum() < 1
    assert implementations == ["sdpa"] * len(implementations)


def configs(scorer: RewardScorer) -> list:
    return [
        module.config for module in scorer.model.backbone.model.language_model.modules() if hasattr(module, "config")
    ]


def test_nothing_is_left_behind_where_it_fails(make_scorer, samples):
    scorer = make_scorer()
    layers = scorer.model.backbone.model.language_model.layers

    def fail(*_, **__):
        raise RuntimeError("in the middle")

    handle = layers[1].self_attn.q_proj.register_forward_hook(
        lambda module, inputs, output: fail() if inputs[0].shape[1] == 1 else None
    )
    with pytest.raises(RuntimeError, match="in the middle"):
        list(scorer.attention(samples))
    handle.remove()
    assert {config._attn_implementation for config in configs(scorer)} == {"sdpa"}
    assert not any(layer.self_attn._forward_hooks for layer in layers)


def test_the_plain_engine_says_that_it_shows_none(make_scorer, samples):
    scorer = make_scorer()
    with pytest.raises(JRMError, match="leave engine out"):
        list(RewardScorer(scorer.model, scorer.processor, engine="plain").attention(samples))
