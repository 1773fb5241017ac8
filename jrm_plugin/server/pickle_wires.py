"""The forms of trainers that send pickles: each is off until the operator turns it on, and read by `pickles`."""

import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from fastapi import Request, Response
from PIL import Image

from jrm_plugin.errors import JRMError
from jrm_plugin.records.images import MeasuredFile
from jrm_plugin.records.samples import Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.server.errors import RequestError
from jrm_plugin.server.pickles import read_pickle
from jrm_plugin.server.service import Body, ScoringService


async def answer_pickle(
    request: Request,
    service: ScoringService,
    samples_in: Callable[[Any], Sequence[Sample]],
    answer: Callable[[Any, Sequence[RewardScore]], Mapping[str, Any]],
    *,
    timeout: float | None = None,
) -> Response:
    """Answers a request of such a form: a pickle, or with the status 422 the pickle `{"error": text}`.

    A form has no place for the error of one sample, so one that cannot be scored is an error of the request.

    Args:
        request: its route's.
        service: scores.
        samples_in: the samples in what was sent, or a [`JRMError`].
        answer: what is sent back, of what was sent and the scores.
        timeout: seconds, below what the form's clients wait.
    """

    async def respond(body: Body) -> Response:
        def read() -> tuple[Any, Sequence[Sample]]:
            sent = read_pickle(body.content)
            return sent, samples_in(sent)

        try:
            sent, samples = await service.read(read)
            scores = await service.score(samples)
            for position, score in enumerate(scores):
                if isinstance(score, JRMError):
                    raise JRMError(f"sample {position} cannot be scored: {score}")
            return _pickled(answer(sent, scores))
        except (JRMError, RecursionError) as error:  # the latter of JSON inside the pickle
            return _pickled({"error": str(error)}, 422)
        except RequestError as error:
            if error.code != "invalid":
                raise
            return _pickled({"error": str(error)}, 422)

    return await service.answer(request, respond, timeout=timeout)


def _pickled(content: Mapping[str, Any], status: int = 200) -> Response:
    return Response(pickle.dumps(content), status, media_type="application/octet-stream")


# --- what forms have in common ----------------------------------------------------------------------------------------


def listed(record: Any, name: str, count: int | None = None) -> list[Any]:
    """A column of a request: a list, a tuple or an array, with `count` values.

    Raises:
        JRMError: there is none, or it has another length.
    """
    values = record.get(name) if isinstance(record, Mapping) else None
    if isinstance(values, np.ndarray) and values.ndim:
        values = values.tolist() if values.dtype.kind == "U" else list(values)
    if not isinstance(values, (list, tuple)):
        raise JRMError(f"the pickle must be a dict with {name}, a list.")
    if count is not None and len(values) != count:
        raise JRMError(f"{name} must have {count} values, one for each image, not {len(values)}.")
    return [*values]


def image(value: Any, name: str) -> Any:
    """An image in a request; text is none, since a sample takes it for a path.

    Raises:
        JRMError: it is something else.
    """
    if not isinstance(value, (bytes, Image.Image, np.ndarray)):
        raise JRMError(f"each of {name} must be the bytes of an image, a PIL image or an array, not a {type(value)}.")
    return MeasuredFile(value) if isinstance(value, bytes) else value


def sources(value: Any, name: str) -> list[Any]:
    """The source images of an edit in a request: one or a list of them."""
    return [image(source, name) for source in (value if isinstance(value, (list, tuple)) else [value])]
