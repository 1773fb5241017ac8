"""A generative model as a judge, on any server that speaks OpenAI's protocol, asked with the paper's rubrics.

Pointwise it gives a sample a score of 1 to 4 in each dimension, and is a [`Scorer`]: mu is the mean of its passes,
sigma their standard deviation (0 with one pass: it has none). Pairwise it is shown both candidates, in both orders.
"""

import hashlib
import json
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from tqdm.auto import tqdm

from jrm_plugin.chat_client import Answer, ChatClient, object_with, text_part, without_thoughts
from jrm_plugin.errors import JRMError, shortened
from jrm_plugin.evaluation.judges import Comparison, Row
from jrm_plugin.model.rubrics import default_rubrics
from jrm_plugin.records.samples import DIMENSIONS, OVERALL, Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.scoring.protocol import Ranked, check_one_prompt, ranked

ATTEMPTS = 3  # answers that hold no judgement are asked for again
_LOWEST, _HIGHEST = 1, 4
_TEMPLATE_END = "## How to answer"
_SCORE_FORM = (
    "## How to answer\n\nGive your reasons in a few sentences, then the score. Answer with one JSON object and nothing "
    'else:\n\n{"reasoning": "...", "score": a number from 1 to 4}'
)
_PAIR_FORM = (
    "# Which of two results is better?\n\nYou are shown the source images if there are any, the results A and B, and "
    "the instruction. Judge which result is better by what is described below. The order in which they are shown "
    "says nothing.\n\n{criteria}\n\n## How to answer\n\nGive your reasons in a few sentences, then the verdict. Answer "
    'with one JSON object and nothing else:\n\n{{"reasoning": "...", "winner": "A", "B" or "tie"}}'
)
_NUMBER = re.compile(r"\bscore\b[\s\"'`*]*[:=][\s\"'`*]*(-?\d+(?:\.\d+)?)(?:\s*/\s*(\d+))?", re.IGNORECASE)
_VERDICT = re.compile(
    r"(?:\b(?:winner|verdict|better|answer)\b[\s\"'`*]*(?:[:=]|\bis\b)[\s\"'`*]*|\[\[)(?:image|result|response)?\s*"
    r"(A|B|tie|both|neither|equal)\b",
    re.IGNORECASE,
)
_VOTES = {"a": 1, "b": -1, "tie": 0, "both": 0, "neither": 0, "equal": 0}


class GenerativeJudge:
    """A model on a server as a [`Scorer`], and as a judge of pairs.

    Args:
        model: the server's name of it.
        base_url: of the server; by default OpenAI's own, or `OPENAI_BASE_URL`. The key is `OPENAI_API_KEY`.
        compares: asks for the better of two samples, in both orders; otherwise for a score of each.
        passes: how often each question is asked.
        temperature: sent where it is given; else the server's own.
        max_pixels: larger images are scaled down to this.
        concurrency: requests at once.
        timeout: seconds after which a request is given up and sent again.
        retries: of a request that the server does not answer, with growing pauses.

    Raises:
        JRMError: the client is not installed, or there is no key where one is needed.
    """

    dimensions = [*DIMENSIONS]

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        compares: bool = False,
        passes: int = 1,
        temperature: float | None = None,
        max_pixels: int | None = None,
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 6,
    ):
        if passes < 1:
            raise JRMError(f"a generative judge needs at least one pass, not {passes}.")
        self._client = ChatClient(
            model,
            base_url=base_url,
            temperature=temperature,
            max_pixels=max_pixels,
            concurrency=concurrency,
            timeout=timeout,
            retries=retries,
        )
        self.name, self.compares, self.passes = self._client.name, compares, passes
        self._rubrics = default_rubrics("full")
        self.settings = {
            "model": model,
            "server": base_url,
            "compares": compares,
            "passes": passes,
            "temperature": temperature,
            "max_pixels": max_pixels,
            "prompts": hashlib.sha256(json.dumps([self._rubrics, _SCORE_FORM, _PAIR_FORM]).encode()).hexdigest()[:16],
        }

    # -- as a scorer

    def score(
        self, samples: Sequence[Sample], *, on_error: Literal["raise", "return"] = "raise", progress: bool = False
    ) -> list[Any]:
        """The score of each sample; asks for one of each dimension."""
        scores: list[Any] = [None] * len(samples)
        with tqdm(total=len(samples), desc="Judging", unit="sample", disable=not progress) as bar:
            for k, row in self._answer(samples, self._score_of):
                scores[k] = JRMError(row["error"]) if "error" in row else RewardScore.from_columns(row)
                if on_error == "raise" and "error" in row:
                    raise JRMError(f"sample {k} cannot be scored: {row['error']}")
                bar.update()
        return scores

    def rank(
        self, samples: Sequence[Sample], *, dimension: str = OVERALL, different_prompts: bool = False
    ) -> list[Ranked]:
        """The samples by their scores, best first."""
        if not different_prompts:
            check_one_prompt(samples)
        return ranked(self.score(samples), dimension)

    # -- as a judge

    def answer(self, questions: Sequence[Any]) -> Iterator[list[tuple[int, Row]]]:
        """One answer at a time, as they come, so that what is paid for is never lost."""
        for k, row in self._answer(questions, self._votes_of if self.compares else self._score_of):
            yield [(k, row)]

    def _answer(self, questions: Sequence[Any], ask: Callable[[Any], Row]) -> Iterator[tuple[int, Row]]:
        for k, row in self._client.each(questions, ask):
            yield k, {"error": str(row)} if isinstance(row, JRMError) else row

    def _score_of(self, sample: Sample) -> Row:
        content = [*self._client.shown(sample.prompt_images, "Source image")]
        content += self._client.shown(sample.response_images, "Result")
        usage = _Usage()
        scores: dict[str, list[float]] = {}
        texts: dict[str, list[str]] = {}
        for dimension in self.dimensions:
            text = f"{_criteria(self._rubrics[sample.task][dimension])}\n\n{_SCORE_FORM}\n\n{_asked(sample)}"
            for _ in range(self.passes):
                answer, score = self._ask([*content, text_part(text)], parse_score, usage)
                if score is None:
                    return {"error": f"{dimension}: no score in its answer {shortened(answer)}", **usage.columns()}
                scores.setdefault(dimension, []).append(score)
                texts.setdefault(dimension, []).append(answer)
        score = RewardScore(
            {name: statistics.fmean(values) for name, values in scores.items()},
            {name: statistics.stdev(values) if len(values) > 1 else 0.0 for name, values in scores.items()},
        )
        return {**score.to_columns(), "answers": texts, **usage.columns()}

    def _votes_of(self, question: Comparison) -> Row:
        usage = _Usage()
        rubrics = self._rubrics[question.first.task]
        asked = rubrics if question.dimension == OVERALL else {question.dimension: rubrics[question.dimension]}
        text = f"{_PAIR_FORM.format(criteria=_looked_at(asked))}\n\n{_prompt_of(question.first)}"
        votes: list[list[int]] = []
        texts: list[list[str]] = []
        both = (question.first, question.second)
        for shown, sign in ((both, 1), (both[::-1], -1)):
            content = [*self._client.shown(question.first.prompt_images, "Source image")]
            for letter, sample in zip("AB", shown, strict=True):
                content += self._client.shown(sample.response_images, f"Result {letter}")
                if sample.response_text:
                    content.append(text_part(f"Result {letter}:\n{sample.response_text}"))
            votes.append([])
            texts.append([])
            for _ in range(self.passes):
                answer, vote = self._ask([*content, text_part(text)], parse_vote, usage)
                if vote is None:
                    return {"error": f"no verdict in its answer {shortened(answer)}", **usage.columns()}
                votes[-1].append(sign * vote)
                texts[-1].append(answer)
        return {"votes": votes, "answers": texts, **usage.columns()}

    def _ask(self, content: list[dict], parse: Callable[[str], Any], usage: "_Usage") -> tuple[str, Any]:
        """An answer and what is read out of it; None where a few answers hold nothing."""
        text = ""
        for _ in range(ATTEMPTS):
            answer = self._client.ask([{"role": "user", "content": content}])
            usage.add(answer)
            text = answer.text
            if (found := parse(text)) is not None:
                return text, found
        return text, None


class _Usage:
    """What the answers to one question took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.tokens = [0, 0]

    def add(self, answer: Answer) -> None:
        self.seconds.append(answer.seconds)
        for k, count in enumerate((answer.prompt_tokens, answer.completion_tokens)):
            self.tokens[k] += count or 0

    def columns(self) -> Row:
        return {"seconds": self.seconds, "prompt_tokens": self.tokens[0], "completion_tokens": self.tokens[1]}


# --- what is read out of an answer ------------------------------------------------------------------------------------


def parse_score(text: str) -> float | None:
    """The score of 1 to 4 in an answer: in its JSON, whole or broken, or as `score: 3`; None where there is none."""
    text = without_thoughts(text)
    value = _value(text, "score")
    match = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)(?:\s*/\s*(\d+))?\s*", str(value)) if value is not None else None
    match = match or next(reversed([*_NUMBER.finditer(text)]), None)
    if match is None or (match[2] is not None and int(match[2]) != _HIGHEST):
        return None
    score = float(match[1])
    return score if _LOWEST <= score <= _HIGHEST else None


def parse_vote(text: str) -> int | None:
    """1 where an answer prefers A, -1 where B, 0 where neither; None where it does not say."""
    text = without_thoughts(text)
    word = str(_value(text, "winner")).strip().lower().removeprefix("result").removeprefix("image").strip()
    if word in _VOTES:
        return _VOTES[word]
    match = next(reversed([*_VERDICT.finditer(text)]), None)
    return None if match is None else _VOTES[match[1].lower()]


def _value(text: str, key: str) -> Any:
    record = object_with(text, key)
    return None if record is None else record[key]


# --- what is asked ----------------------------------------------------------------------------------------------------


def _criteria(rubric: str) -> str:
    """A rubric without the form of its answer."""
    return rubric.partition(_TEMPLATE_END)[0].strip()


def _looked_at(rubrics: Mapping[str, str]) -> str:
    """What the rubrics look at, without their scales."""
    parts = []
    for dimension, rubric in rubrics.items():
        begin, end = rubric.index("## What to look at"), rubric.index("## Scale")
        heading = dimension.replace("_", " ").capitalize()
        parts.append(rubric[begin:end].strip().replace("## What to look at", f"## {heading}"))
    return "\n\n".join(parts)


def _prompt_of(sample: Sample) -> str:
    return f"## The instruction\n\n{sample.prompt_text}"


def _asked(sample: Sample) -> str:
    answer = f"\n\n## The answer\n\n{sample.response_text}" if sample.response_text else ""
    return _prompt_of(sample) + answer
