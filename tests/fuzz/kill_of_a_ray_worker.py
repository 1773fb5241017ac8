"""Kills one of the two workers of `jrm score --ray` and compares the rows with those of the plain command.

    python tests/fuzz/kill_of_a_ray_worker.py [--samples 20000] [--folder FOLDER] [--output FILE.json]

The samples are edits of ShapeEdits, seed 0, scored by jrm-tiny. The worker is killed (SIGKILL) when a quarter of the
rows are there. Started again with the same folder, it goes on. Not collected by pytest: it takes minutes.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from jrm_plugin.files import write_json
from jrm_plugin.runs import read_records
from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
WORKERS = 2


def workers_of(pid: int) -> list[psutil.Process]:
    """The workers of the cluster that a command has started."""
    ours = psutil.Process(pid).children(recursive=True)
    return [p for p in psutil.process_iter(["name"]) if p in ours and str(p.info["name"]).startswith("ray::MapWorker")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=20000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="kill-"))
    source = folder / "data" / "input.jsonl"
    if not source.exists():
        pairs = options.samples // 2
        data = SHAPE_EDITS.write(folder / "data", train=1, heldout=pairs, language=0, progress=False)
        records = [
            {"source": pair["path_src"], "instruction": pair["prompt"], "edited": pair[side], "id": f"{number}{side}"}
            for number, pair in enumerate(json.loads((data / "heldout.json").read_text()))
            for side in ("path1", "path2")
        ]
        source.write_text("".join(json.dumps(record) + "\n" for record in records))
    plain, on_ray = folder / "plain.jsonl", folder / "ray.jsonl"
    command = [sys.executable, "-c", "from jrm_plugin.cli import main; main()"]
    score = [*command, "score", "--model", "jrm-tiny", "--device", "cpu", "--input", source]

    running = subprocess.Popen([*score, "--output", on_ray, "--ray", "--replicas", str(WORKERS)], env=ENVIRONMENT)
    while len(read_records(on_ray)) < options.samples // 4:
        assert running.poll() is None, "the command ended before a worker could be killed"
        time.sleep(0.5)
    victim, *others = workers_of(running.pid)
    assert len(others) == WORKERS - 1, others
    os.kill(victim.pid, signal.SIGKILL)
    rows_at_kill = len(read_records(on_ray))
    assert running.wait() == 0
    subprocess.run([*score, "--output", plain], env=ENVIRONMENT, check=True)

    rows, expected = read_records(on_ray), read_records(plain)
    same_records = [row["id"] for row in rows] == [row["id"] for row in expected]
    numbers = [name for name in expected[0] if name.startswith(("mu_", "sigma_"))]
    pairs_of_rows = list(zip(rows, expected, strict=True))
    figures = {
        "samples": options.samples,
        "workers": WORKERS,
        "killed": 1,
        "rows_when_killed": rows_at_kill,
        "rows": len(rows),
        "rows_of_the_plain_run": len(expected),
        "same_records_in_order": same_records,
        "rows_that_are_equal": sum(row == other for row, other in pairs_of_rows),
        "largest_difference": max(abs(row[name] - other[name]) for row, other in pairs_of_rows for name in numbers),
    }
    print(json.dumps(figures, indent=1))
    if options.output:
        write_json(options.output, figures)
    return 0 if same_records and figures["rows"] == options.samples and figures["largest_difference"] < 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
