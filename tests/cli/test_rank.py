"""`jrm rank`: best first, of those on the command line or of each instruction of many, and the best ones' images."""

import csv
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from jrm_plugin.cli.common import print_scores
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.scoring.scorer import RewardScorer


def test_rank_is_best_first(jrm, sample):
    finished = jrm("rank", *sample, "--json")
    rows = json.loads(finished.out)
    scores = json.loads(jrm("score", *sample, "--json").out)
    overall = [row["mu"]["overall"] for row in rows]
    assert overall == sorted(overall, reverse=True)
    assert sorted(row["edited"] for row in rows) == sorted(row["edited"] for row in scores)


def test_rank_writes_the_best_image(jrm, sample, tmp_path):
    finished = jrm("rank", *sample, "--json", "--best", tmp_path / "new" / "best.png")
    assert (finished.code, finished.err) == (0, "")
    best = json.loads(finished.out)[0]["edited"]
    with Image.open(tmp_path / "new" / "best.png") as written, Image.open(best) as expected:
        assert written.tobytes() == expected.convert("RGB").tobytes()


def test_what_is_ranked_by_is_shown_where_there_is_no_room_for_all(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "50")
    names = ("instruction_following", "visual_quality", "consistency")
    score = RewardScore(dict.fromkeys(names, 0.5), dict.fromkeys(names, 1.0))
    print_scores("Ranking", [("a.png", score)], wide=False, dimension="consistency")
    table, _, said = capsys.readouterr().out.partition("--wide shows")
    assert "overall" in table and "consistency" in table and "quality" not in table
    assert "instruction_following, visual_quality as well" in said


def test_an_image_file_that_cannot_be_written(refused, sample, tmp_path):
    assert "best.txt" in refused("rank", *sample, "--best", tmp_path / "best.txt")
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused("rank", *sample, "--best", tmp_path / "file" / "best.png")


# --- in bulk ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def records(edits) -> list[dict]:
    """One record per edited image of the held-out pairs, those of a pair not beside each other."""
    pairs = json.loads((edits / "heldout.json").read_text())
    return [
        {"source": str(edits / p["path_src"]), "instruction": p["prompt"], "edited": str(edits / p[side])}
        for side in ("path1", "path2")
        for p in pairs
    ]


@pytest.fixture
def table(records, tmp_path) -> Path:
    """The records as CSV."""
    with (tmp_path / "input.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, records[0])
        writer.writeheader()
        writer.writerows(records)
    return tmp_path / "input.csv"


@pytest.fixture
def rank(jrm, model_folder):
    return lambda *arguments, **options: jrm("rank", "--model", model_folder, *arguments, **options)


def read_csv(path: Path) -> list[dict]:
    return list(csv.DictReader(path.open(newline="")))


def test_each_instruction_is_ranked_by_itself(rank, table, records, model_folder, tmp_path):
    finished = rank("--input", table, "--output", tmp_path / "ranked.csv", "--best", tmp_path / "best")
    assert finished.code == 0, finished.err
    rows = read_csv(tmp_path / "ranked.csv")
    assert [(row["group"], row["place"]) for row in rows] == [(str(g), p) for g in range(1, 7) for p in ("1", "2")]
    scorer = RewardScorer.from_pretrained(model_folder, device="cpu")
    for first, second, best in zip(rows[::2], rows[1::2], sorted((tmp_path / "best").iterdir()), strict=True):
        assert first["source"] == second["source"] and float(first["mu_overall"]) >= float(second["mu_overall"])
        scores = scorer.score([(row["source"], row["instruction"], row["edited"]) for row in (first, second)])
        for row, score in zip((first, second), scores, strict=True):
            assert RewardScore.from_columns(row).mu == pytest.approx(score.mu, abs=1e-4)
        win = scores[0].reward("win_probability", against=scores[1])
        assert float(first["win_over_second"]) == pytest.approx(win, abs=1e-4) and second["win_over_second"] == ""
        assert best.name == f"{first['group']}_1_{Path(first['edited']).name}"
        assert best.read_bytes() == Path(first["edited"]).read_bytes()
    assert not list(tmp_path.glob("*.partial.jsonl")) and not list(tmp_path.glob(".*"))
    for row in rows[::2]:
        assert f"│ {row['group']} │" in finished.out
    assert max(map(len, finished.out.splitlines())) <= 80


def test_the_best_of_each_by_a_dimension(rank, table, tmp_path):
    top = ("--top", 1, "--dimension", "visual_quality", "--json")
    finished = rank("--input", table, "--output", tmp_path / "ranked.parquet", *top)
    rows = pq.read_table(tmp_path / "ranked.parquet").to_pylist()
    assert finished.code == 0 and rows == json.loads(finished.out) and [row["place"] for row in rows] == [1] * 6
    assert all(0 < row["win_over_second"] < 1 for row in rows)
    every = json.loads(rank("--input", table, "--json").out)
    for row in rows:
        candidates = [other["mu_visual_quality"] for other in every if other["group"] == row["group"]]
        assert len(candidates) == 2 and row["mu_visual_quality"] == pytest.approx(max(candidates), abs=1e-5)


@pytest.mark.parametrize("place", ["", "*_[ab].png"])
def test_images_of_a_folder_or_a_glob_are_candidates_for_one_instruction(rank, images, tmp_path, place):
    (tmp_path / "made" / "deep").mkdir(parents=True)
    for k, image in enumerate(images[1:]):
        shutil.copy(image, tmp_path / "made" / ("deep" if k and not place else "") / Path(image).name)
    shutil.copy(images[0], tmp_path / "made" / "source.png")
    arguments = ("--input", tmp_path / "made" / place, "--instruction", "make it blue", "--json")
    rows = json.loads(rank(*arguments, "--source", tmp_path / "made" / "source.png").out)
    assert [row["place"] for row in rows] == [1, 2] and {row["group"] for row in rows} == {1}
    assert {Path(row["edited"]).name for row in rows} == {Path(image).name for image in images[1:]}
    named = ("--source", images[0], "--instruction", "make it blue", "--edited", *images[1:], "--json")
    for row, same in zip(rows, json.loads(rank(*named).out), strict=True):
        assert Path(row["edited"]).name == Path(same["edited"]).name
        assert row["mu_overall"] == pytest.approx(same["mu"]["overall"], abs=1e-5)


def test_it_goes_on_after_a_stop_and_keeps_what_fails(jrm, rank, table, records, model_folder, tmp_path):
    table.write_text(table.read_text() + f"{records[0]['source']},{records[0]['instruction']},nowhere.png\n")
    output = tmp_path / "ranked.jsonl"
    assert rank("--input", table, "--output", tmp_path / "whole.jsonl").code == 2
    partial = tmp_path / "ranked.jsonl.partial.jsonl"
    assert jrm("score", "--model", model_folder, "--input", table, "--output", partial).code == 2  # the same rows
    lines = partial.read_text().splitlines(keepends=True)
    partial.write_text("".join(lines[:5]) + lines[5][:30])
    finished = rank("--input", table, "--output", output, "--gallery", tmp_path / "new" / "gallery.html")
    assert finished.code == 2 and "5 of 13 samples are in" in finished.err
    assert "1 samples could not be scored" in finished.err
    rows, whole = ([json.loads(line) for line in path.open()] for path in (output, tmp_path / "whole.jsonl"))
    assert [row["digest"] for row in rows] == [row["digest"] for row in whole] and not partial.exists()
    (failed,) = [row for row in rows if "error" in row]
    assert (failed["group"], failed["place"]) == (1, None) and "nowhere.png" in failed["error"]
    page = (tmp_path / "new" / "gallery.html").read_text()
    assert page.count("of the model's order") == 12 and "nowhere.png" in page


def test_mistakes_are_said_before_anything_is_scored(refused, table, images, model_folder, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "there.csv").write_text("mine")
    rank = ("rank", "--model", model_folder)
    for arguments, message in (
        (("--input", table, "--best", tmp_path / "full"), "is no empty folder"),
        (("--input", table, "--output", tmp_path / "there.csv"), "is there already"),
        (("--input", table, "--output", tmp_path / "x.xlsx"), "must end in"),
        (("--input", table, "--gallery", tmp_path / "x.pdf"), "must have a name that ends in .html"),
        (("--input", table, "--top", 0), "--top must be at least 1"),
        (("--input", table, "--dimension", "beauty"), "has no dimension 'beauty'"),
        (("--input", table, "--edited", *images), "not both"),
        (("--input", table, "--source", *images), "a source belongs to an instruction"),
        (("--input", tmp_path / "*.jpg", "--instruction", "x"), "no file matches"),
        (("--input", tmp_path / "full", "--instruction", "x"), "is no image to score"),
        (("--instruction", "x"), "needs --instruction and --edited, or --input"),
        (
            ("--edited", images[1], "--instruction", "x", "--output", "x.csv"),
            "--output and --columns belong to --input",
        ),
    ):
        assert message in refused(*rank, *arguments)
    assert (tmp_path / "there.csv").read_text() == "mine"


def test_a_column_of_the_output_is_refused_in_the_input(refused, table, model_folder):
    table.write_text(table.read_text().replace("edited", "edited,place", 1).replace(".png\n", ".png,1\n"))
    assert "the key 'place'" in refused("rank", "--model", model_folder, "--input", table)
