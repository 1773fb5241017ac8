"""`jrm score` for one set of edited images, and what commands that score say of mistakes in samples and models."""

import json
import shutil
import subprocess
import sys

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from jrm_plugin.records.samples import Sample
from jrm_plugin.scoring.scorer import RewardScorer

INSTRUCTION = "make the red circle blue"


def test_json_alone_is_on_stdout_and_equals_the_scorer(sample, images, model_folder):
    # A process from scratch, so that what libraries say when they are imported is seen too.
    command = [sys.executable, "-m", "jrm_plugin.cli", "score", *sample, "--json"]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert (finished.returncode, finished.stderr) == (0, "")
    samples = [Sample.edit(images[0], INSTRUCTION, path) for path in images[1:3]]
    scores = RewardScorer.from_pretrained(model_folder, device="cpu").score(samples)
    rows = json.loads(finished.stdout)
    assert [row.pop("edited") for row in rows] == images[1:3]
    for row, score in zip(rows, scores, strict=True):
        for kind, values in score.to_dict().items():
            assert row[kind] == pytest.approx(values, abs=1e-5)


def test_score_prints_a_table_with_every_dimension(jrm, sample, tmp_path, images):
    for name in ("[red]one.png", ":smile:.png"):  # no markup in file names
        shutil.copy(images[1], tmp_path / name)
    finished = jrm("score", *sample[:-2], "[red]one.png", ":smile:.png", folder=tmp_path)
    assert (finished.code, finished.err) == (0, "")
    for text in ("instruction", "visual", "overall", "±", "[red]one.png", ":smile:.png"):
        assert text in finished.out


def test_generation_needs_no_source(jrm, model_folder, images):
    finished = jrm("score", "--model", model_folder, "--instruction", INSTRUCTION, "--edited", images[1], "--json")
    assert finished.code == 0 and len(json.loads(finished.out)) == 1


def test_the_default_model_is_jrm_tiny(jrm, images):
    arguments = ("score", "--source", images[0], "--instruction", INSTRUCTION, "--edited", images[1])
    finished = jrm(*arguments, "--json")
    assert finished.code == 0
    assert finished.err == (
        "No model is named: jrm-tiny scores, which knows coloured shapes (ShapeEdits) and nothing else.\n"
    )
    named = jrm(*arguments, "--model", "jrm-tiny", "--json")
    assert named.err == "" and json.loads(finished.out) == json.loads(named.out)


def test_what_the_model_was_not_trained_on_is_said_once(jrm, images, tmp_path):
    Image.new("RGB", (400, 300)).save(tmp_path / "large.png")
    made = [tmp_path / "large.png"] * 2 + images[1:]
    finished = jrm("score", "--model", "jrm-tiny", "--instruction", INSTRUCTION, "--edited", *made, "--json")
    assert finished.code == 0 and len(json.loads(finished.out)) == 4
    task, size = finished.err.splitlines()
    assert "trained on samples of the task edit; a sample of the task generation" in task
    assert "trained on images of 2,304 pixels" in size


def test_the_table_fits_a_terminal_of_80_columns(jrm, sample, images, tmp_path):
    shutil.copy(images[1], long := tmp_path / ("a_folder_with_a_name_of_its_own_" + "x" * 60 + "_candidate_17.png"))
    arguments = ("rank", *sample[:-2], images[1], long)
    finished = jrm(*arguments, environment={"COLUMNS": "80"})
    lines = finished.out.splitlines()
    assert finished.code == 0 and max(map(len, lines)) <= 80
    heading = next(line for line in lines if "place" in line)
    assert heading.index("place") < heading.index("image") < heading.index("overall") < heading.index("following")
    assert "…" in finished.out and "e_17.png" in finished.out and str(long) not in finished.out
    assert "P(the first is better than the second) = 0." in finished.out
    narrow = jrm(*arguments, environment={"COLUMNS": "50"}).out
    assert "overall" in narrow and "quality │" not in narrow
    assert "--wide shows" in narrow and "visual_quality as well" in narrow
    wide = jrm(*arguments, "--wide", environment={"COLUMNS": "50"}).out
    assert str(long) in wide and "quality" in wide


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_missing_image(refused, sample):
    assert "nowhere.png" in refused("score", *sample, "nowhere.png")


def test_text_file_named_png(refused, sample, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    assert "text.png" in refused("rank", *sample, tmp_path / "text.png")


def test_extreme_image(refused, sample, tmp_path):
    Image.new("RGB", (1, 10_000)).save(tmp_path / "thin.png")
    assert "thin.png" in refused("score", *sample, tmp_path / "thin.png")


@pytest.mark.parametrize("instruction", ["", "   "])
def test_empty_instruction(refused, model_folder, images, instruction):
    message = refused("score", "--model", model_folder, "--instruction", instruction, "--edited", images[1])
    assert "empty" in message


def test_folder_without_a_model(refused, sample, tmp_path):
    assert str(tmp_path) in refused("score", *sample, "--model", tmp_path)


def test_model_that_does_not_exist(refused, sample):
    assert "nobody/no-such-model" in refused("score", *sample, "--model", "nobody/no-such-model")


def test_backbone_that_is_no_jrm_checkpoint(refused, sample, backbone_folder):
    assert "not a JRM checkpoint" in refused("score", *sample, "--model", backbone_folder("qwen3_vl"))


def test_renamed_weight(model_folder, sample, tmp_path):
    folder = tmp_path / "renamed"
    shutil.copytree(model_folder, folder)
    weights = load_file(folder / "model.safetensors")
    weights["reward_head.heads.0.0.wrong"] = weights.pop("reward_head.heads.0.0.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    # A process from scratch: transformers has much to say about such weights.
    command = [sys.executable, "-m", "jrm_plugin.cli", "score", *sample, "--model", str(folder)]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr.startswith("jrm: ") and finished.stderr.count("\n") == 1
    for key in ("reward_head.heads.0.0.wrong", "reward_head.heads.0.0.weight"):
        assert key in finished.stderr


def test_damaged_weights(refused, model_folder, sample, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(model_folder, folder)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert str(folder) in refused("score", *sample, "--model", folder)


@pytest.mark.parametrize(
    ("option", "value"),
    [("--device", "quantum"), ("--device", "cuda:99"), ("--memory", "0"), ("--max-pixels", "1")],
)
def test_bad_option(refused, sample, option, value):
    assert value in refused("score", *sample, option, value)


def test_score_without_images(refused):
    assert "--edited" in refused("score", "--instruction", INSTRUCTION)
