"""Lets one of two training processes fail, in each way, and looks at what is said and what is left.

    python tests/fuzz/faults_of_processes.py [--figures FILE]

Two processes of `jrm train` share one store, as a launcher keeps it. After a checkpoint, the second is killed
(SIGKILL), its loss becomes NaN, the disk is full for both, or images vanish; under DDP, and the first and third under
DeepSpeed ZeRO-2 where it is installed. Each time both must end with a code other than zero, one sentence must be said
and no traceback, the last checkpoint must be whole, and the same command must then end with the weights of an
undisturbed run. At last `torchrun --max-restarts 3` must do so by itself after one of its processes was killed. Not
collected by pytest: it takes minutes.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

import psutil
import torch
import yaml
from kills_of_training import SETTINGS, TEXTS
from processes import start, wait
from safetensors.torch import load_file
from torch.distributed import TCPStore

from jrm_plugin.files import write_json
from jrm_plugin.integrations.trl import JointRewardTrainer
from jrm_plugin.integrations.trl.checkpoints import last_whole_checkpoint
from jrm_plugin.model.tiny import write_tiny_backbone
from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS

SMALLEST = 2**20  # bytes of a file on the full disk: less than the weights
ZERO_2 = {"zero_optimization": {"stage": 2}, "zero_allow_untested_optimizer": True}
AUTO = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")


STORES: list[TCPStore] = []  # as long as processes may ask


def start_two(config: Path, errors: list[Path], before_second: Callable[[], None] = lambda: None) -> list[int]:
    STORES.append(TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(STORES[-1].port)}
    common["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    pids = []
    for rank, path in enumerate(errors):
        os.environ.update(common, RANK=str(rank), LOCAL_RANK=str(rank))
        if rank == 1:
            before_second()
        pids.append(start(["train", "--config", str(config)], path))
    for name in (*common, "RANK", "LOCAL_RANK"):
        del os.environ[name]
    return pids


def wait_for(path: Path, pids: list[int]) -> None:
    while not path.exists() and all(psutil.pid_exists(pid) for pid in pids):
        time.sleep(0.005)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--figures", type=Path, help="a JSON file for what was counted")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    data = SHAPE_EDITS.write(folder / "data", train=32, heldout=2, language=2, progress=False)
    write_tiny_backbone(folder / "backbone", TEXTS, image_size=48)
    (folder / "zero2.json").write_text(json.dumps(dict.fromkeys(AUTO, "auto") | ZERO_2))
    errors = [folder / "err0", folder / "err1"]

    def config(name: str, **changes) -> Path:
        given = {"model": str(folder / "backbone"), "train_data": str(data / "train.json"), "alpha": 0.7}
        settings = {name: value for name, value in SETTINGS.items() if name != "muon_learning_rate"} | {"max_steps": 9}
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**settings, **given, **changes, "output_dir": str(folder / name)}))
        return path

    def same(run: Path, expected: Path) -> bool:
        one, two = (load_file(each / "model.safetensors") for each in (run, expected))
        return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)

    check_finite = JointRewardTrainer._check_finite

    def poisoned(trainer, values, what, step):
        values = values * float("nan") if what == "the loss is" and step >= 5 else values
        return check_finite(trainer, values, what, step)

    def poison() -> None:
        JointRewardTrainer._check_finite = poisoned

    rows = []
    zero_2 = {"ZeRO-2": ({"deepspeed": str(folder / "zero2.json")}, ("killed", "full disk"))}
    shardings = {"DDP": ({}, ("killed", "NaN", "full disk", "images vanish"))}
    for sharding, (changes, faults) in (shardings | (zero_2 if find_spec("deepspeed") else {})).items():
        undisturbed = config(f"{sharding}-undisturbed", **changes)
        codes = [wait(pid) for pid in start_two(undisturbed, errors)]
        assert codes == [0, 0], [path.read_text() for path in errors]
        for fault in faults:
            path = config(f"{sharding}-{fault.replace(' ', '-')}", **changes)
            run = folder / path.stem
            pids = start_two(path, errors, poison if fault == "NaN" else lambda: None)
            JointRewardTrainer._check_finite = check_finite
            wait_for(run / "checkpoint-3", pids)
            if fault == "killed":
                os.kill(pids[1], signal.SIGKILL)
            elif fault == "full disk":
                for pid in pids:
                    resource.prlimit(pid, resource.RLIMIT_FSIZE, (SMALLEST, SMALLEST))
            elif fault == "images vanish":
                (data / "images").rename(data / "gone")
            codes = [wait(pid) for pid in pids]
            said = "\n".join(error.read_text() for error in errors)
            if (data / "gone").exists():
                (data / "gone").rename(data / "images")
            sentences = [line for line in said.splitlines() if line.startswith("jrm: ")]
            row = {"sharding": sharding, "fault": fault, "exit_codes": codes, "sentences": len(sentences)}
            row |= {"tracebacks": said.count("Traceback"), "sentence": " ".join(sentences).replace(str(folder), "…")}
            row["last_whole_checkpoint"] = Path(last_whole_checkpoint(run) or "none").name
            row["gone_on"] = [wait(pid) for pid in start_two(path, errors)] == [0, 0]
            row["same_weights"] = row["gone_on"] and same(run, folder / undisturbed.stem)
            rows.append(row)
            print(row, flush=True)
            if options.figures:
                write_json(options.figures, rows)

    path = config("elastic")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--max-restarts", "3"]
    launch += ["--standalone", "-m", "jrm_plugin.cli", "train", "--config", str(path)]
    with (folder / "launch").open("w") as log:
        launched = subprocess.Popen(launch, stdout=log, stderr=log)
        wait_for(folder / "elastic" / "checkpoint-3", [launched.pid])
        psutil.Process(launched.pid).children()[-1].kill()
        code = launched.wait()
    row = {"sharding": "DDP", "fault": "killed under torchrun --max-restarts 3", "exit_codes": [code]}
    row["same_weights"] = code == 0 and same(folder / "elastic", folder / "DDP-undisturbed")
    rows.append(row)
    print(row if code == 0 else (folder / "launch").read_text(), flush=True)

    wrong = [
        row
        for row in rows
        if not row["same_weights"]
        or (len(row["exit_codes"]) == 2 and (0 in row["exit_codes"] or row["sentences"] != 1 or row["tracebacks"]))
    ]
    if options.figures:
        write_json(options.figures, rows)
    shutil.rmtree(folder)
    print(f"{len(rows)} faults; {len(wrong)} wrong.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
