"""Edit-R1's rewards (UniWorld-V2): a pickle to `/mode/<mode>`, with the source images beside the edited ones.

The request is `{"ref_images": [bytes, …], "images": [bytes, …], "prompts": [text, …], "metadatas": […]}`, the answer
`{"scores": [number, …]}`. The mode is `logits_non_cot`, which its client asks for, or `overall`, for the mu of overall;
or a dimension, for the mu of that one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jrm_plugin.errors import JRMError
from jrm_plugin.records.samples import OVERALL, Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.server.pickles import listed

ITS_OWN_MODE = "logits_non_cot"


def dimension_of(mode: str, dimensions: Sequence[str]) -> str:
    """The dimension that a mode stands for; raises a [`JRMError`] for one that stands for none."""
    if mode in (ITS_OWN_MODE, OVERALL):
        return OVERALL
    if mode not in dimensions:
        known = ", ".join((ITS_OWN_MODE, OVERALL, *dimensions))
        raise JRMError(f"there is no mode {mode[:100]!r}; there are {known}.")
    return mode


def samples_in(request: Any) -> list[Sample]:
    """The samples of a request; raises a [`JRMError`] that says what of it is missing or of another form."""
    if not isinstance(request, Mapping):
        raise JRMError("the pickle must be a dict with ref_images, images and prompts.")
    images = listed(request, "images")
    columns = (listed(request, name, len(images)) for name in ("ref_images", "prompts"))
    return [Sample.edit(source, prompt, image) for source, prompt, image in zip(*columns, images, strict=True)]


def answer(scores: Sequence[RewardScore], dimension: str) -> dict[str, Any]:
    return {"scores": [score.mu[dimension] for score in scores]}
