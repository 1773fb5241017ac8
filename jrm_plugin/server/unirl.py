"""UniRL's reward service: `POST /score`, and what its client checks in `GET /health`.

A request has for each image a history of turns, which are the source and the edited image, or the made image alone, and
the names of the rewards that are wanted. The client takes the first of a reward's numbers, their mean or their largest,
so `jrm` has the overall score first and then the dimensions', and no sigma. Each dimension is a reward of its own too,
`jrm_visual_quality`, for trainers that keep their advantages apart.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response

from jrm_plugin.errors import JRMError
from jrm_plugin.records.samples import Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.server import schemas
from jrm_plugin.server.errors import RequestError
from jrm_plugin.server.images import ImageOpener
from jrm_plugin.server.service import Body, ScoringService, parsed_json

REWARD = "jrm"
SECONDS = 240.0  # the client waits for 300 and then sends everything again


def rewards(dimensions: Sequence[str]) -> dict[str, list[str]]:
    """The names of the rewards and of the numbers of each."""
    return {REWARD: ["overall", *dimensions]} | {f"{REWARD}_{name}": [name] for name in dimensions}


def add_routes(app: FastAPI, service: ScoringService) -> None:
    @app.post("/score", responses=schemas.FAILURES, openapi_extra=schemas.ANY_OBJECT)
    async def unirl_score(request: Request) -> Response:
        """UniRL's form: for each request, numbers by reward, and errors by reward."""

        async def respond(body: Body) -> Any:
            asked_for, samples = await service.read(lambda: _requests(body, service.opener(body)))
            scores = await service.score(samples)
            names = rewards(service.loaded_scorer.dimensions)
            answers = [_answer(score, wanted, names) for score, wanted in zip(scores, asked_for, strict=True)]
            return {"results": [result for result, _ in answers], "errors": [errors for _, errors in answers]}

        return await service.answer(request, respond, timeout=SECONDS)


def _requests(body: Body, open_image: ImageOpener) -> tuple[list[list[str]], list[Sample | JRMError]]:
    """The rewards that each request wants, and its sample or what is wrong with it."""
    record = parsed_json(body.content)
    requests = record.get("requests") if isinstance(record, dict) else None
    if not isinstance(requests, list):
        raise RequestError("invalid", 'UniRL\'s form is {"requests": [{"history", "required_rewards"}]}.')
    asked_for: list[list[str]] = []
    samples: list[Sample | JRMError] = []
    for item in requests:
        wanted = item.get("required_rewards") if isinstance(item, dict) else None
        if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
            raise RequestError("invalid", "each request must have required_rewards, a list of names.")
        asked_for.append(wanted)
        try:
            samples.append(_sample(item.get("history"), open_image))
        except JRMError as error:
            samples.append(error)
    return asked_for, samples


def _sample(history: Any, open_image: ImageOpener) -> Sample:
    if not isinstance(history, list) or len(history) not in (1, 2) or not all(isinstance(t, dict) for t in history):
        raise JRMError("its history must be one turn, or a source and an edited image.")
    images = [turn.get("image_b64") for turn in history]
    if not all(isinstance(image, str) and image for image in images):
        raise JRMError("each turn of its history must have image_b64; videos and paths are not taken.")
    *source, edited = map(open_image, images)
    return Sample.edit(source, history[-1].get("text"), edited)


def _answer(
    score: RewardScore | JRMError, wanted: Sequence[str], names: Mapping[str, Sequence[str]]
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    if isinstance(score, JRMError):
        return {}, {name: str(score) for name in wanted}
    result = {name: {part: score.mu[part] for part in names[name]} for name in wanted if name in names}
    return result, {name: f"there is no such reward; there are {', '.join(names)}." for name in {*wanted} - {*names}}
