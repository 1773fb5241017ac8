"""Who writes critiques: a vision-language model on a server, asked with the prompts of appendix A, or a JRM.

A critic answers [`Question`]s into [`Answers`]. A model on a server whose answer holds no valid critique is told what
is wrong with it, and asked again.
"""

import hashlib
import json
import math
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from jrm_plugin.annotation.answers import Answers, CriticAnswer
from jrm_plugin.chat_client import Answer, ChatClient, Refused, Unavailable, object_with, text_part, without_thoughts
from jrm_plugin.data.samples import SampleDigests
from jrm_plugin.errors import JRMError, shortened
from jrm_plugin.model.rubrics import data_prompt
from jrm_plugin.records.critiques import GLOBAL_TAG, REGION_TAGS, TAG, Critique, EditRegion, RepairedCritique
from jrm_plugin.records.samples import DIMENSIONS, Sample

LOWEST, HIGHEST = 1, 4  # of the scores that appendix A has explained
SAMPLES_AT_ONCE = 16  # that a JRM criticises together: what a stop can lose
_MOST_REGIONS = len(REGION_TAGS) - 1  # those whose tags are tokens


class BoxForm(NamedTuple):
    """How a critic writes boxes: what its prompt says of them, and the place of x1, y1, x2, y2 in what it writes."""

    edges: str
    names: str
    order: tuple[int, int, int, int]
    in_pixels: bool = False


_THOUSANDTHS = "a whole number from 0 to 1000 across the image's width or height"
BOXES = {
    "xyxy": BoxForm(f"left, top, right and bottom edge, each {_THOUSANDTHS}", "[x1, y1, x2, y2]", (0, 1, 2, 3)),
    "yxyx": BoxForm(f"top, left, bottom and right edge, each {_THOUSANDTHS}", "[y1, x1, y2, x2]", (1, 0, 3, 2)),
    "pixels": BoxForm("left, top, right and bottom edge, in pixels", "[x1, y1, x2, y2]", (0, 1, 2, 3), True),
}


@dataclass(frozen=True)
class Question:
    """A sample to be criticised in a dimension; `score` is what the data give it, where they do."""

    key: str
    sample: Sample
    dimension: str
    score: float | None


class Critic(Protocol):
    """What annotation asks of a critic.

    Attributes:
        name: what it is called.
        settings: all that its answers depend on beside the question, as plain JSON.
        dimensions: in which it can be asked.
        explains_scores: whether it is asked why a sample has the score that it has, and so needs one.
        attempts: the most answers that one question may take.
    """

    name: str
    settings: Mapping[str, Any]
    dimensions: Sequence[str]
    explains_scores: bool
    attempts: int

    def key(self, sample: Sample, dimension: str, score: float | None, digests: SampleDigests) -> str:
        """The same for questions in which the same is shown."""
        ...

    def answer(self, questions: Sequence[Question], answers: Answers) -> Generator[tuple[str, str | None]]:
        """Answers questions that are open into `answers`; gives each one's key, and why it has no answer, or None.

        Raises:
            JRMError: the critic cannot be asked any more; what was answered before stays.
        """
        ...


# --- a model on a server ----------------------------------------------------------------------------------------------


class ServedCritic:
    """A vision-language model on a server.

    A prompt has the slot `{score}`, and `{instruction}` where the edit is judged by it; only with the latter are the
    source images shown (appendix A.2 shows the edited image alone).

    Args:
        client: the model.
        prompts: by dimension, where they are not those of `data_prompt`.
        dimensions: in which it is asked; by default those that have a prompt.
        boxes: how it writes boxes, of `BOXES`.
        attempts: the most answers that one question may take.

    Raises:
        JRMError: a prompt is missing or cannot be filled.
    """

    explains_scores = True

    def __init__(
        self,
        client: ChatClient,
        *,
        prompts: Mapping[str, str] | None = None,
        dimensions: Sequence[str] | None = None,
        boxes: str = "xyxy",
        attempts: int = 3,
    ):
        if boxes not in BOXES:
            raise JRMError(f"boxes must be one of {', '.join(BOXES)}, not {boxes!r}.")
        if attempts < 1:
            raise JRMError(f"a question needs at least one attempt, not {attempts}.")
        self.name, self.attempts, self._client, self._boxes = client.name, attempts, client, BOXES[boxes]
        own = dict(prompts or {})
        self.dimensions = [*dict.fromkeys(dimensions or (*DIMENSIONS, *own))]
        if idle := [name for name in own if name not in self.dimensions]:
            raise JRMError(f"there is a prompt for {idle[0]}, and it is none of {', '.join(self.dimensions)}.")
        self._for_edits = {*self.dimensions} - own.keys()
        usual = BOXES["xyxy"]
        self._prompts = {
            name: (own.get(name) or data_prompt(name))
            .replace(usual.edges, self._boxes.edges)
            .replace(usual.names, self._boxes.names)
            for name in self.dimensions
        }
        for name in self.dimensions:
            self._text("an instruction", name, HIGHEST)
        self.settings = {
            "critic": self.name,
            "options": client.options,
            "max_pixels": client.max_pixels,
            "boxes": boxes,
            "prompts": {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in self._prompts.items()},
        }
        self._lock, self._unanswered = threading.Lock(), 0  # in a row

    def key(self, sample: Sample, dimension: str, score: float | None, digests: SampleDigests) -> str:
        shows_sources = "{instruction}" in self._prompts[dimension]
        if dimension in self._for_edits and (sample.task == "response" or (shows_sources and sample.task != "edit")):
            raise JRMError(
                f"the prompt for {dimension} is about edits of an image, and it is a {sample.task}; give a prompt of "
                "your own for that dimension, or leave it out"
            )
        content = hashlib.blake2b(self._text(sample.prompt_text, dimension, score).encode(), digest_size=16)
        content.update(sample.response_text.encode())
        for image in (*self._sources(sample, dimension), "", *sample.response_images):
            content.update(digests.of_image(image) if image else b"sources end here")
        return content.hexdigest()

    def answer(self, questions: Sequence[Question], answers: Answers) -> Generator[tuple[str, str | None]]:
        self._client.on_failure = answers.count
        for k, result in self._client.each(questions, lambda question: self._answer(question, answers)):
            yield questions[k].key, str(result) if isinstance(result, JRMError) else result

    def message(self, question: Question) -> dict[str, Any]:
        """What is asked.

        Raises:
            JRMError: an image cannot be read.
        """
        sample, name = question.sample, "Image" if question.sample.task == "generation" else "Edited image"
        content = [*self._client.shown(self._sources(sample, question.dimension), "Source image")]
        content += [*self._client.shown(sample.response_images, name)]
        if sample.response_text:
            content.append(text_part(f"Answer:\n{sample.response_text}"))
        text = self._text(sample.prompt_text, question.dimension, question.score)
        return {"role": "user", "content": [*content, text_part(text)]}

    def _answer(self, question: Question, answers: Answers) -> str | None:
        first = self.message(question)
        schema = schema_of(self._prompts[question.dimension])
        earlier = answers.of(question.key)
        while len(earlier) < self.attempts:
            try:
                written = self._client.ask([first, *_what_was_wrong(earlier[-1:])], schema)
            except Refused as error:
                answer = CriticAnswer("", fault="refused by the server", problem=str(error))
            except Unavailable as error:
                with self._lock:
                    self._unanswered += 1
                    if self._unanswered > self._client.concurrency:
                        raise
                return f"unanswered: {error}"
            else:
                answer = self._read(written, question)
            with self._lock:
                self._unanswered = 0
            answers.add(question.key, answer)
            earlier.append(answer)
            if answer.critique is not None:
                break
        return None

    def _read(self, written: Answer, question: Question) -> CriticAnswer:
        took = (written.prompt_tokens, written.completion_tokens, written.seconds)
        if written.cut_off:
            return CriticAnswer(written.text, None, False, "cut off", "it was cut off at its longest length", *took)

        def box(values: Sequence[Any]) -> tuple[int, ...]:
            corners = [number_in(values[place]) for place in self._boxes.order]
            if self._boxes.in_pixels:
                width, height = self._client.picture(question.sample.response_images[0]).size
                corners = [1000 * corner / side for corner, side in zip(corners, (width, height) * 2, strict=True)]
            return tuple(map(round, corners))

        try:
            critique, repaired = read_critique(written.text, box)
        except _NoCritique as error:
            return CriticAnswer(written.text, None, False, error.fault, str(error).rstrip("."), *took)
        return CriticAnswer(written.text, critique, repaired, "", "", *took)

    def _sources(self, sample: Sample, dimension: str) -> Sequence[Any]:
        return sample.prompt_images if "{instruction}" in self._prompts[dimension] else ()

    def _text(self, instruction: str, dimension: str, score: float | None) -> str:
        try:
            return self._prompts[dimension].format(instruction=instruction, score=f"{score:g}")
        except (KeyError, IndexError, ValueError) as error:
            raise JRMError(
                f"the prompt for {dimension} cannot be filled ({error}): its slots are {{score}} and {{instruction}}, "
                "and any other brace is written twice."
            ) from error


def _what_was_wrong(answers: Sequence[CriticAnswer]) -> Iterator[dict[str, Any]]:
    """What an answer without a critique is answered with; nothing where there was none, or one that would not end."""
    for answer in answers:
        if answer.text.strip() and answer.fault != "cut off":
            yield {"role": "assistant", "content": answer.text}
            again = "Answer again, with the one JSON object and nothing else."
            yield {"role": "user", "content": [text_part(f"This answer cannot be used: {answer.problem}. {again}")]}


# --- what is read out of an answer ------------------------------------------------------------------------------------


class _NoCritique(JRMError):
    """An answer that holds no critique; `fault` says in a few words why."""

    def __init__(self, fault: str, problem: str):
        super().__init__(problem)
        self.fault = fault


def schema_of(prompt: str) -> dict[str, Any]:
    """The JSON schema of the answers to a prompt: with regions, where it asks for them."""
    whole = {"type": "integer"}
    box = {"type": "array", "items": whole}
    region = _object_schema({"id": whole, "label": {"type": "string"}, "bbox_2d": box})
    regions = {"edit_region": {"type": "array", "items": region}} if "edit_region" in prompt else {}
    return _object_schema(regions | {"reasoning": {"type": "string"}})


def _object_schema(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def read_critique(text: str, box: Callable[[Sequence[Any]], Sequence[int]]) -> tuple[Critique, bool]:
    """The critique in an answer, and whether its JSON had to be repaired or taken out of other text.

    Further keys of the object, such as the score that was given, are no part of it. Each region must be spoken of by
    its tag, each tag must have its region, and where there are regions the whole is spoken of too.

    Args:
        text: what a model wrote.
        box: makes x1, y1, x2, y2 in thousandths of what it wrote as a box.

    Raises:
        JRMError: it holds none.
    """
    text = without_thoughts(text).strip().removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    if not text:
        raise _NoCritique("empty", "nothing was written")
    try:
        record, repaired = json.loads(text), False
    except (ValueError, RecursionError):
        record, repaired = object_with(text, "reasoning"), True
    if not isinstance(record, Mapping) or "reasoning" not in record:
        raise _NoCritique("no JSON object", 'it holds no JSON object with "reasoning"')
    if repaired and text.endswith(str(record["reasoning"]).rstrip()[-8:]):  # though the server says that it is whole
        raise _NoCritique("cut off", "it ends in the middle of its reasoning")
    try:
        rows = record.get("edit_region") or []
        if not isinstance(rows, list):
            raise JRMError(f"edit_region must be a list, not {shortened(rows)}")
        critique = Critique(record["reasoning"], [_to_region(row, box) for row in rows])
    except JRMError as error:
        raise _NoCritique("no valid critique", str(error)) from error
    _check_tags(critique)
    return critique, repaired


def _to_region(row: Any, box: Callable[[Sequence[Any]], Sequence[int]]) -> EditRegion:
    if not isinstance(row, Mapping) or not {"id", "label", "bbox_2d"} <= row.keys():
        raise JRMError(f"an edit region must have id, label and bbox_2d, not be {shortened(row)}")
    values, number = row["bbox_2d"], number_in(row["id"])
    if not isinstance(values, list) or len(values) != 4:
        raise JRMError(f"bbox_2d must be a list of 4 numbers, not {shortened(values)}")
    if number != int(number):
        raise JRMError(f"the id of an edit region must be a whole number, not {number}")
    x1, y1, x2, y2 = box(values)
    region = EditRegion(int(number), row["label"], (x1, y1, x2, y2))
    if x1 == x2 or y1 == y2:
        raise JRMError(f"bbox_2d of edit region {region.id} has no area: {values!r}")
    return region


def number_in(value: Any) -> float:
    """A finite number, also one that is written as text; raises a [`JRMError`] where it is none."""
    with suppress(TypeError, ValueError, OverflowError):
        if not isinstance(value, bool) and math.isfinite(number := float(value)):
            return number
    raise JRMError(f"{shortened(value)} is no number")


def _check_tags(critique: Critique) -> None:
    spoken = {tag[1] for tag in TAG.finditer(critique.reasoning) if tag[1] is not None}
    ids = [region.id for region in critique.edit_region]
    if silent := [number for number in ids if str(number) not in spoken]:
        raise _NoCritique("a region without its tag", f"the reasoning has no <|bbox_{silent[0]}|> for that region")
    if ids and GLOBAL_TAG not in critique.reasoning:
        raise _NoCritique("no word on the whole", f"the reasoning has no {GLOBAL_TAG}")
    if any(number >= _MOST_REGIONS for number in ids):
        raise _NoCritique("too many regions", f"the ids of regions go from 0 to {_MOST_REGIONS - 1}, not to {max(ids)}")


# --- a JRM ------------------------------------------------------------------------------------------------------------


class ModelCritic:
    """A JRM, asked for its own critiques: it is not told scores, and says the same each time.

    Args:
        name: of the model.
        scorer: a `RewardScorer`.
        settings: all that its critiques depend on, as plain JSON.
        dimensions: in which it is asked; by default all of its own.

    Raises:
        JRMError: it writes no critiques, or has no such dimension.
    """

    explains_scores, attempts = False, 1

    def __init__(self, name: str, scorer: Any, settings: Mapping[str, Any], *, dimensions: Sequence[str] | None = None):
        if not hasattr(scorer, "critique"):
            raise JRMError(f"{name} gives scores and no critiques; name a JRM that writes them.")
        self.name, self._scorer, self.dimensions = name, scorer, [*(dimensions or scorer.dimensions)]
        if unknown := [each for each in self.dimensions if each not in scorer.dimensions]:
            raise JRMError(f"{name} has no dimension {unknown[0]!r}, only {', '.join(scorer.dimensions)}.")
        self.settings = {"critic": name, **settings}

    def key(self, sample: Sample, dimension: str, score: float | None, digests: SampleDigests) -> str:
        return hashlib.blake2b(dimension.encode() + b"\0" + digests(sample), digest_size=16).hexdigest()

    def answer(self, questions: Sequence[Question], answers: Answers) -> Generator[tuple[str, str | None]]:
        by_sample: dict[Sample, list[Question]] = {}  # all of its dimensions are written at once
        for question in questions:
            by_sample.setdefault(question.sample, []).append(question)
        samples = [*by_sample]
        for start in range(0, len(samples), SAMPLES_AT_ONCE):
            batch = samples[start : start + SAMPLES_AT_ONCE]
            for sample, critiques in zip(batch, self._scorer.critique(batch, on_error="return"), strict=True):
                for question in by_sample[sample]:
                    if isinstance(critiques, JRMError):
                        yield question.key, str(critiques)
                    else:
                        answers.add(question.key, _answer_of(critiques[question.dimension]))
                        yield question.key, None


def _answer_of(critique: Any) -> CriticAnswer:
    if not isinstance(critique, Critique):
        return CriticAnswer(critique.text, fault="no valid critique", problem=critique.error)
    plain = Critique(critique.reasoning, critique.edit_region)
    if isinstance(critique, RepairedCritique):
        return CriticAnswer(critique.text, plain, repaired=True)
    return CriticAnswer(critique.to_json(), plain)
