"""The requests and answers of `/v1` as OpenAPI shows them; what the envelopes of requests are checked by.

What a sample is says `records.wire`, so that each is right or wrong by itself.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from jrm_plugin.records.samples import OVERALL
from jrm_plugin.records.wire import CODES

Image = Annotated[str, Field(description="an image file in base64 or as a data: URL", examples=["iVBORw0KGgo…"])]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextBlock(Strict):
    type: Literal["text"]
    text: str = Field(min_length=1, examples=["make the cat blue"])


class ImageBlock(Strict):
    type: Literal["image"]
    image: Image


class SampleBlocks(Strict):
    """A prompt and a response as content blocks: any task, any number of images."""

    prompt: list[TextBlock | ImageBlock]
    response: list[TextBlock | ImageBlock]


class SampleFields(Strict):
    """An edited image, or without a source an image that was made from text."""

    source: Image | list[Image] | None = None
    instruction: str = Field(min_length=1, examples=["make the cat blue"])
    edited: Image


def _either(*models: str) -> Any:
    return WithJsonSchema({"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in models]})


Sample = Annotated[Any, _either("SampleBlocks", "SampleFields")]


class ScoreRequest(Strict):
    samples: list[Sample]


class CritiqueRequest(Strict):
    samples: list[Sample]
    dimension: str | None = Field(None, description="only this one; by default all")
    max_new_tokens: int = Field(512, ge=1)
    temperature: float = Field(0.0, ge=0, le=100, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int = Field(0, ge=0, lt=2**63)


class RankBlocks(Strict):
    prompt: list[TextBlock | ImageBlock]
    candidates: list[list[TextBlock | ImageBlock] | Image] = Field(min_length=1)
    dimension: str = OVERALL


class RankFields(Strict):
    source: Image | list[Image] | None = None
    instruction: str = Field(min_length=1, examples=["make the cat blue"])
    candidates: list[Image] = Field(min_length=1)
    dimension: str = OVERALL


class Error(BaseModel):
    code: str = Field(examples=["bad_sample"])
    message: str


class Failure(BaseModel):
    """A request that failed as a whole, or a sample that did."""

    error: Error


class Score(BaseModel):
    """A Gaussian by dimension and `overall`; a larger mu is better."""

    mu: dict[str, float] = Field(examples=[{"instruction_following": 1.5, "visual_quality": 0.5, "overall": 1.0}])
    sigma: dict[str, float] = Field(examples=[{"instruction_following": 0.6, "visual_quality": 0.8, "overall": 0.5}])
    overall_rule: str = "mean"


class Scored(BaseModel):
    score: Score


class ScoreAnswer(BaseModel):
    model: str
    results: list[Scored | Failure]


class Criticised(BaseModel):
    critiques: dict[str, dict[str, Any]]


class CritiqueAnswer(BaseModel):
    model: str
    results: list[Criticised | Failure]


class Place(BaseModel):
    position: int = Field(description="of the candidate in the request, from 0")
    score: Score


class FailedPlace(BaseModel):
    position: int
    error: Error


class RankAnswer(BaseModel):
    """The candidates that could be scored, best first."""

    model: str
    dimension: str
    ranking: list[Place]
    failed: list[FailedPlace]


class Limits(BaseModel):
    samples: int
    body_bytes: int


class Model(BaseModel):
    name: str
    digest: str | None
    dimensions: list[str]
    overall_rule: str
    writes_critiques: bool
    calibration: dict[str, Any] | None
    limits: Limits


class Models(BaseModel):
    models: list[Model]


# Those that routes name without FastAPI's knowledge.
REQUESTS = (ScoreRequest, CritiqueRequest, RankBlocks, RankFields, SampleBlocks, SampleFields)
EXAMPLE_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAQAAAAECAIAAAAmkwkpAAAAEElEQVR42mP8z4AATAxEcQAz0QEH0oWRNwAAAABJRU5ErkJggg=="
EXAMPLES: dict[str, Any] = {
    "/v1/score": {
        "samples": [{"source": EXAMPLE_PNG, "instruction": "make the cat blue", "edited": EXAMPLE_PNG}],
    },
    "/v1/critique": {
        "samples": [{"source": EXAMPLE_PNG, "instruction": "make the cat blue", "edited": EXAMPLE_PNG}],
        "max_new_tokens": 64,
    },
    "/v1/rank": {
        "source": EXAMPLE_PNG,
        "instruction": "make the cat blue",
        "candidates": [EXAMPLE_PNG, EXAMPLE_PNG],
    },
}

# What each route that scores may answer instead.
FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure} for status in sorted({status for status, _ in CODES.values()} - {404, 405, 500})
}
# A body whose form a trainer has; its adapter says what is wrong with one.
ANY_OBJECT: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
}
