"""flow_grpo's remote rewards and verl-omni's `http_scorer_client`: a pickle of images and prompts, a pickle of numbers.

The request is `{"images": [bytes, …], "prompts": [text, …], "metadata": {…}}`, the answer `{"scores": [number, …]}`,
and the same as `outputs`, which flow_grpo's own functions read. The numbers are the mu of overall. Where `metadata` has
`ref_images` or `source_images` (a source, or a list of sources, for each image) they are edits; otherwise they are
images made from text.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response

from jrm_plugin.records.samples import OVERALL, Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.server.pickle_wires import answer_pickle, image, listed, sources
from jrm_plugin.server.service import ScoringService

SECONDS = 100.0  # the clients wait for 120
SOURCES = ("ref_images", "source_images")


def add_routes(app: FastAPI, service: ScoringService) -> None:
    @app.post("/flow_grpo", include_in_schema=False)
    async def flow_grpo(request: Request) -> Response:
        return await answer_pickle(request, service, _samples, _answer, timeout=SECONDS)


def _samples(sent: Any) -> list[Sample]:
    images = [image(value, "images") for value in listed(sent, "images")]
    prompts, metadata = listed(sent, "prompts", len(images)), sent.get("metadata")
    given = [name for name in SOURCES if isinstance(metadata, Mapping) and metadata.get(name) is not None]
    if not given:
        return [Sample.generation(prompt, made) for prompt, made in zip(prompts, images, strict=True)]
    of_images = [sources(value, given[0]) for value in listed(metadata, given[0], len(images))]
    return [Sample.edit(*each) for each in zip(of_images, prompts, images, strict=True)]


def _answer(sent: Any, scores: Sequence[RewardScore]) -> dict[str, Any]:
    rewards = [score.mu[OVERALL] for score in scores]
    return {"scores": rewards, "outputs": rewards}
