"""The benchmark of scoring runs, and the engine does no more work than documented."""

import csv
import subprocess
import sys

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import scoring as benchmark
from jrm_plugin.model.tiny import tiny_tokenizer

# FLOPs of the engine over those of research style, G = 12, 224 px, a rubric of 455 tokens, the medium shape
LARGEST_SHARE = {
    ("images_first", "per_dimension"): 0.57,
    ("images_first", "joint"): 0.36,
    ("rubric_first", "per_dimension"): 0.23,
    ("rubric_first", "joint"): 0.18,
}


def counted(score):
    with FlopCounterMode(display=False) as counter:
        scores = score()
    return scores, counter.get_total_flops()


def test_the_engine_computes_what_differs_and_no_more():
    tokenizer = tiny_tokenizer([f" {benchmark.RUBRIC} {benchmark.INSTRUCTION}"] * 2)
    layouts = {layout: benchmark.make_processor(tokenizer, *layout, 455, 224) for layout in LARGEST_SHARE}
    theirs = layouts["images_first", "per_dimension"]
    model = benchmark.make_model("medium", tokenizer, theirs.reward_token_id, "cpu", "eager")
    with torch.no_grad():  # untrained, all candidates would score nearly alike; now their scores are of the order of 1
        model.reward_head.heads[0][-1].weight.mul_(10)
        model.reward_head.heads[1][-1].weight.mul_(10)
    group = benchmark.make_group(12, 224)
    research_scores, research = counted(lambda: benchmark.research(model, theirs, group, batch=8))
    assert research_scores.std(0).min() > 1e-2
    for layout, processor in layouts.items():
        scores, flops = counted(lambda processor=processor: benchmark.engine(model, processor, group))
        assert flops <= LARGEST_SHARE[layout] * research
        if processor is theirs:
            assert np.abs(scores - research_scores).max() < 1e-5
    peers = benchmark.PEERS_LAYOUT  # as a converted EditReward has it, with text behind the instruction
    converted = benchmark.make_processor(tokenizer, *peers, 455, 224, behind=benchmark.BEHIND)
    lengths = [len(processor.encode(group[0])[0].prompt) for processor in (converted, theirs)]
    assert lengths[1] - lengths[0] in (0, 1)  # behind a blank, the instruction's first word may be one token less
    assert counted(lambda: benchmark.engine(model, converted, group))[1] <= LARGEST_SHARE[peers] * research


def test_the_benchmark_writes_its_rows(tmp_path):
    flags = ["--backbone", "tiny", "--group", "1", "3", "--size", "64", "--rubric", "60", "--repeats", "1"]
    command = [sys.executable, "-m", "benchmarks.scoring", *flags, "--layout", "rubric_first/joint"]
    subprocess.run([*command, "--output", str(tmp_path)], check=True, capture_output=True, timeout=300)
    (path,) = tmp_path.glob("*.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["group"], row["provider"]) for row in rows] == [
        (group, provider) for group in ("1", "3") for provider in ("research", "plain", "engine")
    ]
    engine = [row for row in rows if row["provider"] == "engine"]
    assert all(float(row["max_score_difference"]) < 1e-5 for row in engine)
    assert float(engine[1]["gflop"]) / 3 < float(engine[0]["gflop"])  # a candidate of three costs less than one alone
    assert path.with_suffix(".png").stat().st_size > 1000
