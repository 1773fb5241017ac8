"""How fast the kernels are, beside what else computes the same and beside what the device allows.

    python -m benchmarks.kernels               # CSV and plots into benchmarks/results, a table with ratios at the end
    python -m benchmarks.kernels --accuracy    # the tables of kernels/ACCURACY.md instead

forward is the loss of each pair, or the pooled hidden states; full is that, its mean and the gradients; backward is the
gradients alone. The exact providers compute the marginal objective, which is the default and the slower one.

Each row says what was timed:

    with dispatch    whole calls on the host's clock, until the device is idle
    kernel           GPU: replay of a CUDA graph of the calls, without the host; only of what one can hold
    dispatch         GPU: the difference of both
    floor            what no kernel can beat: the launch of an empty one, or the bytes to move at the speed of a copy

Shapes: N pairs, S samples, B sequences, L length, H hidden, D dimensions.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks.kernel_accuracy import print_accuracy
from benchmarks.measuring import QUANTILES, Ratio, Timing, device_description, slug, time_calls, versions, write_csv
from jrm_plugin.kernels import pool_reward_tokens, ranking_loss_torch, uncertainty_ranking_loss
from jrm_plugin.kernels._backend import has_triton

RESULTS = Path(__file__).parent / "results"
MODES = ("forward", "backward", "full")
LOSS, POOLING = "uncertainty_ranking_loss", "pool_reward_tokens"
MONTE_CARLO = "monte carlo, 1000 samples"
EVERY_TOKEN = "head on every token, then select"
EMPTY_KERNEL, COPY = "empty kernel", "copy of the same bytes"
REWARD_TOKEN = 7


class Provider(NamedTuple):
    name: str
    compute: Callable[..., torch.Tensor]  # from the case's input
    parameters: tuple[torch.Tensor, ...] = ()  # get gradients too
    in_graph: bool = False  # its kernels are timed alone; what waits for the device or copies from the host cannot be


class Case(NamedTuple):
    """One kernel at one shape."""

    kernel: str
    shape: str
    size: int  # pairs or sequences
    moved_bytes: int  # by the forward pass, at least
    make_inputs: Callable[[], tuple[torch.Tensor, ...]]
    providers: list[Provider]


class Result(NamedTuple):
    kernel: str
    provider: str
    mode: str
    timed: str
    shape: str
    size: int
    timing: Timing


# --- providers of the ranking loss ------------------------------------------------------------------------------------


def exact_loss(backend: str) -> Callable[..., torch.Tensor]:
    return lambda *scores_N: uncertainty_ranking_loss(*scores_N, reduction="none", backend=backend)


class _PlainLoss(torch.autograd.Function):
    """The torch path without the custom operator, into which no compiler looks."""

    @staticmethod
    def forward(ctx, mu_i_N, log_sigma_i_N, mu_j_N, log_sigma_j_N):
        loss_N, *gradients = ranking_loss_torch.pair_losses(
            mu_i_N - mu_j_N, log_sigma_i_N, log_sigma_j_N, None, 0.0, "marginal"
        )
        ctx.save_for_backward(*gradients)
        return loss_N

    @staticmethod
    def backward(ctx, grad_loss_N):
        dm_N, dlog_sigma_i_N, dlog_sigma_j_N = ctx.saved_tensors
        grad_mu_N = grad_loss_N * dm_N
        return grad_mu_N, grad_loss_N * dlog_sigma_i_N, -grad_mu_N, grad_loss_N * dlog_sigma_j_N


def plain_loss(mu_i_N, log_sigma_i_N, mu_j_N, log_sigma_j_N):
    """What torch.compile is given."""
    return _PlainLoss.apply(mu_i_N, log_sigma_i_N, mu_j_N, log_sigma_j_N)


def monte_carlo_loss(mu_i_N, log_sigma_i_N, mu_j_N, log_sigma_j_N, samples=1000):
    """The expected objective as research code estimates it, in the bfloat16 of its training on a GPU."""
    dtype = torch.bfloat16 if mu_i_N.is_cuda else torch.float32
    reward_NS = []
    for mu_N, log_sigma_N in ((mu_i_N, log_sigma_i_N), (mu_j_N, log_sigma_j_N)):
        normal_NS = torch.randn(len(mu_N), samples, dtype=dtype, device=mu_N.device)
        reward_NS.append(mu_N.to(dtype).unsqueeze(1) + log_sigma_N.exp().to(dtype).unsqueeze(1) * normal_NS)
    return -torch.nn.functional.logsigmoid(reward_NS[0] - reward_NS[1]).mean(1)


def loss_cases(device: str, quick: bool) -> list[Case]:
    providers = [
        Provider("torch", exact_loss("torch")),
        Provider(MONTE_CARLO, monte_carlo_loss),
    ]
    if device == "cuda":
        providers.insert(0, Provider("triton", exact_loss("triton"), in_graph=True))
    if not quick:
        from torch._functorch import config

        config.donated_buffer = False  # the backward pass is timed over and over, so it must keep what it was handed
        providers.append(Provider("torch.compile", torch.compile(plain_loss, dynamic=True)))

    def case(N):
        def scores():
            return tuple(torch.randn(N, device=device) for _ in range(4))

        moved_bytes = 8 * 4 * N  # four scores in; the loss and three derivatives out
        return Case(LOSS, f"N={N}", N, moved_bytes, scores, providers)

    largest = 10 if quick else 22 if device == "cuda" else 16
    return [case(2**exponent) for exponent in range(6, largest + 1, 4 if quick else 2)]


# --- providers of the pooling -----------------------------------------------------------------------------------------


class Head(torch.nn.Module):
    """The reward head at its default widths, for two dimensions: [..., H] to [..., D, 2], in float32."""

    def __init__(self, H: int):
        super().__init__()
        self.mlps = torch.nn.ModuleList(
            torch.nn.Sequential(
                torch.nn.Linear(H, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 16), torch.nn.ReLU(),
                torch.nn.Linear(16, 2),
            )
            for _ in range(2)
        )  # fmt: skip

    def forward(self, hidden):
        hidden = hidden.float()
        return torch.stack([mlp(hidden) for mlp in self.mlps], dim=-2)


def pooling_cases(device: str, quick: bool) -> list[Case]:
    L, H = (2048, 4096) if device == "cuda" else (64, 128) if quick else (256, 512)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    head = Head(H).to(device)
    parameters = tuple(head.parameters())

    def case(B):
        input_ids_BL = torch.zeros(B, L, dtype=torch.int64)
        input_ids_BL[torch.arange(B), torch.randint(L // 2, L, (B,))] = REWARD_TOKEN
        input_ids_BL = input_ids_BL.to(device)

        def pool(backend, hidden_BLH):  # as the model does it: the counts are checked later
            return pool_reward_tokens(hidden_BLH, input_ids_BL, REWARD_TOKEN, return_counts=True, backend=backend)[0]

        def select(token_values):
            return token_values[input_ids_BL == REWARD_TOKEN]

        providers = [
            Provider("torch", lambda hidden_BLH: pool("torch", hidden_BLH), in_graph=True),
            Provider("torch + head", lambda hidden_BLH: head(pool("torch", hidden_BLH)), parameters),
            Provider("masked indexing", select),
            Provider(EVERY_TOKEN, lambda hidden_BLH: select(head(hidden_BLH)), parameters),
        ]
        if device == "cuda":
            providers[:0] = [
                Provider("triton", lambda hidden_BLH: pool("triton", hidden_BLH), in_graph=True),
                Provider("triton + head", lambda hidden_BLH: head(pool("triton", hidden_BLH)), parameters),
            ]

        def hidden():
            return (torch.randn(B, L, H, device=device, dtype=dtype),)

        moved_bytes = input_ids_BL.nbytes + 2 * B * H * dtype.itemsize + B * (8 + 4)  # the last: rows and counts
        return Case(POOLING, f"B={B} L={L} H={H}", B, moved_bytes, hidden, providers)

    sizes = (2, 8, 32, 128, 256) if device == "cuda" else (2, 8) if quick else (2, 8, 32)
    return [case(B) for B in sizes]


# --- measuring --------------------------------------------------------------------------------------------------------


def call_of(case: Case, provider: Provider, mode: str) -> Callable[[], object]:
    """What is timed, on leaves of its own: those of another call would tie a CUDA graph to that call's stream."""
    inputs = tuple(x.requires_grad_() for x in case.make_inputs())
    leaves = inputs + provider.parameters
    if mode == "forward":
        return lambda: provider.compute(*inputs)
    if mode == "full":
        return lambda: torch.autograd.grad(provider.compute(*inputs).mean(), leaves)
    mean = provider.compute(*inputs).mean()
    return lambda: torch.autograd.grad(mean, leaves, retain_graph=True)


def time_kernels(call: Callable[[], object]) -> Timing:
    """Of one call, by replaying a CUDA graph of many."""
    from triton.testing import do_bench_cudagraph

    torch.cuda.synchronize()
    return Timing(*(milliseconds / 1e3 for milliseconds in do_bench_cudagraph(call, quantiles=list(QUANTILES))))


def time_empty_kernel() -> Timing:
    import triton

    @triton.jit
    def empty_kernel():
        pass

    return time_kernels(lambda: empty_kernel[(1,)]())


def time_copied_byte(device: str, quick: bool) -> Timing:
    """Seconds for each byte that a large copy reads or writes."""
    size = 2**30 if device == "cuda" else 2**24 if quick else 2**28
    source, target = (torch.ones(size // 4, device=device) for _ in range(2))

    def copy():
        return target.copy_(source)

    timing = time_kernels(copy) if device == "cuda" else time_calls(copy, device, least=20)
    return Timing(*(seconds / (2 * size) for seconds in timing[:3]))


def measure(case: Case, provider: Provider, mode: str, device: str, seconds: float) -> Iterator[tuple[str, Timing]]:
    """What was timed, and its timing."""
    whole = time_calls(call_of(case, provider, mode), device, seconds=seconds)
    yield "with dispatch", whole
    # the backward pass alone runs on the stream of its forward pass, which no capture can follow
    if device == "cuda" and provider.in_graph and mode != "backward":
        kernel = time_kernels(call_of(case, provider, mode))
        yield "kernel", kernel
        yield "dispatch", Timing(whole.p20 - kernel.p80, whole.p50 - kernel.p50, whole.p80 - kernel.p20)


def run(cases: list[Case], device: str, quick: bool, save: Callable[[list[Result]], None]) -> list[Result]:
    """All measurements; `save` is called with those so far. What cannot run is printed with its reason."""
    results: list[Result] = []
    seconds = 0.02 if quick else 0.2
    empty_kernel = time_empty_kernel() if device == "cuda" else None
    per_byte = time_copied_byte(device, quick)
    steps = [(case, provider, mode) for case in cases for provider in case.providers for mode in MODES]
    with tqdm(total=len(steps), disable=None) as progress:
        for case in cases:
            copy = Timing(*(case.moved_bytes * quantile for quantile in per_byte[:3]))
            for name, timing in ((EMPTY_KERNEL, empty_kernel), (COPY, copy)):
                if timing is not None:
                    results.append(Result(case.kernel, name, "forward", "floor", case.shape, case.size, timing))
            for provider in case.providers:
                for mode in MODES:
                    progress.set_description(f"{case.kernel} {case.shape}, {provider.name}, {mode}")
                    reason = ""
                    try:
                        for timed, timing in measure(case, provider, mode, device, seconds):
                            results.append(
                                Result(case.kernel, provider.name, mode, timed, case.shape, case.size, timing)
                            )
                    except RuntimeError as error:  # out of memory, no compiler
                        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                    if reason:
                        tqdm.write(f"{case.kernel} {case.shape}, {provider.name}, {mode}: cannot run: {reason}")
                        torch.cuda.empty_cache()
                    progress.update()
            save(results)
    return results


# --- what is reported -------------------------------------------------------------------------------------------------


def csv_rows(results: list[Result], device: str) -> list[dict]:
    shared = {"device": device_description(device)} | versions()
    return [
        {"kernel": r.kernel, "provider": r.provider, "mode": r.mode, "timed": r.timed, "shape": r.shape}
        | {f"{name}_us": f"{getattr(r.timing, name) * 1e6:.5g}" for name in ("p20", "p50", "p80")}
        | {"peak_memory_bytes": r.timing.peak_bytes}
        | shared
        for r in results
    ]


def our_provider(provider: str, ours: str) -> str:
    """With whom a provider is compared."""
    return f"{ours} + head" if "head" in provider else ours


def ratio_table(results: list[Result], kernel: str, ours: str) -> Table:
    """Times with dispatch, and those of the others over ours."""
    whole = {
        (r.provider, r.mode, r.shape): r.timing for r in results if (r.kernel, r.timed) == (kernel, "with dispatch")
    }
    names = list(dict.fromkeys(provider for provider, _, _ in whole))
    mine = [name for name in names if name == our_provider(name, ours)]
    others = [name for name in names if name not in mine]
    table = Table(title=f"{kernel}: ours in ms; the others in multiples of it, with the spread from p20 to p80")
    for column in ("shape", "mode", *(f"{name}, ms" for name in mine), *others):
        table.add_column(column)
    for shape in dict.fromkeys(shape for _, _, shape in whole):
        for mode in MODES:
            cells = [f"{t.p50 * 1e3:.3g}" if (t := whole.get((name, mode, shape))) else "" for name in mine]
            for name in others:
                pair = whole.get((name, mode, shape)), whole.get((our_provider(name, ours), mode, shape))
                cells.append(str(Ratio.of(*pair)) if all(pair) else "cannot run")
            table.add_row(shape, mode, *cells)
    return table


def targets(results: list[Result]) -> Iterator[tuple[str, str, str]]:
    """What was aimed for, what was measured, and whether that is met, on a GPU."""
    found = {(r.kernel, r.provider, r.mode, r.timed, r.size): r.timing for r in results}

    def verdict(text, one, other, *, most=None, least=None):
        if one is None or other is None:
            return text, "", "not measured"
        ratio = Ratio.of(one, other)
        return text, str(ratio), "met" if (ratio.p50 <= most if most else ratio.p50 >= least) else "not met"

    for N in (64, 256, 1024, 4096, 16384, 65536):
        yield verdict(
            f"loss, {N} pairs: kernel at most 1.5 times an empty one",
            found.get((LOSS, "triton", "forward", "kernel", N)),
            found.get((LOSS, EMPTY_KERNEL, "forward", "floor", N)),
            most=1.5,
        )
    for N in (64, 256, 1024, 4096, 16384, 65536):
        for other, least in ((MONTE_CARLO, 20), ("torch", 3)):
            yield verdict(
                f"loss, {N} pairs: full with dispatch at least {least} times faster than {other}",
                found.get((LOSS, other, "full", "with dispatch", N)),
                found.get((LOSS, "triton", "full", "with dispatch", N)),
                least=least,
            )
    yield verdict(
        "loss, 4,194,304 pairs: at least 0.6 of the speed of a copy",
        found.get((LOSS, COPY, "forward", "floor", 2**22)),
        found.get((LOSS, "triton", "forward", "kernel", 2**22)),
        least=0.6,
    )
    for mode in ("forward", "full"):
        yield verdict(
            f"pooling + head, B=32, {mode} with dispatch: at least 20 times faster than {EVERY_TOKEN}",
            found.get((POOLING, EVERY_TOKEN, mode, "with dispatch", 32)),
            found.get((POOLING, "triton + head", mode, "with dispatch", 32)),
            least=20,
        )
    for B in (2, 8, 32, 128, 256):
        floors = [found.get((POOLING, name, "forward", "floor", B)) for name in (EMPTY_KERNEL, COPY)]
        yield verdict(
            f"pooling, B={B}: kernel at most 1.5 times its floor, the larger of both",
            found.get((POOLING, "triton", "forward", "kernel", B)),
            max(floors, key=lambda timing: timing.p50) if all(floors) else None,
            most=1.5,
        )


def draw(results: list[Result], kernel: str, path: Path, title: str) -> None:
    """One panel a mode: median over size, with the spread from p20 to p80."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5.5), layout="constrained")
    lines = dict.fromkeys((r.provider, r.timed) for r in results if r.kernel == kernel and r.timed != "dispatch")
    styles = {"with dispatch": "-", "kernel": "--", "floor": ":"}
    colour = {name: f"C{k}" for k, name in enumerate(dict.fromkeys(provider for provider, _ in lines))}
    axes = figure.subplots(1, len(MODES), sharey=True)
    for axis, mode in zip(axes, MODES, strict=True):
        for provider, timed in lines:
            part = [r for r in results if (r.kernel, r.provider, r.timed, r.mode) == (kernel, provider, timed, mode)]
            if not part:
                continue
            sizes = [r.size for r in part]
            p20, p50, p80 = ([r.timing[k] * 1e6 for r in part] for k in range(3))
            axis.plot(sizes, p50, styles[timed], color=colour[provider], marker=".", label=f"{provider}, {timed}")
            axis.fill_between(sizes, p20, p80, color=colour[provider], alpha=0.2)
        axis.set(yscale="log", title=mode, xlabel="pairs" if kernel == LOSS else "sequences")
        axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("microseconds")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle(f"{kernel}, {title}")
    figure.savefig(path, dpi=80)


def report(results: list[Result], device: str, quick: bool) -> None:
    console = Console(width=None if sys.stdout.isatty() else 150)
    ours = "triton" if device == "cuda" else "torch"
    for kernel in (LOSS, POOLING):
        console.print(ratio_table(results, kernel, ours))
    if ours == "torch":
        print("triton, an empty kernel's launch, times of kernels alone and the targets: they need a GPU.")
    else:
        table = Table("target", "measured", "", title="Targets")
        for row in targets(results):
            table.add_row(*row)
        console.print(table)
        print("kernel times: only of what a CUDA graph can hold; the others wait for the GPU or copy from the host.")
    if quick:
        print("torch.compile: left out by --quick, because it compiles for longer than all the rest takes.")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the CSV and the plots")
    parser.add_argument("--quick", action="store_true", help="few small shapes, in seconds, without torch.compile")
    parser.add_argument("--accuracy", action="store_true", help="print the accuracy tables and measure no time")
    options = parser.parse_args()
    if options.accuracy:
        print_accuracy()
        return

    if torch.cuda.is_available() and not has_triton():
        parser.error("the GPU is measured with Triton, which is not installed: pip install triton")
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    title = f"{device_description(device)}, torch {torch.__version__}"
    path = options.output / f"kernels-{slug(device_description(device))}.csv"
    cases = loss_cases(device, options.quick) + pooling_cases(device, options.quick)
    results = run(cases, device, options.quick, lambda found: write_csv(path, csv_rows(found, device)))
    for kernel in (LOSS, POOLING):
        draw(results, kernel, path.with_name(f"{path.stem}-{slug(kernel)}.png"), title)
    report(results, device, options.quick)
    print(f"written to {path} and the plots beside it")


if __name__ == "__main__":
    main()
