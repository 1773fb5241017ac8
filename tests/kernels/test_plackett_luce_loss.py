"""The Plackett-Luce loss against closed forms, against the sum over all rankings, and against brute force."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jrm_plugin.kernels import plackett_luce_loss, uncertainty_ranking_loss
from jrm_plugin.kernels.plackett_luce_loss import count_orders

NAN = math.nan
both_objectives = pytest.mark.parametrize("objective", ["marginal", "expected"])


def scores_given(count):
    """`[G, 1]` means and log sigmas in the domain in which the loss is exact."""
    values = st.tuples(
        st.lists(st.floats(-40, 40), min_size=count, max_size=count),
        st.lists(st.floats(-8, math.log(8)), min_size=count, max_size=count),
    )
    return values.map(lambda of: [torch.tensor(x, dtype=torch.float64).unsqueeze(1).requires_grad_() for x in of])


def column(values):
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


@both_objectives
@settings(max_examples=12)
@given(scores=scores_given(2), tied=st.booleans())
def test_for_two_candidates_it_is_the_loss_of_the_pair(objective, scores, tied):
    (mu_i, mu_j), (log_i, log_j) = scores
    pair = uncertainty_ranking_loss(mu_i, log_i, mu_j, log_j, objective=objective, tie=torch.tensor([tied]))
    loss = plackett_luce_loss(*scores, column([1, 1 if tied else 2]), objective=objective)
    assert loss.item() == pytest.approx(pair.item(), rel=1e-7, abs=1e-6)
    for got, want in zip(torch.autograd.grad(loss, scores), torch.autograd.grad(pair, scores), strict=True):
        assert torch.allclose(got, want, rtol=1e-6, atol=1e-6)


@settings(max_examples=15)
@given(scores_given(3))
def test_the_rankings_of_three_share_the_probability(scores):
    orders = [*itertools.permutations([1.0, 2.0, 3.0])]
    losses = [plackett_luce_loss(*scores, column(order)) for order in orders]
    assert sum(math.exp(-loss.item()) for loss in losses) == pytest.approx(1, abs=1e-6)
    assert all(loss >= -1e-7 for loss in losses)


@both_objectives
def test_scores_without_spread_give_the_softmax_of_plackett_and_luce(objective):
    mu_GD = torch.tensor([[0.3, -4.0], [1.2, 2.0], [-2.0, 30.0], [0.0, 1.0]], dtype=torch.float64)
    loss_D = plackett_luce_loss(
        mu_GD,
        torch.full_like(mu_GD, -20),
        torch.arange(1, 5)[:, None].expand(4, 2),
        objective=objective,
        reduction="none",
    )
    by_hand_D = sum(torch.logsumexp(mu_GD[i:], 0) - mu_GD[i] for i in range(3))
    torch.testing.assert_close(loss_D, by_hand_D, rtol=0, atol=1e-6)


@both_objectives
def test_four_candidates_against_brute_force(objective):
    """A product of trapezoidal sums over four normals, 33 points each."""
    mu_G, sigma_G = np.array([0.5, -0.4, 1.0, 0.1]), np.array([0.9, 0.2, 1.6, 1.1])
    z_Q = np.linspace(-8, 8, 33)
    weight_Q = np.exp(-(z_Q**2) / 2) * (z_Q[1] - z_Q[0]) / math.sqrt(2 * math.pi)
    r = [mu + sigma * z for mu, sigma, z in zip(mu_G, sigma_G, np.ix_(z_Q, z_Q, z_Q, z_Q), strict=True)]
    weights = math.prod(np.ix_(weight_Q, weight_Q, weight_Q, weight_Q))
    log_P, rest = 0.0, r[3]
    for i in (2, 1, 0):
        rest = np.logaddexp(r[i], rest)
        log_P = log_P + r[i] - rest
    truth = -math.log((weights * np.exp(log_P)).sum()) if objective == "marginal" else -(weights * log_P).sum()
    scores = column(mu_G), torch.log(column(sigma_G))
    loss = plackett_luce_loss(*scores, column([1, 2, 3, 4]), objective=objective)
    assert loss.item() == pytest.approx(truth, abs=1e-7)


@both_objectives
@settings(max_examples=10)
@given(
    scores=scores_given(4),
    ranks=st.lists(st.sampled_from([1.0, 2.0, 3.0, NAN]), min_size=4, max_size=4),
    order=st.permutations(range(4)),
)
def test_the_order_of_the_candidates_does_not_matter(objective, scores, ranks, order):
    losses = [
        plackett_luce_loss(*(x[index] for x in scores), column(ranks)[index], objective=objective)
        for index in (slice(None), list(order))
    ]
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-9, abs=1e-9)
    gradients = [torch.autograd.grad(loss, scores) for loss in losses]
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-9)
        assert (a[column(ranks).isnan()] == 0).all()


@both_objectives
def test_gradients_against_finite_differences(objective):
    generator = torch.Generator().manual_seed(1)
    scores = [torch.randn(2, 3, 2, generator=generator, dtype=torch.float64) * scale for scale in (2.0, 0.5)]
    scores = [x.requires_grad_() for x in scores]
    rank = torch.tensor([[[1, 2], [2, 1], [3, 1]], [[2, NAN], [1, 1], [NAN, 2]]], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda *x: plackett_luce_loss(*x, rank, objective=objective), scores, eps=1e-4, atol=1e-6, rtol=1e-5
    )


def test_ties_are_the_mean_of_the_orders_that_break_them():
    scores = column([0.4, -1.0, 2.0]), column([0.1, -0.5, 0.3])
    tied, *broken = (plackett_luce_loss(*scores, column(r)) for r in ([1, 2, 1], [1, 3, 2], [2, 3, 1]))
    assert tied.item() == pytest.approx(sum(broken).item() / 2)
    assert count_orders([1, 2, 1, None, NAN]) == 2
    six = torch.zeros(6, 1)
    with pytest.raises(ValueError, match="ties can be broken in 720 ways, and 120 are the most"):
        plackett_luce_loss(six, six, six + 1)


def test_several_groups_at_once_are_each_by_itself_and_missing_ones_cost_nothing():
    generator = torch.Generator().manual_seed(2)
    mu, log_sigma = torch.randn(2, 3, 4, 2, generator=generator)
    rank = torch.tensor([[[1, NAN], [3, 1], [2, NAN], [NAN, NAN]], [[1, 2], [1, 2], [3, 2], [4, 1]], [[NAN, NAN]] * 4])
    mu[rank.isnan()] = NAN
    mu.requires_grad_()
    each_ND = plackett_luce_loss(mu, log_sigma, rank, reduction="none")
    assert each_ND.shape == (3, 2) and each_ND.dtype == torch.float32
    assert torch.equal(each_ND != 0, torch.tensor([[True, False], [True, True], [False, False]]))
    for n in range(3):
        alone_D = plackett_luce_loss(mu[n], log_sigma[n], rank[n], reduction="none")
        torch.testing.assert_close(each_ND[n], alone_D, rtol=1e-6, atol=1e-6)
    assert torch.allclose(plackett_luce_loss(mu, log_sigma, rank), each_ND.sum() / 3)
    (gradient,) = torch.autograd.grad(each_ND.sum(), mu)
    assert (gradient[rank.isnan()] == 0).all() and gradient.isfinite().all() and gradient.any()


@both_objectives
def test_scores_outside_of_the_exact_domain_stay_finite(objective):
    mu, log_sigma = column([-1e6, 0.0, 1e6]).requires_grad_(), column([50.0, -90.0, 3.0]).requires_grad_()
    loss = plackett_luce_loss(mu, log_sigma, column([1, 2, 3]), objective=objective)
    assert loss.isfinite() and loss > 0
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, [mu, log_sigma]))


def test_wrong_arguments_are_named():
    three = torch.zeros(3, 1)
    with pytest.raises(ValueError, match=r"tensors of one shape \[\.\.\., G, D\], got \(3, 1\) and \(3,\)"):
        plackett_luce_loss(three, three, torch.zeros(3))
    with pytest.raises(ValueError, match="objective must be one of"):
        plackett_luce_loss(three, three, three, objective="best")
