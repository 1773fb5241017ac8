"""`jrm annotate`: killed, it goes on; both kinds of critics; and what it says to mistakes."""

import json
import os
import shutil
import signal
import sqlite3
import time
from contextlib import closing

import pytest
from critic_server import Critic, questions_about
from judge_server import serving

from jrm_plugin import read_preferences


@pytest.fixture(scope="module")
def data(edits, tmp_path_factory):
    """ShapeEdits pairs without critiques."""
    folder = tmp_path_factory.mktemp("data")
    shutil.copytree(edits / "images", folder / "images")
    shutil.copy(edits / "train.json", folder / "train.json")
    return folder / "train.json"


def stored(folder) -> dict[str, float]:
    """When each critique was stored, by its question's key."""
    with closing(sqlite3.connect(folder / "answers.sqlite")) as answers:
        return dict(answers.execute("SELECT key, stored_at FROM answers WHERE critique IS NOT NULL").fetchall())


def test_killed_in_the_middle_it_asks_nothing_again_that_was_stored(start_jrm, jrm, data, tmp_path):
    critic, folder = Critic(bad=0.3), tmp_path / "out"
    with serving(critic) as server:
        command = ("annotate", "--data", data, "--critic", "openai:m", "--base-url", server.url)
        command += ("--output", folder, "--limit", 12, "--concurrency", 2)
        running = start_jrm(*command)
        running.wait_for(folder / "answers.sqlite")
        deadline = time.monotonic() + 120
        while len(server.requests) < 24 and time.monotonic() < deadline:
            time.sleep(0.002)
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
        kept = stored(folder)
        finished = jrm(*command, "--attempts", 9, "--json")
        pairs = read_preferences(data, progress=False).examples[:12]
        key_of = {question: key for question, key, _ in questions_about(pairs, server.url)}
    assert finished.code == 0, finished.err
    assert 0 < len(kept) < 48 and kept.items() <= stored(folder).items()
    assert {*key_of.values()} == stored(folder).keys() and len(critic.asked) > 48
    assert [key_of[question] for at, question, _ in critic.asked if at > stored(folder)[key_of[question]]] == []
    counts = json.loads(finished.out)["critiques"]
    assert counts == {"in_the_data": 0, "written": 48, "missing": 0, "without_a_score": 0}


def test_a_jrm_annotates(jrm, data, tmp_path):
    command = ("annotate", "--data", data, "--critic", "jrm:jrm-tiny", "--device", "cpu", "--limit", 2)
    finished = jrm(*command, "--output", tmp_path / "out")
    assert finished.code == 0, finished.err
    assert "critiques written" in finished.out and (tmp_path / "out" / "review.html").exists()
    pairs = read_preferences(tmp_path / "out" / "pairs.jsonl").examples
    assert len(pairs) == 2 and {*pairs[0].chosen_critiques} == {"instruction_following", "visual_quality"}


def test_missing_critiques_are_said_and_the_exit_code_is_2(jrm, data, tmp_path):
    with serving(lambda request: "It looks fine to me.") as server:
        command = ("annotate", "--data", data, "--critic", "openai:m", "--base-url", server.url, "--limit", 1)
        finished = jrm(*command, "--attempts", 1, "--output", tmp_path / "out", "--review", 0)
    assert finished.code == 2
    assert "missing critiques: 4, the first of pair 1, chosen, instruction_following: no JSON object" in finished.err
    assert len(read_preferences(tmp_path / "out" / "pairs.jsonl").examples) == 1
    assert not (tmp_path / "out" / "review.html").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--critic", "gpt-5"), "--critic must be openai:MODEL or jrm:FOLDER, not 'gpt-5'."),
        (("--critic", "jrm:jrm-tiny", "--base-url", "http://x"), "--base-url and --prompt belong to openai:MODEL"),
        (("--prompt", "mood"), "--prompt must be NAME=FILE, not 'mood'."),
        (("--prompt", "mood=none.md"), "none.md does not exist"),
        (("--dimension", "mood"), "there is a data prompt for"),
        (("--limit", 0), "--limit must be at least 1, got 0."),
        (("--attempts", 0), "a question needs at least one attempt"),
        (("--body", "max_tokens"), "--body must be a mapping such as '{max_tokens: 800}', not 'max_tokens'."),
        (("--data", "none.json"), "none.json does not exist"),
    ],
)
def test_a_mistake_is_one_sentence(refused, data, options, sentence, tmp_path):
    usual = ("--data", data, "--critic", "openai:m", "--base-url", "http://127.0.0.1:9/v1", "--output", tmp_path)
    assert sentence in refused("annotate", *usual, *options)
