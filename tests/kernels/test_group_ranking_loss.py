"""The loss of a ranked group is the sum of its pairs, whatever the order of the candidates."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jrm_plugin.kernels import group_ranking_loss, uncertainty_ranking_loss

G, D = 5, 2
NAN = math.nan
RANKS = torch.tensor([[1, 2], [3, NAN], [2, 2], [3, 1], [NAN, 4]])  # 6 pairs in each dimension, one of them tied

options_given = st.fixed_dictionaries(
    {
        "objective": st.sampled_from(["marginal", "expected"]),
        "margin": st.sampled_from([0.0, 0.7]),
        "tie_threshold": st.sampled_from([0.0, 0.4]),
    }
)
ranks_given = st.lists(st.sampled_from([1.0, 2.0, 3.0, NAN]), min_size=G * D, max_size=G * D).map(
    lambda values: torch.tensor(values).reshape(G, D)
)


def random_scores(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(G, D, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]


def pairs_one_by_one(mu_GD, log_sigma_GD, rank_GD, margin, **options):
    """The specification in plain Python: a list of losses."""
    losses = []
    for d, (a, b) in itertools.product(range(D), itertools.combinations(range(G), 2)):
        better, worse = (a, b) if rank_GD[a, d] <= rank_GD[b, d] else (b, a)
        if rank_GD[better, d].isnan() or rank_GD[worse, d].isnan():
            continue
        tie = rank_GD[a, d] == rank_GD[b, d]
        scores = (x[k, d] for k in (better, worse) for x in (mu_GD, log_sigma_GD))
        losses.append(uncertainty_ranking_loss(*scores, tie=tie, margin=0.0 if tie else margin, **options))
    return losses


@settings(max_examples=25)
@given(ranks_given, options_given)
def test_it_is_the_sum_of_its_pairs(rank_GD, options):
    scores = random_scores()
    pairs = pairs_one_by_one(*scores, rank_GD, **options)
    truth = sum(pairs, start=0 * scores[0].sum())
    total = group_ranking_loss(*scores, rank_GD, reduction="sum", **options)
    assert total.item() == pytest.approx(truth.item(), rel=1e-12, abs=1e-15)
    assert group_ranking_loss(*scores, rank_GD, **options).item() == pytest.approx(truth.item() / max(len(pairs), 1))
    true_gradients = torch.autograd.grad(truth, scores, allow_unused=True, materialize_grads=True)
    for got, want in zip(torch.autograd.grad(total, scores), true_gradients, strict=True):
        assert torch.allclose(got, want, rtol=1e-12, atol=1e-15)


@settings(max_examples=25)
@given(ranks_given, options_given, st.permutations(range(G)))
def test_the_order_of_the_candidates_does_not_matter(rank_GD, options, order):
    mu_GD, log_sigma_GD = random_scores()
    loss = group_ranking_loss(mu_GD, log_sigma_GD, rank_GD, **options)
    permuted = group_ranking_loss(mu_GD[order], log_sigma_GD[order], rank_GD[order], **options)
    assert permuted.item() == pytest.approx(loss.item(), rel=1e-12, abs=1e-15)
    gradients = [torch.autograd.grad(value, [mu_GD, log_sigma_GD]) for value in (loss, permuted)]
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-15)


def test_a_candidate_without_rank_does_not_count_whatever_its_score():
    mu_GD, log_sigma_GD = random_scores()
    loss = group_ranking_loss(mu_GD, log_sigma_GD, RANKS)
    with torch.no_grad():
        mu_GD[RANKS.isnan()], log_sigma_GD[RANKS.isnan()] = NAN, math.inf
    broken = group_ranking_loss(mu_GD, log_sigma_GD, RANKS)
    assert broken.item() == loss.item()
    for gradient in torch.autograd.grad(broken, [mu_GD, log_sigma_GD]):
        assert (gradient[RANKS.isnan()] == 0).all() and gradient.isfinite().all() and gradient.any()


def test_a_smaller_rank_is_better():
    mu_GD, log_sigma_GD = torch.tensor([[3.0], [0.0]]), torch.zeros(2, 1)
    right, wrong = (group_ranking_loss(mu_GD, log_sigma_GD, torch.tensor([[a], [3 - a]])) for a in (1, 2))
    assert right < math.log(2) < wrong


def test_without_reduction_there_is_one_loss_per_pair():
    scores = random_scores()
    each_PD = group_ranking_loss(*scores, RANKS, reduction="none")
    assert each_PD.shape == (10, 2)
    assert torch.allclose(each_PD.sum() / 12, group_ranking_loss(*scores, RANKS))
    first_P, second_P = torch.triu_indices(G, G, offset=1)
    missing_PD = RANKS[first_P].isnan() | RANKS[second_P].isnan()
    assert torch.equal(each_PD == 0, missing_PD)


def test_a_group_with_nothing_to_compare_costs_nothing():
    mu_GD, log_sigma_GD = random_scores()
    loss = group_ranking_loss(mu_GD, log_sigma_GD, torch.full((G, D), NAN))
    assert loss == 0 and (torch.autograd.grad(loss, mu_GD)[0] == 0).all()
    one = torch.zeros(1, D)
    assert group_ranking_loss(one, one, one) == 0


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.zeros(3), torch.zeros(3), torch.zeros(3)), {}, r"one shape \[\.\.\., G, D\], got \(3,\) and \(3,\)"),
        ((torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(3, 1)), {}, r"got \(3, 2\) and \(3, 1\)"),
        ((torch.zeros(3, 2), torch.zeros(2, 2), torch.zeros(3, 2)), {}, "log_sigma_GD and mu_GD must have one shape"),
        ((torch.zeros(3, 2),) * 3, {"margin": torch.zeros(3)}, "margin must be a finite number"),
        ((torch.zeros(3, 2),) * 3, {"reduction": "max"}, "reduction must be one of"),
    ],
)
def test_wrong_arguments_are_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        group_ranking_loss(*arguments, **options)
