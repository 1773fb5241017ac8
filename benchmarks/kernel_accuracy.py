"""Errors of the ranking loss against the truth, in parts of the tolerance that the tests hold it to: 1 is the limit.

    python -m benchmarks.kernels --accuracy

prints the tables of kernels/ACCURACY.md: torch in float32 and float64 and the Triton kernel, on the GPU if there is one
and otherwise in Triton's interpreter (with TRITON_INTERPRET=1). The truth is 344 reference rows of 20 digits or more
(tests/kernels/), brute force (`jrm_plugin.kernels.reference`), and float64 where both have held it to that.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from jrm_plugin.kernels import uncertainty_ranking_loss
from jrm_plugin.kernels._backend import has_triton, interpreted
from jrm_plugin.kernels.reference import reference_loss

ROWS = Path(__file__).parents[1] / "tests" / "kernels" / "uncertainty_reference.json"
ROW_KEYS = {
    "marginal": ("loss", "dloss_dm", "dloss_dlogs"),
    "expected": ("expected_loss", "dexpected_dm", "dexpected_dlogs"),
}
# for |m| <= 100 and s from 1e-6 to 1e3: (absolute, relative) of the loss, d/dm and d/dlog s; the larger counts
TOLERANCE = {
    torch.float32: ((5e-7, 2e-6), (1e-6, 1e-5), (1e-6, 1e-5)),
    torch.float64: ((1e-12, 1e-9), (1e-12, 1e-9), (1e-12, 1e-9)),
}
REGIMES = {  # of s: the logistic law, both, the normal law
    "s < 0.1": (-math.inf, math.log(0.1)),
    "0.1 ≤ s < 10": (math.log(0.1), math.log(10)),
    "s ≥ 10": (math.log(10), math.inf),
}
THRESHOLDS = (2**-20, 0.125, 0.5, 1.0, 2.0, 8.0, 64.0)


class Implementation(NamedTuple):
    backend: str
    dtype: torch.dtype
    device: str

    def __str__(self) -> str:
        where = "interpreter" if self.backend == "triton" and self.device == "cpu" else self.device
        return f"{self.backend} {str(self.dtype)[6:]}, {where}"


def implementations() -> list[Implementation]:
    """Those that can run here."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = [Implementation("torch", dtype, device) for dtype in TOLERANCE]
    if has_triton() and (device == "cuda" or interpreted()):
        found.append(Implementation("triton", torch.float32, device))
    return found


def evaluate(implementation: Implementation, m, log_s, *, tie: bool = False, **options) -> list[np.ndarray]:
    """Loss, d/dm and d/dlog s of each pair as float64 arrays; all of the variance is the first sample's."""
    backend, dtype, device = implementation
    m, log_s = (torch.as_tensor(x, dtype=dtype, device=device).requires_grad_() for x in (m, log_s))
    loss = uncertainty_ranking_loss(
        m,
        log_s,
        torch.zeros_like(m),
        torch.full_like(m, -math.inf),
        tie=torch.ones_like(m, dtype=torch.bool) if tie else None,
        reduction="none",
        backend=backend,
        **options,
    )
    assert loss.dtype == dtype
    return [x.detach().double().cpu().numpy() for x in (loss, *torch.autograd.grad(loss.sum(), (m, log_s)))]


def reference_rows(objective: str) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """m and log s (exact in float32) of the rows in the contract's domain, and the true loss and derivatives."""
    rows = [
        row
        for row in json.loads(ROWS.read_text())
        if abs(float(row["m"])) <= 100 and math.log(1e-6) <= float(row["log_s"]) <= math.log(1e3)
    ]
    m, log_s, *truth = (np.array([float(row[key]) for row in rows]) for key in ("m", "log_s", *ROW_KEYS[objective]))
    return m, log_s, truth


def brute_force(m, log_s, *, tie: bool, objective: str, tie_threshold: float) -> list[np.ndarray]:
    """The true loss and derivatives of each pair."""
    options = {"objective": objective, "outcome": "tie" if tie else "win", "threshold": tie_threshold}
    return list(np.array([reference_loss(float(a), float(b), **options) for a, b in zip(m, log_s, strict=True)]).T)


def worst_errors(measured, truth, dtype: torch.dtype) -> list[float]:
    """The largest error of the loss, d/dm and d/dlog s, in parts of the tolerance; NaN if anything is."""
    return [
        float(np.max(np.abs(got - true) / np.maximum(absolute, relative * np.abs(true))))
        for got, true, (absolute, relative) in zip(measured, truth, TOLERANCE[dtype], strict=True)
    ]


def outcomes() -> Iterator[dict]:
    """Options of `uncertainty_ranking_loss`: both objectives, wins, and ties of every kind."""
    for objective in ROW_KEYS:
        for tie, threshold in [(False, 0.0), (False, 1.0), (True, 0.0), *((True, h) for h in THRESHOLDS)]:
            yield {"objective": objective, "tie": tie, "tie_threshold": threshold}


def print_accuracy() -> None:
    here = implementations()
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'}")

    _print_header("Wins, 344 reference rows", "objective", "regime", "implementation")
    for objective in ROW_KEYS:
        m, log_s, truth = reference_rows(objective)
        for name, (low, high) in REGIMES.items():
            chosen = (low <= log_s) & (log_s < high)
            part = [true[chosen] for true in truth]
            for implementation in here:
                measured = evaluate(implementation, m[chosen], log_s[chosen], objective=objective)
                _print_row(objective, name, implementation, errors=worst_errors(measured, part, implementation.dtype))

    random, count = np.random.default_rng(0), 300
    m = (10 ** random.uniform(-4, 2, count) * random.choice([-1, 1], count)).astype(np.float32)
    log_s = random.uniform(math.log(1e-6), math.log(1e3), count).astype(np.float32)
    _print_header(f"Against brute force, {count} random points", "objective", "outcome", "implementation")
    for options in outcomes():
        truth = brute_force(m, log_s, **options)
        for implementation in here:
            errors = worst_errors(evaluate(implementation, m, log_s, **options), truth, implementation.dtype)
            _print_row(options["objective"], _outcome(options), implementation, errors=errors)

    m, log_s = dense_grid()
    _print_header(f"float32 against float64, {len(m):,} points", "objective", "outcome", "implementation")
    for options in outcomes():
        parts = [(m[part], log_s[part]) for part in np.array_split(np.arange(len(m)), 40)]
        wide = [evaluate(Implementation("torch", torch.float64, here[0].device), *part, **options) for part in parts]
        for implementation in here:
            if implementation.dtype == torch.float32:
                errors = [
                    worst_errors(evaluate(implementation, *part, **options), truth, torch.float32)
                    for part, truth in zip(parts, wide, strict=True)
                ]
                _print_row(options["objective"], _outcome(options), implementation, errors=np.max(errors, axis=0))


def dense_grid(side: int = 350) -> tuple[np.ndarray, np.ndarray]:
    """m and log s over the contract's domain, dense about m = 0, float32."""
    m = np.sinh(np.linspace(-math.asinh(1e4), math.asinh(1e4), side)) / 100
    m, log_s = np.meshgrid(m.clip(-100, 100), np.linspace(math.log(1e-6), math.log(1e3), side))
    return m.ravel().astype(np.float32), log_s.ravel().astype(np.float32)


def _outcome(options: dict) -> str:
    return f"{'tie' if options['tie'] else 'win'}, threshold {options['tie_threshold']:.3g}"


def _print_header(title: str, *names: str) -> None:
    print(f"\n{title}\n\n| {' | '.join([*names, 'loss', 'd/dm', 'd/dlog s'])} |")
    print("|" + "---|" * (len(names) + 3))


def _print_row(*names, errors) -> None:
    print("|", " | ".join([*map(str, names), *(f"{error:.2g}" for error in errors)]), "|", flush=True)
