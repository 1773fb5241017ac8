"""That the benchmarks run and measure what they say. Nothing here looks at a clock."""

import csv
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from benchmarks.kernels import COPY, EMPTY_KERNEL, LOSS, MONTE_CARLO, POOLING, Result, monte_carlo_loss, targets
from benchmarks.measuring import Ratio, Timing, slug, time_calls
from jrm_plugin.kernels import uncertainty_ranking_loss

ROOT = Path(__file__).parents[2]
COLUMNS = "kernel,provider,mode,timed,shape,p20_us,p50_us,p80_us,peak_memory_bytes,device,torch,triton,python"
POOLING_PROVIDERS = {"torch", "torch + head", "masked indexing", "head on every token, then select", COPY}


def test_kernels_on_cpu(tmp_path):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.kernels", "--quick", "--output", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    assert "triton" in run.stdout and "need a GPU" in run.stdout and "torch.compile: left out" in run.stdout
    assert "cannot run" not in run.stdout + run.stderr

    (path,) = tmp_path.glob("kernels-*.csv")
    assert len(list(tmp_path.glob(f"{path.stem}-*.png"))) == 2
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert ",".join(rows[0]) == COLUMNS
    assert {row["provider"] for row in rows if row["kernel"] == LOSS} == {"torch", MONTE_CARLO, COPY}
    assert {row["provider"] for row in rows if row["kernel"] == POOLING} == POOLING_PROVIDERS
    assert {row["timed"] for row in rows} == {"with dispatch", "floor"}
    for row in rows:
        assert 0 < float(row["p20_us"]) <= float(row["p50_us"]) <= float(row["p80_us"])
        assert row["peak_memory_bytes"] == "" and row["torch"] == version("torch") and row["device"]
    measured = {(row["kernel"], row["provider"], row["shape"]) for row in rows if row["timed"] == "with dispatch"}
    for key in measured:
        modes = [row["mode"] for row in rows if (row["kernel"], row["provider"], row["shape"]) == key]
        assert modes == ["forward", "backward", "full"]


def test_monte_carlo_estimates_the_expected_objective():
    scores = [
        torch.tensor(x)
        for x in ([1.0, -0.5, 0.0, 3.0], [0.5, -1.0, 1.0, 0.5], [0.0, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.5])
    ]
    exact_inputs, inputs = ([x.clone().requires_grad_() for x in scores] for _ in range(2))
    exact = uncertainty_ranking_loss(*exact_inputs, objective="expected", reduction="none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        estimate = monte_carlo_loss(*inputs, samples=1_000_000)
    # a million samples: standard errors are a few thousandths at most
    assert torch.allclose(estimate, exact, atol=0.01)
    marginal = uncertainty_ranking_loss(*scores, reduction="none")
    assert (exact - marginal).min() > 0.02  # so that the other objective would fail
    gradients = (torch.autograd.grad(loss.sum(), x) for loss, x in ((estimate, inputs), (exact, exact_inputs)))
    for got, want in zip(*gradients, strict=True):
        assert torch.allclose(got, want, atol=0.02)


def test_timing_calls_enough():
    calls = []
    timing = time_calls(lambda: calls.append(1), seconds=0.0, least=7)
    assert len(calls) == 8  # the first one is not timed
    assert 0 < timing.p20 <= timing.p50 <= timing.p80 and timing.peak_bytes is None


def test_ratios_keep_the_spread():
    assert Ratio.of(Timing(2.0, 4.0, 6.0), Timing(1.0, 2.0, 3.0)) == Ratio(2.0, 2 / 3, 6.0)
    assert slug("NVIDIA H200, 1 thread") == "nvidia-h200-1-thread"


def test_targets():
    def result(provider, mode, timed, size, microseconds, kernel=LOSS):
        return Result(kernel, provider, mode, timed, "", size, Timing(*(microseconds * 1e-6,) * 3))

    verdicts = [
        (text, verdict)
        for text, _, verdict in targets(
            [
                result("triton", "forward", "kernel", 64, 2.9),
                result(EMPTY_KERNEL, "forward", "floor", 64, 2.0),
                result("triton", "full", "with dispatch", 64, 100),
                result(MONTE_CARLO, "full", "with dispatch", 64, 1999),
                result("torch", "full", "with dispatch", 64, 301),
                result("triton", "forward", "kernel", 2**22, 100),
                result(COPY, "forward", "floor", 2**22, 59),
                result("triton", "forward", "kernel", 8, 8, POOLING),
                result(EMPTY_KERNEL, "forward", "floor", 8, 2, POOLING),
                result(COPY, "forward", "floor", 8, 6, POOLING),
            ]
        )
        if verdict != "not measured"
    ]
    assert [verdict for _, verdict in verdicts] == ["met", "not met", "met", "not met", "met"]
    assert [text.split(":")[0] for text, _ in verdicts] == [
        "loss, 64 pairs",
        "loss, 64 pairs",
        "loss, 64 pairs",
        "loss, 4,194,304 pairs",
        "pooling, B=8",
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_on_gpu(tmp_path):
    command = [sys.executable, "-m", "benchmarks.kernels", "--quick", "--output", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    (path,) = tmp_path.glob("kernels-*.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["timed"] for row in rows} == {"with dispatch", "kernel", "dispatch", "floor"}
    assert {"triton", EMPTY_KERNEL} <= {row["provider"] for row in rows}
