"""RewardScorer and vLLM on the same groups, side by side in one run: candidates a second, and how far scores differ.

    make install-vllm
    .venv-vllm/bin/python -m benchmarks.engines        # about 6 minutes on a quiet core

Weights are random, shapes are real (`benchmarks/shapes`), so nothing is downloaded. A group is a source, G candidates
and two dimensions, a rubric of 455 tokens a sequence. Each round has new pictures, and the engines take turns at being
first. States:

    new    a group that was never seen, by an engine that has scored others, as in a training run: its pictures and its
           prompt are not in any cache, the rubric is in vLLM's where it comes first
    again  the same group once more: vLLM has all of it, RewardScorer the features of its pictures

On CPU both have one thread and are in this process, whose seconds, over all threads, are what is measured, so that
other processes disturb it little; on a GPU it is seconds. A ratio is vLLM's candidates a second over RewardScorer's, in
one round. Rows are written size by size, and the same command goes on after a stop.
"""

import argparse
import csv
import gc
import os
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine in this process, whose seconds are counted
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import device_description, slug, versions, write_csv
from benchmarks.scoring import HERE, INSTRUCTION, RUBRIC, make_model, make_processor, quantiles
from jrm_plugin.extras import installed_version
from jrm_plugin.model.processing import ORDERS, SEQUENCES
from jrm_plugin.model.tiny import tiny_tokenizer
from jrm_plugin.records.samples import Sample
from jrm_plugin.scoring.loading import load_scorer
from jrm_plugin.scoring.protocol import Scorer

NAMES = ("RewardScorer", "vLLM")
MEMORY = 2**29  # bytes of vLLM's keys and values: some hundred prompts of the medium shape
STATES = ("new", "again")


class Setting(NamedTuple):
    order: str
    sequences: str
    group: int


def write_checkpoint(folder: Path, options: argparse.Namespace, order: str, sequences: str) -> None:
    """An untrained model, whose candidates' scores differ by about one."""
    tokenizer = tiny_tokenizer([f" {RUBRIC} {INSTRUCTION}"] * 2)
    processor = make_processor(tokenizer, order, sequences, options.rubric, options.size)
    model = make_model(options.backbone, tokenizer, processor.reward_token_id, options.device, "sdpa")
    with torch.no_grad():
        for head in model.reward_head.heads:
            head[-1].weight.mul_(10)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def group_of(rng: np.random.Generator, count: int, size: int) -> list[Sample]:
    source, *edited = (Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(count + 1))
    return [Sample.edit(source, INSTRUCTION, image) for image in edited]


def measure(
    scorers: dict[str, Scorer], options: argparse.Namespace, setting: Setting
) -> dict[tuple[str, str], list[float]]:
    """Seconds by state and engine, one of each round; and under `difference`, how far scores differ."""
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    rng = np.random.default_rng(setting.group)
    for scorer in scorers.values():  # what is done once, such as the rubric, is done
        scorer.score(group_of(rng, 2, options.size))
    seconds: dict[tuple[str, str], list[float]] = {(state, name): [] for state in STATES for name in NAMES}
    differences = []
    for number in range(options.rounds):
        group = group_of(rng, setting.group, options.size)
        for state in STATES:
            scores = {}
            for name in NAMES if number % 2 else NAMES[::-1]:
                start = clock()
                scores[name] = scorers[name].score(group)
                seconds[state, name].append(clock() - start)
            ours, theirs = scores.values()
            differences += [abs(a.mu[name] - b.mu[name]) for a, b in zip(ours, theirs, strict=True) for name in a.mu]
    return seconds | {("difference", ""): [max(differences)]}


def rows_of(options: argparse.Namespace, setting: Setting, measured: dict) -> list[dict[str, Any]]:
    rows = []
    for state in STATES:
        ours, theirs = (measured[state, name] for name in NAMES)
        row = {"backbone": options.backbone} | setting._asdict() | {"size": options.size, "rubric": options.rubric}
        row |= {"state": state, "rounds": options.rounds}
        row |= quantiles("ratio", [a / b for a, b in zip(ours, theirs, strict=True)])
        row["reward_scorer_per_second"] = round(setting.group / float(np.median(ours)), 3)
        row["vllm_per_second"] = round(setting.group / float(np.median(theirs)), 3)
        row["max_mu_difference"] = float(f"{measured['difference', ''][0]:.2e}")
        rows.append(
            row | {"device": device_description(options.device), "vllm": installed_version("vllm")} | versions()
        )
    return rows


def print_rows(rows: list[dict[str, Any]]) -> None:
    table = Table("layout", "G", "state", "RewardScorer/s", "vLLM/s", "ratio (p20 to p80)", "max diff. of mu")
    for row in rows:
        ratio = " ".join(f"{float(row[f'ratio_{p}']):.2f}" for p in ("p50", "p20", "p80"))
        table.add_row(
            f"{row['order']}/{row['sequences']}", str(row["group"]), row["state"], str(row["reward_scorer_per_second"]),
            str(row["vllm_per_second"]), ratio, str(row["max_mu_difference"]),
        )  # fmt: skip
    Console(width=130).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="medium")
    parser.add_argument("--group", type=int, nargs="+", default=[1, 4, 12, 48], help="candidates in a group")
    layouts = [f"{order}/{sequences}" for order in ORDERS for sequences in SEQUENCES]
    parser.add_argument("--layout", nargs="+", choices=layouts, default=layouts)
    parser.add_argument("--size", type=int, default=224, help="edge of the images in pixels")
    parser.add_argument("--rubric", type=int, default=455, help="tokens of a sequence's rubric")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder for the CSV")
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    path = options.output / f"engines-{options.backbone}-{slug(device_description(options.device))}.csv"
    rows: list[dict[str, Any]] = list(csv.DictReader(path.open())) if path.exists() else []
    done = {Setting(row["order"], row["sequences"], int(row["group"])) for row in rows}
    for layout in options.layout:
        settings = [setting for group in options.group if (setting := Setting(*layout.split("/"), group)) not in done]
        if not settings:
            continue
        scorers: dict[str, Any] = {}
        gc.collect()  # what the engine before leaves must not be taken from the next one in this process
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(Path(folder), options, *layout.split("/"))
            scorers = {
                "RewardScorer": load_scorer(folder, device=options.device),
                "vLLM": load_scorer(folder, engine="vllm", device=options.device, memory_budget=MEMORY),
            }
        for setting in settings:
            rows += rows_of(options, setting, measure(scorers, options, setting))
            write_csv(path, rows)
    print_rows(rows)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
