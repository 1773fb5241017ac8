"""`jrm score --ray`: the rows of the plain command, whatever is killed."""

import json
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

ray = pytest.importorskip("ray")
pytest.importorskip("ray.data")

import psutil  # noqa: E402

from jrm_plugin.cli import main  # noqa: E402
from jrm_plugin.cli.bulk import ROWS_AT_ONCE  # noqa: E402
from jrm_plugin.runs import append_records, read_records  # noqa: E402
from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS  # noqa: E402

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """`input.jsonl` with 6 shards of edits, the last one not full, one image of which is not there."""
    folder = SHAPE_EDITS.write(tmp_path_factory.mktemp("bulk"), train=1, heldout=4, language=0, progress=False)
    pairs = json.loads((folder / "heldout.json").read_text())
    records = [
        {"source": pair["path_src"], "instruction": pair["prompt"], "edited": pair["path1"], "number": number}
        for number, pair in enumerate((pairs * 2 * ROWS_AT_ONCE)[: 6 * ROWS_AT_ONCE - 5])
    ]
    records[3]["edited"] = "nowhere.png"
    (folder / "input.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def score(folder: Path, output: str, *more: str) -> list[str]:
    names = ["--input", str(folder / "input.jsonl"), "--output", str(folder / output)]
    return ["score", "--model", "jrm-tiny", "--device", "cpu", *names, *more]


def exit_code(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return end.value.code


def kill_a_worker(killed: list[int]) -> None:
    """Kills the first worker of our cluster that is there."""
    while True:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.name().startswith("ray::Map"):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    return
        time.sleep(0.02)


def test_killed_worker_leaves_the_rows_of_the_plain_command_and_goes_on_from_them(folder, capfd):
    """What kills in the middle of a shard leave is measured by `tests/fuzz/kill_of_a_ray_worker.py`."""
    assert exit_code(score(folder, "plain.jsonl")) == 2  # one has an error
    expected = read_records(folder / "plain.jsonl")
    append_records(folder / "ray.jsonl", expected[:ROWS_AT_ONCE])
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker, args=(killed,), daemon=True)
    killer.start()
    capfd.readouterr()
    assert exit_code(score(folder, "ray.jsonl", "--ray", "--replicas", "2")) == 2
    killer.join(timeout=5)
    assert killed
    assert f"{ROWS_AT_ONCE} of {len(expected)} samples are in" in capfd.readouterr().err
    rows = read_records(folder / "ray.jsonl")
    assert [row["number"] for row in rows] == list(range(len(expected)))
    for row, other in zip(rows, expected, strict=True):
        numbers = {name: value for name, value in other.items() if name.startswith(("mu_", "sigma_"))}
        assert row | numbers == other
        assert {name: row.get(name) for name in numbers} == pytest.approx(numbers, abs=1e-5)
    assert "nowhere.png" in rows[3]["error"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--ray", "--replicas", "17"], "17 workers with a CPU each are asked for, and the Ray cluster has 16"),
        (["--ray", "--replicas", "0"], "--replicas must be at least 1"),
        (["--replicas", "2"], "--replicas belongs to --ray"),
        (["--ray", "--replicas", "1", "--memory", "-1"], "--memory must be above 0"),  # said by the worker
    ],
)
def test_what_cannot_be(folder, capsys, more, said):
    assert exit_code(score(folder, "none.jsonl", *more)) == 2
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert error.startswith("jrm: ") and said in error
