"""Scoring in bulk: every row once, in order, whatever interrupts it."""

import csv
import json
import os
import shutil
import signal
from pathlib import Path

import jsonl_lines
import pyarrow.parquet as pq
import pytest

from jrm_plugin.records.samples import Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.scoring.scorer import RewardScorer


@pytest.fixture(scope="session")
def records(edits) -> list[dict]:
    """One record per edited image of the held-out pairs, image paths relative to the folder."""
    pairs = json.loads((edits / "heldout.json").read_text())
    return [
        {"source": pair["path_src"], "instruction": pair["prompt"], "edited": pair[side], "pair": number}
        for number, pair in enumerate(pairs)
        for side in ("path1", "path2")
    ]


@pytest.fixture
def write(edits):
    """Writes records beside their images and gives the path."""
    made = []

    def to_file(records: list[dict], name: str = "input.jsonl") -> Path:
        made.append(edits / name)
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        made[-1].write_text("".join(lines))
        return made[-1]

    yield to_file
    for path in made:
        path.unlink(missing_ok=True)


@pytest.fixture
def score(jrm, model_folder):
    return lambda source, output, *more: jrm(
        "score", "--model", model_folder, "--input", source, "--output", output, *more
    )


def _read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def test_jsonl_holds_every_record_in_order(score, write, records, edits, model_folder, tmp_path):
    awkward = {**records[0], "instruction": "two\u2028lines\x85 in one"}  # line ends for Python, not for JSON
    source = write([*records, awkward])
    finished = score(source, tmp_path / "new" / "scores.jsonl")
    assert (finished.code, finished.out) == (0, "")
    assert "13 samples scored" in finished.err
    rows = _read(tmp_path / "new" / "scores.jsonl")
    samples = [Sample.edit(edits / r["source"], r["instruction"], edits / r["edited"]) for r in [*records, awkward]]
    scores = RewardScorer.from_pretrained(model_folder, device="cpu").score(samples)
    for row, record, one in zip(rows, [*records, awkward], scores, strict=True):
        assert {name: row[name] for name in record} == record
        assert row["model"] == str(model_folder)
        read = RewardScore.from_columns(row)
        assert read.mu == pytest.approx(one.mu, abs=1e-5) and read.sigma == pytest.approx(one.sigma, abs=1e-5)
    again = score(source, tmp_path / "new" / "scores.jsonl")
    assert again.code == 0 and _read(tmp_path / "new" / "scores.jsonl") == rows


def test_broken_image_is_recorded_and_the_others_are_scored(score, write, records, tmp_path):
    broken = {**records[0], "edited": "images/nowhere.png"}
    finished = score(write([records[0], broken, records[1]]), tmp_path / "scores.jsonl")
    assert finished.code == 2 and "1 samples could not be scored" in finished.err
    rows = _read(tmp_path / "scores.jsonl")
    assert ["mu_overall" in row for row in rows] == [True, False, True]
    assert "nowhere.png" in rows[1]["error"]


def test_parquet_with_columns_of_several_types(score, write, records, tmp_path):
    several = {**records[1], "source": [records[1]["source"]] * 2, "pair": "none"}
    broken = {**records[2], "edited": "images/nowhere.png"}
    finished = score(write([records[0], several, broken]), tmp_path / "scores.parquet")
    assert finished.code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["scores.parquet"]
    rows = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    assert [json.loads(row["source"]) for row in rows] == [records[0]["source"], several["source"], broken["source"]]
    assert [row["mu_overall"] is None for row in rows] == [False, False, True]
    assert rows[2]["error"] and rows[0]["error"] is None
    assert rows[0]["edited"] == records[0]["edited"]


def test_columns_say_what_other_names_mean(score, refused, write, records, tmp_path):
    named = [{"before": r["source"], "what": r["instruction"], "after": r["edited"]} for r in records[:2]]
    mapping = "{source: before, instruction: what, edited: after}"
    assert score(write(named, "named.jsonl"), tmp_path / "named.jsonl", "--columns", mapping).code == 0
    assert score(write(records[:2]), tmp_path / "usual.jsonl").code == 0
    rows, usual = _read(tmp_path / "named.jsonl"), _read(tmp_path / "usual.jsonl")
    assert [row["mu_overall"] for row in rows] == [row["mu_overall"] for row in usual]
    refusal = refused("score", "--input", "x.jsonl", "--output", tmp_path / "x.jsonl", "--columns", "before")
    assert "--columns must be a mapping such as" in refusal


def test_goes_on_after_a_line_that_was_cut_off(score, write, records, tmp_path):
    source, output = write(records), tmp_path / "scores.jsonl"
    score(source, output)
    whole = output.read_bytes()
    lines = whole.splitlines(keepends=True)
    output.write_bytes(b"".join(lines[:5]) + lines[5][:40])
    finished = score(source, output)
    assert finished.code == 0 and "5 of 12 samples" in finished.err
    rows, expected = _read(output), [json.loads(line) for line in lines]
    assert [row["edited"] for row in rows] == [row["edited"] for row in expected]
    for row, one in zip(rows, expected, strict=True):  # batched otherwise, so equal but for rounding
        assert row["mu_overall"] == pytest.approx(one["mu_overall"], abs=1e-5)


def test_goes_on_after_sigkill(start_jrm, score, write, records, model_folder, tmp_path):
    source, output = write(records * 20), tmp_path / "scores.parquet"
    partial = tmp_path / "scores.parquet.partial.jsonl"
    running = start_jrm("score", "--model", model_folder, "--input", source, "--output", output)
    running.wait_for(partial)
    while partial.stat().st_size == 0:
        pass
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    assert not output.exists()
    finished = score(source, output, "--memory", 0.5)
    assert finished.code == 0 and "of 240 samples are in" in finished.err
    rows = pq.read_table(output).to_pylist()
    assert [(row["edited"], row["pair"]) for row in rows] == [(r["edited"], r["pair"]) for r in records * 20]
    assert not partial.exists()


def test_rows_of_another_model_or_input_are_kept(refused, score, write, records, model_folder, tmp_path):
    output = tmp_path / "scores.jsonl"
    score(write(records[:3]), output)
    content = output.read_bytes()
    bulk = ("score", "--model", model_folder, "--output", output, "--input")
    assert "another model or input" in refused(*bulk, write(records[1:4], "other.jsonl"))
    assert "another input" in refused(*bulk, write(records[:2], "shorter.jsonl"))
    other = tmp_path / "other-model"
    shutil.copytree(model_folder, other)
    assert "another model or input" in refused(*bulk, write(records[:3]), "--model", other)
    output.write_bytes(b"no JSON\n" + content)
    assert "line 1" in refused(*bulk, write(records))
    assert output.read_bytes() == b"no JSON\n" + content


@pytest.mark.parametrize("content", ['{"precious": "one line without an end"}', "an essay " * 100, "5\n", "[1]\n"])
def test_a_file_of_somebody_else_is_refused_and_stays(refused, write, records, model_folder, tmp_path, content):
    output = tmp_path / "notes.jsonl"
    output.write_text(content)
    told = refused("score", "--input", write(records), "--output", output, "--model", model_folder)
    assert str(output) in told
    assert output.read_text() == content


def test_the_input_is_no_output(refused, write, records, model_folder, tmp_path):
    source = write(records[:1])
    link = tmp_path / "link.jsonl"
    link.symlink_to(source)
    before = source.read_bytes()
    for output in (source, link):
        assert "is the input" in refused("score", "--input", source, "--output", output, "--model", model_folder)
    assert source.read_bytes() == before


def test_it_does_not_go_on_with_other_images_or_weights(refused, score, write, records, model_folder, edits, tmp_path):
    output, model = tmp_path / "scores.jsonl", tmp_path / "model"
    shutil.copytree(model_folder, model)
    source = write(records[:4])
    assert score(source, output, "--model", model).code == 0
    rows = output.read_text()
    source = write(records[:6])  # more lines behind those that are done: it goes on
    image = edits / records[1]["edited"]
    before = image.read_bytes()
    try:
        image.write_bytes((edits / records[2]["edited"]).read_bytes())
        told = refused("score", "--input", source, "--output", output, "--model", model)
        assert "line 2 is of another model or input, or its images have changed" in told
    finally:
        image.write_bytes(before)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"reward_head_dropout": 0.5}))
    assert "line 1 is of another model" in refused("score", "--input", source, "--output", output, "--model", model)
    (model / "config.json").write_bytes((model_folder / "config.json").read_bytes())
    assert output.read_text() == rows
    assert score(source, output, "--model", model).code == 0
    assert output.read_text().startswith(rows) and len(output.read_text().splitlines()) == 6


def test_it_does_not_go_on_with_other_options_or_in_what_is_no_file(
    refused, score, write, records, model_folder, tmp_path
):
    source, output = write([{**records[0], "weight": float("nan")}, *records[1:3]]), tmp_path / "scores.jsonl"
    score(source, output)
    content = output.read_bytes()
    bulk = ("score", "--model", model_folder, "--input", source, "--output")
    assert "of another model or input" in refused(*bulk, output, "--max-pixels", 1024)
    assert output.read_bytes() == content
    assert score(source, output).code == 0
    os.link(source, tmp_path / "x.parquet.partial.jsonl")
    assert "is the input" in refused(*bulk, tmp_path / "x.parquet")
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "is no file" in refused(*bulk, tmp_path / "pipe.jsonl")


def test_csv_has_a_cell_for_each_value(score, write, records, tmp_path):
    several = {**records[1], "source": [records[1]["source"]] * 2, "instruction": 'two\n"lines", and more'}
    broken = {**records[2], "edited": "images/nowhere.png", "note": {"a": 1}}
    finished = score(write([records[0], several, broken]), tmp_path / "scores.csv")
    assert finished.code == 2 and [path.name for path in tmp_path.iterdir()] == ["scores.csv"]
    rows = list(csv.DictReader((tmp_path / "scores.csv").open(newline="")))
    assert [row["instruction"] for row in rows] == [r["instruction"] for r in (records[0], several, broken)]
    assert json.loads(rows[1]["source"]) == several["source"] and json.loads(rows[2]["note"]) == {"a": 1}
    assert (rows[0]["note"], rows[0]["error"], rows[2]["mu_overall"]) == ("", "", "")
    assert RewardScore.from_columns(rows[1]).names == ["overall", "instruction_following", "visual_quality"]


def test_objects_of_any_kind_fit_into_parquet(score, write, records, tmp_path):
    extra = {"nested": {"a": [{}]}, "empty": {}, "lists": [[], [1]], "mixed": [1, "a"], "big": 2**70}
    finished = score(write([{**records[0], **extra}, records[1]]), tmp_path / "scores.parquet")
    assert finished.code == 0, finished.err
    first, second = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    for name, value in extra.items():
        assert (json.loads(first[name]) if isinstance(first[name], str) else first[name]) == value
        assert second[name] is None


def test_two_runs_into_one_output_double_no_row(start_jrm, score, write, records, model_folder, tmp_path):
    output = tmp_path / "scores.jsonl"
    command = ("score", "--input", write(records), "--output", output, "--model", model_folder)
    ends = [running.wait() for running in [start_jrm(*command), start_jrm(*command)]]
    assert sorted(end.code for end in ends) in ([0, 0], [0, 2])
    assert all("another command is writing to" in end.err for end in ends if end.code)
    assert len(output.read_text().splitlines()) == len(records)
    assert not list(tmp_path.glob(".*.lock"))


def test_names_and_numbers_of_any_kind_are_written(score, write, records, edits, model_folder, tmp_path):
    odd = b"caf\xe9.png".decode(errors="surrogateescape")
    shutil.copy(edits / records[0]["edited"], edits / odd)
    rows = [records[0] | {"edited": odd, "number": 2**70}, records[1] | {"number": 3}]
    source = edits / "odd.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("scores.jsonl", "scores.parquet"):
        finished = score(source, tmp_path / name)
        assert finished.code == 0, finished.err
    assert json.loads((tmp_path / "scores.jsonl").read_text().splitlines()[0])["edited"] == odd
    table = pq.read_table(tmp_path / "scores.parquet").to_pylist()
    assert json.loads(table[0]["edited"]) == odd and json.loads(table[0]["number"]) == 2**70
    source.unlink()
    (edits / odd).unlink()


def test_folder_of_edits(score, images, tmp_path):
    one, two = tmp_path / "edits" / "one", tmp_path / "edits" / "deep" / "two"
    for folder in (one, two):
        folder.mkdir(parents=True)
        (folder / "instruction.txt").write_text("make it blue\n")
    for k in (1, 2, 10):
        shutil.copy(images[0], one / f"source_{k}.png")
    for k, name in enumerate(("b.png", "a.PNG"), 1):
        shutil.copy(images[k], one / name)
    shutil.copy(images[1], two / "made.png")
    finished = score(tmp_path / "edits", tmp_path / "scores.jsonl")
    assert finished.code == 0
    rows = _read(tmp_path / "scores.jsonl")
    assert [(row["edited"], row["source"]) for row in rows] == [
        ("deep/two/made.png", []),
        ("one/a.PNG", ["one/source_1.png", "one/source_2.png", "one/source_10.png"]),
        ("one/b.png", ["one/source_1.png", "one/source_2.png", "one/source_10.png"]),
    ]


# --- mistakes ---------------------------------------------------------------------------------------------------------

GOOD = {"source": None, "instruction": "make it blue", "edited": "images/heldout_000000_a.png"}


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ('{"edited": "images/', "row 2: not valid JSON"),
        ("[1]", "row 2: a record must be a JSON object"),
        ('{"instruction": "x"}', "row 2: missing edited"),
        ('{"instruction": "x", "edited": 3}', "row 2: an image must be given as a path"),
        ('{"instruction": "x", "edited": "a.png", "source": 3}', "row 2: an image must be given as a path"),
        ('{"instruction": " ", "edited": "a.png"}', "row 2: the"),
        ('{"instruction": "x", "edited": "a.png", "mu": 3}', "key 'mu'"),
        ('{"instruction": "x", "edited": "a.png", "sigma_x": 3}', "key 'sigma_x'"),
    ],
)
def test_broken_line(refused, model_folder, tmp_path, record, said):
    (tmp_path / "input.jsonl").write_text(json.dumps(GOOD) + "\n" + record + "\n")
    output = tmp_path / "scores.jsonl"
    bulk = ("score", "--model", model_folder, "--input", tmp_path / "input.jsonl", "--output", output)
    assert said in refused(*bulk)
    assert not output.exists()


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe"])
def test_input_without_samples(refused, tmp_path, content):
    (tmp_path / "input.jsonl").write_bytes(content)
    assert "input.jsonl" in refused("score", "--input", tmp_path / "input.jsonl", "--output", tmp_path / "x.jsonl")


def test_folder_without_edits_or_with_a_broken_instruction(refused, images, tmp_path):
    bulk = ("score", "--input", tmp_path, "--output", tmp_path / "x.jsonl")
    assert "holds no edit" in refused(*bulk)
    shutil.copy(images[0], tmp_path / "a.png")
    for content in (b"", b"\xff\xfe"):
        (tmp_path / "instruction.txt").write_bytes(content)
        assert str(tmp_path) in refused(*bulk)


def test_output_that_cannot_be_written(refused, write, records, tmp_path):
    (tmp_path / "file").write_text("")
    source = write(records)
    assert "cannot be written" in refused("score", "--input", source, "--output", tmp_path / "file" / "x.jsonl")
    assert "must end in" in refused("score", "--input", source, "--output", tmp_path / "x.xlsx")
    (tmp_path / "x.parquet").write_text("mine")
    assert "is there already" in refused("score", "--input", source, "--output", tmp_path / "x.parquet")
    assert (tmp_path / "x.parquet").read_text() == "mine"


def test_bulk_options_belong_together(refused, tmp_path):
    for options in (("--input", "x.jsonl"), ("--output", "x.jsonl")):
        assert "--input and --output together" in refused("score", *options)


def test_broken_lines_end_in_rows_or_in_a_sentence():
    """A few of the files that `tests/fuzz/jsonl_lines.py` makes by the thousand."""
    assert jsonl_lines.run(count=150, seed=1) == []
