"""`jrm train` on several sets by weight, in memory and as a stream, and on ranked groups."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from jrm_plugin import RankedGroup, Sample, read_preferences
from jrm_plugin.data.preference_table import write_preferences


@pytest.fixture(scope="session")
def sets(edits, tmp_path_factory) -> Path:
    """A folder with `pairs.jsonl` (8, labelled in both dimensions) and `groups.jsonl` (5 of three, overall alone)."""
    folder = tmp_path_factory.mktemp("sets")
    write_preferences(folder / "pairs.jsonl", read_preferences(edits / "train.json", progress=False).examples[:8])
    groups = []
    for row in range(5):
        source, *edited = (str(edits / "images" / f"train_{row:06}_{name}.png") for name in ("source", "a", "b"))
        candidates = [Sample.edit(source, "make the red circle blue", image) for image in (source, *edited)]
        groups.append(RankedGroup(candidates, {"overall": [3, 1, 2 - row % 2]}))
    write_preferences(folder / "groups.jsonl", groups)
    return folder


@pytest.fixture
def config(sets, tmp_path):
    """`config(run, **changes)`: a YAML file of eight updates of `jrm-tiny` on both sets, into `tmp_path / run`."""

    def write(run: str, **changes) -> Path:
        content = {"model": "jrm-tiny", "output_dir": str(tmp_path / run), "max_steps": 8, "save_steps": 2}
        content["train_data"] = {str(sets / "pairs.jsonl"): 1, str(sets / "groups.jsonl"): 3}
        content |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-3}
        content |= {"ranking_loss": "plackett_luce", "logging_steps": 1, "report_to": "none", "max_pixels": 2304}
        path = tmp_path / f"{run}.yaml"
        path.write_text(yaml.safe_dump(content | changes))
        return path

    return write


def test_a_killed_run_on_streams_goes_on_to_the_same_weights(start_jrm, jrm, config, sets, tmp_path):
    """Six updates take 24 rows, more than there are, through a buffer that is shuffled anew each time."""
    train_data = dict.fromkeys((str(sets / "pairs.jsonl"), str(sets / "groups.jsonl")), 1)
    options = {"train_data": train_data, "streaming": True, "shuffle_buffer": 4, "dataloader_num_workers": 1}
    options |= {"alpha": 0.3, "max_steps": 6}
    finished = jrm("train", "--config", config("whole", **options))
    assert finished.code == 0, finished.err
    path = config("killed", **options)
    running = start_jrm("train", "--config", path)
    running.wait_for(tmp_path / "killed" / "checkpoint-4")
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    finished = jrm("train", "--config", path)
    assert finished.code == 0, finished.err
    one, two = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "killed"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    log = json.loads((tmp_path / "killed" / "trainer_state.json").read_text())["log_history"]
    assert any("k_way/overall" in entry for entry in log)


def test_sets_by_weight_in_memory(jrm, refused, config, sets, tmp_path):
    listed = [
        {"path": str(sets / "pairs.jsonl"), "weight": 0.5, "images_root": str(sets)},
        {"path": str(sets / "groups.jsonl"), "columns": {"ranking": "ranking"}},
    ]
    finished = jrm("train", "--config", config("run", train_data=listed, max_steps=1))
    assert finished.code == 0, finished.err
    counted = r"an epoch is ([0-9]+) examples: ([0-9]+) of .*pairs.jsonl .which has 8., ([0-9]+) of"
    said = re.search(counted, finished.err)
    total, pairs, groups = map(int, said.groups())
    assert pairs + groups == total and pairs >= 8 and groups > pairs
    assert "groups.jsonl: JSON Lines, 5 groups of images" in finished.err
    listed[0]["weight"] = 0.6
    finished = jrm("train", "--config", config("run", train_data=listed, max_steps=1))
    assert finished.code == 2 and "holds a run with another" in finished.err and "train_data" in finished.err


def test_images_that_evaluation_has_too_are_said_and_left_out(jrm, refused, config, sets, edits, tmp_path):
    shared = read_preferences(edits / "train.json", progress=False).examples[6:10]
    heldout = write_preferences(tmp_path / "heldout.jsonl", shared)  # two of these are in `pairs.jsonl`
    options = {"train_data": str(sets / "pairs.jsonl"), "eval_data": {"held": str(heldout)}, "max_steps": 1}
    options |= {"eval_strategy": "steps", "eval_steps": 1, "ranking_loss": "pairwise"}
    finished = jrm("train", "--config", config("run", **options, leaks="leave_out"))
    assert finished.code == 0, finished.err
    said = "2 of 8 examples of .*pairs.jsonl share an image with an evaluation set and are left out: .*_source.png of "
    assert re.search(said + ".*pairs.jsonl, row 7 is .*_source.png of held, .*heldout.jsonl, row 1; all", finished.err)
    (leaks,) = json.loads((tmp_path / "run" / "leaks.json").read_text())["leaks"].values()
    assert {leak["position"] for leak in leaks} == {6, 7} and {leak["same"] for leak in leaks} == {"pixels"}
    assert "6 examples of pairs.jsonl" in (tmp_path / "run" / "README.md").read_text()
    options["train_data"] = str(heldout)
    finished = jrm("train", "--config", config("all", **options, leaks="leave_out"))
    assert finished.code == 2 and "every example of" in finished.err


def test_the_example_of_the_docs_trains(jrm, tmp_path):
    """Its groups and its YAML as they stand there, with pictures of the names in them."""
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    _, section = text.split("## Ranked groups", 1)
    section = section.split("##")[0]
    (lines,), (content,) = (re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL) for kind in ("json", "yaml"))
    (tmp_path / "groups.jsonl").write_text(lines)
    (tmp_path / "heldout.jsonl").write_text(re.sub(r'"(\w+)\.png"', r'"held_\1.png"', lines))
    (tmp_path / "pairs.csv").write_text("before,instruction,good,bad\ncat.png,make it red,a.png,b.png\n")
    for number, name in enumerate(re.findall(r'"(\w+\.png)"', lines)):
        Image.new("RGB", (48, 48), (20 * number, 90, 200)).save(tmp_path / name)
        Image.new("RGB", (48, 48), (20 * number, 200, 90)).save(tmp_path / f"held_{name}")
    (tmp_path / "config.yaml").write_text(content)
    finished = jrm("train", "--config", "config.yaml", folder=tmp_path)
    assert finished.code == 0, finished.err
    state = json.loads((tmp_path / "outputs" / "ranked" / "trainer_state.json").read_text())
    (*_, evaluated) = (entry for entry in state["log_history"] if "eval_heldout_rank_loss" in entry)
    assert {"eval_heldout_k_way/overall", "eval_heldout_best_of_k/visual_quality"} <= evaluated.keys()
    assert evaluated["eval_heldout_groups/overall"] == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train_data": {"a.jsonl": 0}}, "the weight of a.jsonl in train_data must be above 0"),
        ({"train_data": [{"path": "a.jsonl"}, {"path": "a.jsonl"}]}, "a.jsonl is in train_data twice"),
        ({"train_data": [{"paht": "a.jsonl"}]}, "set 1 of train_data has no path; give it"),
        ({"train_data": [{"path": "a.jsonl", "wieght": 2}]}, "has the unknown key wieght; did you mean weight?"),
        ({"train_data": []}, "train_data must be a path, a mapping of paths to weights, or a list"),
        ({"streaming": True, "train_data": "pairs.json"}, "pairs.json cannot be read row by row; give JSON Lines"),
        ({"leaks": "maybe"}, "leaks must be report, leave_out or ignore, got 'maybe'"),
        ({"streaming": True, "leaks": "leave_out"}, "leaks: leave_out needs all examples before the run"),
        ({"streaming": True, "train_data": "nowhere.jsonl"}, "nowhere.jsonl does not exist: check the path"),
    ],
)
def test_what_is_no_set_is_said(refused, config, changes, said):
    assert said in refused("train", "--config", config("run", **changes))
