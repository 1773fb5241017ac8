"""Measures the errors of the ranking loss and prints the tables of kernels/ACCURACY.md.

    python kernels/measure_accuracy.py

Errors are given in parts of the tolerance that the tests hold the loss to, so 1 is the limit. Takes one to three
minutes on one core; needs the checkout (the reference rows are in tests/kernels/).
"""

import json
import math
from pathlib import Path

import numpy as np
import torch

from jrm_plugin.kernels import uncertainty_ranking_loss
from jrm_plugin.kernels.reference import reference_loss

ROWS = Path(__file__).parents[1] / "tests" / "kernels" / "uncertainty_reference.json"
ROW_KEYS = {
    "marginal": ("loss", "dloss_dm", "dloss_dlogs"),
    "expected": ("expected_loss", "dexpected_dm", "dexpected_dlogs"),
}
TOLERANCE = {  # (absolute, relative) of the loss, d/dm and d/dlog s
    torch.float32: ((5e-7, 2e-6), (1e-6, 1e-5), (1e-6, 1e-5)),
    torch.float64: ((1e-12, 1e-9), (1e-12, 1e-9), (1e-12, 1e-9)),
}
THRESHOLDS = (2**-20, 0.125, 0.5, 1.0, 2.0, 8.0, 64.0)


def evaluate(m, log_s, dtype, **options):
    """Loss, d/dm and d/dlog s as float64 arrays; m and log_s are float32 arrays."""
    m, log_s = (torch.tensor(x).to(dtype).requires_grad_() for x in (m, log_s))
    certain = torch.full_like(m, -math.inf)
    loss = uncertainty_ranking_loss(m, log_s, torch.zeros_like(m), certain, reduction="none", **options)
    return [x.detach().double().numpy() for x in (loss, *torch.autograd.grad(loss.sum(), (m, log_s)))]


def worst_errors(measured, truth, dtype):
    """The largest error of the loss, d/dm and d/dlog s, in parts of the tolerance."""
    return [
        np.max(np.abs(got - true) / np.maximum(absolute, relative * np.abs(true)))
        for got, true, (absolute, relative) in zip(measured, truth, TOLERANCE[dtype], strict=True)
    ]


def print_row(*names, errors):
    print("|", " | ".join([*names, *(f"{error:.2g}" for error in errors)]), "|", flush=True)


def print_header(title, *names):
    print(f"\n{title}\n\n| {' | '.join([*names, 'loss', 'd/dm', 'd/dlog s'])} |")
    print("|" + "---|" * (len(names) + 3))


def reference_rows():
    rows = json.loads(ROWS.read_text())
    rows = [r for r in rows if abs(float(r["m"])) <= 100 and math.log(1e-6) <= float(r["log_s"]) <= math.log(1e3)]
    m, log_s = (np.array([float(row[key]) for row in rows], dtype=np.float32) for key in ("m", "log_s"))
    print_header(f"Wins, {len(rows)} reference rows", "objective", "dtype")
    for objective, keys in ROW_KEYS.items():
        truth = [np.array([float(row[key]) for row in rows]) for key in keys]
        for dtype in TOLERANCE:
            errors = worst_errors(evaluate(m, log_s, dtype, objective=objective), truth, dtype)
            print_row(objective, str(dtype)[6:], errors=errors)


def dense_grid(side=350):
    """float32 against float64, which the other two tables hold to the truth."""
    m = np.sinh(np.linspace(-math.asinh(1e4), math.asinh(1e4), side)) / 100  # dense about 0, up to 100
    m, log_s = np.meshgrid(m.clip(-100, 100), np.linspace(math.log(1e-6), math.log(1e3), side))
    m, log_s = m.ravel().astype(np.float32), log_s.ravel().astype(np.float32)
    print_header(f"float32 against float64, {len(m):,} points", "objective", "outcome", "threshold")
    for objective in ROW_KEYS:
        for outcome, threshold in [("win", 0.0), ("tie", 0.0), *(("tie", threshold) for threshold in THRESHOLDS)]:
            tie = torch.full(m.shape, outcome == "tie")
            worst = [0.0, 0.0, 0.0]
            for part in np.array_split(np.arange(len(m)), 40):
                options = {"objective": objective, "tie": tie[: len(part)], "tie_threshold": threshold}
                narrow, wide = (evaluate(m[part], log_s[part], dtype, **options) for dtype in TOLERANCE)
                worst = np.maximum(worst, worst_errors(narrow, wide, torch.float32))
            print_row(objective, outcome, f"{threshold:.3g}", errors=worst)


def brute_force(count=300):
    random = np.random.default_rng(0)
    m = (10 ** random.uniform(-4, 2, count) * random.choice([-1, 1], count)).astype(np.float32)
    log_s = random.uniform(math.log(1e-6), math.log(1e3), count).astype(np.float32)
    print_header(f"float64 against brute force, {count} random points", "objective", "outcome", "threshold")
    for objective in ROW_KEYS:
        for outcome, threshold in [("win", 1.0), ("tie", 0.0), *(("tie", threshold) for threshold in THRESHOLDS)]:
            options = {"objective": objective, "outcome": outcome, "threshold": threshold}
            truth = np.array([reference_loss(float(a), float(b), **options) for a, b in zip(m, log_s, strict=True)]).T
            tie = torch.full(m.shape, outcome == "tie")
            measured = evaluate(m, log_s, torch.float64, objective=objective, tie=tie, tie_threshold=threshold)
            print_row(objective, outcome, f"{threshold:.3g}", errors=worst_errors(measured, truth, torch.float64))


if __name__ == "__main__":
    print(f"torch {torch.__version__}, CPU")
    reference_rows()
    brute_force()
    dense_grid()
