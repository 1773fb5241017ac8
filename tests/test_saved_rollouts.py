"""Rollouts that are kept for people to look at, and read back with `datasets`."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
from datasets import load_dataset
from PIL import Image

from jrm_plugin.errors import JRMError
from jrm_plugin.records.samples import Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.saved_rollouts import SavedRollouts, saved_rollouts

SCORE = RewardScore({"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 4.0})


def edit(number: int) -> Sample:
    sources = [Image.new("RGB", (8, 8), (number, 0, place)) for place in range(2)]
    return Sample.edit(sources, f"edit {number}", Image.new("RGB", (16, 8), (number, 1, 2)))


def test_one_of_n_is_kept_whole_and_read_by_datasets(tmp_path):
    saved = SavedRollouts(3, tmp_path / "new" / "rollouts")
    paths = [saved.save(edit(k), SCORE, f"text {k}", reward=0.5 + k, step=k) for k in range(7)]
    assert [k for k, path in enumerate(paths) if path is not None] == [0, 3, 6]
    rows = load_dataset("imagefolder", data_dir=str(saved.folder), cache_dir=str(tmp_path / "cache"))["train"]
    rows = sorted(rows, key=lambda row: row["step"])
    assert [row["image"].getpixel((0, 0)) for row in rows] == [(0, 1, 2), (3, 1, 2), (6, 1, 2)]
    assert rows[1]["image"].size == (16, 8)
    assert [image.getpixel((0, 0)) for image in rows[1]["source_images"]] == [(3, 0, 0), (3, 0, 1)]
    values = {name: value for name, value in rows[1].items() if "image" not in name}
    assert values == {
        **{"instruction": "edit 3", "response": "text 3", "reward": 3.5, "step": 3},
        **{"mu_a": 1.0, "mu_b": 2.0, "mu_overall": 1.5, "sigma_a": 3.0, "sigma_b": 4.0, "sigma_overall": 2.5},
    }
    with Image.open(saved.folder / paths[3]) as image:
        assert image.getpixel((0, 0)) == (3, 1, 2)


def test_processes_and_threads_do_not_write_over_each_other(tmp_path):
    writers = [first := SavedRollouts(2, tmp_path), pickle.loads(pickle.dumps(first))]  # as a child process gets it
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda k: writers[k % 2].save(edit(k), SCORE, "", step=k), range(40)))
    lines = [json.loads(line) for file in tmp_path.glob("*/metadata.jsonl") for line in file.open()]
    assert len(lines) == 20 == len({line["step"] for line in lines})
    assert len([*tmp_path.glob("*/*.png")]) == 3 * 20
    for file in tmp_path.glob("*/metadata.jsonl"):
        for line in map(json.loads, file.open()):
            with Image.open(file.with_name(line["file_name"])) as image:
                assert image.getpixel((0, 0)) == (line["step"], 1, 2)


def test_a_text_answer_is_a_line_without_a_file(tmp_path):
    saved = SavedRollouts(1, tmp_path)
    assert saved.save(Sample.text_response(None, "why?", "so"), SCORE, "so") is None
    (file,) = tmp_path.rglob("*.*")
    assert json.loads(file.read_text())["response"] == "so"


@pytest.mark.parametrize(
    ("save_images", "folder", "message"),
    [
        (0, "x", "save_images must be a whole number of at least 1"),
        (1.5, "x", "not 1.5"),
        (True, "x", "not True"),
        ("3", "x", "not '3'"),
        (3, None, "save_images and save_folder belong together"),
        (None, "x", "save_images and save_folder belong together"),
        (3, "file/x", "cannot be written"),
    ],
)
def test_what_cannot_be_kept_is_one_sentence(tmp_path, save_images, folder, message):
    (tmp_path / "file").write_text("")
    with pytest.raises(JRMError, match=message):
        saved_rollouts(save_images, folder and tmp_path / folder)


def test_nothing_is_kept_unless_asked_for(tmp_path):
    assert saved_rollouts(None, None) is None
