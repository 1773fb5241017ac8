"""A packed batch has the scores, losses and gradients of the padded one, whatever its sequences share."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jrm_plugin.errors import JRMError
from jrm_plugin.model.backbone import BackboneParts, TokenCosts
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
    weight = torch.linspace(-1, 1, output.mu_SD.numel()).view_as(output.mu_SD)
    loss = (weight * (output.mu_SD + 0.5 * output.log_sigma_SD)).sum() / len(weight)
    loss = loss + output.critique_loss_T.sum() / max(1, len(output.critique_loss_T))
    loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return torch.cat(
        [x.detach().flatten() for x in (output.mu_SD, output.log_sigma_SD, output.critique_loss_T)]
    ), gradients


def assert_same(model, processor, samples, critiques, costs, **options):
    values, gradients = losses_and_gradients(model, processor(samples, critiques))
    packed_values, packed_gradients = losses_and_gradients(model, processor(samples, critiques, costs=costs), **options)
    assert (packed_values - values).abs().max() < TOLERANCE
    assert packed_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        scale = max(1.0, float(gradient.abs().max()))
        assert (packed_gradients[name] - gradient).abs().max() < TOLERANCE * scale, name


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_batch_has_the_losses_and_gradients_of_its_padded_form(scorer_of, images, family, order, sequences, data):
    scorer = scorer_of(family, order, sequences)
    samples, critiques = data.draw(batches(images))
    costs = TokenCosts(*PRICES[data.draw(st.sampled_from(sorted(PRICES)))], "sdpa")
    assert_same(scorer.model, scorer.processor, samples, critiques, costs)
