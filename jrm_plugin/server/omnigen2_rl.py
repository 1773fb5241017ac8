"""OmniGen2-RL (EditScore's): a pickle with Pillow's images to `/`, lists of equal length back; `GET /ping` says 200.

The request is `{"input_images": [[image, …], …], "output_image": [image, …], "meta_datas": [dict or JSON text with
"instruction", …], "server_type": "vlm"}`. In the answer `scores`, `rewards` and `strict_rewards` are the mu of overall;
`reasoning` is empty, since a JRM writes nothing to score; `meta_data` is what came, each with its `original_index`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response

from jrm_plugin.errors import JRMError
from jrm_plugin.records.samples import OVERALL, Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.server.pickle_wires import answer_pickle, image, listed, sources
from jrm_plugin.server.service import ScoringService


def add_routes(app: FastAPI, service: ScoringService) -> None:
    @app.post("/", include_in_schema=False)
    async def omnigen2_rl(request: Request) -> Response:
        return await answer_pickle(request, service, _samples, _answer)

    @app.get("/ping", include_in_schema=False)
    async def ping() -> str:
        return "pong"


def _samples(sent: Any) -> list[Sample]:
    images = [image(value, "output_image") for value in listed(sent, "output_image")]
    of_images = [sources(value, "input_images") for value in listed(sent, "input_images", len(images))]
    instructions = [meta.get("instruction") for meta in _metas(sent, len(images))]
    return [Sample.edit(*each) for each in zip(of_images, instructions, images, strict=True)]


def _answer(sent: Any, scores: Sequence[RewardScore]) -> dict[str, Any]:
    rewards = [score.mu[OVERALL] for score in scores]
    metas = [{**meta, "original_index": number} for number, meta in enumerate(_metas(sent, len(scores)))]
    equal = {"scores": rewards, "rewards": rewards, "strict_rewards": rewards}
    return {**equal, "reasoning": [""] * len(rewards), "meta_data": metas}


def _metas(sent: Any, count: int) -> list[Mapping[str, Any]]:
    metas = []
    for number, meta in enumerate(listed(sent, "meta_datas", count)):
        try:
            meta = json.loads(meta) if isinstance(meta, str) else meta
        except (ValueError, RecursionError):
            meta = None
        if not isinstance(meta, Mapping):
            raise JRMError(f"meta_datas {number} must be a dict or the JSON of one.")
        metas.append(meta)
    return metas
