"""What scoring a group costs: research style, plain batching and the shared-prefix engine, side by side in one run.

    python -m benchmarks.scoring        # the medium shape, all layouts, G = 12
    python -m benchmarks.scoring --size 224 448 1024 --rubric 60 455 900 --provider engine --repeats 0
                                        # which layout to choose when
    python -m benchmarks.scoring --group 1 2 4 8 12 24 48 --provider engine --repeats 0
                                        # how cost grows with the group
    python -m benchmarks.scoring --provider converted --layout images_first/per_dimension --repeats 0
                                        # what a converted EditReward costs
    python -m benchmarks.scoring --backbone qwen3-vl-8b --size 448
                                        # on a GPU, in bfloat16

Weights are random, shapes are real (`benchmarks/shapes`), so nothing is downloaded. Scored is one group: a source, G
candidates, two dimensions. Providers:

    research   two sequences for each candidate, both images encoded for each, the reward head on every token; it has
               one layout, images first and a rubric for each dimension, and is what the ratios of all layouts refer to
    plain      the model's own forward pass, in the row's layout; score differences are differences from it
    engine     RewardScorer, in the row's layout, with nothing remembered from the run before
    converted  the same with templates that go on behind the instruction, as those of a converted EditReward; in its
               layout, images_first and per_dimension, alone

Research style takes `--batch` sequences at a time, plain batching as many samples. On CPU one is fastest: what
several need is large enough for glibc to take it from the system anew for every operation.

FLOPs are torch's count with eager attention (it counts none for SDPA); times are of eager attention on a CPU and of
SDPA on a GPU, or of `--attention`. A rubric of R tokens is what one sequence holds. On CPU the time is the process's,
over all threads, so that other processes disturb it little. The floor is the engine's FLOPs at the rate that a large
matrix product reaches here.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import CONFIG_MAPPING, PreTrainedTokenizerBase, Qwen2VLImageProcessorPil

from benchmarks.measuring import device_description, slug, versions, write_csv
from jrm_plugin.model.backbone import token_types
from jrm_plugin.model.configuration import JRMConfig
from jrm_plugin.model.modeling import JRMForRewardModeling
from jrm_plugin.model.processing import ORDERS, SEQUENCES, SLOT, JRMProcessor
from jrm_plugin.model.tiny import VISION, tiny_tokenizer
from jrm_plugin.records.samples import DIMENSIONS, Sample
from jrm_plugin.scoring.plain import PlainEngine
from jrm_plugin.scoring.scorer import RewardScorer

HERE = Path(__file__).parent
PATCH, MERGE = 16, 2
BEHIND = 16  # tokens of EditReward's prompts behind the instruction, about
PEERS_LAYOUT = ("images_first", "per_dimension")
RUBRIC = "judge whether the edited image shows what was asked for and nothing else and looks right"
WORDS = RUBRIC.split()
INSTRUCTION = "make the red circle on the left blue and keep everything else as it is"


class Setting(NamedTuple):
    order: str
    sequences: str
    group: int
    size: int
    rubric: int


class Measured(NamedTuple):
    scores: np.ndarray  # [G, 2 D]: mu and log sigma
    gflop: float
    seconds: list[float]
    peak_bytes: int | None


def make_processor(
    tokenizer, order: str, sequences: str, rubric: int, size: int, *, behind: int | None = None
) -> JRMProcessor:
    """A processor whose sequences hold a rubric of so many tokens, and images of size x size pixels.

    With `behind`, so many of them stand behind the instruction, which is in a slot.
    """
    per_text = rubric if sequences == "per_dimension" else rubric // len(DIMENSIONS)
    texts = {d: text_of(tokenizer, per_text - 1, first=k) for k, d in enumerate(DIMENSIONS)}  # a line end follows
    if behind is not None:
        fronts = {d: text_of(tokenizer, per_text - behind, first=k) for k, d in enumerate(DIMENSIONS)}
        texts = {d: f"{front} {SLOT}{text_of(tokenizer, behind, first=0)}" for d, front in fronts.items()}
    images = Qwen2VLImageProcessorPil(
        patch_size=PATCH, merge_size=MERGE, size={"shortest_edge": size**2, "longest_edge": size**2}
    )
    return JRMProcessor(
        tokenizer, images, image_token=VISION[1], order=order, sequences=sequences, rubrics={"edit": texts}
    )


def text_of(tokenizer, tokens: int, first: int) -> str:
    text = "".join(f" {WORDS[(first + k) % len(WORDS)]}" for k in range(tokens))
    assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == tokens
    return text


def make_model(
    shape: str, tokenizer, reward_token_id: int, device: str, attention: str, *, vocabulary: int = 2048
) -> JRMForRewardModeling:
    fields = json.loads((HERE / "shapes" / f"{shape}.json").read_text())
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in zip(_TOKEN_NAMES, VISION, strict=True)}
    text = fields["text_config"] | {"vocab_size": vocabulary, "pad_token_id": tokenizer.pad_token_id}
    text["rope_parameters"] |= {"rope_type": "default", "mrope_interleaved": True, "rope_theta": 5e6}
    vision = fields["vision_config"] | {"out_hidden_size": text["hidden_size"], "patch_size": PATCH}
    vision |= {"spatial_merge_size": MERGE, "num_position_embeddings": 2304}
    backbone = CONFIG_MAPPING["qwen3_vl"](text_config=text, vision_config=vision, **ids)
    config = JRMConfig(backbone_config=backbone, reward_token_id=reward_token_id)
    config._attn_implementation = attention
    torch.manual_seed(0)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with torch.device(device):
        model = JRMForRewardModeling(config).to(dtype)
    model.reward_head.float()
    return model.eval()


_TOKEN_NAMES = ("vision_start_token_id", "image_token_id", "video_token_id", "vision_end_token_id")


def make_group(count: int, size: int) -> list[Sample]:
    random = np.random.default_rng(0)
    source, *edited = (
        Image.fromarray(random.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(count + 1)
    )
    return [Sample.edit(source, INSTRUCTION, image) for image in edited]


# -- the providers: from a group of samples to [G, 2 D]


@torch.inference_mode()
def research(model: JRMForRewardModeling, processor: JRMProcessor, group: list[Sample], batch: int) -> np.ndarray:
    """Every sequence computed whole, and the head of its dimension on every token of it."""
    sequences = [sequence for sample in group for sequence in processor.encode(sample)]
    rows = []
    for start in range(0, len(sequences), batch):
        inputs = processor.collate(sequences[start : start + batch])
        inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
        ids = inputs["input_ids"]
        dimension_ids = inputs.pop("dimension_ids")
        hidden_BLH = model.backbone.model(
            **inputs, **token_types(model.config.backbone_config, ids), use_cache=False
        ).last_hidden_state
        for row, dimension, hidden_LH in zip(ids, dimension_ids.tolist(), hidden_BLH, strict=True):
            score_L2 = model.reward_head.heads[dimension](hidden_LH.float())
            rows.append(score_L2[row == model.config.reward_token_id][0])
    return _table(torch.stack(rows).view(len(group), len(DIMENSIONS), 2))


@torch.inference_mode()
def plain(model: JRMForRewardModeling, processor: JRMProcessor, group: list[Sample], batch: int) -> np.ndarray:
    sequences = [sequence for sample in group for sequence in processor.encode(sample)]
    hidden_BH = PlainEngine(model, processor, batch=batch).hidden_states(sequences)
    dimension_ids = None
    if processor.sequences == "per_dimension":
        dimension_ids = torch.tensor([sequence.dimension for sequence in sequences], device=model.device)
    return _table(torch.stack(model.scores(hidden_BH, dimension_ids), -1))


def engine(model: JRMForRewardModeling, processor: JRMProcessor, group: list[Sample]) -> np.ndarray:
    scores = RewardScorer(model, processor, cache_bytes=0).score(group)
    return np.array([[x for d in DIMENSIONS for x in (s.mu[d], np.log(s.sigma[d]))] for s in scores])


def _table(score_GD2: torch.Tensor) -> np.ndarray:
    return score_GD2.flatten(1).double().cpu().numpy()


def measure(model: JRMForRewardModeling, score: Callable[[], np.ndarray], device: str, repeats: int) -> Measured:
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        scores = score()
    if attention != "eager":
        model.set_attn_implementation(attention)
        scores = score()
    on_gpu = device != "cpu"
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    seconds = []
    for _ in range(repeats):
        start = clock()
        score()  # ends in a copy to the host, so that the device is done
        seconds.append(clock() - start)
    peak_bytes = torch.cuda.max_memory_allocated() - held if on_gpu else None
    return Measured(scores, counter.get_total_flops() / 1e9, seconds, peak_bytes)


def matmul_rate(device: str) -> float:
    """FLOP a second of a large matrix product in the model's dtype; process seconds on CPU, as everywhere here."""
    side, dtype = (1024, torch.float32) if device == "cpu" else (8192, torch.bfloat16)
    a = torch.randn(side, side, dtype=dtype, device=device)
    clock = time.process_time if device == "cpu" else time.perf_counter
    best = float("inf")
    for _ in range(8):
        start = clock()
        (a @ a)[0, 0].item()
        best = min(best, clock() - start)
    return 2 * side**3 / best


class Bench(NamedTuple):
    """What is the same for all settings; `rate` is that of a large matrix product, in FLOP/s."""

    model: JRMForRewardModeling
    tokenizer: PreTrainedTokenizerBase
    device: str
    providers: list[str]
    batch: int
    repeats: int
    rate: float


def measure_setting(bench: Bench, setting: Setting, known: dict) -> list[dict]:
    """A row for each provider; `known` remembers research style's, which is the same for all layouts."""
    model, tokenizer, device, providers, batch, repeats, rate = bench
    group = make_group(setting.group, setting.size)
    own = make_processor(tokenizer, setting.order, setting.sequences, setting.rubric, setting.size)
    task = setting[2:]
    if task not in known:
        theirs = make_processor(tokenizer, *PEERS_LAYOUT, setting.rubric, setting.size)
        # its candidates share nothing: where only FLOPs are asked for, those of one tell those of all
        count = setting.group if repeats or "plain" in providers else 1
        found = measure(model, lambda: research(model, theirs, group[:count], batch), device, repeats)
        known[task] = found._replace(gflop=found.gflop * setting.group / count)
    base = known[task]
    measured = {"research": base}
    if "plain" in providers:
        measured["plain"] = measure(model, lambda: plain(model, own, group, batch), device, repeats)
    if "engine" in providers:
        measured["engine"] = measure(model, lambda: engine(model, own, group), device, repeats)
    if "converted" in providers and (setting.order, setting.sequences) == PEERS_LAYOUT:
        converted = make_processor(tokenizer, *PEERS_LAYOUT, setting.rubric, setting.size, behind=BEHIND)
        measured["converted"] = measure(model, lambda: engine(model, converted, group), device, repeats)
    rows = []
    for name, found in measured.items():
        row = setting._asdict() | {"batch": batch, "provider": name, "gflop": round(found.gflop, 3)}
        row["flop_ratio"] = round(found.gflop / base.gflop, 4)
        row |= quantiles("time_ratio", [a / b for a, b in zip(found.seconds, base.seconds, strict=True)])
        row |= quantiles("seconds", found.seconds)
        row["candidates_per_second"] = round(setting.group / np.median(found.seconds), 3) if repeats else None
        row["floor_seconds"] = round(found.gflop * 1e9 / rate, 5)
        row["peak_bytes"] = found.peak_bytes
        # research scores another layout, with other sequences, unless the row's is images_first and per_dimension
        comparable = name != "research" or (setting.order, setting.sequences) == PEERS_LAYOUT
        comparable = comparable and name != "converted"  # its text is another
        exact = measured.get("plain") if comparable else None
        row["max_score_difference"] = float(np.abs(found.scores - exact.scores).max()) if exact else None
        rows.append(row)
    return rows


def quantiles(name: str, values: list[float]) -> dict[str, float | None]:
    found = np.quantile(values, (0.2, 0.5, 0.8)).round(5).tolist() if values else [None] * 3
    return dict(zip((f"{name}_p20", f"{name}_p50", f"{name}_p80"), found, strict=True))


def print_rows(rows: list[dict]) -> None:
    table = Table(
        "layout", "G", "px", "rubric", "provider", "GFLOP", "FLOP ratio", "time ratio", "cand./s", "max diff."
    )
    for row in rows:
        difference = row["max_score_difference"]
        table.add_row(
            f"{row['order']}/{row['sequences']}", str(row["group"]), str(row["size"]), str(row["rubric"]),
            row["provider"], f"{row['gflop']:.1f}", f"{row['flop_ratio']:.3f}",
            spread(row), str(row["candidates_per_second"] or ""), "" if difference is None else f"{difference:.1e}",
        )  # fmt: skip
    Console(width=150).print(table)


def spread(row: dict) -> str:
    if row["time_ratio_p50"] is None:
        return ""
    return f"{row['time_ratio_p50']:.3f} ({row['time_ratio_p20']:.3f} to {row['time_ratio_p80']:.3f})"


def plot_groups(rows: list[dict], path: Path) -> None:
    """Cost of a candidate against the size of its group, engine and research style."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    layouts = sorted({(row["order"], row["sequences"]) for row in rows})
    for layout in layouts:
        points = [r for r in rows if (r["order"], r["sequences"]) == layout and r["provider"] == "engine"]
        costs = [row["gflop"] / row["group"] for row in points]
        axes.plot([row["group"] for row in points], costs, marker="o", label="/".join(layout))
    points = [r for r in rows if (r["order"], r["sequences"]) == layouts[0] and r["provider"] == "research"]
    costs = [row["gflop"] / row["group"] for row in points]
    axes.plot([row["group"] for row in points], costs, color="grey", linestyle="--", label="research style")
    groups = sorted({row["group"] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(groups, map(str, groups))
    axes.set(xlabel="candidates in the group", ylabel="GFLOP a candidate", ylim=(0, 1.6 * max(costs)))
    axes.legend(frameon=False, loc="upper right")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes = sorted(path.stem for path in (HERE / "shapes").glob("*.json"))
    parser.add_argument("--backbone", choices=shapes, default="medium")
    parser.add_argument("--group", type=int, nargs="+", default=[12], help="candidates in a group")
    parser.add_argument("--size", type=int, nargs="+", default=[224], help="edge of the images in pixels")
    parser.add_argument("--rubric", type=int, nargs="+", default=[455], help="tokens of a sequence's rubric")
    layouts = [f"{order}/{sequences}" for order in ORDERS for sequences in SEQUENCES[::-1]]
    parser.add_argument("--layout", nargs="+", choices=layouts, default=layouts)
    parser.add_argument("--provider", nargs="+", choices=["plain", "engine", "converted"], default=["plain", "engine"])
    parser.add_argument("--batch", type=int, help="rows at once of research and plain; by default 1 on CPU, 8 on a GPU")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each provider; 0: count only")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--attention", help="attention implementation (default: eager on a CPU, sdpa on a GPU)")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder for the CSV and the plot")
    options = parser.parse_args()

    tokenizer = tiny_tokenizer([f" {RUBRIC} {INSTRUCTION}"] * 2)
    reward_token_id = make_processor(tokenizer, *ORDERS[:1], "joint", 60, 224).reward_token_id
    attention = options.attention or ("eager" if options.device == "cpu" else "sdpa")
    model = make_model(options.backbone, tokenizer, reward_token_id, options.device, attention)
    batch = options.batch or (1 if options.device == "cpu" else 8)
    rate = matmul_rate(options.device)
    bench = Bench(model, tokenizer, options.device, options.provider, batch, options.repeats, rate)
    settings = [
        Setting(*layout.split("/"), group, size, rubric)
        for size in options.size
        for rubric in options.rubric
        for group in options.group
        for layout in options.layout
    ]
    rows, known = [], {}
    for setting in tqdm(settings, unit="setting"):
        rows += measure_setting(bench, setting, known)
    device = device_description(options.device)
    same = {"attention": attention, "device": device} | versions()
    rows = [{"backbone": options.backbone} | row | same for row in rows]
    print_rows(rows)
    name = f"scoring-{options.backbone}-{slug(device)}"
    if options.batch:
        name += f"-batch-{batch}"
    if "converted" in options.provider:
        name += "-converted"
    if len(options.size) * len(options.rubric) > 1:
        name += "-sizes"
    if len(options.group) > 1:
        name += "-groups"
        options.output.mkdir(parents=True, exist_ok=True)
        plot_groups(rows, options.output / f"{name}.png")
    write_csv(options.output / f"{name}.csv", rows)
    print(f"wrote {options.output / name}.csv")


if __name__ == "__main__":
    main()
