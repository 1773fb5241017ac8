"""The accuracy contract of the ranking loss, against 30-digit reference rows and against brute force.

For m in [-100, 100] and s in [1e-6, 1e3], wins and ties, both objectives:
    float32   loss within max(5e-7, 2e-6 |L|), both derivatives within max(1e-6, 1e-5 |g|)
    float64   all three within max(1e-12, 1e-9 |x|)
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from jrm_plugin.kernels import uncertainty_ranking_loss
from jrm_plugin.kernels.reference import reference_loss

ROWS = json.loads((Path(__file__).parent / "uncertainty_reference.json").read_text())
ROW_KEYS = {
    "marginal": ("loss", "dloss_dm", "dloss_dlogs"),
    "expected": ("expected_loss", "dexpected_dm", "dexpected_dlogs"),
}
TOLERANCE = {  # (absolute, relative) of the loss, d/dm and d/dlog s
    torch.float32: ((5e-7, 2e-6), (1e-6, 1e-5), (1e-6, 1e-5)),
    torch.float64: ((1e-12, 1e-9), (1e-12, 1e-9), (1e-12, 1e-9)),
}
BOTH_DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
BOTH_OBJECTIVES = pytest.mark.parametrize("objective", ["marginal", "expected"])


def rows_in_domain(objective):
    """m, log s (exact in float32) and the true loss and derivatives, as float64 arrays."""
    rows = [r for r in ROWS if abs(float(r["m"])) <= 100 and math.log(1e-6) <= float(r["log_s"]) <= math.log(1e3)]
    return [np.array([float(row[key]) for row in rows]) for key in ("m", "log_s", *ROW_KEYS[objective])]


def loss_and_derivatives(m, log_s, dtype, **options):
    """Loss, d/dm and d/dlog s per pair, where all of the variance is the first sample's."""
    m = torch.tensor(m, dtype=dtype, requires_grad=True)
    log_s = torch.tensor(log_s, dtype=dtype, requires_grad=True)
    certain = torch.full_like(m, -math.inf, requires_grad=False)
    loss = uncertainty_ranking_loss(m, log_s, torch.zeros_like(m), certain, reduction="none", **options)
    assert loss.dtype == dtype
    gradients = torch.autograd.grad(loss.sum(), (m, log_s))
    return [x.detach().double().numpy() for x in (loss, *gradients)]


def assert_within_contract(measured, truth, dtype):
    for got, true, (absolute, relative), name in zip(
        measured, truth, TOLERANCE[dtype], ("loss", "d/dm", "d/dlog s"), strict=True
    ):
        worst = np.max(np.abs(got - true) / np.maximum(absolute, relative * np.abs(true)))
        assert worst <= 1, f"{name} is off by {worst:.2f} of its tolerance"  # NaN fails too


@BOTH_DTYPES
@BOTH_OBJECTIVES
def test_reference_rows(objective, dtype):
    m, log_s, *truth = rows_in_domain(objective)
    assert len(m) > 300
    assert_within_contract(loss_and_derivatives(m, log_s, dtype, objective=objective), truth, dtype)


@BOTH_OBJECTIVES
def test_brute_force_reproduces_the_reference_rows(objective):
    m, log_s, *truth = (values[::4] for values in rows_in_domain(objective))
    measured = [reference_loss(*pair, objective=objective) for pair in zip(m, log_s, strict=True)]
    assert_within_contract(np.array(measured).T, truth, torch.float64)


@BOTH_DTYPES
@BOTH_OBJECTIVES
@pytest.mark.parametrize(
    ("outcome", "threshold"),
    [("win", 0.0), ("win", 0.75), ("tie", 0.0), ("tie", 2**-20), ("tie", 0.125), ("tie", 1.0), ("tie", 30.0)],
)
def test_outcomes_against_brute_force(outcome, threshold, objective, dtype):
    random = np.random.default_rng(20)
    m = np.concatenate([[-100, -2, 0, 0, 0.5, 30, 100], random.normal(size=40) * 10 ** random.uniform(-3, 1.5, 40)])
    log_s = np.log(np.concatenate([[300, 3, 1e-6, 50, 1e-6, 5, 1e-3], 10 ** random.uniform(-6, 2.5, 40)]))
    m, log_s = m.clip(-100, 100).astype(np.float32).tolist(), log_s.astype(np.float32).tolist()
    options = {"objective": objective, "outcome": outcome, "threshold": threshold}
    truth = np.array([reference_loss(*pair, **options) for pair in zip(m, log_s, strict=True)]).T
    tie = torch.full((len(m),), outcome == "tie")
    measured = loss_and_derivatives(m, log_s, dtype, objective=objective, tie=tie, tie_threshold=threshold)
    assert_within_contract(measured, truth, dtype)


@pytest.mark.parametrize("threshold", [2**-20, 0.125, 1.0])
def test_float32_keeps_its_digits_where_the_tie_gradient_changes_sign(threshold):
    m, log_s = (x.ravel() for x in np.meshgrid(np.linspace(1.5, 5, 120), np.linspace(math.log(0.2), math.log(4), 120)))
    m, log_s = m.astype(np.float32), log_s.astype(np.float32)
    options = {"tie": torch.ones(len(m), dtype=torch.bool), "tie_threshold": threshold}
    truth = loss_and_derivatives(m.tolist(), log_s.tolist(), torch.float64, **options)
    assert truth[2].min() < 0 < truth[2].max()
    assert_within_contract(loss_and_derivatives(m, log_s, torch.float32, **options), truth, torch.float32)


@BOTH_OBJECTIVES
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
