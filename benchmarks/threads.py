"""How many of torch's threads pay in training a small model: the demo's joint stage, with one thread and with two.

    python -m benchmarks.threads

Trains from jrm-tiny in processes of their own, one after another: alone, beside a busy process of the lowest priority,
and beside two of the usual one. Writes steps a second, of every round, into `benchmarks/results`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from itertools import product
from pathlib import Path

import numpy as np
from transformers import TrainerCallback

from benchmarks.measuring import device_description, slug, versions, write_csv
from jrm_plugin.integrations.trl.training import parse, train
from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS

RESULTS = Path(__file__).with_name("results")
NEIGHBOURS = {"alone": [], "beside a busy process, nice 19": [19], "beside two busy processes": [0, 0]}
THREADS = (1, 2)
BEFORE = 5  # steps that are not timed


class Clock(TrainerCallback):
    """Ends the training after some seconds, and holds the times of the ends of its steps."""

    def __init__(self, seconds: float):
        self.seconds, self.times = seconds, []

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(time.monotonic())
        timed = self.times[BEFORE:]
        control.should_training_stop = len(timed) > 1 and timed[-1] - timed[0] > self.seconds


@contextmanager
def busy(priorities: list[int]) -> Iterator[None]:
    """Processes that compute for nothing."""
    spin = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(["nice", "-n", str(priority), *spin]) for priority in priorities]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def train_here(data: str, seconds: float) -> float:
    """How many steps a second this process makes."""
    clock = Clock(seconds)
    demo = files("jrm_plugin") / "resources" / "demo" / "shapes_joint.yaml"
    with tempfile.TemporaryDirectory() as output, as_file(demo) as config:
        flags = ["--model", "jrm-tiny", "--train_data", data, "--output_dir", output]
        train(*parse(config, [*flags, "--save_strategy", "no", "--eval_strategy", "no"]), [clock])
    timed = clock.times[BEFORE:]
    return (len(timed) - 1) / (timed[-1] - timed[0])


def train_there(data: str, seconds: float, threads: int) -> float:
    """The same of a process of its own, with so many threads."""
    command = [sys.executable, "-m", "benchmarks.threads", "--here", data, "--seconds", str(seconds)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    finished = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return float(finished.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=12, help="of timed training, each")
    parser.add_argument("--here", metavar="DATA", help="train in this process and print its steps a second")
    options = parser.parse_args()
    if options.here:
        print(train_here(options.here, options.seconds))
        return
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        SHAPE_EDITS.write(Path(folder), train=800, heldout=2, language=2, progress=False)
        for number, (neighbours, priorities), threads in product(range(options.rounds), NEIGHBOURS.items(), THREADS):
            with busy(priorities):
                speed = train_there(str(Path(folder, "train.json")), options.seconds, threads)
            rows.append({"neighbours": neighbours, "threads": threads, "round": number, "steps_a_second": speed})
            print(f"round {number}, {threads} threads, {neighbours}: {speed:.2f} steps/s", flush=True)
    processor = device_description().partition(",")[0]
    print(f"{processor}, {os.cpu_count()} cores; {versions()}")
    for neighbours, threads in product(NEIGHBOURS, THREADS):
        speeds = [r["steps_a_second"] for r in rows if (r["neighbours"], r["threads"]) == (neighbours, threads)]
        spread = f"{min(speeds):.2f} to {max(speeds):.2f}"
        print(f"{neighbours}, {threads} threads: {np.median(speeds):.2f} steps/s ({spread})")
    write_csv(RESULTS / f"threads-{slug(processor)}-{os.cpu_count()}-cores.csv", rows)


if __name__ == "__main__":
    main()
