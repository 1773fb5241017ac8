"""Properties of the ranking loss over its whole domain, its limits, its options and its errors.

Every property is held against torch in both precisions and against the Triton kernel, which runs on the GPU if there is
one and in Triton's interpreter otherwise. An example is an array of pairs: the interpreter takes as long for one.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from benchmarks.kernel_accuracy import Implementation, evaluate, implementations
from jrm_plugin.kernels import uncertainty_ranking_loss, win_probability

OBJECTIVES = ("marginal", "expected")
SLACK = {torch.float32: 1e-6, torch.float64: 1e-12}  # the contract's absolute tolerance
PAIRS = 96

IMPLEMENTATIONS = implementations()
implementation_given = pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=str)
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # NaN in branches that are not taken

examples = settings(max_examples=4, deadline=None)
objectives = st.sampled_from(OBJECTIVES)
thresholds = st.sampled_from([0.0, 1e-4, 0.1, 1.0, 7.0, 60.0])


def values(*ranges):
    one_value = st.one_of(*(st.floats(low, high, width=32) for low, high in ranges))
    return arrays(np.float32, PAIRS, elements=one_value, fill=st.nothing())


m_values = values((-100, 100), (-2, 2))
log_s_values = values((-13.75, 6.875))  # s in about [1e-6, 1e3]


def options_of(implementation):
    return {"backend": implementation.backend}


def tensors(implementation, *arrays_or_numbers):
    made = [torch.as_tensor(np.asarray(x), dtype=implementation.dtype) for x in arrays_or_numbers]
    return [x.to(implementation.device) for x in torch.broadcast_tensors(*made)]


def losses(implementation, *scores, **options):
    """Loss per pair as a float64 array; scores are mu_i, log_sigma_i, mu_j, log_sigma_j."""
    if options.pop("tie", False):
        options["tie"] = torch.ones(np.shape(scores[0]), dtype=torch.bool, device=implementation.device)
    options |= {"reduction": "none", "backend": implementation.backend}
    return uncertainty_ranking_loss(*tensors(implementation, *scores), **options).double().cpu().numpy()


def random_scores(implementation, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(count, generator=generator, dtype=torch.float64) * scale for scale in (4, 2, 4, 2)]
    return [x.to(implementation.dtype).to(implementation.device) for x in made]


# --- probabilities ---------------------------------------------------------------------------------------------------


@implementation_given
@examples
@given(m=m_values, log_sigma_i=log_s_values, log_sigma_j=log_s_values)
def test_probabilities_of_the_two_orders_sum_to_one(implementation, m, log_sigma_i, log_sigma_j):
    ahead = losses(implementation, m, log_sigma_i, 0 * m, log_sigma_j)
    behind = losses(implementation, 0 * m, log_sigma_j, m, log_sigma_i)
    assert np.exp(-ahead) + np.exp(-behind) == pytest.approx(1, abs=SLACK[implementation.dtype])


@implementation_given
@examples
@given(m=m_values, log_s=log_s_values, threshold=thresholds.filter(bool))
def test_probabilities_of_the_three_outcomes_sum_to_one(implementation, m, log_s, threshold):
    win, _, _ = evaluate(implementation, m, log_s, tie_threshold=threshold)
    tie, _, _ = evaluate(implementation, m, log_s, tie_threshold=threshold, tie=True)
    loss, _, _ = evaluate(implementation, -m, log_s, tie_threshold=threshold)
    total = np.exp(-win) + np.exp(-tie) + np.exp(-loss)
    assert total == pytest.approx(1, abs=2 * SLACK[implementation.dtype])


def test_win_probability_is_the_marginal_loss_in_other_words():
    scores = random_scores(IMPLEMENTATIONS[0], 30)
    loss = uncertainty_ranking_loss(*scores, margin=0.5, tie_threshold=0.25, reduction="none")
    assert torch.allclose(win_probability(*scores, margin=0.5, tie_threshold=0.25), torch.exp(-loss))
    assert win_probability(*(torch.zeros(1),) * 4).item() == pytest.approx(0.5, abs=1e-7)


@implementation_given
@examples
@given(m=m_values, log_s=log_s_values, objective=objectives)
def test_a_tie_without_threshold_is_half_a_win_each_way(implementation, m, log_s, objective):
    slack = SLACK[implementation.dtype]
    ahead, behind = (evaluate(implementation, x, log_s, objective=objective) for x in (m, -m))
    tie = evaluate(implementation, m, log_s, objective=objective, tie=True)
    for got, a, b, sign in zip(tie, ahead, behind, (1, -1, 1), strict=True):
        assert got == pytest.approx(0.5 * (a + sign * b), rel=10 * slack, abs=slack)


# --- shape of the function -------------------------------------------------------------------------------------------


@implementation_given
@examples
@given(log_s=log_s_values)
def test_equal_scores_cost_log_two(implementation, log_s):
    slack = SLACK[implementation.dtype]
    loss, dm, dlogs = evaluate(implementation, 0 * log_s, log_s)
    assert loss == pytest.approx(math.log(2), abs=slack)
    assert (dlogs == 0).all()
    assert (dm >= -0.5 - slack).all() and (dm < 0).all()
    _, dm, _ = evaluate(implementation, 0 * log_s, log_s, objective="expected")
    assert dm == pytest.approx(-0.5, abs=slack)


@implementation_given
@examples
@given(m=m_values, a=log_s_values, b=log_s_values, objective=objectives, tie=st.booleans(), threshold=thresholds)
def test_only_the_sum_of_the_variances_counts(implementation, m, a, b, objective, tie, threshold):
    options = {"objective": objective, "tie": tie, "tie_threshold": threshold}
    loss, swapped = (losses(implementation, m, *sigmas, **options) for sigmas in ((a, 0 * m, b), (b, 0 * m, a)))
    assert (loss == swapped).all()


@implementation_given
@examples
@given(
    half_m=arrays(np.int8, PAIRS, elements=st.integers(-64, 64)),
    shift=arrays(np.int32, PAIRS, elements=st.integers(-(2**15), 2**15)),
    log_s=log_s_values,
    objective=objectives,
)
def test_only_the_difference_of_the_means_counts(implementation, half_m, shift, log_s, objective):
    m = half_m / 2  # the shifted differences are exact
    shifted = losses(implementation, m + shift, log_s, shift, log_s, objective=objective)
    assert (shifted == losses(implementation, m, log_s, 0 * m, log_s, objective=objective)).all()


@implementation_given
@examples
@given(m=m_values, other=m_values, log_s=log_s_values, objective=objectives)
def test_falling_and_convex_in_the_difference(implementation, m, other, log_s, objective):
    m, other = m.astype(np.float64), other.astype(np.float64)  # their distance must not round
    tolerance, low, high = SLACK[implementation.dtype], np.minimum(m, other), np.maximum(m, other)
    loss_low, slope_low, _ = evaluate(implementation, low, log_s, objective=objective)
    loss_high, slope_high, _ = evaluate(implementation, high, log_s, objective=objective)
    slack = 2 * tolerance * np.maximum(1, loss_low)
    assert ((slope_low >= -1) & (slope_low <= 0)).all() and ((slope_high >= -1) & (slope_high <= 0)).all()
    assert (loss_high <= loss_low + slack).all()
    assert (slope_low <= slope_high + 2 * tolerance).all()
    # the function lies above its tangent
    distance = high - low
    assert (loss_high >= loss_low + slope_low * distance - slack - 20 * tolerance * distance).all()


@implementation_given
@examples
@given(m=m_values, log_s=log_s_values)
def test_uncertainty_helps_where_the_score_is_wrong_and_hurts_where_it_is_right(implementation, m, log_s):
    _, _, dlogs = evaluate(implementation, m, log_s)
    assert (dlogs * m >= 0).all()
    nothing_underflows = (np.abs(m) > 1e-3) & (log_s > -5) & (np.abs(m) < 5 * np.exp(log_s))
    assert (np.sign(dlogs) == np.sign(m))[nothing_underflows].all()
    _, _, dlogs = evaluate(implementation, m, log_s, objective="expected")
    assert (dlogs >= 0).all()


@implementation_given
@examples
@given(m=m_values, log_s=log_s_values, threshold=thresholds, tie=st.booleans())
def test_jensen_the_marginal_loss_is_never_larger(implementation, m, log_s, threshold, tie):
    options = {"tie": tie, "tie_threshold": threshold}
    marginal, _, _ = evaluate(implementation, m, log_s, objective="marginal", **options)
    expected, _, _ = evaluate(implementation, m, log_s, objective="expected", **options)
    assert (marginal >= 0).all()
    assert (marginal <= expected + 2 * SLACK[implementation.dtype] * np.maximum(1, expected)).all()


@implementation_given
@examples
@given(m=m_values, log_s=log_s_values, threshold=thresholds, objective=objectives)
def test_a_tie_loss_is_even_and_least_at_equal_scores(implementation, m, log_s, threshold, objective):
    slack = SLACK[implementation.dtype]
    options = {"tie": True, "tie_threshold": threshold, "objective": objective}
    loss, dm, dlogs = evaluate(implementation, m, log_s, **options)
    mirrored = evaluate(implementation, -m, log_s, **options)
    assert all((a == b).all() for a, b in zip(mirrored, (loss, -dm, dlogs), strict=True))
    at_zero, _, _ = evaluate(implementation, 0 * m, log_s, **options)
    assert (at_zero <= loss + 2 * slack * np.maximum(1, loss)).all()
    assert (dm * m >= -slack).all() and (np.abs(dm) <= 1 + slack).all()


# --- limits ----------------------------------------------------------------------------------------------------------


@implementation_given
@examples
@given(m=m_values, objective=objectives)
def test_without_uncertainty_it_is_the_logistic_loss(implementation, m, objective):
    slack, m64 = SLACK[implementation.dtype], m.astype(np.float64)
    loss, dm, _ = evaluate(implementation, m, np.full_like(m, -45), objective=objective)
    assert loss == pytest.approx(np.logaddexp(0, -m64), rel=2 * slack, abs=slack)
    assert dm == pytest.approx(-1 / (1 + np.exp(m64)), rel=10 * slack, abs=slack)


@implementation_given
@examples
@given(m=m_values, log_s=st.sampled_from([25.0, 36.0, 37.0, 69.0, 500.0]))
def test_with_boundless_uncertainty_it_is_log_two(implementation, m, log_s):
    loss, dm, dlogs = evaluate(implementation, m, np.full_like(m, log_s))
    assert loss == pytest.approx(math.log(2), abs=2e-9 if implementation.dtype == torch.float64 else 1e-6)
    assert (np.abs(dm) < 1e-10).all() and (np.abs(dlogs) < 1e-8).all()


@implementation_given
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("tie", "threshold"), [(False, 0.0), (False, 1.0), (True, 0.0), (True, 1e-3), (True, 1e9)])
def test_finite_at_every_extreme(implementation, objective, tie, threshold):
    size = [0.0, 1e-38, 1e-10, 1.0, 1e2, 1e5, 1e10, 1e20, 1e30]
    mu, log_sigma = tensors(implementation, size + [-x for x in size])[0], tensors(
        implementation, [-3e38, -1e4, -100, -50, -20, 0, 3, 10, 20, 35, 37, 43, 60, 90, 1e3, 3e38]
    )[0]  # fmt: skip
    grid = torch.cartesian_prod(mu, log_sigma, -mu[:9:4], log_sigma[::5])
    inputs = [x.clone().requires_grad_() for x in grid.unbind(1)]
    tie = torch.ones(len(grid), dtype=torch.bool, device=mu.device) if tie else None
    options = {"objective": objective, "tie": tie, "tie_threshold": threshold, **options_of(implementation)}
    loss = uncertainty_ranking_loss(*inputs, reduction="none", **options)
    assert loss.isfinite().all() and (loss >= 0).all()
    assert uncertainty_ranking_loss(*inputs, **options).isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss.sum(), inputs))


@implementation_given
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_infinite_differences_give_the_limit(implementation, objective):
    log_s = np.array([-60.0, -2.0, 0.0, 4.0, 45.0])
    infinite = np.full_like(log_s, math.inf)
    for got in evaluate(implementation, infinite, log_s, objective=objective):
        assert (got == 0).all()
    loss, dm, dlogs = evaluate(implementation, -infinite, log_s, objective=objective)
    assert (loss == math.inf).all() and (dm == -1).all()
    if objective == "expected":
        assert (dlogs == 0).all()
    else:  # loss = |m| - s^2 / 2 out there
        assert dlogs[:4] == pytest.approx(-np.exp(2 * log_s[:4]), rel=1e-5, abs=1e-30)
    for threshold in (0.0, 0.5):
        slope = 0.5 if threshold == 0 else 1
        for m in (infinite, -infinite):
            loss, dm, _ = evaluate(implementation, m, log_s, tie=True, tie_threshold=threshold, objective=objective)
            assert (loss == math.inf).all() and (dm == np.copysign(slope, m)).all()


@implementation_given
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_value_that_is_not_a_number_stays_visible(implementation, objective):
    for k in range(4):
        broken = [np.zeros(2) for _ in range(4)]
        broken[k][0] = math.nan
        for options in ({}, {"tie": True}, {"tie": True, "tie_threshold": 0.5}):
            loss = losses(implementation, *broken, objective=objective, **options)
            assert np.isnan(loss[0]) and np.isfinite(loss[1])


# --- options ---------------------------------------------------------------------------------------------------------


@implementation_given
@examples
@given(seed=st.integers(0, 2**31), factor=st.floats(-8, 8, width=16), objective=objectives)
def test_weights_scale_loss_and_gradient(implementation, seed, factor, objective):
    inputs = [x.requires_grad_() for x in random_scores(implementation, 9, seed)]
    weight = torch.rand(9, generator=torch.Generator().manual_seed(seed)).to(inputs[0])
    options = {"objective": objective, **options_of(implementation)}
    once = uncertainty_ranking_loss(*inputs, weight=weight, **options)
    scaled = uncertainty_ranking_loss(*inputs, weight=factor * weight, **options)
    relative = 1e-12 if implementation.dtype == torch.float64 else 1e-5
    assert scaled.item() == pytest.approx(factor * once.item(), rel=relative, abs=1e-30)
    for a, b in zip(torch.autograd.grad(scaled, inputs), torch.autograd.grad(once, inputs), strict=True):
        assert torch.allclose(a, factor * b, rtol=relative, atol=1e-30)


def test_reductions_divide_by_the_number_of_pairs_not_of_weights():
    scores = [x.reshape(2, 3) for x in random_scores(IMPLEMENTATIONS[0], 6)]
    weight = torch.tensor([[0.0, 1, 2], [3, 0, 0.5]]).to(scores[0])
    each = uncertainty_ranking_loss(*scores, weight=weight, reduction="none")
    unweighted = uncertainty_ranking_loss(*scores, reduction="none")
    assert each.shape == (2, 3) and torch.equal(each, weight * unweighted)
    assert torch.allclose(uncertainty_ranking_loss(*scores, weight=weight, reduction="sum"), each.sum())
    assert torch.allclose(uncertainty_ranking_loss(*scores, weight=weight), each.sum() / 6)
    assert torch.allclose(uncertainty_ranking_loss(*scores, weight=2.0), 2 * unweighted.mean())


@implementation_given
def test_a_margin_is_subtracted_from_the_difference(implementation):
    mu_i, log_sigma_i, mu_j, log_sigma_j = random_scores(implementation, 10)
    margin = torch.rand(10, generator=torch.Generator().manual_seed(1)).to(mu_i).requires_grad_()
    options = {
        "tie": torch.arange(10, device=mu_i.device) % 2 == 0,
        "reduction": "none",
        **options_of(implementation),
    }
    for value in (margin, 0.75):
        loss = uncertainty_ranking_loss(mu_i, log_sigma_i, mu_j, log_sigma_j, margin=value, **options)
        by_hand = uncertainty_ranking_loss(
            mu_i - mu_j - value, log_sigma_i, torch.zeros_like(mu_i), log_sigma_j, **options
        )
        assert torch.equal(loss, by_hand)
        if value is margin:
            gradients = [torch.autograd.grad(x.sum(), margin)[0] for x in (loss, by_hand)]
            assert torch.equal(*gradients) and gradients[0].all()


@implementation_given
def test_a_mask_mixes_wins_and_ties(implementation):
    scores = random_scores(implementation, 12)
    tie = torch.arange(12, device=scores[0].device) % 3 == 0
    for objective in OBJECTIVES:
        for threshold in (0.0, 0.4):
            options = {"objective": objective, "tie_threshold": threshold, "reduction": "none"}
            options |= options_of(implementation)
            mixed = uncertainty_ranking_loss(*scores, tie=tie, **options)
            wins = uncertainty_ranking_loss(*scores, **options)
            ties = uncertainty_ranking_loss(*scores, tie=torch.ones_like(tie), **options)
            assert torch.equal(mixed, torch.where(tie, ties, wins))


@implementation_given
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_a_pair_does_not_feel_its_neighbours(implementation, objective, threshold):
    scores = random_scores(implementation, 1037)
    tie = torch.arange(1037, device=scores[0].device) % 4 == 0

    def parts(chosen):
        inputs = [x[chosen].clone().requires_grad_() for x in scores]
        options = {"objective": objective, "tie": tie[chosen], "tie_threshold": threshold, "reduction": "none"}
        loss = uncertainty_ranking_loss(*inputs, **options, **options_of(implementation))
        return [loss.detach(), *torch.autograd.grad(loss.sum(), inputs)]

    together = parts(slice(None))
    for chosen in [slice(k, k + 1) for k in (0, 1, 31, 500, 1036)] + [
        slice(3, 10),
        slice(1000, 1033),
        slice(0, 1037, 5),
    ]:
        assert all(torch.equal(a, b[chosen]) for a, b in zip(parts(chosen), together, strict=True))


@implementation_given
def test_strides_do_not_matter(implementation):
    scores = [x.reshape(4, 6) for x in random_scores(implementation, 24)]
    options = {"reduction": "none", **options_of(implementation)}
    straight = uncertainty_ranking_loss(*scores, **options)
    transposed = uncertainty_ranking_loss(*(x.t().contiguous().t() for x in scores), **options)
    assert torch.equal(straight, transposed)
    scalar = uncertainty_ranking_loss(*(x[0, 0] for x in scores), **options_of(implementation))
    assert scalar.shape == () and torch.equal(scalar, straight[0, 0])
    empty = uncertainty_ranking_loss(*(x[:0] for x in scores), **options)
    assert empty.shape == (0, 6)


# --- a citizen of torch ----------------------------------------------------------------------------------------------

OPTION_SETS = (
    {"margin": 0.25, "weight": 2.0},
    {"objective": "expected", "tie": True, "tie_threshold": 0.5, "margin": 0.5},
    {"objective": "expected", "tie": True, "tie_threshold": 1.5},  # another number is not another graph break
)


def with_mask(options, like):
    return options | ({"tie": torch.arange(len(like), device=like.device) < 3} if "tie" in options else {})


@implementation_given
def test_compiles_without_a_graph_break(implementation):
    torch.compiler.reset()
    compiled = torch.compile(uncertainty_ranking_loss, fullgraph=True, backend="aot_eager")
    inputs = [x.requires_grad_() for x in random_scores(implementation, 8)]
    for options in OPTION_SETS:
        options = with_mask(options, inputs[0]) | options_of(implementation)
        loss, eager = compiled(*inputs, **options), uncertainty_ranking_loss(*inputs, **options)
        assert torch.equal(loss, eager)
        for a, b in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(eager, inputs), strict=True):
            assert torch.equal(a, b)


@implementation_given
def test_the_operator_is_registered_as_torch_expects(implementation):
    scores = [x.requires_grad_() for x in random_scores(implementation, 8)]
    margin = torch.rand(8).to(scores[0]).detach().requires_grad_()
    tie = torch.arange(8, device=margin.device) < 3
    operator = torch.ops.jrm_plugin.pair_losses.default
    for arguments in (
        (*scores, None, 0.5, None, 0.0, "marginal", implementation.backend),
        (*scores, margin, 0.0, tie, 0.25, "expected", implementation.backend),
    ):
        torch.library.opcheck(operator, arguments)


@implementation_given
def test_vmap_is_a_batch(implementation):
    scores = [x.reshape(3, 4) for x in random_scores(implementation, 12)]
    options = {"objective": "expected", "tie_threshold": 0.5, **options_of(implementation)}
    batched = torch.vmap(lambda *x: uncertainty_ranking_loss(*x, **options))(*scores)
    one_by_one = [uncertainty_ranking_loss(*(x[k] for x in scores), **options) for k in range(3)]
    assert torch.equal(batched, torch.stack(one_by_one))
    one_j = torch.vmap(lambda *x: uncertainty_ranking_loss(*x, reduction="none"), in_dims=(1, 1, None, None))(
        scores[0], scores[1], scores[2][:, 0], scores[3][:, 0]
    )
    assert one_j.shape == (4, 3)


@implementation_given
def test_autocast_changes_nothing(implementation):
    scores = random_scores(implementation, 8)
    plain = uncertainty_ranking_loss(*scores, **options_of(implementation))
    with torch.autocast(scores[0].device.type, dtype=torch.bfloat16):
        assert torch.equal(uncertainty_ranking_loss(*scores, **options_of(implementation)), plain)


@implementation_given
def test_second_derivatives_are_refused_rather_than_wrong(implementation):
    inputs = [x.requires_grad_() for x in random_scores(implementation, 3)]
    loss = uncertainty_ranking_loss(*inputs, **options_of(implementation))
    gradients = torch.autograd.grad(loss**2, inputs, create_graph=True)
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
        ({"backend": "cuda"}, "backend must be one of 'auto', 'triton', 'torch', got 'cuda'"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    arguments = dict.fromkeys(("mu_i", "log_sigma_i", "mu_j", "log_sigma_j"), torch.zeros(2)) | changes
    with pytest.raises(ValueError, match=message):
        uncertainty_ranking_loss(**arguments)


@implementation_given
def test_no_pair_has_a_sum_but_no_mean(implementation):
    nothing, options = tensors(implementation, *[np.zeros(0)] * 4), options_of(implementation)
    assert uncertainty_ranking_loss(*nothing, reduction="sum", **options) == 0
    assert uncertainty_ranking_loss(*nothing, reduction="none", **options).shape == (0,)
    with pytest.raises(ValueError, match="no pair to take the mean of"):
        uncertainty_ranking_loss(*nothing, **options)


def test_triton_where_it_cannot_run_says_what_to_do(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="the inputs are on cpu; move them to a GPU, use 'auto' or 'torch', or set"):
        uncertainty_ranking_loss(*(torch.zeros(2),) * 4, backend="triton")


def test_float64_is_computed_by_torch_whatever_the_backend():
    scores = random_scores(Implementation("torch", torch.float64, "cpu"), 5)
    assert torch.equal(uncertainty_ranking_loss(*scores, backend="triton"), uncertainty_ranking_loss(*scores))
