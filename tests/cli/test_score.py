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
    assert (finished.code, finished.err) == (0, "")
    named = jrm(*arguments, "--model", "jrm-tiny", "--json")
    assert json.loads(finished.out) == json.loads(named.out)


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
