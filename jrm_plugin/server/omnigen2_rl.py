"""OmniGen2-RL (EditScore's): a pickle with Pillow's images to `/`, lists of equal length back; `GET /ping` says 200.

The request is `{"input_images": [[image, …], …], "output_image": [image, …], "meta_datas": [dict or JSON text with
"instruction", …], "server_type": "vlm"}`. In the answer `scores`, `rewards` and `strict_rewards` are the mu of overall;
`reasoning` is empty, since a JRM writes nothing to score; `meta_data` is what came, each with its `original_index`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jrm_plugin.errors import JRMError
from jrm_plugin.records.samples import OVERALL, Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.server.pickles import listed


def samples_in(request: Any) -> list[Sample]:
    """The samples of a request; raises a [`JRMError`] that says what of it is missing or of another form."""
    if not isinstance(request, Mapping):
        raise JRMError("the pickle must be a dict with input_images, output_image and meta_datas.")
    images = listed(request, "output_image")
    sources, metas = listed(request, "input_images", len(images)), _metas(request, len(images))
    return [
        Sample.edit(source, meta.get("instruction"), image)
        for source, meta, image in zip(sources, metas, images, strict=True)
    ]


def answer(request: Any, scores: Sequence[RewardScore]) -> dict[str, Any]:
    rewards = [score.mu[OVERALL] for score in scores]
    metas = [{**meta, "original_index": number} for number, meta in enumerate(_metas(request, len(scores)))]
    equal = {"scores": rewards, "rewards": rewards, "strict_rewards": rewards}
    return {**equal, "reasoning": [""] * len(rewards), "meta_data": metas}


def _metas(request: Mapping[str, Any], count: int) -> list[Mapping[str, Any]]:
    metas = []
    for number, meta in enumerate(listed(request, "meta_datas", count)):
        try:
            meta = json.loads(meta) if isinstance(meta, str) else meta
        except (ValueError, RecursionError):
            meta = None
        if not isinstance(meta, Mapping):
            raise JRMError(f"meta_datas {number} must be a dict or the JSON of one.")
        metas.append(meta)
    return metas
