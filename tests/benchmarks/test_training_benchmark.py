"""The benchmark of training steps runs, and a tree does no more work than documented."""

import csv
import subprocess
import sys

from benchmarks.scoring import make_model, make_processor
from benchmarks.training import Setting, Step, step_tokenizer

# FLOPs of the packed form over those of the padded one: a pair without critiques, 224 px, a rubric of 60 tokens
LARGEST_SHARE = {("images_first", "joint"): 0.84, ("rubric_first", "joint"): 0.75}


def test_a_tree_computes_what_differs_and_no_more():
    tokenizer = step_tokenizer()
    processors = {layout: make_processor(tokenizer, *layout, 60, 224) for layout in LARGEST_SHARE}
    model = make_model("medium", tokenizer, processors["rubric_first", "joint"].reward_token_id, "cpu", "sdpa")
    for layout, processor in processors.items():
        step = Step(model, processor, Setting(*layout, 2, 224, 60, 0))
        assert step.gflop("tree") <= LARGEST_SHARE[layout] * step.gflop("selected")


def test_the_benchmark_writes_its_rows(tmp_path):
    flags = ["--backbone", "tiny", "--vocabulary", "16384", "--size", "64", "--rubric", "60", "--critique", "30"]
    flags += ["--layout", "rubric_first/joint", "--repeats", "1"]
    command = [sys.executable, "-m", "benchmarks.training", *flags, "--output", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (path,) = tmp_path.glob("*.csv")
    with path.open() as file:
        rows = {row["provider"]: row for row in csv.DictReader(file)}
    assert [*rows] == ["full", "selected", "fused", "tree", "tree, flex"]
    gflop = {name: float(row["gflop"]) for name, row in rows.items()}
    assert gflop["tree"] < gflop["selected"] < gflop["fused"] < gflop["full"]
    measured = [row for name, row in rows.items() if name != "tree, flex"]
    assert all(float(row["largest_gradient_difference"]) < 1e-4 for row in measured)
    assert int(rows["full"]["peak_bytes"]) > int(rows["selected"]["peak_bytes"]) > 2**20
