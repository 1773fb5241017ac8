"""Flow-Factory's remote reward: `POST /compute`, lists of prompts and images in and one number each out.

The number is the overall mu. It has no place for the error of one sample, so one that cannot be scored is an error of
the request, which names it. The client tries three times and waits for a minute each.
"""

from typing import Any

from fastapi import FastAPI, Request, Response

from jrm_plugin.errors import JRMError
from jrm_plugin.records.samples import OVERALL, Sample
from jrm_plugin.server import schemas
from jrm_plugin.server.errors import RequestError
from jrm_plugin.server.images import ImageOpener
from jrm_plugin.server.service import Body, ScoringService, parsed_json

SECONDS = 50.0
LISTS = ("prompt", "image", "condition_images")


def add_routes(app: FastAPI, service: ScoringService) -> None:
    @app.post("/compute", responses=schemas.FAILURES, openapi_extra=schemas.ANY_OBJECT)
    async def flow_factory_compute(request: Request) -> Response:
        """Flow-Factory's form: a reward for each prompt and image."""

        async def respond(body: Body) -> Any:
            _, samples = await service.read(lambda: (None, _samples(body, service.opener(body))))
            rewards = []
            for position, score in enumerate(await service.score(samples)):
                if isinstance(score, JRMError):
                    raise RequestError("invalid", f"sample {position} cannot be scored: {score}")
                rewards.append(score.mu[OVERALL])
            return {"rewards": rewards}

        return await service.answer(request, respond, timeout=SECONDS)


def _samples(body: Body, open_image: ImageOpener) -> list[Sample | JRMError]:
    record = parsed_json(body.content)
    if not isinstance(record, dict):
        raise RequestError("invalid", 'Flow-Factory\'s form is {"prompt": […], "image": […], "condition_images": […]}.')
    if record.get("video") not in (None, []):
        raise RequestError("invalid", "this model scores images, and a video was sent; send its frames as images.")
    prompts, images, sources = (record.get(name) for name in LISTS)
    if not isinstance(prompts, list) or not isinstance(images, list):
        raise RequestError("invalid", "prompt and image must be lists, one of each for a sample.")
    sources = [None] * len(prompts) if sources is None else sources
    if not isinstance(sources, list) or not len(prompts) == len(images) == len(sources):
        raise RequestError("invalid", "prompt, image and condition_images must be lists of one length.")
    samples: list[Sample | JRMError] = []
    for prompt, image, own in zip(prompts, images, sources, strict=True):
        own = [] if own is None else own if isinstance(own, list) else [own]
        try:
            if not all(isinstance(text, str) and text for text in [image, *own]):
                raise JRMError("each image must be base64.")
            samples.append(Sample.edit([open_image(source) for source in own], prompt, open_image(image)))
        except JRMError as error:
            samples.append(error)
    return samples
