"""A generative model as a judge, on any server that speaks OpenAI's protocol, asked with the paper's rubrics.

Pointwise it gives a sample a score of 1 to 4 in each dimension, and is a [`Scorer`]: mu is the mean of its passes,
sigma their standard deviation (0 with one pass: it has none). Pairwise it is shown both candidates, in both orders.
"""

import hashlib
import json
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any, Literal

import json_repair
from PIL import ImageOps
from tqdm.auto import tqdm

from jrm_plugin.errors import JRMError, reason, shortened
from jrm_plugin.evaluation.judges import Comparison, Row
from jrm_plugin.extras import require
from jrm_plugin.model.rubrics import default_rubrics
from jrm_plugin.records.images import ImageLike, load_image, to_data_url
from jrm_plugin.records.samples import DIMENSIONS, OVERALL, Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.scoring.protocol import Ranked, check_one_prompt, ranked

PREFIX = "openai:"
ATTEMPTS = 3  # answers that hold no judgement are asked for again
_REFUSED = (400, 413, 422)  # what a server says of one request; of others, that it cannot be used
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
        require("openai", f"the judge {PREFIX}{model}", install="jrm-plugin[judges]")
        from openai import OpenAI, OpenAIError

        if not model:
            raise JRMError(f"the judge {PREFIX} needs a model behind it, as in {PREFIX}gpt-5.")
        if passes < 1 or concurrency < 1 or retries < 0 or not timeout > 0:
            raise JRMError("a generative judge needs passes and concurrency of at least 1, and a timeout above 0.")
        key = os.environ.get("OPENAI_API_KEY") or ("none" if base_url else None)  # local servers ask for none
        try:
            self._client = OpenAI(base_url=base_url, api_key=key, max_retries=retries, timeout=timeout)
        except OpenAIError as error:
            raise JRMError(
                f"{PREFIX}{model} cannot be asked ({reason(error)}): set OPENAI_API_KEY, or name its server."
            ) from error
        self.name, self._model, self.compares, self.passes = PREFIX + model, model, compares, passes
        self._temperature, self._max_pixels, self._concurrency = temperature, max_pixels, concurrency
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
        pool = ThreadPoolExecutor(self._concurrency)
        pending = {pool.submit(ask, question): k for k, question in enumerate(questions)}
        failure: JRMError | None = None
        try:
            while pending:
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    k = pending.pop(future)
                    try:
                        yield k, future.result()
                    except _Unusable as error:
                        failure = error
                        for other in [other for other in pending if other.cancel()]:
                            del pending[other]
                    except JRMError as error:  # of this question alone, such as an image that cannot be read
                        yield k, {"error": str(error)}
            if failure is not None:
                raise JRMError(str(failure)) from failure
        finally:
            pool.shutdown(cancel_futures=True)

    def _score_of(self, sample: Sample) -> Row:
        content = [*_shown(sample.prompt_images, "Source image", self._image)]
        content += _shown(sample.response_images, "Result", self._image)
        usage = _Usage()
        scores: dict[str, list[float]] = {}
        texts: dict[str, list[str]] = {}
        for dimension in self.dimensions:
            text = f"{_criteria(self._rubrics[sample.task][dimension])}\n\n{_SCORE_FORM}\n\n{_asked(sample)}"
            for _ in range(self.passes):
                answer, score = self._ask([*content, _text(text)], parse_score, usage)
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
            content = [*_shown(question.first.prompt_images, "Source image", self._image)]
            for letter, sample in zip("AB", shown, strict=True):
                content += _shown(sample.response_images, f"Result {letter}", self._image)
                if sample.response_text:
                    content.append(_text(f"Result {letter}:\n{sample.response_text}"))
            votes.append([])
            texts.append([])
            for _ in range(self.passes):
                answer, vote = self._ask([*content, _text(text)], parse_vote, usage)
                if vote is None:
                    return {"error": f"no verdict in its answer {shortened(answer)}", **usage.columns()}
                votes[-1].append(sign * vote)
                texts[-1].append(answer)
        return {"votes": votes, "answers": texts, **usage.columns()}

    def _image(self, image: ImageLike) -> str:
        picture = load_image(image)
        if self._max_pixels and picture.width * picture.height > self._max_pixels:
            shrink = (self._max_pixels / (picture.width * picture.height)) ** 0.5
            size = max(1, int(picture.width * shrink)), max(1, int(picture.height * shrink))
            picture = ImageOps.contain(picture, size)
        return to_data_url(picture)

    def _ask(self, content: list[dict], parse: Callable[[str], Any], usage: "_Usage") -> tuple[str, Any]:
        """An answer and what is read out of it; None where a few answers hold nothing."""
        from openai import APIStatusError, OpenAIError

        options: dict[str, Any] = {} if self._temperature is None else {"temperature": self._temperature}
        text = ""
        for _ in range(ATTEMPTS):
            began = time.monotonic()
            try:
                completion = self._client.chat.completions.create(
                    model=self._model, messages=[{"role": "user", "content": content}], **options
                )
            except APIStatusError as error:
                said = f"{error.status_code}: {shortened(error.response.text)}"
                if error.status_code in _REFUSED:
                    raise JRMError(f"the server refuses it with {said}") from error
                raise _Unusable(
                    f"{self.name} answers with {said}; see to the server, and the same command goes on."
                ) from error
            except (OpenAIError, ValueError) as error:
                raise _Unusable(
                    f"{self.name} cannot be asked: {reason(error)}; see to the server, and the same command goes on."
                ) from error
            usage.add(completion, time.monotonic() - began)
            text = _content_of(completion)
            if (found := parse(text)) is not None:
                return text, found
        return text, None


class _Unusable(JRMError):
    """The server cannot be asked any more, by whatever question."""


class _Usage:
    """What the answers to one question took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.tokens = [0, 0]

    def add(self, completion: Any, seconds: float) -> None:
        self.seconds.append(seconds)
        usage = getattr(completion, "usage", None)
        for k, name in enumerate(("prompt_tokens", "completion_tokens")):
            self.tokens[k] += getattr(usage, name, None) or 0

    def columns(self) -> Row:
        return {"seconds": self.seconds, "prompt_tokens": self.tokens[0], "completion_tokens": self.tokens[1]}


# --- what is read out of an answer ------------------------------------------------------------------------------------


def parse_score(text: str) -> float | None:
    """The score of 1 to 4 in an answer: in its JSON, whole or broken, or as `score: 3`; None where there is none."""
    text = _without_thoughts(text)
    value = _in_json(text, "score")
    match = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)(?:\s*/\s*(\d+))?\s*", str(value)) if value is not None else None
    match = match or next(reversed([*_NUMBER.finditer(text)]), None)
    if match is None or (match[2] is not None and int(match[2]) != _HIGHEST):
        return None
    score = float(match[1])
    return score if _LOWEST <= score <= _HIGHEST else None


def parse_vote(text: str) -> int | None:
    """1 where an answer prefers A, -1 where B, 0 where neither; None where it does not say."""
    text = _without_thoughts(text)
    word = str(_in_json(text, "winner")).strip().lower().removeprefix("result").removeprefix("image").strip()
    if word in _VOTES:
        return _VOTES[word]
    match = next(reversed([*_VERDICT.finditer(text)]), None)
    return None if match is None else _VOTES[match[1].lower()]


def _without_thoughts(text: str) -> str:
    """What a reasoning model says after it has thought."""
    return re.sub(r"<think(?:ing)?>.*?(</think(?:ing)?>|$)", "", text, flags=re.DOTALL)


def _in_json(text: str, key: str) -> Any:
    begin = text.find("{")
    if begin < 0:
        return None
    try:
        content = json_repair.loads(text[begin:])
    except (ValueError, RecursionError):
        return None
    objects = content if isinstance(content, list) else [content]
    return next((o[key] for o in reversed(objects) if isinstance(o, Mapping) and key in o), None)


def _content_of(completion: Any) -> str:
    """The text of an answer; empty where a server sends something else."""
    try:
        text = completion.choices[0].message.content
    except (AttributeError, IndexError, TypeError):
        return ""
    return text if isinstance(text, str) else ""


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


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _shown(images: Sequence[ImageLike], name: str, to_url: Callable[[ImageLike], str]) -> Iterator[dict[str, Any]]:
    for number, image in enumerate(images, 1):
        yield _text(f"{name} {number}:" if len(images) > 1 else f"{name}:")
        yield {"type": "image_url", "image_url": {"url": to_url(image)}}
