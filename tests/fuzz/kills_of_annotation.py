"""Kills `jrm annotate` and the server that it asks at random moments, and looks at what is left.

    python tests/fuzz/kills_of_annotation.py [--pairs 500] [--kills 5] [--seed 0] [--figures FILE]

ShapeEdits pairs are annotated by a server that answers well, badly, slowly, with 429 and 500, and drops connections.
The command is killed (SIGKILL) again and again, once it is interrupted (SIGINT), and the server is killed twice: it
comes back within the command's retries once, and only after the command has ended once. In the end every critique must
be there, valid, and the one that the server wrote for this very question; and no question may have come to the server
after its critique was stored. Not collected by pytest: it takes minutes.
"""

import argparse
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
sys.path.append(os.path.join(os.path.dirname(__file__), ".."))

from critic_server import questions_about
from processes import start, wait

import jrm_plugin.annotation.annotating
import jrm_plugin.annotation.review
import jrm_plugin.cli.annotate  # noqa: F401  these are imported once, before the processes are forked
from jrm_plugin import read_preferences
from jrm_plugin.records.critiques import Critique
from jrm_plugin.records.samples import DIMENSIONS
from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS

TESTS = Path(__file__).parents[1]


@dataclass
class Server:
    """The server's process, and the one port at which each of them listens."""

    folder: Path
    bad: float
    failing: float
    port: int = 0
    process: subprocess.Popen | None = None
    deaths: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def asked(self) -> list[list]:
        return [json.loads(line) for line in (self.folder / "requests.jsonl").read_text().splitlines()]

    def rise(self) -> None:
        if not self.port:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
        command = [sys.executable, str(TESTS / "critic_server.py"), "--port", str(self.port), "--slow", "1.5"]
        command += ["--log", str(self.folder / "requests.jsonl")]
        command += ["--bad", str(self.bad), "--failing", str(self.failing)]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                time.sleep(0.02)

    def die(self) -> None:
        self.process.kill()
        self.process.wait()
        self.deaths += 1


@dataclass
class Story:
    """What happened, and what was found wrong."""

    runs: int = 0
    kills: int = 0
    interrupts: int = 0
    wrong: list[str] = field(default_factory=list)


def annotate_with_mishaps(
    command: list[str], server: Server, kills: int, calm: float, rng: random.Random, errors: Path
) -> Story:
    """Runs the command to its end through all mishaps, the next of which comes after up to `calm` seconds."""
    story = Story()
    mishaps = ["kill"] * kills + ["interrupt", "server dies", "server dies for long"]
    rng.shuffle(mishaps)
    attempts = 3
    while True:
        pid = start([*command, "--attempts", str(attempts)], errors)
        story.runs += 1
        if mishaps:
            time.sleep(rng.uniform(0.2, 1.0) * calm)
            match mishaps.pop():
                case "kill":
                    os.kill(pid, signal.SIGKILL)
                    story.kills += 1
                case "interrupt":
                    os.kill(pid, signal.SIGINT)
                    story.interrupts += 1
                case "server dies":
                    server.die()
                    time.sleep(1.0)
                    server.rise()
                    time.sleep(rng.uniform(1.0, 3.0))
                    os.kill(pid, signal.SIGKILL)  # it went on, and has something to lose again
                    story.kills += 1
                case "server dies for long":
                    server.die()
                    code = wait(pid)
                    if code != 2 or "the same command goes on" not in errors.read_text():
                        story.wrong.append(f"a dead server: exit code {code}, {errors.read_text()[-300:]}")
                    server.rise()
                    continue
            wait(pid)
            continue
        code = wait(pid)
        if code == 0:
            return story
        if code != 2 or "missing critiques" not in errors.read_text() or attempts > 20:
            story.wrong.append(f"exit code {code}: {errors.read_text()[-300:]}")
            return story
        attempts += 3


def check(output: Path, data: Path, server: Server, story: Story) -> dict[str, int]:
    """What is wrong with the set and with the order of requests and answers; counts of both."""
    pairs = read_preferences(data, progress=False).examples
    annotated = read_preferences(output / "pairs.jsonl", progress=False).examples
    if [(pair.labels, pair.chosen_scores) for pair in annotated] != [(p.labels, p.chosen_scores) for p in pairs]:
        story.wrong.append(f"{len(annotated)} pairs of {len(pairs)}, with other labels or scores")
    written = [
        critiques.get(dimension)
        for pair in annotated
        for critiques in (pair.chosen_critiques, pair.rejected_critiques)
        for dimension in DIMENSIONS
    ]
    questions = list(questions_about(pairs, server.url))
    key_of = {question: key for question, key, _ in questions}
    for number, (critique, (*_, good)) in enumerate(zip(written, questions, strict=True)):
        if critique != Critique.parse(json.dumps(good)):
            story.wrong.append(f"place {number} has another critique, or none")
    stored = sqlite3.connect(output / "answers.sqlite")
    stored_at = dict(stored.execute("SELECT key, stored_at FROM answers WHERE critique IS NOT NULL").fetchall())
    if stored_at.keys() != {*key_of.values()}:
        story.wrong.append("the stored critiques are not those of the questions")
    asked_after = [key_of[question] for at, question, _ in server.asked if at > stored_at[key_of[question]]]
    if asked_after:
        story.wrong.append(f"{len(asked_after)} requests came after the critique was stored")
    return {
        "critiques": len(written),
        "questions": len(key_of),
        "requests": len(server.asked),
        "answers_stored": stored.execute("SELECT count(*) FROM answers").fetchone()[0],
        "answered_badly": stored.execute("SELECT count(*) FROM answers WHERE critique IS NULL").fetchone()[0],
        "repaired": stored.execute("SELECT count(*) FROM answers WHERE repaired").fetchone()[0],
        "requests_after_the_critique_was_stored": len(asked_after),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--bad", type=float, default=0.3, help="share of requests that are answered badly")
    parser.add_argument("--failing", type=float, default=0.2, help="share that meet 429, 500, a wait, no connection")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figures", type=Path, help="JSON file for what was counted")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="annotation-"))
    counts = {"train": options.pairs, "heldout": 0, "language": 0}
    data = SHAPE_EDITS.write(folder / "data", **counts, seed=options.seed, progress=False) / "train.json"
    (folder / "data" / "train_critiques.jsonl").unlink()
    server = Server(folder, options.bad, options.failing)
    server.rise()
    began = time.monotonic()
    command = ["annotate", "--data", str(data), "--critic", "openai:m", "--base-url", server.url]
    command += ["--output", str(folder / "out"), "--timeout", "1", "--retries", "3", "--review", "20"]
    story = annotate_with_mishaps(command, server, options.kills, 2 + options.pairs / 50, rng, folder / "err")
    seconds = time.monotonic() - began
    figures = {
        "pairs": options.pairs,
        "seed": options.seed,
        "runs": story.runs,
        "kills": story.kills,
        "interrupts": story.interrupts,
        "deaths_of_the_server": server.deaths,
        **({} if story.wrong else check(folder / "out", data, server, story)),
        "requests_by_kind": dict(Counter(kind for *_, kind in server.asked).most_common()),
        "wrong": len(story.wrong),
        "seconds": round(seconds),
    }
    server.die()
    for problem in story.wrong[:20]:
        print(problem)
    print(json.dumps(figures, indent=1))
    if options.figures:
        options.figures.write_text(json.dumps(figures, indent=1) + "\n")
    if not story.wrong:
        shutil.rmtree(folder)
    return 1 if story.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
