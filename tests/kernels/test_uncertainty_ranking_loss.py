"""Properties of the ranking loss over its whole domain, its limits, its options and its errors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jrm_plugin.kernels import uncertainty_ranking_loss, win_probability

OBJECTIVES = ("marginal", "expected")
SLACK = {torch.float32: 1e-6, torch.float64: 1e-12}  # the contract's absolute tolerance

examples = settings(max_examples=60, deadline=None)
objectives = st.sampled_from(OBJECTIVES)
dtypes = st.sampled_from([torch.float32, torch.float64])
m_values = st.floats(-100, 100, width=32) | st.floats(-2, 2, width=32)
log_s_values = st.floats(-13.75, 6.875, width=32)  # s in about [1e-6, 1e3]
thresholds = st.sampled_from([0.0, 1e-4, 0.1, 1.0, 7.0, 60.0])


def evaluate(m, log_s, dtype=torch.float64, **options):
    """Loss, d/dm and d/dlog s of one pair as floats; the variance is shared equally by the two samples."""
    m, log_s = (torch.tensor([x], dtype=dtype, requires_grad=True) for x in (m, log_s))
    log_sigma = log_s - 0.5 * math.log(2)
    loss = uncertainty_ranking_loss(m, log_sigma, torch.zeros_like(m), log_sigma, reduction="none", **options)
    return [x.item() for x in (loss, *torch.autograd.grad(loss.sum(), (m, log_s)))]


def tied():
    return torch.tensor([True])


def random_scores(count, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, generator=generator, dtype=dtype) * scale for scale in (4, 2, 4, 2)]


# --- probabilities ---------------------------------------------------------------------------------------------------


@examples
@given(m_values, log_s_values, log_s_values, dtypes)
def test_probabilities_of_the_two_orders_sum_to_one(m, log_sigma_i, log_sigma_j, dtype):
    i = [torch.tensor([x], dtype=dtype) for x in (m, log_sigma_i)]
    j = [torch.tensor([x], dtype=dtype) for x in (0.0, log_sigma_j)]
    total = win_probability(*i, *j) + win_probability(*j, *i)
    assert total.item() == pytest.approx(1, abs=SLACK[dtype])


@examples
@given(m_values, log_s_values, thresholds.filter(bool), dtypes)
def test_probabilities_of_the_three_outcomes_sum_to_one(m, log_s, threshold, dtype):
    options = {"dtype": dtype, "tie_threshold": threshold}
    losses = evaluate(m, log_s, **options), evaluate(m, log_s, tie=tied(), **options), evaluate(-m, log_s, **options)
    assert sum(math.exp(-loss) for loss, _, _ in losses) == pytest.approx(1, abs=2 * SLACK[dtype])


def test_win_probability_is_the_marginal_loss_in_other_words():
    scores = random_scores(30)
    loss = uncertainty_ranking_loss(*scores, margin=0.5, tie_threshold=0.25, reduction="none")
    assert torch.allclose(win_probability(*scores, margin=0.5, tie_threshold=0.25), torch.exp(-loss))
    assert win_probability(*(torch.zeros(1),) * 4).item() == pytest.approx(0.5, abs=1e-7)


@examples
@given(m_values, log_s_values, objectives, dtypes)
def test_a_tie_without_threshold_is_half_a_win_each_way(m, log_s, objective, dtype):
    options = {"dtype": dtype, "objective": objective}
    ahead, behind = evaluate(m, log_s, **options), evaluate(-m, log_s, **options)
    tie = evaluate(m, log_s, tie=tied(), **options)
    for got, a, b, sign in zip(tie, ahead, behind, (1, -1, 1), strict=True):
        assert got == pytest.approx(0.5 * (a + sign * b), rel=10 * SLACK[dtype], abs=SLACK[dtype])


# --- shape of the function -------------------------------------------------------------------------------------------


@examples
@given(log_s_values, dtypes)
def test_equal_scores_cost_log_two(log_s, dtype):
    loss, dm, dlogs = evaluate(0.0, log_s, dtype)
    assert loss == pytest.approx(math.log(2), abs=SLACK[dtype])
    assert dlogs == 0
    assert -0.5 - SLACK[dtype] <= dm < 0
    assert evaluate(0.0, log_s, dtype, objective="expected")[1] == pytest.approx(-0.5, abs=SLACK[dtype])


@examples
@given(m_values, log_s_values, log_s_values, objectives, dtypes, st.booleans(), thresholds)
def test_only_the_sum_of_the_variances_counts(m, log_sigma_i, log_sigma_j, objective, dtype, tie, threshold):
    m, zero, a, b = (torch.tensor([x], dtype=dtype) for x in (m, 0.0, log_sigma_i, log_sigma_j))
    options = {"objective": objective, "tie": tied() if tie else None, "tie_threshold": threshold}
    loss = uncertainty_ranking_loss(m, a, zero, b, **options)
    assert torch.equal(loss, uncertainty_ranking_loss(m, b, zero, a, **options))


@examples
@given(st.integers(-64, 64), st.integers(-(2**15), 2**15), log_s_values, objectives, dtypes)
def test_only_the_difference_of_the_means_counts(m, shift, log_s, objective, dtype):
    scores = [torch.tensor([x], dtype=dtype) for x in (m / 2 + shift, log_s, shift, log_s)]  # the difference is exact
    unshifted = [torch.tensor([x], dtype=dtype) for x in (m / 2, log_s, 0.0, log_s)]
    assert torch.equal(
        uncertainty_ranking_loss(*scores, objective=objective),
        uncertainty_ranking_loss(*unshifted, objective=objective),
    )


@examples
@given(m_values, m_values, log_s_values, objectives, dtypes)
def test_falling_and_convex_in_the_difference(m, other, log_s, objective, dtype):
    low, high = sorted((m, other))
    loss_low, slope_low, _ = evaluate(low, log_s, dtype, objective=objective)
    loss_high, slope_high, _ = evaluate(high, log_s, dtype, objective=objective)
    slack = 2 * SLACK[dtype] * max(1, loss_low)
    assert -1 <= slope_low <= 0 and -1 <= slope_high <= 0
    assert loss_high <= loss_low + slack
    assert slope_low <= slope_high + 2 * SLACK[dtype]
    # the function lies above its tangent
    assert loss_high >= loss_low + slope_low * (high - low) - slack - 2e-5 * SLACK[dtype] / 1e-6 * (high - low)


@examples
@given(m_values, log_s_values, dtypes)
def test_uncertainty_helps_where_the_score_is_wrong_and_hurts_where_it_is_right(m, log_s, dtype):
    dlogs = evaluate(m, log_s, dtype)[2]
    assert dlogs * m >= 0
    if abs(m) > 1e-3 and log_s > -5 and abs(m) < 5 * math.exp(log_s):  # nothing underflows here
        assert math.copysign(1, dlogs) == math.copysign(1, m) and dlogs != 0
    assert evaluate(m, log_s, dtype, objective="expected")[2] >= 0


@examples
@given(m_values, log_s_values, thresholds, st.booleans(), dtypes)
def test_jensen_the_marginal_loss_is_never_larger(m, log_s, threshold, tie, dtype):
    options = {"dtype": dtype, "tie": tied() if tie else None, "tie_threshold": threshold}
    marginal = evaluate(m, log_s, objective="marginal", **options)[0]
    expected = evaluate(m, log_s, objective="expected", **options)[0]
    assert 0 <= marginal <= expected + 2 * SLACK[dtype] * max(1, expected)


@examples
@given(m_values, log_s_values, thresholds, objectives, dtypes)
def test_a_tie_loss_is_even_and_least_at_equal_scores(m, log_s, threshold, objective, dtype):
    options = {"dtype": dtype, "tie": tied(), "tie_threshold": threshold, "objective": objective}
    loss, dm, dlogs = evaluate(m, log_s, **options)
    mirrored = evaluate(-m, log_s, **options)
    assert mirrored == [loss, -dm, dlogs]
    assert evaluate(0.0, log_s, **options)[0] <= loss + 2 * SLACK[dtype] * max(1, loss)
    assert dm * m >= -SLACK[dtype] and abs(dm) <= 1 + SLACK[dtype]


# --- limits ----------------------------------------------------------------------------------------------------------


@examples
@given(m_values, objectives, dtypes)
def test_without_uncertainty_it_is_the_logistic_loss(m, objective, dtype):
    loss, dm, _ = evaluate(m, -45.0, dtype, objective=objective)
    truth = max(-m, 0) + math.log1p(math.exp(-abs(m)))
    assert loss == pytest.approx(truth, rel=2 * SLACK[dtype], abs=SLACK[dtype])
    assert dm == pytest.approx(-1 / (1 + math.exp(m)), rel=10 * SLACK[dtype], abs=SLACK[dtype])


@examples
@given(m_values, dtypes, st.sampled_from([25.0, 36.0, 37.0, 69.0, 500.0]))
def test_with_boundless_uncertainty_it_is_log_two(m, dtype, log_s):
    loss, dm, dlogs = evaluate(m, log_s, dtype)
    assert loss == pytest.approx(math.log(2), abs=2e-9 if dtype == torch.float64 else 1e-6)
    assert abs(dm) < 1e-10 and abs(dlogs) < 1e-8


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("tie", "threshold"), [(False, 0.0), (False, 1.0), (True, 0.0), (True, 1e-3), (True, 1e9)])
def test_finite_at_every_extreme(objective, dtype, tie, threshold):
    size = [0.0, 1e-38, 1e-10, 1.0, 1e2, 1e5, 1e10, 1e20, 1e30]
    mu = torch.tensor(size + [-x for x in size], dtype=dtype)
    log_sigma = torch.tensor([-3e38, -1e4, -100, -50, -20, 0, 3, 10, 20, 35, 37, 43, 60, 90, 1e3, 3e38], dtype=dtype)
    inputs = [x.requires_grad_() for x in torch.cartesian_prod(mu, log_sigma, -mu[:9:4], log_sigma[::5]).unbind(1)]
    tie = torch.ones(inputs[0].shape, dtype=torch.bool) if tie else None
    options = {"objective": objective, "tie": tie, "tie_threshold": threshold}
    loss = uncertainty_ranking_loss(*inputs, reduction="none", **options)
    assert loss.isfinite().all() and (loss >= 0).all()
    assert uncertainty_ranking_loss(*inputs, **options).isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss.sum(), inputs))


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("log_s", [-60.0, -2.0, 0.0, 4.0, 45.0])
def test_infinite_differences_give_the_limit(objective, dtype, log_s):
    options = {"dtype": dtype, "objective": objective}
    assert evaluate(math.inf, log_s, **options) == [0, 0, 0]
    loss, dm, dlogs = evaluate(-math.inf, log_s, **options)
    assert (loss, dm) == (math.inf, -1)
    if objective == "expected":
        assert dlogs == 0
    elif log_s < 30:
        assert dlogs == pytest.approx(-math.exp(2 * log_s), rel=1e-5, abs=1e-30)  # loss = |m| - s^2 / 2 out there
    for threshold in (0.0, 0.5):
        half = 0.5 if threshold == 0 else 1
        for m in (math.inf, -math.inf):
            loss, dm, _ = evaluate(m, log_s, tie=tied(), tie_threshold=threshold, **options)
            assert (loss, dm) == (math.inf, math.copysign(half, m))


def test_a_value_that_is_not_a_number_stays_visible():
    scores = [torch.zeros(2) for _ in range(4)]
    for k in range(4):
        broken = [x.clone() for x in scores]
        broken[k][0] = math.nan
        loss = uncertainty_ranking_loss(*broken, reduction="none")
        assert loss[0].isnan() and loss[1].isfinite()


# --- options ---------------------------------------------------------------------------------------------------------


@examples
@given(st.integers(0, 2**31), st.floats(-8, 8, width=16), objectives)
def test_weights_scale_loss_and_gradient(seed, factor, objective):
    inputs = [x.requires_grad_() for x in random_scores(9, torch.float64, seed)]
    weight = torch.rand(9, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    once = uncertainty_ranking_loss(*inputs, weight=weight, objective=objective)
    scaled = uncertainty_ranking_loss(*inputs, weight=factor * weight, objective=objective)
    assert scaled.item() == pytest.approx(factor * once.item(), rel=1e-12)
    for a, b in zip(torch.autograd.grad(scaled, inputs), torch.autograd.grad(once, inputs), strict=True):
        assert torch.allclose(a, factor * b, rtol=1e-12, atol=0)


def test_reductions_divide_by_the_number_of_pairs_not_of_weights():
    scores = [x.reshape(2, 3) for x in random_scores(6)]
    weight = torch.tensor([[0.0, 1, 2], [3, 0, 0.5]])
    each = uncertainty_ranking_loss(*scores, weight=weight, reduction="none")
    unweighted = uncertainty_ranking_loss(*scores, reduction="none")
    assert each.shape == (2, 3) and torch.equal(each, weight * unweighted)
    assert torch.allclose(uncertainty_ranking_loss(*scores, weight=weight, reduction="sum"), each.sum())
    assert torch.allclose(uncertainty_ranking_loss(*scores, weight=weight), each.sum() / 6)
    assert torch.allclose(uncertainty_ranking_loss(*scores, weight=2.0), 2 * unweighted.mean())


def test_a_margin_is_subtracted_from_the_difference():
    mu_i, log_sigma_i, mu_j, log_sigma_j = random_scores(10)
    margin = torch.rand(10)
    tie = torch.arange(10) % 2 == 0
    for value in (margin, 0.75):
        with_margin = uncertainty_ranking_loss(
            mu_i, log_sigma_i, mu_j, log_sigma_j, margin=value, tie=tie, reduction="none"
        )
        by_hand = uncertainty_ranking_loss(
            mu_i - mu_j - value, log_sigma_i, torch.zeros(10), log_sigma_j, tie=tie, reduction="none"
        )
        assert torch.equal(with_margin, by_hand)


def test_a_mask_mixes_wins_and_ties():
    scores = random_scores(12)
    tie = torch.arange(12) % 3 == 0
    for objective in OBJECTIVES:
        for threshold in (0.0, 0.4):
            options = {"objective": objective, "tie_threshold": threshold, "reduction": "none"}
            mixed = uncertainty_ranking_loss(*scores, tie=tie, **options)
            wins = uncertainty_ranking_loss(*scores, **options)
            ties = uncertainty_ranking_loss(*scores, tie=torch.ones(12, dtype=torch.bool), **options)
            assert torch.equal(mixed, torch.where(tie, ties, wins))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_a_pair_does_not_feel_its_neighbours(dtype, objective, threshold):
    scores = random_scores(1037, dtype)
    tie = torch.arange(1037) % 4 == 0

    def parts(chosen):
        inputs = [x[chosen].clone().requires_grad_() for x in scores]
        options = {"objective": objective, "tie": tie[chosen], "tie_threshold": threshold, "reduction": "none"}
        loss = uncertainty_ranking_loss(*inputs, **options)
        return [loss.detach(), *torch.autograd.grad(loss.sum(), inputs)]

    together = parts(slice(None))
    for chosen in [slice(k, k + 1) for k in (0, 1, 31, 500, 1036)] + [
        slice(3, 10),
        slice(1000, 1033),
        slice(0, 1037, 5),
    ]:
        assert all(torch.equal(a, b[chosen]) for a, b in zip(parts(chosen), together, strict=True))


def test_strides_do_not_matter():
    scores = [x.reshape(4, 6) for x in random_scores(24)]
    straight = uncertainty_ranking_loss(*scores, reduction="none")
    transposed = uncertainty_ranking_loss(*(x.t().contiguous().t() for x in scores), reduction="none")
    assert torch.equal(straight, transposed)
    scalar = uncertainty_ranking_loss(*(x[0, 0] for x in scores))
    assert scalar.shape == () and torch.equal(scalar, straight[0, 0])


def test_compiles_without_a_graph_break():
    compiled = torch.compile(uncertainty_ranking_loss, fullgraph=True, backend="aot_eager")
    inputs = [x.requires_grad_() for x in random_scores(8)]
    tie = torch.arange(8) < 3
    for options in (
        {"margin": 0.25, "weight": 2.0},
        {"objective": "expected", "tie": tie, "tie_threshold": 0.5, "margin": 0.5},
        {"objective": "expected", "tie": tie, "tie_threshold": 1.5},  # another number is not another graph break
    ):
        loss, eager = compiled(*inputs, **options), uncertainty_ranking_loss(*inputs, **options)
        assert torch.equal(loss, eager)
        for a, b in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(eager, inputs), strict=True):
            assert torch.equal(a, b)


def test_second_derivatives_are_refused_rather_than_wrong():
    inputs = [x.requires_grad_() for x in random_scores(3)]
    gradients = torch.autograd.grad(uncertainty_ranking_loss(*inputs) ** 2, inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradients[0].sum().backward()


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mu_i": [1.0, 2.0]}, "mu_i must be a floating-point tensor, got list"),
        ({"mu_j": torch.zeros(2, dtype=torch.int64)}, "mu_j must be a floating-point tensor, got torch.int64"),
        ({"log_sigma_j": torch.zeros(3)}, r"log_sigma_j and mu_i must have one shape, got \(3,\) and \(2,\)"),
        ({"mu_j": torch.zeros(2, device="meta")}, "mu_j is on meta and mu_i on cpu"),
        ({"tie": torch.zeros(2)}, r"tie must be a boolean tensor of the pairs' shape \(2,\)"),
        ({"tie": torch.zeros(1, dtype=torch.bool)}, "tie must be a boolean tensor"),
        ({"tie_threshold": -0.1}, "tie_threshold must be a finite number >= 0, got -0.1"),
        ({"tie_threshold": math.nan}, "tie_threshold must be a finite number >= 0, got nan"),
        ({"margin": torch.zeros(3)}, r"margin must have one value or the pairs' shape \(2,\), got \(3,\)"),
        ({"margin": math.inf}, "margin must be finite, got inf"),
        ({"weight": math.nan}, "weight must be finite, got nan"),
        ({"objective": "median"}, "objective must be one of 'marginal', 'expected', got 'median'"),
        ({"reduction": "max"}, "reduction must be one of 'mean', 'sum', 'none', got 'max'"),
        ({"backend": "cuda"}, "backend must be one of 'auto', 'torch', got 'cuda'"),
        ({"backend": "triton"}, "this version has no Triton kernel"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    arguments = dict.fromkeys(("mu_i", "log_sigma_i", "mu_j", "log_sigma_j"), torch.zeros(2)) | changes
    with pytest.raises(ValueError, match=message):
        uncertainty_ranking_loss(**arguments)


def test_no_pair_has_a_sum_but_no_mean():
    nothing = [torch.zeros(0)] * 4
    assert uncertainty_ranking_loss(*nothing, reduction="sum") == 0
    assert uncertainty_ranking_loss(*nothing, reduction="none").shape == (0,)
    with pytest.raises(ValueError, match="no pair to take the mean of"):
        uncertainty_ranking_loss(*nothing)
