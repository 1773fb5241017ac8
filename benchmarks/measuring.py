"""What the benchmarks share: timing a call, naming the device and the versions, writing rows."""

import csv
import ctypes
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from jrm_plugin.cli import env

QUANTILES = (0.2, 0.5, 0.8)
M_MMAP_THRESHOLD = -3  # of glibc's mallopt


class Timing(NamedTuple):
    """Quantiles of the seconds that a call takes, and the most memory it held beyond what was held before.

    `peak_bytes` is None where it is not known: on CPU, and for kernels alone.
    """

    p20: float
    p50: float
    p80: float
    peak_bytes: int | None = None


class Ratio(NamedTuple):
    """How many times longer one call takes than another: of the medians, and both ends of the spread."""

    p50: float
    low: float
    high: float

    @classmethod
    def of(cls, one: Timing, other: Timing) -> "Ratio":
        return cls(one.p50 / other.p50, one.p20 / other.p80, one.p80 / other.p20)

    def __str__(self) -> str:
        return f"{self.p50:.3g} ({self.low:.3g} to {self.high:.3g})"


def time_calls(function: Callable[[], object], device="cpu", *, seconds: float = 0.3, least: int = 3) -> Timing:
    """Times whole calls on the host's clock, from an idle device until it is idle again.

    Args:
        device: where `function` computes.
        seconds: goes on until the timed calls took this long together,
        least: and until there were this many. One more call, before, is not timed.
    """
    on_gpu = torch.device(device).type == "cuda"
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    function()
    wait()
    held = torch.cuda.memory_allocated() if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    times: list[float] = []
    while len(times) < least or sum(times) < seconds:
        start = time.perf_counter()
        function()
        wait()
        times.append(time.perf_counter() - start)
    peak_bytes = torch.cuda.max_memory_allocated() - held if on_gpu else None
    return Timing(*np.quantile(times, QUANTILES).tolist(), peak_bytes)


def peak_bytes(function: Callable[[], object], device="cpu") -> int:
    """The most memory that a call holds beyond what was held before: of the GPU, or of this process (Linux).

    From the first use on, the process gives large blocks back to the system as soon as they are freed, which takes
    time: measure times before.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - held
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 2**16)  # otherwise glibc raises it, and keeps what was freed
    function()
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    held = _status_bytes("VmRSS")
    function()
    return _status_bytes("VmHWM") - held


def _status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def device_description(device="cpu") -> str:
    """The GPU's name, or the processor's and the number of torch's threads."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def slug(text: str) -> str:
    """The text as part of a file name: `NVIDIA H200` is `nvidia-h200`."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def versions() -> dict[str, str]:
    """Versions that decide how fast this is."""
    every = env.versions()
    return {name: every[name] for name in ("torch", "triton", "python")}


def write_csv(path: Path, rows: list[dict]) -> None:
    """Writes rows of the same columns; None becomes an empty field."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
