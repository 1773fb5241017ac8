"""A server on this machine that writes critiques as vision-language models do: well, badly, slowly, or not at all.

Which of it a request meets depends on its content and on how often it came, so that two runs meet the same. As a
program it serves until it is killed, and writes each request down as it comes:

    python tests/critic_server.py --port 8000 --log requests.jsonl --bad 0.3 --failing 0.2
"""

import argparse
import hashlib
import json
import random
import re
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from judge_server import JudgeServer, Reply, texts

LINES = {
    "instruction_following": "<|bbox_0|> what was asked for is seen here, worth {score}. <|global|> the rest is kept.",
    "visual_quality": "<|global|> the colours are flat and the edges sharp, worth {score}.",
    "consistency": "<|bbox_0|> this was to stay and changed, worth {score}. <|global|> the rest is kept.",
}
# What stands in place of a valid answer, some of which can be repaired.
REPAIRABLE = ("unfinished", "fenced", "in words")
BAD = ("prose", "empty", "cut off", "no region", "outside", "no tag")
FAILING = ("429", "500", "slow", "dropped")


def question_of(request: dict) -> str:
    """A digest of what is asked first, whatever was said since."""
    return hashlib.sha256(json.dumps(request["messages"][0], sort_keys=True).encode()).hexdigest()


def critique_of(request: dict) -> dict[str, Any]:
    """A valid critique, as the prompts of appendix A ask for it."""
    text = texts(request)
    score = re.search(r"Score: (\S+) of 4", text)[1]
    dimension = "instruction_following" if "Instruction:" in text else "visual_quality"
    dimension = "consistency" if "for visual consistency" in text else dimension
    record: dict[str, Any] = {"reasoning": LINES[dimension].format(score=score)}
    if "<|bbox_0|>" in record["reasoning"]:
        corner = int(question_of(request)[:4], 16) % 600
        record["edit_region"] = [{"id": 0, "label": "shape", "bbox_2d": [corner, 100, corner + 300, 500]}]
    return record


def written(kind: str, request: dict) -> Reply:
    """An answer of a kind; the good one where there is no such kind for this question."""
    record = critique_of(request)
    good = json.dumps(record)
    region = (record.get("edit_region") or [None])[0]
    if region and kind == "outside":
        region["bbox_2d"] = [10, 10, 1300, 500]
    if region and kind == "no region":
        record["edit_region"] = []
    if region and kind == "no tag":
        record["reasoning"] = record["reasoning"].replace("<|bbox_0|>", "")
    if kind == "cut off":
        choice = {"index": 0, "message": {"role": "assistant", "content": good[:-9]}, "finish_reason": "length"}
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        return 200, {"Content-Type": "application/json"}, json.dumps(body)
    answers = {
        "unfinished": good[:-1],
        "fenced": f"```json\n{good}\n```",
        "in words": f"Here is the evaluation you asked for:\n{good}\nI hope it helps.",
        "prose": "The edit looks fine to me.",
        "empty": "",
    }
    return answers.get(kind, json.dumps(record))


def questions_about(pairs: Sequence[Any], url: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """What `jrm annotate` asks of pairs: `question_of` it, its key among the answers, and the good critique."""
    from jrm_plugin.annotation.critics import Question, ServedCritic
    from jrm_plugin.chat_client import ChatClient
    from jrm_plugin.data.samples import SampleDigests

    critic, digests = ServedCritic(ChatClient("m", base_url=url)), SampleDigests()
    for pair in pairs:
        for sample, scores in ((pair.chosen, pair.chosen_scores), (pair.rejected, pair.rejected_scores)):
            for dimension in critic.dimensions:
                key = critic.key(sample, dimension, scores[dimension], digests)
                request = {"messages": [critic.message(Question(key, sample, dimension, scores[dimension]))]}
                yield question_of(request), key, critique_of(request)


class Critic:
    """The replies of a server; `bad` and `failing` are shares of the requests.

    Args:
        bad: answered with a kind of `REPAIRABLE` or `BAD`.
        failing: met with a kind of `FAILING`.
        knows_schemas: otherwise a request with a `response_format` is refused.
        slow: seconds that a slow answer takes.
        log: each request is a line of this file, as soon as it comes.
    """

    def __init__(
        self,
        *,
        bad: float = 0.0,
        failing: float = 0.0,
        knows_schemas: bool = True,
        slow: float = 1.0,
        log: Path | None = None,
        seed: int = 0,
    ):
        self._bad, self._failing, self._knows_schemas, self._slow = bad, failing, knows_schemas, slow
        self._log, self._seed, self._lock = log, seed, threading.Lock()
        self.asked: list[tuple[float, str, str]] = []  # when, what, and how it was met
        if log and log.exists():
            self.asked = [tuple(json.loads(line)) for line in log.read_text().splitlines()]

    def __call__(self, request: dict) -> Reply:
        question = question_of(request)
        with self._lock:
            times = sum(question == other for _, other, _ in self.asked)
            kind = self._kind(question, times) if self._knows_schemas or "response_format" not in request else "400"
            self.asked.append((time.time(), question, kind))
            if self._log:
                with self._log.open("a") as file:
                    file.write(json.dumps(self.asked[-1]) + "\n")
        if kind == "400":
            return 400, {"Content-Type": "application/json"}, '{"error": "response_format is not known"}'
        if kind == "429":
            return 429, {"Retry-After": "0.2"}, '{"error": "slow down"}'
        if kind == "500":
            return 500, {"retry-after-ms": "20"}, "it fell over"
        if kind == "dropped":
            return 200, {"Content-Type": "application/json", "X-Drop": "1"}, ""
        if kind == "slow":
            time.sleep(self._slow)
        return written(kind, request)

    def _kind(self, question: str, times: int) -> str:
        rng = random.Random(f"{self._seed} {question} {times}")
        share = rng.random()
        if share < self._failing:
            return rng.choice(FAILING)
        if share < self._failing + self._bad:
            return rng.choice(REPAIRABLE + BAD)
        return "good"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--bad", type=float, default=0.0)
    parser.add_argument("--failing", type=float, default=0.0)
    parser.add_argument("--slow", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    critic = Critic(bad=options.bad, failing=options.failing, slow=options.slow, log=options.log, seed=options.seed)
    JudgeServer(critic, options.port).serve_forever(0.01)


if __name__ == "__main__":
    main()
