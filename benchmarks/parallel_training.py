"""One training in one process, under DDP, DeepSpeed ZeRO-2 and ZeRO-3, and FSDP2 in two, on a CPU: are they the same?

    python -m benchmarks.parallel_training [--folder FOLDER]

`jrm train` runs 20 updates of 8 pairs under `accelerate launch` with the configs of `examples/train/accelerate`, two
batches accumulated for each update; some pairs lack critiques and some a label, so that processes hold unequal counts.
Then the checkpoint of step 10 of each is gone on from, and some under another way. Writes the losses of every step, and
what became of every resumption, into `benchmarks/results`. With a folder, a stopped command goes on with the rest.

accelerate leaves FSDP out on a CPU; the processes started here tell it that theirs is a GPU.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import yaml

from benchmarks.measuring import write_csv
from jrm_plugin.data.editreward import read_edit_reward
from jrm_plugin.data.preference_table import write_preferences
from jrm_plugin.model.tiny import write_tiny_backbone
from jrm_plugin.scoring.scorer import RewardScorer
from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS

RESULTS = Path(__file__).with_name("results")
ACCELERATE = Path(__file__).parents[1] / "examples" / "train" / "accelerate"
ONE, MODES = "1 process", {"DDP": "ddp", "ZeRO-2": "zero2", "ZeRO-3": "zero3", "FSDP2": "fsdp2"}
LOSSES = ("rank_loss", "critique_loss", "grad_norm")
STEPS, HALF = 20, 10
RESUMED = [(ONE, "DDP"), ("DDP", ONE), ("ZeRO-2", "ZeRO-2"), ("ZeRO-3", "ZeRO-3"), ("FSDP2", "FSDP2"), (ONE, ONE)]
RESUMED += [("DDP", "ZeRO-2"), ("ZeRO-2", "ZeRO-3"), ("ZeRO-3", "FSDP2"), ("FSDP2", "DDP"), ("DDP", "DDP")]
TEXTS = ["make the red circle blue remove add square move triangle left right of noise edit was done as asked"] * 3
SETTINGS = {
    "order": "images_first",
    "rubrics": "short",
    "reward_head_widths": [32],
    "reward_head_dropout": 0.0,  # its random numbers are each process's own
    "max_pixels": 2304,
    "max_length": 1024,
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": False,
    "max_steps": STEPS,
    "save_steps": HALF,
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
}


def prepare(folder: Path) -> None:
    """A backbone, and pairs of which every third has no critiques and every fourth no label of its quality."""
    data = SHAPE_EDITS.write(folder / "shapes", train=48, heldout=8, language=2, progress=False)
    pairs = []
    for number, pair in enumerate(read_edit_reward(data / "train.json", progress=False).examples):
        labels = {name: label for name, label in pair.labels.items() if number % 4 or name != "visual_quality"}
        critiques = {} if number % 3 else {"chosen_critiques": {}, "rejected_critiques": {}}
        pairs.append(replace(pair, labels=labels, chosen_scores=None, rejected_scores=None, **critiques))
    write_preferences(data / "train.jsonl", pairs)
    write_tiny_backbone(folder / "backbone", TEXTS, image_size=48)


def train(folder: Path, mode: str, output: Path) -> str:
    """Runs `jrm train`, under accelerate where there are two processes; gives what it refused with, or nothing."""
    given = {"model": str(folder / "backbone"), "train_data": str(folder / "shapes" / "train.jsonl")}
    given |= {"output_dir": str(output), "per_device_train_batch_size": 4 if mode == ONE else 2}
    config = output.with_suffix(".yaml")
    config.write_text(yaml.safe_dump({**SETTINGS, **given}))
    command = [sys.executable, "-m"]
    if mode != ONE:
        launch = f"accelerate.commands.launch --config_file {ACCELERATE / MODES[mode]}.yaml --num_processes 2"
        command += [*launch.split(), "--mixed_precision", "no", "--main_process_port", "0", "-m"]
    command += ["benchmarks.parallel_training", "train", "--config", str(config)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    if ended.returncode == 0:
        return ""
    how_read = f"jrm: {given['train_data']}: "
    said = [line for line in ended.stderr.splitlines() if line.startswith("jrm: ") and not line.startswith(how_read)]
    if len(said) != 1:
        raise SystemExit(ended.stderr)
    return said[0].removeprefix("jrm: ")


def losses(run: Path) -> dict[int, dict[str, float]]:
    log = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return {row["step"]: {name: float(row[name]) for name in LOSSES} for row in log if "rank_loss" in row}


def scores(run: Path, folder: Path) -> list[float]:
    pairs = read_edit_reward(folder / "shapes" / "heldout.json", progress=False).examples
    scorer = RewardScorer.from_pretrained(run, device="cpu")
    return [score.mu["overall"] for score in scorer.score([s for pair in pairs for s in (pair.chosen, pair.rejected)])]


def furthest(run: dict[int, dict[str, float]], expected: dict[int, dict[str, float]], steps: range) -> dict[str, float]:
    return {name: max(abs(run[step][name] - expected[step][name]) for step in steps) for name in LOSSES}


def measure(folder: Path) -> None:
    if not (folder / "backbone").exists():
        prepare(folder)
    runs = {mode: folder / mode.replace(" ", "-") for mode in (ONE, *MODES)}
    for mode, run in runs.items():
        if not (run / "trainer_state.json").exists() and (refused := train(folder, mode, run)):
            raise SystemExit(refused)
    expected, expected_scores = losses(runs[ONE]), scores(runs[ONE], folder)
    rows, resumed = [], []
    for mode, run in runs.items():
        rows += [{"mode": mode, "step": step, **values} for step, values in losses(run).items()]
        off = max(abs(a - b) for a, b in zip(scores(run, folder), expected_scores, strict=True))
        print(f"{mode}: off by {furthest(losses(run), expected, range(1, STEPS + 1))}, scores by {off:.1e}", flush=True)
    write_csv(RESULTS / "parallel-training.csv", rows)
    for begun, mode in RESUMED:
        again = folder / f"{runs[begun].name}-then-{runs[mode].name}"
        result = again.with_suffix(".json")
        if not result.exists():
            shutil.rmtree(again, ignore_errors=True)
            shutil.copytree(runs[begun] / f"checkpoint-{HALF}", again / f"checkpoint-{HALF}")
            shutil.copy(runs[begun] / "jrm_train.json", again)
            refused = train(folder, mode, again).replace(str(again), "the folder")
            off = {} if refused else furthest(losses(again), expected, range(HALF + 1, STEPS + 1))
            result.write_text(json.dumps({name: off.get(name, "") for name in LOSSES} | {"refused": refused}))
        resumed.append({"begun": begun, "resumed": mode} | json.loads(result.read_text()))
        print(resumed[-1], flush=True)
    write_csv(RESULTS / "parallel-training-resumed.csv", resumed)


def train_here(arguments: list[str]) -> None:
    """`jrm` in a process whose CPU accelerate takes for a GPU where FSDP is asked for."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    from jrm_plugin.cli import main as jrm

    begin = PartialState.__init__

    def as_on_a_gpu(state, *args, **kwargs):
        begin(state, *args, **kwargs)
        if state.distributed_type == DistributedType.MULTI_CPU and "ACCELERATE_USE_FSDP" in os.environ:
            state.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = as_on_a_gpu
    jrm(arguments)


def main() -> None:
    if sys.argv[1:2] == ["train"]:
        train_here(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keeps the runs, and what was done goes on from there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        measure(folder)


if __name__ == "__main__":
    main()
