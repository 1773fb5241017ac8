"""A packed batch has the scores, losses and gradients of the padded one, whatever its sequences share."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jrm_plugin.model.backbone import SDPA_OR_FLEX, BackboneParts, TokenCosts
from jrm_plugin.model.packing import cheapest_rows, pack
from jrm_plugin.model.token_tree import token_tree
from jrm_plugin.records.critiques import Critique
from jrm_plugin.records.samples import Sample

TOLERANCE = 1e-5  # float32
# FLOPs by which the planner packs all that it can, what pays in a common model, and nothing.
PRICES = {"one row": (1.0, 0.0), "what pays": (1.6e6, 1024.0), "apart": (0.0, 1.0)}


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in [(28, 28), (56, 28), (28, 84), (60, 60)]]


@st.composite
def batches(draw, images):
    """Samples in any order, that share sources, instructions, images and whole inputs, with or without critiques."""
    image = st.sampled_from(images)
    words = st.sampled_from(["make it blue", "make it red and remove the square"])
    text = st.sampled_from(["blue as asked", "noise left of the square and the circle was done right", "blue"])
    critique = st.dictionaries(
        st.sampled_from(["instruction_following", "visual_quality"]), st.builds(Critique, text), max_size=2
    )
    sample = st.one_of(
        st.builds(Sample.edit, image, words, image),
        st.builds(lambda a, b, instruction, c: Sample.edit([a, b], instruction, c), image, image, words, image),
        st.builds(Sample.generation, words, image),
        st.builds(lambda instruction: Sample.text_response(None, instruction, "blue"), words),
    )
    rows = draw(st.lists(st.tuples(sample, critique), min_size=1, max_size=6))
    return [row[0] for row in rows], [row[1] for row in rows]


def losses_and_gradients(model, batch, **options):
    """Both heads' scores, the critique loss of every token, and the gradient of a loss that reaches all of them."""
    model.zero_grad()
    output = model(**batch, **options)
    output.check()
    weight = torch.linspace(-1, 1, output.mu_SD.numel(), device=model.device).view_as(output.mu_SD)
    loss = (weight * (output.mu_SD + 0.5 * output.log_sigma_SD)).sum() / len(weight)
    loss = loss + output.critique_loss_T.sum() / max(1, len(output.critique_loss_T))
    loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return torch.cat(
        [x.detach().flatten() for x in (output.mu_SD, output.log_sigma_SD, output.critique_loss_T)]
    ), gradients


def assert_same(model, expected, batch, **options):
    values, gradients = expected
    packed_values, packed_gradients = losses_and_gradients(model, batch, **options)
    assert (packed_values - values).abs().max() < TOLERANCE
    assert packed_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        scale = max(1.0, float(gradient.abs().max()))
        assert (packed_gradients[name] - gradient).abs().max() < TOLERANCE * scale, name


@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_batch_has_the_losses_and_gradients_of_its_padded_form(scorer_of, images, family, order, sequences, data):
    model, processor = scorer_of(family, order, sequences).model, scorer_of(family, order, sequences).processor
    samples, critiques = data.draw(batches(images))
    costs = TokenCosts(*PRICES[data.draw(st.sampled_from(sorted(PRICES)))], "sdpa")
    expected = losses_and_gradients(model, processor(samples, critiques))
    assert_same(model, expected, processor(samples, critiques, costs=costs))


# --- one batch in more ways -------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(images):
    """Two pairs: of one source each, with critiques of different lengths, one of them without any."""
    samples = [Sample.edit(images[k % 2], "make it blue", images[2 + k // 2]) for k in range(4)]
    texts = ["blue as asked", "noise left of the square and the circle was done right"]
    return samples, [{"visual_quality": Critique(text)} for text in texts] + [{}, {"visual_quality": Critique("blue")}]


@pytest.mark.parametrize("attention", ["eager", "flex", "1d", "checkpointing", "bfloat16"])
def test_by_every_attention(make_scorer, pairs, monkeypatch, attention):
    config = {"rope_positions": "1d"} if attention == "1d" else {}
    scorer = make_scorer("qwen3_vl", "rubric_first", config=config | {"reward_head_dropout": 0.0})
    model, processor = scorer.model, scorer.processor
    parts = BackboneParts(model.backbone)
    if attention == "eager":
        model.set_attn_implementation("eager")
    expected = losses_and_gradients(model, processor(*pairs))
    costs = TokenCosts(*PRICES["one row"], parts.attention_implementation)
    if attention == "checkpointing":
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if attention == "flex":
        parts.use_flex_attention()
        # what torch compiles for a GPU, run as it is written; its backward pass is not allowed on a CPU otherwise
        monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *tensors: None)
        with torch.compiler.set_stance("force_eager"):
            assert_same(model, expected, processor(*pairs, costs=parts.costs()))
            with torch.autocast("cpu", torch.bfloat16):
                losses_and_gradients(model, processor(*pairs, costs=parts.costs()))
        return
    if attention == "bfloat16":
        with torch.autocast("cpu", torch.bfloat16):
            rounded, _ = losses_and_gradients(model, processor(*pairs))
            packed, _ = losses_and_gradients(model, processor(*pairs, costs=costs))
        assert (packed - expected[0]).abs().mean() < 2 * (rounded - expected[0]).abs().mean()
        return
    assert_same(model, expected, processor(*pairs, costs=costs))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_flex_attention_on_a_gpu(make_scorer, pairs):
    scorer = make_scorer("qwen3_vl", "rubric_first", config={"reward_head_dropout": 0.0})
    model, processor = scorer.model.cuda(), scorer.processor
    expected = losses_and_gradients(model, on_gpu(processor(*pairs)))
    BackboneParts(model.backbone).use_flex_attention()
    batch = on_gpu(processor(*pairs, costs=BackboneParts(model.backbone).costs()))
    values, gradients = losses_and_gradients(model, batch, fused_cross_entropy=True)
    assert (values - expected[0]).abs().max() < 1e-3  # TF32 inside the kernel
    for name, gradient in expected[1].items():
        assert (gradients[name] - gradient).abs().max() < 1e-2 * max(1.0, float(gradient.abs().max())), name


def on_gpu(batch):
    return {name: on_gpu(value) if isinstance(value, dict) else value.cuda() for name, value in batch.items()}


def test_distinct_images_are_encoded_once_and_shared_tokens_computed_once(make_scorer, pairs):
    scorer = make_scorer("qwen3_vl", "rubric_first", "per_dimension")
    batch = scorer.processor(*pairs)
    packed = scorer.processor(*pairs, costs=TokenCosts(*PRICES["one row"], "sdpa"))
    assert len(batch["image_grid_thw"]) == len(packed["image_grid_thw"]) == 16  # four samples of two sequences
    patches, distinct = len(batch["pixel_values"]), len(packed["pixel_values"])
    assert 4 * distinct == patches  # of four images
    assert packed["packing"]["token_RS"].numel() < 0.75 * batch["input_ids"].numel()
    assert packed["input_ids"].equal(batch["input_ids"]) and packed["labels"].equal(batch["labels"])


def test_text_alone(scorer_of):
    model, processor = scorer_of("qwen2_vl").model, scorer_of("qwen2_vl").processor
    samples = [Sample.text_response(None, "make it blue", answer) for answer in ("blue", "red and blue")]
    critiques = [{"visual_quality": Critique("noise")}, {}]
    expected = losses_and_gradients(model, processor(samples, critiques))
    assert_same(model, expected, processor(samples, critiques, costs=TokenCosts(*PRICES["one row"], "sdpa")))


# --- the plan ---------------------------------------------------------------------------------------------------------


def rows_of(lengths: tuple[int, int, int], per_token: float, per_pair: float, attention: str = "sdpa"):
    """Rows of two pairs: so many tokens shared by all, by a pair, and of each sequence alone."""
    everybody, pair, alone = lengths
    sequences = [
        np.r_[np.arange(everybody), np.full(pair, 1000 + k // 2), np.full(alone, 2000 + k), 9999] for k in range(4)
    ]
    return cheapest_rows(token_tree(sequences), TokenCosts(per_token, per_pair, attention))


def test_the_cheapest_cut_is_chosen():
    assert [row.tokens for row in rows_of((100, 100, 50), 1, 0)] == [100 + 2 * 100 + 4 * 50]
    assert [row.tokens for row in rows_of((20, 300, 20), 1, 2e-3)] == [20 + 300 + 2 * 20] * 2
    assert [row.tokens for row in rows_of((20, 20, 300), 1, 1e-2)] == [340] * 4
    assert not any(row.branches for row in rows_of((20, 20, 300), 1, 1e-2))


def test_flex_attention_has_all_in_one_row():
    (row,) = rows_of((0, 100, 50), 1, 1e9, SDPA_OR_FLEX)
    assert row.tokens == 2 * (100 + 2 * 50) and row.branches


@given(
    st.lists(st.lists(st.integers(0, 1), max_size=40), min_size=1, max_size=8),
    st.sampled_from(sorted(PRICES)),
    st.sampled_from(["sdpa", SDPA_OR_FLEX]),
)
def test_a_token_sees_its_own_sequence_before_it_and_nothing_else(ids, price, attention):
    """Beginnings of other sequences, equal ones and empty critiques included."""
    ids = [[7, *sequence] for sequence in ids]
    plan = pack(ids, [[] for _ in ids], 5, TokenCosts(*PRICES[price], attention))
    token_RS, place_BL = plan["token_RS"], plan["place_BL"]
    R, S = token_RS.shape
    L = max(map(len, ids))
    end_RS = plan.get("end_RS", torch.full((R, S), S))
    place_S = torch.arange(S)
    sees_RSS = (place_S <= place_S[:, None]) & (place_S[:, None] < end_RS[:, None])
    padded = torch.tensor([[*sequence, *[-1] * (L - len(sequence))] for sequence in ids]).flatten()
    for sequence, place_L in zip(ids, place_BL, strict=True):
        for k in range(len(sequence)):
            row, place = divmod(int(place_L[k]), S)
            seen = padded[token_RS[row, sees_RSS[row, place]]]
            assert seen.tolist() == sequence[: k + 1]
