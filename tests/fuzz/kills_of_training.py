"""Kills `jrm train` at random moments, edits its data in between, and compares the weights at the end.

    python tests/fuzz/kills_of_training.py [--kills 20] [--seed 0] [--streaming]

A run of a tiny model is killed (SIGKILL) and started again until it ends. Before some of the starts, a record, a
critique or an image of the training data is another one: that start must be refused by name. In the end the weights
must be those of a run that nothing disturbed. With `--streaming` the data are two streams by weight, pairs and ranked
groups, whose records are not edited. Not collected by pytest: it takes minutes.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

import torch
import yaml
from processes import start, wait
from safetensors.torch import load_file

from jrm_plugin import RankedGroup, read_preferences
from jrm_plugin.data.preference_table import write_preferences
from jrm_plugin.model.tiny import write_tiny_backbone
from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS

TEXTS = ["make the red circle blue remove add square move triangle left right of noise edit was done as asked"] * 3
SETTINGS = {
    "rubrics": "short",
    "reward_head_widths": [16],
    "reward_head_dropout": 0.3,
    "max_pixels": 2304,
    "max_length": 1024,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": False,
    "max_steps": 24,
    "save_steps": 3,
    "logging_steps": 4,
    "learning_rate": 0.001,
    "muon_learning_rate": 0.01,
    "dataloader_num_workers": 1,
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
}


def train(config: Path) -> list[str]:
    return ["train", "--config", str(config)]


def killed(pid: int, run: Path, rng: random.Random) -> bool:
    """Kills a run some time after up to two further checkpoints; whether it had not ended by itself."""
    goal = len(list(run.glob("checkpoint-*"))) + rng.randrange(3)
    moment = None
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if moment is None and len(list(run.glob("checkpoint-*"))) >= goal:
            moment = time.monotonic() + rng.uniform(0, 3)
        if moment is not None and time.monotonic() >= moment:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return True
        time.sleep(0.005)
    return False


def edit(data: Path, rng: random.Random) -> tuple[Path, bytes, str]:
    """Changes one thing; gives the file, what it held, and what the refusal must name."""
    kind = rng.choice(["record", "critique", "image"])
    number = rng.randrange(16)
    if kind == "record":
        file, what = data / "train.json", "records"
        before = file.read_bytes()
        records = json.loads(before)
        records[number]["path1"], records[number]["path2"] = records[number]["path2"], records[number]["path1"]
        file.write_text(json.dumps(records))
    elif kind == "critique":
        file, what = data / "train_critiques.jsonl", "records"
        before = file.read_bytes()
        file.write_bytes(before.replace(b'"reasoning": "', b'"reasoning": "well, ', number + 1))
    else:
        file, what = data / "images" / f"train_{number:06}_a.png", "images"
        before = file.read_bytes()
        file.write_bytes(file.with_name(f"train_{(number + 1) % 16:06}_a.png").read_bytes())
    return file, before, what


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--streaming", action="store_true")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    data = SHAPE_EDITS.write(folder / "data", train=16, heldout=2, language=2, progress=False)
    write_tiny_backbone(folder / "backbone", TEXTS, image_size=48)

    train_data = {"train_data": str(data / "train.json")}
    if options.streaming:
        pairs = read_preferences(data / "train.json", progress=False).examples
        groups = [RankedGroup(pair.candidates, pair.ranks, critiques=pair.critiques) for pair in pairs[:5]]
        sets = {str(write_preferences(data / "pairs.jsonl", pairs)): 1}
        sets[str(write_preferences(data / "groups.jsonl", groups))] = 2
        train_data = {"train_data": sets, "streaming": True, "shuffle_buffer": 5}

    def config(name: str) -> Path:
        given = {"model": str(folder / "backbone"), **train_data}
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**SETTINGS, **given, "output_dir": str(folder / name)}))
        return path

    errors = folder / "err"
    assert wait(start(train(config("undisturbed")), errors)) == 0, errors.read_text()
    expected = load_file(folder / "undisturbed" / "model.safetensors")

    kills = refusals = runs = wrong = 0
    while kills < options.kills:
        run, path = folder / f"run{runs}", config(f"run{runs}")
        while True:
            if not options.streaming and list(run.glob("checkpoint-*")) and rng.random() < 0.4:
                file, before, what = edit(data, rng)
                code = wait(start(train(path), errors))
                if code != 2 or f"another {what} of train_data" not in errors.read_text():
                    wrong += 1
                    print(f"edited {what} were not refused: exit code {code}, {errors.read_text()[-300:]}")
                file.write_bytes(before)
                refusals += 1
            pid = start(train(path), errors)
            if kills < options.kills and killed(pid, run, rng):
                kills += 1
                continue
            if kills >= options.kills:
                wait(pid)
            break
        runs += 1
        weights = load_file(run / "model.safetensors") if (run / "model.safetensors").exists() else {}
        if weights.keys() != expected.keys() or any(not torch.equal(weights[k], expected[k]) for k in expected):
            wrong += 1
            print(f"{run.name} ended with other weights: {errors.read_text()[-300:]}")
    shutil.rmtree(folder)
    print(f"{kills} kills in {runs} runs, {refusals} starts with edited data; {wrong} wrong.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
