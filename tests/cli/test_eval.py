"""`jrm eval`: tables, numbers and a page; stopped, it goes on; and what it says to mistakes."""

import json
import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from judge_server import by_content, serving

QUICK = ("--resamples", 20, "--device", "cpu")


@pytest.fixture(scope="module")
def server():
    with serving(by_content) as server:
        yield server


@pytest.fixture(scope="module")
def run_of_two(jrm, server, tmp_path_factory):
    """A run of the built-in model and a generative judge on ShapeEdits: its folder, and how it ended."""
    folder = tmp_path_factory.mktemp("eval")
    command = ("eval", "--benchmark", "shape_edits", "--limit", 12, "--model", "jrm-tiny", "openai:m", *QUICK)
    command += ("--base-url", server.url, "--output", folder / "run", "--price", 1, 2)
    return command, folder / "run", jrm(*command)


def test_judges_of_both_kinds_stand_in_one_table(run_of_two):
    _, folder, finished = run_of_two
    assert finished.code == 0, finished.err
    assert "ShapeEdits" in finished.out and "jrm-tiny" in finished.out and "openai:m" in finished.out
    assert "openai:m: no sigma, so no calibration." in finished.out
    assert "48 requests" in finished.out and "cost 0.01" in finished.out
    judges = json.loads((folder / "results.json").read_text())["benchmarks"]["shape_edits"]["judges"]
    assert judges["jrm-tiny"]["columns"]["Overall"]["value"] > judges["openai:m"]["columns"]["Overall"]["value"]
    assert judges["jrm-tiny"]["correlations"]["visual_quality"]["spearman"] > 0.5
    records = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    assert len([r for r in records if r["dimension"] == "overall"]) == 24
    assert "| jrm-tiny |" in (folder / "table.md").read_text()


def test_the_page_shows_tables_plots_and_the_worst_mistakes(run_of_two):
    _, folder, _ = run_of_two
    page = (folder / "report.html").read_text()
    assert "The worst mistakes of openai:m" in page and "people prefer this one" in page
    assert "Calibration of jrm-tiny, overall" in page
    assert page.count('alt="source image"') >= 1 and "data:image/png;base64" in page
    assert {path.name for path in (folder / "charts").iterdir()} == {
        "shape_edits.png",
        "shape_edits_1_calibration.png",
        "shape_edits_1_risk.png",
    }


def test_the_same_command_asks_nothing_again(run_of_two, jrm, server):
    command, folder, _ = run_of_two
    before, table = len(server.requests), (folder / "table.md").read_text()
    finished = jrm(*command, "--json")
    assert finished.code == 0, finished.err
    assert json.loads(finished.out)["benchmarks"]["shape_edits"]["pairs"] == 12
    assert len(server.requests) == before and (folder / "table.md").read_text() == table


def test_pairs_of_ones_own_are_judged_in_both_orders(jrm, server, edits, tmp_path):
    pairs = json.loads((edits / "heldout.json").read_text())
    table = tmp_path / "own.jsonl"
    with table.open("w") as file:
        for pair in pairs:
            images = {name: str(edits / pair[key]) for name, key in (("x", "path1"), ("y", "path2"))}
            row = {"before": str(edits / pair["path_src"]), "do": pair["prompt"], **images, "who": "x"}
            file.write(json.dumps(row) + "\n")
    finished = jrm(
        *("eval", "--benchmark", "pair_file", "--data", table, "--model", "openai:m", "--pairwise", "--passes", 2),
        *("--columns", "{source: before, instruction: do, a: x, b: y, label: who}", *QUICK),
        *("--base-url", server.url, "--output", tmp_path / "run"),
    )
    assert finished.code == 0, finished.err
    assert "the same verdict in both orders in 100.0 %" in " ".join(finished.out.split())
    rows = [json.loads(line) for line in (tmp_path / "run" / "answers" / "openai_m.jsonl").read_text().splitlines()]
    assert len(rows) == len(pairs) and all(len(order) == 2 for row in rows for order in row["votes"])
    assert "verdicts against the one that people prefer" in (tmp_path / "run" / "report.html").read_text()


def test_killed_ten_times_it_judges_nothing_twice_and_ends_with_the_same_table(jrm, start_jrm, tmp_path):
    rng, kills = random.Random(0), 0
    with serving(partial(by_content, delay=0.005)) as server:

        def command(output: Path) -> tuple:
            named = ("eval", "--benchmark", "shape_edits", "--limit", 40, "--model", "openai:m", *QUICK)
            return *named, "--base-url", server.url, "--concurrency", 2, "--output", output

        undisturbed = jrm(*command(tmp_path / "whole"))
        assert undisturbed.code == 0, undisturbed.err
        questions = len(server.requests)
        answers = tmp_path / "killed" / "answers" / "openai_m.jsonl"
        while kills < 10:
            there = len(rows_of(answers))
            running = start_jrm(*command(tmp_path / "killed"))
            wanted = there + rng.randint(0, 8)
            while len(rows_of(answers)) < wanted:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.02))
            os.kill(running.pid, signal.SIGKILL)
            running.wait()
            kills += 1
        finished = jrm(*command(tmp_path / "killed"))
        assert finished.code == 0, finished.err
        asked = len(server.requests) - questions
    keys = [row["key"] for row in rows_of(answers)]
    assert len(keys) == len(set(keys)) == questions // 2
    assert asked <= questions + kills * 2 * 2  # a kill loses what two threads have asked of their samples
    columns = [
        json.loads((tmp_path / name / "results.json").read_text())["benchmarks"]["shape_edits"]["judges"]["openai:m"]
        for name in ("whole", "killed")
    ]
    assert columns[0]["columns"] == columns[1]["columns"] and columns[0]["dimensions"] == columns[1]["dimensions"]


def rows_of(path: Path) -> list[dict]:
    """The whole lines of a file that is being written."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--benchmark", "mmrb", "--model", "jrm-tiny"], "there is no benchmark 'mmrb'; there are edit_reward_bench"),
        (["--benchmark", "mmrb2", "mmrb2", "--model", "jrm-tiny"], "is named twice"),
        (["--benchmark", "mmrb2", "--model", "jrm-tiny"], "say where it is with --data"),
        (["--benchmark", "mmrb2", "--data", "no.json", "--model", "jrm-tiny"], "no.json does not exist"),
        (["--benchmark", "mmrb2", "shape_edits", "--data", "x", "--model", "a"], "write mmrb2=x"),
        (["--benchmark", "mmrb2", "--data", "shape_edits=x", "--model", "a"], "which --benchmark does not name"),
        (["--benchmark", "shape_edits", "--limit", "0", "--model", "a"], "--limit must be at least 1"),
        (["--benchmark", "shape_edits", "--columns", "{a: b}", "--model", "a"], "belong to the benchmark pair_file"),
        (["--benchmark", "shape_edits", "--dimension", "x", "--model", "a"], "--dimension must be NAME=NAME"),
        (["--benchmark", "shape_edits", "--limit", "2", "--model", "a", "a"], "names a judge twice"),
        (["--benchmark", "shape_edits", "--limit", "2", "--pairwise", "--model", "jrm-tiny"], "belong to openai:MODEL"),
        (["--benchmark", "shape_edits", "--limit", "2", "--model", "no-such-model"], "no-such-model"),
    ],
)
def test_a_mistake_is_one_sentence(refused, tmp_path, arguments, sentence):
    assert sentence in refused("eval", *arguments, folder=tmp_path)


def test_a_server_that_is_not_there_is_one_sentence_and_the_run_goes_on_later(jrm, tmp_path):
    named = ("eval", "--benchmark", "shape_edits", "--limit", 2, "--model", "openai:m", "--output", tmp_path / "run")
    with serving(lambda request: (401, {}, "no key")) as server:
        finished = jrm(*named, "--base-url", server.url, *QUICK)
        assert finished.code == 2 and "openai:m answers with 401: 'no key'" in finished.err
        server.reply = by_content
        assert jrm(*named, "--base-url", server.url, *QUICK).code == 0
