"""Kills `jrm score --input … --output …` at random moments, edits its input in between, and compares the rows.

    python tests/fuzz/kills_of_scoring.py [--kills 20] [--seed 0]

A run is killed (SIGKILL) and started again until it ends. Before some of the starts a row that is scored already, or
its image, is another one: that start must be refused. In the end every row must be there once, in order, with the score
of a run that nothing disturbed. Not collected by pytest: it takes minutes.
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
from processes import start, wait

import jrm_plugin.cli.score
import jrm_plugin.scoring.scorer  # noqa: F401  imported once, before the processes are forked
from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def same(rows: list[dict], expected: list[dict]) -> bool:
    return [row["id"] for row in rows] == [row["id"] for row in expected] and all(
        abs(row["mu_overall"] - other["mu_overall"]) < 1e-4 for row, other in zip(rows, expected, strict=True)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    data = SHAPE_EDITS.write(folder / "data", train=1, heldout=300, language=0, progress=False)
    pairs = json.loads((data / "heldout.json").read_text())
    records = [
        {"source": pair["path_src"], "instruction": pair["prompt"], "edited": pair[side], "id": f"{number}{side}"}
        for number, pair in enumerate(pairs)
        for side in ("path1", "path2")
    ]
    source, errors = data / "input.jsonl", folder / "err"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))

    def command(output: Path) -> list[str]:
        return ["score", "--model", "jrm-tiny", "--input", str(source), "--output", str(output), "--device", "cpu"]

    began = time.monotonic()
    assert wait(start(command(folder / "undisturbed.jsonl"), errors)) == 0, errors.read_text()
    seconds, expected = time.monotonic() - began, rows_of(folder / "undisturbed.jsonl")

    kills = refusals = runs = wrong = 0
    while kills < options.kills:
        output = folder / f"run{runs}.jsonl"
        while True:
            if (done := rows_of(output)) and rng.random() < 0.4:
                number = rng.randrange(len(done))
                file = source if rng.random() < 0.5 else data / records[number]["edited"]
                before = file.read_bytes()
                if file == source:
                    changed = [*records]
                    changed[number] = changed[number] | {"instruction": "make it better"}
                    file.write_text("".join(json.dumps(record) + "\n" for record in changed))
                else:
                    file.write_bytes(before + b"\0")  # its source may be the same picture
                code = wait(start(command(output), errors))
                if code != 2 or "of another model or input, or its images have changed" not in errors.read_text():
                    wrong += 1
                    print(f"{file} was edited and not refused: exit code {code}, {errors.read_text()[-300:]}")
                file.write_bytes(before)
                refusals += 1
            pid = start(command(output), errors)
            time.sleep(rng.uniform(0.1, 1.0) * seconds if kills < options.kills else 0)
            if kills < options.kills and os.waitpid(pid, os.WNOHANG) == (0, 0):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                kills += 1
                continue
            if kills >= options.kills:
                wait(pid)
            break
        runs += 1
        if not same(rows_of(output), expected):
            wrong += 1
            print(f"{output.name} ended with other rows: {errors.read_text()[-300:]}")
    shutil.rmtree(folder)
    print(f"{kills} kills in {runs} runs, {refusals} starts with edited input; {wrong} wrong.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
