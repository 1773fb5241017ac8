"""The joint loss: what each label trains, and what a missing label leaves alone."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jrm_plugin.kernels import win_probability
from jrm_plugin.records.samples import OVERALL
from jrm_plugin.records.scores import OVERALL_RULES, RewardScore
from jrm_plugin.training.losses import joint_loss, ranking_loss, ranking_loss_per_label, ranks_of_labels, with_overall

LABELS = (1.0, 0.0, -1.0, math.nan)
OBJECTIVES = pytest.mark.parametrize("objective", ["marginal", "expected"])


@st.composite
def pairs(draw, labels=LABELS):
    """`[N, D]` scores of both sides (mu, log sigma, mu, log sigma) in float64, and `[N, D + 1]` labels."""
    n, d = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    mus = arrays("float64", (n, d), elements=st.floats(-8, 8))
    log_sigmas = arrays("float64", (n, d), elements=st.floats(-4, 3))
    scores = [torch.from_numpy(draw(values)) for values in (mus, log_sigmas, mus, log_sigmas)]
    label_NC = draw(arrays("float64", (n, d + 1), elements=st.sampled_from(labels)))
    return scores, torch.from_numpy(label_NC)


def loss_per_label(mu_i, log_sigma_i, mu_j, log_sigma_j, label_NC, **options):
    """Of pairs, which are groups of two."""
    mu_N2D, log_sigma_N2D = torch.stack([mu_i, mu_j], 1), torch.stack([log_sigma_i, log_sigma_j], 1)
    return ranking_loss_per_label(mu_N2D, log_sigma_N2D, ranks_of_labels(label_NC), **options)


def total(loss_NC, label_NC):
    return ranking_loss(loss_NC, ranks_of_labels(label_NC))


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-6)


@given(pairs(), st.sampled_from(OVERALL_RULES))
def test_overall_is_the_overall_of_a_reward_score(pair, rule):
    (mu_ND, log_sigma_ND, *_), _ = pair
    mu_NC, log_sigma_NC = with_overall(mu_ND, log_sigma_ND, rule)
    assert torch.equal(mu_NC[:, :-1], mu_ND) and torch.equal(log_sigma_NC[:, :-1], log_sigma_ND)
    for n, (mu_D, log_sigma_D) in enumerate(zip(mu_ND.tolist(), log_sigma_ND.tolist(), strict=True)):
        names = [f"dimension {d}" for d in range(len(mu_D))]
        sigma_D = [math.exp(x) for x in log_sigma_D]
        score = RewardScore(dict(zip(names, mu_D, strict=True)), dict(zip(names, sigma_D, strict=True)), rule)
        assert mu_NC[n, -1].item() == pytest.approx(score.mu[OVERALL], abs=1e-12)
        assert log_sigma_NC[n, -1].exp().item() == pytest.approx(score.sigma[OVERALL])


@given(pairs())
def test_a_label_is_minus_log_its_probability(pair):
    scores, label_NC = pair
    loss_NC = loss_per_label(*scores, label_NC)
    (mu_i, log_i), (mu_j, log_j) = with_overall(*scores[:2]), with_overall(*scores[2:])
    won, lost = win_probability(mu_i, log_i, mu_j, log_j), win_probability(mu_j, log_j, mu_i, log_i)
    close(loss_NC[label_NC == 1], -won.log()[label_NC == 1])
    close(loss_NC[label_NC == -1], -lost.log()[label_NC == -1])
    # Without a threshold a tie is half a win each way.
    close(loss_NC[label_NC == 0], -0.5 * (won.log() + lost.log())[label_NC == 0])
    assert (loss_NC[label_NC.isnan()] == 0).all()


@OBJECTIVES
@given(pair=pairs(), tie_threshold=st.sampled_from([0.0, 0.7]))
def test_swapping_both_sides_and_the_label_changes_nothing(objective, pair, tie_threshold):
    scores, label_NC = pair
    options = {"objective": objective, "tie_threshold": tie_threshold}
    close(
        loss_per_label(*scores, label_NC, **options),
        loss_per_label(*scores[2:], *scores[:2], -label_NC, **options),
    )


@given(pairs())
def test_with_a_threshold_the_three_outcomes_share_the_probability(pair):
    scores, label_NC = pair
    shared = sum(
        (-loss_per_label(*scores, torch.full_like(label_NC, label), tie_threshold=0.7)).exp()
        for label in (1.0, 0.0, -1.0)
    )
    close(shared, torch.ones_like(shared))


@given(pairs())
def test_a_pair_is_the_mean_of_its_labels_and_the_loss_the_mean_of_pairs(pair):
    scores, label_NC = pair
    loss_NC = loss_per_label(*scores, label_NC)
    per_pair = []
    for loss_C, label_C in zip(loss_NC.tolist(), label_NC.tolist(), strict=True):
        present = [loss for loss, label in zip(loss_C, label_C, strict=True) if not math.isnan(label)]
        per_pair.append(sum(present) / len(present) if present else 0.0)
    assert total(loss_NC, label_NC).item() == pytest.approx(sum(per_pair) / len(per_pair))


@OBJECTIVES
@given(pair=pairs(), data=st.data())
def test_a_dimension_without_a_label_gets_no_gradient(objective, pair, data):
    scores, label_NC = pair
    dimension = data.draw(st.integers(0, label_NC.shape[1] - 2))
    label_NC = label_NC.clone()
    label_NC[:, dimension] = math.nan
    label_NC[:, -1] = math.nan  # the overall label trains every dimension
    inputs = [x.clone().requires_grad_() for x in scores]
    total(loss_per_label(*inputs, label_NC, objective=objective), label_NC).backward()
    assert all(torch.isfinite(x.grad).all() for x in inputs)
    assert all((x.grad[:, dimension] == 0).all() for x in inputs)
    # What is not labelled does not matter either, whatever it is.
    changed = [x.clone() for x in scores]
    for x in changed:
        x[:, dimension] = 1e3
    columns = [c for c in range(label_NC.shape[1] - 1) if c != dimension]
    close(
        loss_per_label(*scores, label_NC, objective=objective)[:, columns],
        loss_per_label(*changed, label_NC, objective=objective)[:, columns],
    )


@given(pairs(labels=(1.0, -1.0)))
def test_a_label_moves_its_dimension_the_right_way(pair):
    scores, label_NC = pair
    inputs = [x.clone().requires_grad_() for x in scores]
    dimensions_only = label_NC.clone()
    dimensions_only[:, -1] = math.nan
    total(loss_per_label(*inputs, dimensions_only), dimensions_only).backward()
    wanted = label_NC[:, :-1]
    assert (inputs[0].grad * wanted < 0).all()  # down the gradient, the better side's mu rises
    torch.testing.assert_close(inputs[0].grad, -inputs[2].grad)


@given(pairs(labels=(1.0, -1.0)))
def test_a_pair_labelled_only_overall_trains_every_dimension(pair):
    scores, label_NC = pair
    label_NC = label_NC.clone()
    label_NC[:, :-1] = math.nan
    inputs = [x.clone().requires_grad_() for x in scores]
    loss_NC = loss_per_label(*inputs, label_NC)
    assert (loss_NC[:, :-1] == 0).all()
    total(loss_NC, label_NC).backward()
    d = scores[0].shape[1]
    # Each mu is a D-th of the overall one.
    assert (inputs[0].grad * label_NC[:, -1:] < 0).all()
    torch.testing.assert_close(inputs[0].grad, inputs[0].grad[:, :1].expand(-1, d))


def test_no_label_at_all_is_no_loss_and_no_gradient():
    inputs = [torch.randn(2, 2, generator=torch.Generator().manual_seed(k)).requires_grad_() for k in range(4)]
    label_NC = torch.full((2, 3), math.nan)
    loss = total(loss_per_label(*inputs, label_NC), label_NC)
    loss.backward()
    assert loss == 0 and all((x.grad == 0).all() for x in inputs)


@given(alpha=st.floats(0, 1), rank=st.floats(0, 100), critique=st.floats(0, 100))
def test_joint_loss_weighs_both(alpha, rank, critique):
    loss = joint_loss(torch.tensor(rank).double(), torch.tensor(critique).double(), alpha)
    assert loss.item() == pytest.approx((1 - alpha) * rank + alpha * critique)


# --- groups -----------------------------------------------------------------------------------------------------------

KINDS = pytest.mark.parametrize("kind", ["pairwise", "plackett_luce"])


@KINDS
def test_a_group_weighs_as_much_as_a_pair_whatever_its_size(kind):
    """Equal scores: each comparison and each choice between two costs log 2, that of a label and of a group alike."""
    nan = math.nan
    rank_NGC = torch.tensor([[1, 2, nan, nan], [1, 2, 3, nan], [4, 3, 2, 1]])[:, :, None].expand(3, 4, 3).clone()
    rank_NGC[1, :, 0] = nan
    mu, log_sigma = torch.zeros(3, 4, 2, requires_grad=True), torch.full((3, 4, 2), -20.0)
    loss_NC = ranking_loss_per_label(mu, log_sigma, rank_NGC, kind=kind)
    one = {"pairwise": [math.log(2)] * 3, "plackett_luce": [math.log(2), math.log(6) / 2, math.log(24) / 3]}[kind]
    close(loss_NC, torch.tensor(one)[:, None] * torch.tensor([[1.0, 1, 1], [0, 1, 1], [1, 1, 1]]))
    loss = ranking_loss(loss_NC, rank_NGC)
    assert loss.item() == pytest.approx(sum(one) / 3, abs=1e-5)
    loss.backward()
    assert (mu.grad[rank_NGC[..., :2].isnan() & rank_NGC[..., 2:].isnan()] == 0).all()


@KINDS
@OBJECTIVES
def test_the_order_of_four_is_learned(kind, objective):
    mu, log_sigma = torch.zeros(1, 4, 1, requires_grad=True), torch.zeros(1, 4, 1, requires_grad=True)
    rank_NGC = torch.tensor([2.0, 4, 1, 3]).reshape(1, 4, 1).expand(1, 4, 2)
    optimizer = torch.optim.SGD([mu, log_sigma], lr=2.0)
    for _ in range(10):
        optimizer.zero_grad()
        loss_NC = ranking_loss_per_label(mu, log_sigma, rank_NGC, kind=kind, objective=objective)
        ranking_loss(loss_NC, rank_NGC).backward()
        optimizer.step()
    assert mu[0, :, 0].argsort(descending=True).tolist() == [2, 0, 3, 1]
