"""The accuracy contract of the ranking loss, against 20-digit reference rows and against brute force.

`benchmarks.kernel_accuracy` states the tolerances; errors are in parts of them.
"""

import math

import numpy as np
import pytest
import torch

from benchmarks.kernel_accuracy import Implementation, brute_force, evaluate, implementations, reference_rows
from benchmarks.kernel_accuracy import worst_errors as errors_in_tolerances
from jrm_plugin.kernels import uncertainty_ranking_loss

FLOAT64 = Implementation("torch", torch.float64, "cpu")
implementation_given = pytest.mark.parametrize("implementation", implementations(), ids=str)
both_objectives = pytest.mark.parametrize("objective", ["marginal", "expected"])
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # NaN in branches that are not taken


def assert_within_contract(measured, truth, dtype):
    worst = errors_in_tolerances(measured, truth, dtype)
    assert all(error <= 1 for error in worst), worst  # NaN fails too


@implementation_given
@both_objectives
def test_reference_rows(implementation, objective):
    m, log_s, truth = reference_rows(objective)
    assert len(m) > 300
    assert_within_contract(evaluate(implementation, m, log_s, objective=objective), truth, implementation.dtype)


@both_objectives
def test_brute_force_reproduces_the_reference_rows(objective):
    m, log_s, truth = reference_rows(objective)
    measured = brute_force(m[::4], log_s[::4], tie=False, objective=objective, tie_threshold=0.0)
    assert_within_contract(measured, [true[::4] for true in truth], torch.float64)


@implementation_given
@both_objectives
@pytest.mark.parametrize(
    ("tie", "threshold"),
    [(False, 0.0), (False, 0.75), (True, 0.0), (True, 2**-20), (True, 0.125), (True, 1.0), (True, 30.0)],
)
def test_outcomes_against_brute_force(tie, threshold, objective, implementation):
    random = np.random.default_rng(20)
    m = np.concatenate([[-100, -2, 0, 0, 0.5, 30, 100], random.normal(size=40) * 10 ** random.uniform(-3, 1.5, 40)])
    log_s = np.log(np.concatenate([[300, 3, 1e-6, 50, 1e-6, 5, 1e-3], 10 ** random.uniform(-6, 2.5, 40)]))
    m, log_s = m.clip(-100, 100).astype(np.float32), log_s.astype(np.float32)
    options = {"objective": objective, "tie": tie, "tie_threshold": threshold}
    truth = brute_force(m, log_s, **options)
    assert_within_contract(evaluate(implementation, m, log_s, **options), truth, implementation.dtype)


@implementation_given
@pytest.mark.parametrize("threshold", [2**-20, 0.125, 1.0])
def test_digits_are_kept_where_the_tie_gradient_changes_sign(threshold, implementation):
    m, log_s = (x.ravel() for x in np.meshgrid(np.linspace(1.5, 5, 120), np.linspace(math.log(0.2), math.log(4), 120)))
    m, log_s = m.astype(np.float32), log_s.astype(np.float32)
    options = {"tie": True, "tie_threshold": threshold}
    truth = evaluate(FLOAT64, m, log_s, **options)
    assert truth[2].min() < 0 < truth[2].max()
    assert_within_contract(evaluate(implementation, m, log_s, **options), truth, implementation.dtype)


@both_objectives
@pytest.mark.parametrize("tie_threshold", [0.0, 0.3, 4.0])
def test_gradients_against_finite_differences(objective, tie_threshold):
    generator = torch.Generator().manual_seed(3)
    scores = [torch.randn(12, generator=generator, dtype=torch.float64) * scale for scale in (3, 1.5, 3, 1.5)]
    margin, weight = (torch.rand(12, generator=generator, dtype=torch.float64) for _ in range(2))

    def loss(mu_i, log_sigma_i, mu_j, log_sigma_j, margin, weight):
        return uncertainty_ranking_loss(
            mu_i, log_sigma_i, mu_j, log_sigma_j, margin=margin, weight=weight, objective=objective,
            tie=torch.arange(12) % 3 == 0, tie_threshold=tie_threshold,
        )  # fmt: skip

    inputs = [x.requires_grad_() for x in (*scores, margin, weight)]
    assert torch.autograd.gradcheck(loss, inputs, eps=1e-5, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(dtype):
    generator = torch.Generator().manual_seed(4)
    half = [torch.randn(20, generator=generator).to(dtype).requires_grad_() for _ in range(4)]
    full = [x.detach().float().requires_grad_() for x in half]
    loss, expected = uncertainty_ranking_loss(*half), uncertainty_ranking_loss(*full)
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)
    for got, want in zip(torch.autograd.grad(loss, half), torch.autograd.grad(expected, full), strict=True):
        assert torch.equal(got, want.to(dtype))


def test_variances_add():
    mu = torch.tensor([1.5], dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    split = uncertainty_ranking_loss(mu, zero + math.log(3), zero, zero + math.log(4))
    joined = uncertainty_ranking_loss(mu, zero + math.log(5), zero, zero - math.inf)
    assert split.item() == pytest.approx(joined.item(), rel=1e-14)
