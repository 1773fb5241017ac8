"""Models side by side: attention in regions, gradients of both losses, representations, and what cannot be read."""

import numpy as np
import pytest
import torch
from PIL import Image

from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation.analysis import Plan, read_model, summarize_readings
from jrm_plugin.evaluation.attention import coverage, read_attention
from jrm_plugin.evaluation.gradients import read_gradients
from jrm_plugin.records.critiques import EditRegion
from jrm_plugin.records.preferences import PreferencePair
from jrm_plugin.records.samples import Sample
from jrm_plugin.training.losses import ranking_loss, ranking_loss_per_label, ranks_of_labels

PLAN = Plan(attention=4, shown=2, batches=2, batch_size=3)


@pytest.fixture
def pairs(critiques) -> list[PreferencePair]:
    rng = np.random.default_rng(0)

    def picture():
        return Image.fromarray(rng.integers(0, 255, (48, 48, 3), np.uint8))

    pairs = []
    for _ in range(9):
        source = picture()
        chosen, rejected = (Sample.edit(source, "make it blue", picture()) for _ in range(2))
        labels = {"overall": 1, "visual_quality": -1}
        pairs.append(PreferencePair(chosen, rejected, labels, chosen_critiques=critiques, rejected_critiques={}))
    return pairs


def test_a_region_covers_as_much_of_a_token_as_lies_in_it():
    left_half_and_a_corner = [EditRegion(0, "left", (0, 0, 500, 1000)), EditRegion(1, "corner", (750, 0, 1000, 500))]
    np.testing.assert_allclose(coverage((1, 2), left_half_and_a_corner), [[1, 0.25]])
    np.testing.assert_allclose(coverage((2, 1), left_half_and_a_corner), [[0.75], [0.5]])
    assert coverage((3, 3), [EditRegion(0, "all", (0, 0, 1000, 1000))]).min() == 1


def test_shares_of_attention_are_of_pairs_that_have_them(scorer_of, pairs):
    scorer = scorer_of()
    found = read_attention(scorer, pairs, shown=3)
    assert len(found.maps) == 3 and len(found.maps[0]) == 2
    maps = dict(scorer.attention([pair.chosen for pair in pairs]))
    covered = coverage((3, 3), pairs[0].chosen_critiques["instruction_following"].edit_region)
    for k, (_, edited) in maps.items():  # only the chosen sample has a region
        edited = edited.numpy()
        assert found.shares["inside"][k] == pytest.approx((edited * covered).sum() / edited.sum(), rel=1e-5)
    summary = found.summary()
    assert 0 < summary["edited"]["value"] < summary["images"]["value"] < 1
    assert summary["area"]["value"] == pytest.approx(covered.mean())
    without = [PreferencePair(pair.chosen, pair.rejected, pair.labels) for pair in pairs]
    assert read_attention(scorer, without, shown=0).summary()["inside"] is None


def test_gradients_are_those_of_two_backward_passes(make_scorer, pairs):
    scorer = make_scorer()
    model, processor = scorer.model, scorer.processor
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    found = read_gradients(scorer, pairs, batches=2, size=3)
    assert all(weight.grad is None for weight in model.parameters())
    assert all(weight.equal(before[name]) for name, weight in model.state_dict().items())
    for k in range(2):
        batch = pairs[3 * k : 3 * k + 3]
        samples = [pair.chosen for pair in batch] + [pair.rejected for pair in batch]
        critiques = [pair.chosen_critiques for pair in batch] + [pair.rejected_critiques for pair in batch]
        output = model(**processor(samples, critiques))
        rank_NGC = ranks_of_labels(torch.tensor([[float("nan"), -1.0, 1.0]] * 3))
        scores = (torch.stack(x.chunk(2), 1) for x in (output.mu_SD, output.log_sigma_SD))
        rank = ranking_loss(ranking_loss_per_label(*scores, rank_NGC), rank_NGC)
        gradients = []
        for loss in (rank, output.critique_loss_T.mean()):
            model.zero_grad()
            loss.backward(retain_graph=True)
            gradients.append({name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None})
        shared = gradients[0].keys() & gradients[1].keys()
        assert shared and not any(name.startswith("reward_head") for name in shared)
        of_rank, of_critique = (torch.cat([of[name].flatten() for name in sorted(shared)]) for of in gradients)
        cosine = torch.cosine_similarity(of_rank, of_critique, dim=0).item()
        expected = [cosine, of_rank.norm().item(), of_critique.norm().item()]
        assert found.value_M3[k] == pytest.approx(expected, rel=1e-3, abs=1e-5)
        assert found.parameters == len(of_rank)
    with pytest.raises(JRMError, match="4 batches of 3 pairs with critiques are asked for and 9 are there"):
        read_gradients(scorer, pairs, batches=4, size=3)


def test_models_of_other_layouts_stand_side_by_side(scorer_of, make_scorer, pairs):
    joint, apart = scorer_of(), make_scorer(sequences="per_dimension", config={"writes_critiques": False})
    readings = {"joint": read_model(joint, pairs, PLAN), "apart": read_model(apart, pairs, PLAN)}
    results = summarize_readings(readings, len(pairs), bootstrap=20)
    models = results["representation"]["models"]
    assert (models["joint"]["n"], models["apart"]["n"]) == (18, 36)
    assert len(models["apart"]["projection"]["points"]) == 18
    assert 0 < models["apart"]["projection"]["disparity"]["value"] < 1
    assert "disparity" not in models["joint"]["projection"]
    difference = results["representation"]["differences"]["apart"]["raw"]["effective_rank"]
    values = [models[name]["raw"]["effective_rank"]["value"] for name in ("joint", "apart")]
    assert difference["value"] == pytest.approx(values[0] - values[1])
    assert results["gradients"]["models"].keys() == {"joint"} and not results["gradients"]["differences"]
    assert "writes no critiques" in results["notes"]["apart"][0]
    assert results["attention"]["differences"].keys() == {"apart"}
