"""`jrm analyze`: two models on the same pairs, as a page and as numbers, and what it refuses."""

import json

import pytest
from PIL import Image

PLAN = ("--limit", 9, "--attention", 4, "--shown", 2, "--batches", 2, "--batch-size", 2, "--resamples", 20)


@pytest.fixture(scope="module")
def data(edits):
    return edits / "train.json"


def test_two_models_side_by_side(jrm, model_folder, data, tmp_path):
    models = ("--models", "jrm-tiny", model_folder)
    finished = jrm("analyze", *models, "--data", data, *PLAN, "--output", tmp_path / "out", "--wide")
    assert finished.code == 0, finished.err
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    other = model_folder.name
    assert results["folders"] == {"jrm-tiny": "jrm-tiny", other: str(model_folder)} and results["pairs"] == 9
    rank = results["representation"]["models"]["jrm-tiny"]["raw"]["effective_rank"]
    assert f"{rank['value']:.3g}" in finished.out and f"jrm-tiny less {other}" in finished.out
    points = json.loads((tmp_path / "out" / "points.json").read_text())
    assert [len(of_model) for of_model in points.values()] == [18, 18]
    page = (tmp_path / "out" / "report.html").read_text()
    assert results["command"] in page and "jrm analyze --models jrm-tiny" in results["command"]
    charts = {path.name for path in (tmp_path / "out" / "charts").iterdir()}
    assert charts == {f"{n}.png" for n in ("spectrum_raw", "spectrum_centred", "measures_raw", "measures_centred")} | {
        "projection.png",
        "cosines.png",
    }
    pictures = sorted(path.name for path in (tmp_path / "out" / "attention").iterdir())
    assert len(pictures) == 2 * 2 * 3  # samples, images, and the picture itself beside both models
    shown, plain = (Image.open(tmp_path / "out" / "attention" / f"1_1{name}.png") for name in ("_model_1", "_model_2"))
    assert shown.size == plain.size and shown.tobytes() != plain.tobytes()


def test_one_model_alone(jrm, data, tmp_path):
    none = ("--limit", 9, "--attention", 0, "--batches", 0)
    finished = jrm("analyze", "--models", "jrm-tiny", "--data", data, "--json", *none, "--output", tmp_path / "out")
    assert finished.code == 0, finished.err
    results = json.loads(finished.out)
    assert not results["representation"]["differences"] and not results["attention"]["models"]
    assert "Where the reward token looks" not in (tmp_path / "out" / "report.html").read_text()


def test_wrong_uses_are_one_sentence(refused, edits, data, tmp_path):
    output = ("--output", tmp_path / "out")
    tiny = ("--models", "jrm-tiny")
    assert "names a model twice" in refused("analyze", "--models", "jrm-tiny", "jrm-tiny/", "--data", data, *output)
    assert "--resamples must be at least 2" in refused("analyze", *tiny, "--data", data, "--resamples", 1, *output)
    assert "holds no preference pairs" in refused("analyze", *tiny, "--data", edits / "language.jsonl", *output)
    assert "at least 8 groups" in refused(
        "analyze", *tiny, "--data", edits / "heldout.json", "--attention", 0, "--batches", 0, *output
    )
    assert "ask for fewer" in refused("analyze", *tiny, "--data", data, "--attention", 0, *output)
