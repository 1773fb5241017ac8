"""Edit-R1's rewards (UniWorld-V2): a pickle to `/mode/<mode>`, with the source images beside the edited ones.

The request is `{"ref_images": [bytes, …], "images": [bytes, …], "prompts": [text, …], "metadatas": […]}`, the answer
`{"scores": [number, …]}`. The mode is `logits_non_cot`, which its client asks for, or `overall`, for the mu of overall;
or a dimension, for the mu of that one. Its client sends 64 images at once and the prompts of all, so that a rank's
batch may not be larger.
"""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response

from jrm_plugin.errors import JRMError
from jrm_plugin.records.samples import OVERALL, Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.server.pickle_wires import answer_pickle, image, listed, sources
from jrm_plugin.server.service import ScoringService

ITS_OWN_MODE = "logits_non_cot"


def add_routes(app: FastAPI, service: ScoringService) -> None:
    @app.post("/mode/{mode}", include_in_schema=False)
    async def edit_r1(request: Request, mode: str) -> Response:
        dimension = OVERALL if mode == ITS_OWN_MODE else mode

        def samples(sent: Any) -> list[Sample]:
            known = (ITS_OWN_MODE, OVERALL, *service.loaded_scorer.dimensions)
            if mode not in known:
                raise JRMError(f"there is no mode {mode[:100]!r}; there are {', '.join(known)}.")
            return _samples(sent)

        def answer(sent: Any, scores: Sequence[RewardScore]) -> dict[str, Any]:
            return {"scores": [score.mu[dimension] for score in scores]}

        return await answer_pickle(request, service, samples, answer)


def _samples(sent: Any) -> list[Sample]:
    images = [image(value, "images") for value in listed(sent, "images")]
    of_images = [sources(value, "ref_images") for value in listed(sent, "ref_images", len(images))]
    prompts = listed(sent, "prompts", len(images))
    return [Sample.edit(*each) for each in zip(of_images, prompts, images, strict=True)]
