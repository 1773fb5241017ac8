"""The routes of `/v1`, whose forms `records.wire` has."""

from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ValidationError

from jrm_plugin.errors import JRMError
from jrm_plugin.records.samples import Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.records.wire import (
    BAD_SAMPLE,
    CRITIQUE,
    MODELS,
    RANK,
    SCORE,
    critiques_to_json,
    error_to_json,
    ranking_from_json,
    sample_from_json,
    score_to_json,
)
from jrm_plugin.scoring.protocol import ranked
from jrm_plugin.server import schemas
from jrm_plugin.server.errors import RequestError
from jrm_plugin.server.images import ImageOpener
from jrm_plugin.server.service import JSON_PART, Body, ScoringService, parsed_json

M = TypeVar("M", bound=BaseModel)


def add_routes(app: FastAPI, service: ScoringService) -> None:
    name = service.settings.model

    @app.post(
        SCORE,
        response_model=schemas.ScoreAnswer,
        responses=schemas.FAILURES,
        openapi_extra=_body("ScoreRequest", SCORE),
    )
    async def score(request: Request) -> Response:
        """The score of each sample, in order; one that cannot be scored has its error in its place."""

        async def respond(body: Body) -> Any:
            _, samples = await service.read(lambda: _samples(schemas.ScoreRequest, body, service.opener(body)))
            scores = await service.score(samples)
            return {"model": name, "results": [score_to_json(score) for score in scores]}

        return await service.answer(request, respond)

    @app.post(
        CRITIQUE,
        response_model=schemas.CritiqueAnswer,
        responses=schemas.FAILURES,
        openapi_extra=_body("CritiqueRequest", CRITIQUE),
    )
    async def critique(request: Request) -> Response:
        """What the model says of each sample, by dimension; it does not change the score."""

        async def respond(body: Body) -> Any:
            asked, samples = await service.read(lambda: _samples(schemas.CritiqueRequest, body, service.opener(body)))
            if not service.describe()["writes_critiques"]:
                raise RequestError("invalid", "this model writes no critiques; ask for scores.")
            if asked.dimension is not None:
                service.check_dimension(asked.dimension, or_overall=False)
            if asked.max_new_tokens > service.settings.max_new_tokens:
                most = service.settings.max_new_tokens
                raise RequestError("invalid", f"max_new_tokens may be {most} at most, not {asked.max_new_tokens}.")
            critiques = await service.ask(
                "critique",
                samples,
                options=asked.model_dump(exclude={"samples"}),
                tokens_each=asked.max_new_tokens,
                alone=asked.temperature > 0,  # what is drawn by chance is the same for the same request
            )
            return {"model": name, "results": [critiques_to_json(critique) for critique in critiques]}

        return await service.answer(request, respond)

    @app.post(
        RANK,
        response_model=schemas.RankAnswer,
        responses=schemas.FAILURES,
        openapi_extra=_body("RankFields", RANK, "RankBlocks"),
    )
    async def rank(request: Request) -> Response:
        """The candidates of one prompt, best first; those that cannot be scored stand apart with their errors."""

        async def respond(body: Body) -> Any:
            dimension, samples = await service.read(lambda: _ranking(body, service.opener(body)))
            service.check_dimension(dimension, or_overall=True)
            scores = await service.score(samples)
            good = [position for position, score in enumerate(scores) if isinstance(score, RewardScore)]
            places = ranked([scores[position] for position in good], dimension)
            return {
                "model": name,
                "dimension": dimension,
                "ranking": [{"position": good[p.position], "score": p.score.to_dict()} for p in places],
                "failed": [
                    {"position": position} | error_to_json(BAD_SAMPLE, str(score))
                    for position, score in enumerate(scores)
                    if isinstance(score, JRMError)
                ],
            }

        return await service.answer(request, respond)

    @app.get(MODELS, response_model=schemas.Models, responses={401: schemas.FAILURES[401], 503: schemas.FAILURES[503]})
    async def models(request: Request) -> Any:
        """The model that this server has, and what it takes."""
        service.check_token(request)
        service.check_ready()
        return {"models": [service.describe()]}


def _samples(model: type[M], body: Body, open_image: ImageOpener) -> tuple[M, list[Sample | JRMError]]:
    """A request, and its samples or what is wrong with them."""
    record = parsed_json(body.content)
    try:
        asked = model.model_validate(record)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "the request"
        raise RequestError("invalid", f"{where[:200]}: {first['msg'][:200]}.") from None
    return asked, [_or_error(lambda record=record: sample_from_json(record, open_image)) for record in asked.samples]


def _ranking(body: Body, open_image: ImageOpener) -> tuple[str, list[Sample | JRMError]]:
    try:
        samples, dimension = ranking_from_json(parsed_json(body.content), open_image)
    except JRMError as error:
        raise RequestError("invalid", str(error)) from None
    return dimension, samples


def _or_error(read: Callable[[], Sample]) -> Sample | JRMError:
    try:
        return read()
    except JRMError as error:
        return error


def _body(schema: str, route: str, other: str | None = None) -> dict[str, Any]:
    """The body of a route for OpenAPI; FastAPI does not read it, since the body has a limit and a thread of its own."""
    reference = {"$ref": f"#/components/schemas/{schema}"}
    if other is not None:
        reference = {"anyOf": [reference, {"$ref": f"#/components/schemas/{other}"}]}
    files = {
        "type": "object",
        "properties": {JSON_PART: {"type": "string", "description": "the JSON, whose images are cid:NAME"}},
        "additionalProperties": {"type": "string", "format": "binary"},
        "required": [JSON_PART],
    }
    content = {
        "application/json": {"schema": reference, "example": schemas.EXAMPLES[route]},
        "multipart/form-data": {"schema": files},
    }
    return {"requestBody": {"required": True, "content": content}}
