"""`jrm audit`: what it finds, what training makes of it, and that it goes on after a stop."""

import json
import os
import signal
from pathlib import Path

import pytest
import yaml

from jrm_plugin.data.corrections import PairNames
from jrm_plugin.data.editreward import read_edit_reward
from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS

FOLDS = ("--folds", "2", "--seed", "1")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Pairs of which a fifth is labelled wrongly."""
    folder = tmp_path_factory.mktemp("noisy")
    SHAPE_EDITS.write(folder, train=30, heldout=0, language=0, seed=2, label_noise=0.2, progress=False)
    return folder / "train.json"


@pytest.fixture(scope="module")
def pairs(data):
    return read_edit_reward(data, progress=False).examples


@pytest.fixture(scope="module")
def config(backbone_folder, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    settings = {
        "model": str(backbone_folder("qwen3_vl")),
        "dimensions": ["instruction_following"],  # the data have labels in another one too
        "train_data": "what the command names",
        "output_dir": "what the command names",
        "rubrics": "short",
        "reward_head_widths": [16],
        "max_pixels": 2304,
        "max_length": 1024,
        "per_device_train_batch_size": 2,
        "gradient_checkpointing": False,
        "max_steps": 2,
        "report_to": "none",
    }
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def found(jrm, data, tmp_path_factory):
    """The folder of an audit by `jrm-tiny`, and how it ended."""
    output = tmp_path_factory.mktemp("found") / "audited"
    return output, jrm("audit", "--data", data, "--model", "jrm-tiny", "--output", output)


@pytest.fixture(scope="module")
def cross_fitted(start_jrm, jrm, data, config, tmp_path_factory):
    """The folder of an audit that was killed in its second training run, and how the same command then ended."""
    output = tmp_path_factory.mktemp("crossed") / "audited"
    command = ("audit", "--data", data, "--config", config, *FOLDS, "--output", output)
    running = start_jrm(*command)
    running.wait_for(output / "folds" / "2" / "model" / "jrm_train.json")
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    before = (output / "folds" / "1" / "model" / "model.safetensors").stat().st_mtime_ns
    assert not (output / "pairs.jsonl").exists()
    return output, before, jrm(*command)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_model_that_knows_finds_the_labels_that_were_swapped(found, pairs):
    output, finished = found
    assert finished.code == 0, finished.err
    names = PairNames()
    swapped = {names(pair) for pair in pairs if pair.info["flipped"]}
    rows = rows_of(output / "pairs.jsonl")
    assert [row["probability"] for row in rows] == sorted(row["probability"] for row in rows)
    assert {row["pair"] for row in rows} == {*map(names, pairs)}
    surest = {row["pair"] for row in rows[: len(swapped)]}
    assert len(surest & swapped) >= 0.8 * len(swapped)  # a fifth of all labels, and it is wrong itself now and then
    proposed = rows_of(output / "corrections.jsonl")
    dropped = {row["pair"] for row in proposed if row["action"] == "drop"}
    assert len(dropped & swapped) >= 0.8 * len(dropped)
    assert dropped and len({row["pair"] for row in proposed} & swapped) >= 0.8 * len(swapped)
    summary = json.loads((output / "summary.json").read_text())
    assert sum(summary["verdicts"].values()) == summary["pairs"] == 30
    assert f"{summary['verdicts']['contradicted']}" in finished.out


def test_the_page_shows_the_labels_the_scores_and_the_images(found):
    output, _ = found
    page, first = (output / "review.html").read_text(), rows_of(output / "pairs.jsonl")[0]
    assert page.index("Labels to review") < page.index(first["pair"])
    assert first["where"] in page and first["instruction"] in page and "labelled better" in page
    assert page.count("<img ") == page.count(' alt="') == 3 * 30
    assert page.count("proposed: <strong>drop</strong>") == sum(
        row["action"] == "drop" for row in rows_of(output / "corrections.jsonl")
    )


def test_training_takes_the_file_as_people_have_edited_it(found, jrm, config, data, tmp_path):
    output, _ = found
    proposed = rows_of(output / "corrections.jsonl")
    first, second, *others = proposed
    path = tmp_path / "edited.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (first, second | {"action": "flip"})))
    train = ("train", "--config", config, "--train_data", data, "--output_dir", tmp_path / "run")
    finished = jrm(*train, "--corrections", path)
    assert finished.code == 0, finished.err
    assert f"corrections of {path}: drop 1, flip 1." in finished.err
    trained = (tmp_path / "run" / "jrm_trained_pairs.txt").read_text().split()
    assert len(trained) == 29 and first["pair"].split("-")[0] not in trained
    assert second["pair"].split("-")[0] in trained
    path.write_text(json.dumps(first) + "\n")
    other = jrm(*train, "--corrections", path)
    assert other.code == 2 and "another content of corrections" in other.err
    without = jrm(*train)
    assert without.code == 2 and "another content of corrections, corrections" in without.err


def test_what_people_have_edited_is_not_written_over(found, jrm, data):
    output, _ = found
    edited = (output / "corrections.jsonl").read_text().replace('"drop"', '"flip"')
    (output / "corrections.jsonl").write_text(edited)
    again = jrm("audit", "--data", data, "--model", "jrm-tiny", "--output", output)
    assert again.code == 0 and "was there and is as it was" in " ".join(again.out.split())
    assert (output / "corrections.jsonl").read_text() == edited


def test_each_pair_is_scored_by_a_model_that_has_not_learned_from_it(cross_fitted, pairs):
    output, before, finished = cross_fitted
    assert finished.code == 0, finished.err
    assert (output / "folds" / "1" / "model" / "model.safetensors").stat().st_mtime_ns == before
    names = PairNames()
    left_out, trained = [], []
    for folder in (output / "folds" / "1", output / "folds" / "2"):
        left_out.append({row["pair"].split("-")[0] for row in rows_of(folder / "left_out.jsonl")})
        trained.append({*(folder / "model" / "jrm_trained_pairs.txt").read_text().split()})
        assert len(rows_of(folder / "scores.jsonl")) == len(left_out[-1])
    every = {names.of_samples(pair) for pair in pairs}
    assert left_out[0] | left_out[1] == every and not left_out[0] & left_out[1]
    assert trained == [every - left_out[0], every - left_out[1]]
    assert all({*row["labels"]} <= {"instruction_following", "overall"} for row in rows_of(output / "pairs.jsonl"))
    texts = [{pair.chosen.prompt_text for pair in pairs if names.of_samples(pair) in fold} for fold in left_out]
    assert not texts[0] & texts[1]
    assert len(rows_of(output / "pairs.jsonl")) == len(pairs)


def test_a_model_that_has_seen_the_pairs_is_told_of(cross_fitted, jrm, data, tmp_path):
    output, _, _ = cross_fitted
    model = output / "folds" / "1" / "model"
    command = ("audit", "--data", data, "--model", model, "--output", tmp_path / "all", "--json")
    unscored = jrm(*command)
    assert unscored.code == 2 and "is labelled in 'visual_quality', and the model scores" in unscored.err
    finished = jrm(*command[:-2], tmp_path / "one", "--json", "--dimension", "instruction_following")
    assert finished.code == 0, finished.err
    seen = len((model / "jrm_trained_pairs.txt").read_text().split())
    assert f"has learned from {seen} of these 30 pairs" in finished.err and "give --config" in finished.err
    assert json.loads(finished.out)["seen"] == seen
    assert sum(row["seen"] for row in rows_of(tmp_path / "one" / "pairs.jsonl")) == seen


def test_wrong_uses_are_one_sentence(cross_fitted, refused, data, config, edits, tmp_path):
    output, _, _ = cross_fitted
    start = ("audit", "--data", data, "--output")
    assert "needs --config with the YAML" in refused(*start, tmp_path / "new")
    assert "another max_steps" in refused(*start, output, "--config", config, *FOLDS, "--max_steps", "3")
    assert "another fold_seed" in refused(*start, output, "--config", config, *FOLDS, "--fold-seed", "3")
    assert "need --config" in refused(*start, tmp_path / "new", "--model", "jrm-tiny", "--max_steps", "3")
    assert "at least 2" in refused(*start, tmp_path / "new", "--config", config, "--folds", "1")
    texts = ("audit", "--data", edits / "language.jsonl", "--output", tmp_path / "new", "--model", "jrm-tiny")
    assert "something else than preference pairs" in refused(*texts)
    lists = tmp_path / "lists.jsonl"
    names = [str(path) for path in sorted((edits / "images").iterdir())[:4]]
    lists.write_text(json.dumps({"source": names[0], "instruction": "x", "ranked": names[1:]}) + "\n")
    ranked = ("audit", "--data", lists, "--output", tmp_path / "new", "--model", "jrm-tiny")
    assert "something else than preference pairs" in refused(*ranked)
    assert "leave streaming out" in refused(*start, tmp_path / "new", "--config", config, "--streaming", "true")
    corrections = ("--config", config, "--corrections", "x.jsonl")
    assert "leave corrections out" in refused(*start, tmp_path / "new", *corrections)
