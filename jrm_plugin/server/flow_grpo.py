"""flow_grpo's remote rewards and verl-omni's `http_scorer_client`: a pickle of images and prompts, a pickle of numbers.

The request is `{"images": [bytes, …], "prompts": [text, …], "metadata": {…}}`, the answer `{"scores": [number, …]}`, as
`outputs` too, which is what flow_grpo's own functions read. The numbers are the mu of overall. Where `metadata` has
`ref_images` or `source_images` (a source, or a list of sources, for each image) they are edits; otherwise they are
images made from text.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jrm_plugin.errors import JRMError
from jrm_plugin.records.samples import OVERALL, Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.server.pickles import listed

SOURCES = ("ref_images", "source_images")


def samples_in(request: Any) -> list[Sample]:
    """The samples of a request; raises a [`JRMError`] that says what of it is missing or of another form."""
    if not isinstance(request, Mapping):
        raise JRMError("the pickle must be a dict with images and prompts.")
    images = listed(request, "images")
    prompts, metadata = listed(request, "prompts", len(images)), request.get("metadata")
    given = [name for name in SOURCES if isinstance(metadata, Mapping) and metadata.get(name) is not None]
    sources = listed(metadata, given[0], len(images)) if given else [None] * len(images)
    return [Sample.edit(*each) for each in zip(sources, prompts, images, strict=True)]


def answer(request: Any, scores: Sequence[RewardScore]) -> dict[str, Any]:
    rewards = [score.mu[OVERALL] for score in scores]
    return {"scores": rewards, "outputs": rewards}
