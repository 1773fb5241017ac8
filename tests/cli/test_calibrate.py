"""`jrm calibrate`: what it saves and says, and that it goes on after a stop."""

import json
import os
import signal
import time
from shutil import copytree

import pytest

from jrm_plugin.model.checkpoint import built_in_folder
from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    folder = SHAPE_EDITS.write(tmp_path_factory.mktemp("pairs"), train=0, heldout=90, language=0, progress=False)
    return folder / "heldout.json"


@pytest.fixture
def model(tmp_path):
    return copytree(built_in_folder("jrm-tiny"), tmp_path / "model")


def test_it_saves_a_calibration_with_the_model_that_rank_uses(jrm, model, held_out, images):
    before = jrm(
        "rank", "--model", model, "--source", images[0], "--instruction", "x", "--edited", *images[1:], "--json"
    )
    finished = jrm("calibrate", "--model", model, "--data", held_out, "--device", "cpu")
    assert finished.code == 0, finished.err
    assert "On " in finished.out and "scores and rankings do not change" in " ".join(finished.out.split())
    saved = json.loads((model / "jrm_calibration.json").read_text())
    assert {*saved["temperature"]} == {"instruction_following", "visual_quality", "overall"}
    assert saved["report"]["judged_on"] + saved["report"]["fitted_on"] == 90
    assert not [path for path in model.iterdir() if "partial" in path.name or "lock" in path.name]
    after = jrm(
        "rank", "--model", model, "--source", images[0], "--instruction", "x", "--edited", *images[1:], "--json"
    )
    first, second = json.loads(before.out), json.loads(after.out)
    assert first[0].pop("win_over_second") != second[0].pop("win_over_second")
    assert first == second


def test_a_stopped_command_goes_on(start_jrm, jrm, model, held_out):
    command = ("calibrate", "--model", model, "--data", held_out, "--device", "cpu", "--json")
    running = start_jrm(*command)
    rows = model / "jrm_calibration.partial.jsonl"
    running.wait_for(rows)
    while not rows.stat().st_size:  # it is made before its first lines are written
        time.sleep(0.002)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert rows.read_text().count("\n") < 90
    refused = jrm("calibrate", "--model", model, "--data", held_out, "--dtype", "bfloat16")
    assert refused.code == 2 and "holds a run with another dtype" in refused.err
    finished = jrm(*command)
    assert finished.code == 0, finished.err
    whole = jrm(*command)
    assert json.loads(finished.out) == json.loads(whole.out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--share", "1"], "--share must be between 0.1 and 0.9"),
        (["--model", "jrm-tiny"], "jrm-tiny is no folder into which a calibration could be written; give --output"),
    ],
)
def test_mistakes_are_one_sentence(refused, model, held_out, arguments, message):
    assert message in refused("calibrate", "--model", model, "--data", held_out, *arguments)
