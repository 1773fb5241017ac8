"""`jrm score`, `rank` and `critique`, and what they say to mistakes."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from PIL import Image, ImageColor
from safetensors.torch import load_file, save_file

from jrm_plugin.evaluation.drawing import REGION_COLOURS
from jrm_plugin.records.samples import Sample
from jrm_plugin.scoring.scorer import RewardScorer

INSTRUCTION = "make the red circle blue"


@pytest.fixture(scope="session")
def sample(images, model_folder) -> list[str]:
    """The arguments of a command for one source and two edited images."""
    return [
        *("--model", str(model_folder), "--source", images[0], "--instruction", INSTRUCTION),
        *("--edited", images[1], images[2]),
    ]


def test_help_imports_no_torch():
    code = "import sys\nfrom jrm_plugin.cli import main\ntry: main(['--help'])\nfinally: print(sorted(sys.modules))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0 and finished.stdout.startswith("usage: jrm")
    assert "'jrm_plugin.cli.app'" in finished.stdout
    for heavy in ("torch", "transformers", "numpy", "PIL", "trl", "rich"):
        assert f"'{heavy}'" not in finished.stdout


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


def test_rank_is_best_first(jrm, sample):
    finished = jrm("rank", *sample, "--json")
    rows = json.loads(finished.out)
    scores = json.loads(jrm("score", *sample, "--json").out)
    overall = [row["mu"]["overall"] for row in rows]
    assert overall == sorted(overall, reverse=True)
    assert sorted(row["edited"] for row in rows) == sorted(row["edited"] for row in scores)


def test_critique_gives_the_raw_text_of_what_is_no_critique(jrm, sample):
    finished = jrm("critique", *sample[:-1], "--dimension", "visual_quality", "--json")
    assert (finished.code, finished.err) == (0, "")
    (row,) = json.loads(finished.out)
    assert set(row["critiques"]) == {"visual_quality"}
    assert set(row["critiques"]["visual_quality"]) == {"unparsed", "error"}  # random weights write no JSON


def test_rank_writes_the_best_image(jrm, sample, tmp_path):
    finished = jrm("rank", *sample, "--json", "--best", tmp_path / "new" / "best.png")
    assert (finished.code, finished.err) == (0, "")
    best = json.loads(finished.out)[0]["edited"]
    with Image.open(tmp_path / "new" / "best.png") as written, Image.open(best) as expected:
        assert written.tobytes() == expected.convert("RGB").tobytes()


def test_critique_draws_its_boxes(jrm, images, sample, tmp_path):
    drawn, plain = tmp_path / "drawn.png", tmp_path / "plain.png"
    arguments = ("--source", images[0], "--instruction", "remove the red circle", "--edited", images[1])
    finished = jrm("critique", *arguments, "--draw", drawn, "--json")
    assert (finished.code, finished.err) == (0, "")
    critiques = json.loads(finished.out)[0]["critiques"]
    assert critiques["instruction_following"]["edit_region"]
    finished = jrm("critique", *sample[:-1], "--draw", plain)  # random weights name no region
    assert finished.code == 0 and "has no boxes" in finished.err
    with Image.open(drawn) as with_boxes, Image.open(plain) as without:
        assert with_boxes.size == without.size == (336, 336)
        box = ImageColor.getrgb(REGION_COLOURS[0])
        assert box in {colour for _, colour in with_boxes.getcolors(336**2)}
        assert box not in {colour for _, colour in without.getcolors(336**2)}


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


def test_image_files_that_cannot_be_written(refused, sample, tmp_path):
    assert "best.txt" in refused("rank", *sample, "--best", tmp_path / "best.txt")
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused("rank", *sample, "--best", tmp_path / "file" / "best.png")
    assert "drawn" in refused("critique", *sample[:-1], "--draw", tmp_path / "drawn")
    assert "--draw writes one image" in refused("critique", *sample, "--draw", tmp_path / "drawn.png")


@pytest.mark.parametrize("instruction", ["", "   "])
def test_empty_instruction(refused, model_folder, images, instruction):
    message = refused("score", "--model", model_folder, "--instruction", instruction, "--edited", images[1])
    assert "empty" in message


def test_unknown_dimension(refused, sample):
    message = refused("critique", *sample, "--dimension", "beauty")
    assert "'beauty'" in message and "visual_quality" in message


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


@pytest.mark.parametrize("arguments", [["score", "--unknown", "1"], ["paint"], [], ["train"]])
def test_wrong_usage_exits_with_2(jrm, arguments):
    finished = jrm(*arguments)
    assert finished.code == 2 and finished.err.startswith("usage: jrm") and "Traceback" not in finished.err


def test_reader_that_leaves_early(start_jrm, sample, tmp_path):
    os.mkfifo(tmp_path / "out")
    running = start_jrm("score", *sample, "--json", streams=tmp_path)
    os.close(os.open(tmp_path / "out", os.O_RDONLY))
    finished = running.wait()
    assert (finished.code, finished.err) == (1, "")


def test_demo_is_not_mixed_with_another(refused, tmp_path):
    (tmp_path / "demo.json").write_text('{"photos": false, "scale": 1.0, "seed": 1}')
    message = refused("demo", "--output", tmp_path, "--photos", "--seed", "2")
    assert "another photos, seed;" in message
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused("demo", "--output", tmp_path / "file" / "demo")
    assert "--scale must be positive" in refused("demo", "--output", tmp_path, "--scale", "0")
