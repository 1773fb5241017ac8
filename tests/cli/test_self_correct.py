"""`jrm self-correct`: what it leaves, how it goes on after it was killed, and what it says to mistakes."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import yaml

from jrm_plugin.runs import LOCK_FILE, locked
from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS

EXAMPLE = Path(__file__).parents[2] / "examples" / "self_correction" / "shape_edits.yaml"


@pytest.fixture
def config(tmp_path):
    """`config(**changes)`: a YAML file; the output is `tmp_path / "run"`. A value of None leaves a key out."""

    def write(**changes) -> Path:
        content = {"data": {"shape_edits": {"count": 6}}, "editor": "shape_edits", "rounds": 1, "seed": 5}
        content |= {"output": str(tmp_path / "run"), "model": "jrm-tiny", **changes}
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
        return path

    return write


def test_sigkill_between_an_edit_and_its_score_changes_nothing(start_jrm, jrm, config, tmp_path):
    path = config()
    running = start_jrm("self-correct", "--config", path)
    running.wait_for(tmp_path / "run" / "images" / "000003_control_1.png")
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    assert not (tmp_path / "run" / "table.json").exists()
    finished = jrm("self-correct", "--config", path)
    assert finished.code == 0, finished.err
    whole = jrm("self-correct", "--config", config(output=str(tmp_path / "whole")))
    assert whole.code == 0, whole.err
    for name in ("rounds.jsonl", "table.json", "table.md"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    images = {path.name: path.read_bytes() for path in (tmp_path / "run" / "images").iterdir()}
    assert images == {path.name: path.read_bytes() for path in (tmp_path / "whole" / "images").iterdir()}
    assert len(images) == 6 * 3

    table = json.loads((tmp_path / "run" / "table.json").read_text())
    assert [row["samples"] for row in table["rows"]][0] == 6
    assert "oracle_before" in table["rows"][0]
    assert "initial" in finished.out and "oracle" in finished.out
    assert (tmp_path / "run" / "table.md").read_text().count("\n| all | 6 |") == 2
    assert "another editor, rounds;" in jrm("self-correct", "--config", config(rounds=2, editor="json.dumps")).err


def test_own_editor_own_data_and_a_sample_that_fails(jrm, config, images, tmp_path):
    (tmp_path / "my_editor.py").write_text(
        "def edit(request):\n"
        "    if 'blue' in request.instruction:\n"
        "        raise OSError('no blue left')\n"
        "    return request.sources[0]\n"
    )
    lines = [
        {"source": images[0], "instruction": instruction, "edited": images[1]}
        for instruction in ("make the red circle blue", "remove the red circle")
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = config(data=str(tmp_path / "data.jsonl"), editor="my_editor.edit", thresholds=[-100, 100], control=False)
    finished = jrm("self-correct", "--config", path, folder=tmp_path)
    assert finished.code == 2
    said = finished.err.split("\n")[-2]
    assert said == (
        "jrm: 1 of 2 samples failed and count in no row; the first is sample 0, critique, round 1: "
        "the editor raised OSError: no blue left"
    )
    table = json.loads((tmp_path / "run" / "table.json").read_text())
    assert [(row["below"], row["samples"]) for row in table["rows"]] == [(None, 1), (-100, 0), (100, 1)]
    assert table["arms"] == ["critique"] and "oracle_before" not in table["rows"][0]


def test_a_folder_in_edit_reward_format_has_its_oracle(jrm, config, tmp_path):
    SHAPE_EDITS.write(tmp_path / "shapes", train=2, heldout=2, language=0, progress=False)
    finished = jrm("self-correct", "--config", config(data=str(tmp_path / "shapes"), control=False))
    assert finished.code == 0, finished.err
    table = json.loads((tmp_path / "run" / "table.json").read_text())
    assert table["rows"][0]["samples"] == 4 and table["rows"][0]["oracle_before"]["mean"] >= 2


def test_the_example_is_valid():
    from jrm_plugin.cli.self_correct import parse

    assert parse(EXAMPLE).data == {"shape_edits": {"count": 100, "seed": 0}}


def test_it_does_not_go_on_with_what_was_changed_or_beside_another(refused, jrm, config, images, tmp_path):
    shutil.copy(images[1], tmp_path / "edited.png")
    line = {"source": images[0], "instruction": "make the red circle blue", "edited": "edited.png"}
    (tmp_path / "data.jsonl").write_text(json.dumps(line) + "\n")
    path = config(data=str(tmp_path / "data.jsonl"), control=False)
    with locked(_made(tmp_path / "run") / LOCK_FILE):
        assert f"the end of process {os.getpid()}" in refused("self-correct", "--config", path)
    (tmp_path / "run" / "table.md").write_text("mine")
    assert "table.md is of no run in this folder" in refused("self-correct", "--config", path)
    (tmp_path / "run" / "table.md").unlink()
    jrm("self-correct", "--config", path)
    assert (tmp_path / "run" / "rounds.jsonl").exists()
    shutil.copy(images[2], tmp_path / "edited.png")
    assert "holds a run with another samples;" in refused("self-correct", "--config", path)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"editr": "x"}, "unknown key editr"),
        ({"editor": None}, "has no editor"),
        ({"rounds": "two"}, "rounds must be a whole number, not 'two'"),
        ({"rounds": True}, "rounds must be a whole number"),
        ({"control": 1}, "control must be true or false"),
        ({"thresholds": ["low"]}, "thresholds must be"),
        ({"thresholds": {"percent": [50]}}, "thresholds must be"),
        ({"rounds": 0}, "rounds must be 1 or more, not 0"),
        ({"seed": -1}, "seed must be 0 or more, not -1"),
        ({"output": ""}, "output is empty"),
        ({"thresholds": {"quantiles": [1.5]}}, "between 0 and 1, not"),
        ({"data": {"shape_edits": {"count": 10**9}}}, "data.shape_edits must be"),
        ({"editor": {"diffusers": {"pipeline": 5}}}, "editor.diffusers.pipeline must be str, not 5"),
        ({"data": {"shape_edits": {"number": 3}}}, "data.shape_edits must be"),
        ({"data": {"photos": {}}}, "data must be text or"),
        ({"data": "/nowhere"}, "/nowhere"),
        ({"editor": "no_such_module.edit"}, "no_such_module"),
        ({"editor": "json.nothing"}, "json.nothing"),
        ({"editor": "../.."}, "../.. is no dotted path"),
        ({"editor": "draw"}, "draw is no dotted path"),
        ({"editor": "json.__name__"}, "cannot be called"),
        ({"editor": {"diffusers": {"pipe": "x"}}}, "editor.diffusers"),
        ({"editor": {"diffusers": {"pipeline": "x", "image": "both"}}}, "edited or source"),
        ({"model": "/no/model"}, "/no/model"),
    ],
)
def test_bad_setting(refused, config, changes, said):
    assert said in refused("self-correct", "--config", config(**changes))


def test_config_that_cannot_be_read(refused, tmp_path):
    assert "nowhere.yaml" in refused("self-correct", "--config", tmp_path / "nowhere.yaml")
