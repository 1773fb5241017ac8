"""What a server of scores and its clients send each other over HTTP: samples, scores and errors as JSON.

A sample is one of two objects. Its blocks, of any task and with any number of images:

    {"prompt": [{"type": "image", "image": IMAGE}, {"type": "text", "text": "make the cat blue"}],
     "response": [{"type": "image", "image": IMAGE}]}

or the fields of a table's row, by any name of `records.names`; `source` is an image, a list, or null or left out for an
image that was made from text alone:

    {"source": IMAGE, "instruction": "make the cat blue", "edited": IMAGE}

IMAGE is text: a `data:` URL or the base64 of an image file. A server may also take, where its operator allows it,
`https://…` and `http://…`, `file:PATH` (a file of the server's) and, in a multipart request, `cid:NAME` (the request's
part of that name).

| request | body | answer |
|---|---|---|
| `POST /v1/score` | `{"samples": [SAMPLE, …]}` | `{"model": NAME, "results": [RESULT, …]}`, in the samples' order |
| `POST /v1/critique` | `{"samples": [SAMPLE, …]}`, and the options `dimension`, `max_new_tokens`, `temperature`, `top_p`, `seed` of `RewardScorer.critique` | the same, with critiques |
| `POST /v1/rank` | a prompt, as in a sample: `prompt`, or `source` and `instruction`; `candidates`, a list of responses (blocks), or of IMAGEs; and `dimension`, which may be left out | `{"model": NAME, "dimension": NAME, "ranking": [{"position": 1, "score": SCORE}, …], "failed": [{"position": 0, "error": ERROR}]}`, best first |
| `GET /v1/models` | | `{"models": [{"name", "digest", "dimensions", "overall_rule", "writes_critiques", "calibration", "limits"}]}` |

RESULT is `{"score": SCORE}`, `{"critiques": {DIMENSION: CRITIQUE}}` or `{"error": ERROR}`: each sample has its own. SCORE
is what `RewardScore.to_dict` gives, ERROR `{"code": …, "message": …}`. A request that fails as a whole has a status from
400 on and the body `{"error": ERROR}`; `CODES` has both. `calibration` is that of `Calibration.to_dict`, or null; `limits`
are a request's `samples` and `body_bytes` at most; `digest` tells the model's weights from others', or is null.
"""  # noqa: E501 (a table)

import base64
import binascii
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jrm_plugin.errors import JRMError
from jrm_plugin.records.checks import check_keys, kind_of
from jrm_plugin.records.critiques import Critique, RepairedCritique, UnparsedCritique
from jrm_plugin.records.images import data_url_content, is_data_url, to_data_url
from jrm_plugin.records.names import ACCEPTED, names_in, refuse_near_names, value_of
from jrm_plugin.records.samples import OVERALL, Sample, StoredImage, image_block
from jrm_plugin.records.scores import RewardScore

SCORE, RANK, CRITIQUE, MODELS = "/v1/score", "/v1/rank", "/v1/critique", "/v1/models"
HEALTH, READY, METRICS = "/health", "/ready", "/metrics"
# A request sent again with the same key and the same body, within some minutes, is computed once and answered the same.
REQUEST_KEY = "Idempotency-Key"
# Seconds within which the client wants its answer; what is late is answered 504 and, if it can be, not computed.
TIMEOUT = "X-Request-Timeout"
RETRY_AFTER = "Retry-After"  # seconds, with each 503

BAD_SAMPLE = "bad_sample"  # of one sample: what is wrong with it is wrong each time
# Of a request: its status, and whether the same request may succeed later.
CODES: dict[str, tuple[int, bool]] = {
    "bad_request": (400, False),  # no JSON, or another content type
    "unauthorized": (401, False),
    "not_found": (404, False),
    "not_allowed": (405, False),
    "too_large": (413, False),  # its body
    "invalid": (422, False),  # JSON of another shape, too many samples, or a key that another body had
    "internal": (500, True),
    "overloaded": (503, True),
    "loading": (503, True),
    "stopping": (503, True),
    "late": (504, True),
}

OpenImage = Callable[[str], StoredImage]

# --- images -----------------------------------------------------------------------------------------------------------


def image_to_wire(image: StoredImage) -> str:
    """An image as a `data:` URL: a file's bytes as they are, pixels as PNG; a path is read here.

    Raises:
        JRMError: there is no such file, or it is no image.
    """
    if isinstance(image, str) and not is_data_url(image):
        try:
            image = Path(image).read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a path with a null character
            reason = getattr(error, "strerror", None) or error
            raise JRMError(f"image {image[:300]!r} cannot be read: {reason}; check the path.") from None
    return image if isinstance(image, str) else to_data_url(image)


def image_from_wire(image: str) -> bytes:
    """The bytes of a file in a `data:` URL or in base64.

    Raises:
        JRMError: it is something else.
    """
    if is_data_url(image):
        return data_url_content(image, f"image in a data: URL of {len(image)} characters")
    if ":" in image[:10]:
        raise JRMError(f"an image by {image.partition(':')[0]}: is not taken here; send its bytes in base64.")
    try:
        return base64.b64decode("".join(image.split()) + "=" * (-len("".join(image.split())) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise JRMError(f"an image of {len(image)} characters is not valid base64: {error}.") from None


# --- samples ----------------------------------------------------------------------------------------------------------


def sample_to_json(sample: Sample) -> dict[str, Any]:
    """A sample as an object with its blocks; each image is a `data:` URL.

    Raises:
        JRMError: an image cannot be read.
    """
    return {
        side: [
            image_block(image_to_wire(block["image"])) if block["type"] == "image" else dict(block) for block in blocks
        ]
        for side, blocks in (("prompt", sample.prompt), ("response", sample.response))
    }


def sample_from_json(record: object, open_image: OpenImage = image_from_wire) -> Sample:
    """The sample in an object of either form.

    Args:
        record: the object.
        open_image: gives what a sample keeps of an image for the text that stands for it.

    Raises:
        JRMError: it is none, has a key that means nothing, or what `open_image` raises.
    """
    if isinstance(record, Mapping) and "response" in record:
        check_keys(record, "a sample", required={"prompt", "response"})
        return Sample(*(_blocks(record[side], side, open_image) for side in ("prompt", "response")))
    fields = _fields(record, "a sample", ("source", "instruction", "edited"))
    edited = _image(fields["edited"], "the edited image", open_image)
    return Sample.edit(_sources(fields["source"], open_image), fields["instruction"], edited)


def ranking_from_json(record: object, open_image: OpenImage = image_from_wire) -> tuple[list[Sample | JRMError], str]:
    """The candidates in a request of `/v1/rank`, each a sample or what is wrong with it, and the dimension.

    Raises:
        JRMError: the request is none, or its prompt is wrong.
    """
    if not isinstance(record, Mapping):
        raise JRMError(f"a ranking must be an object with a prompt and candidates, not {kind_of(record)}.")
    record = dict(record)
    dimension, candidates = record.pop("dimension", OVERALL), record.pop("candidates", None)
    if not isinstance(dimension, str):
        raise JRMError(f"the dimension must be a name, not {kind_of(dimension)}.")
    if not isinstance(candidates, list) or not candidates:
        raise JRMError("candidates must be a list with at least one response.")
    if isinstance(record.get("prompt"), list):
        check_keys(record, "a ranking beside candidates and dimension", required={"prompt"})
        prompt = _blocks(record["prompt"], "prompt", open_image)
    else:
        fields = _fields(record, "a ranking", ("source", "instruction"))
        sources = _sources(fields["source"], open_image)
        prompt = list(Sample.edit(sources, fields["instruction"], b"-").prompt)

    def of_candidate(candidate: object) -> Sample | JRMError:
        try:
            if isinstance(candidate, list):
                return Sample(prompt, _blocks(candidate, "response", open_image))
            return Sample(prompt, [image_block(_image(candidate, "a candidate", open_image))])
        except JRMError as error:
            return error

    return [of_candidate(candidate) for candidate in candidates], dimension


def _fields(record: object, what: str, names: tuple[str, ...]) -> dict[str, Any]:
    """What a record holds in these fields, by whichever of their names; it has no other key."""
    if not isinstance(record, Mapping) or not all(isinstance(name, str) for name in record):
        raise JRMError(f"{what} must be an object with the keys {', '.join(names)}, not {kind_of(record)}.")
    refuse_near_names(record)
    if unknown := [name for name in record if not any(name in ACCEPTED[field] for field in names)]:
        raise JRMError(f"{what} has the key {unknown[0][:80]!r}, which means nothing here; leave it out.")
    if missing := [field for field in names if field != "source" and not names_in(record, field)]:
        raise JRMError(f"{what} has no {missing[0]!r}.")
    return {field: value_of(record, field) for field in names}


def _sources(sources: object, open_image: OpenImage) -> list[StoredImage]:
    sources = [] if sources is None else sources if isinstance(sources, list) else [sources]
    return [_image(source, "a source", open_image) for source in sources]


def _blocks(blocks: object, side: str, open_image: OpenImage) -> list[Any]:
    """Blocks with their images opened; all else that is wrong with them a `Sample` says."""
    if not isinstance(blocks, list):
        raise JRMError(f"a sample's {side} must be a list of content blocks, not {kind_of(blocks)}.")
    return [
        {**block, "image": _image(block["image"], f"an image of the {side}", open_image)}
        if isinstance(block, Mapping) and "image" in block
        else block
        for block in blocks
    ]


def _image(image: object, what: str, open_image: OpenImage) -> StoredImage:
    if not isinstance(image, str) or not image:
        raise JRMError(f"{what} must be text, a data: URL or base64, not {kind_of(image) if image != '' else 'empty'}.")
    return open_image(image)


# --- what comes back --------------------------------------------------------------------------------------------------


def error_to_json(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


def error_in(record: object) -> tuple[str, str] | None:
    """Code and message of an answer or a result that is an error; None for another."""
    error = record.get("error") if isinstance(record, Mapping) else None
    if not isinstance(error, Mapping):
        return None
    return str(error.get("code", "")), str(error.get("message", ""))


def score_to_json(score: RewardScore | JRMError) -> dict[str, Any]:
    """RESULT of a sample that was scored."""
    return error_to_json(BAD_SAMPLE, str(score)) if isinstance(score, JRMError) else {"score": score.to_dict()}


def score_from_json(record: Mapping[str, Any]) -> RewardScore | JRMError:
    """What `score_to_json` was made of.

    Raises:
        JRMError: it is no such result.
    """
    if (error := error_in(record)) is not None:
        return JRMError(error[1])
    check_keys(record, "a result", required={"score"})
    return RewardScore.from_dict(record["score"])


def critiques_to_json(critiques: Mapping[str, Critique | UnparsedCritique] | JRMError) -> dict[str, Any]:
    """RESULT of a sample that was criticised.

    A critique is `{"reasoning", "edit_region": [{"id", "label", "bbox_2d"}]}`; with `"repaired_from": text` where its
    JSON had to be repaired; and `{"unparsed": text, "error": why}` where it is none.
    """
    if isinstance(critiques, JRMError):
        return error_to_json(BAD_SAMPLE, str(critiques))
    return {"critiques": {name: _critique_to_json(critique) for name, critique in critiques.items()}}


def critiques_from_json(record: Mapping[str, Any]) -> dict[str, Critique | UnparsedCritique] | JRMError:
    """What `critiques_to_json` was made of.

    Raises:
        JRMError: it is no such result.
    """
    if (error := error_in(record)) is not None:
        return JRMError(error[1])
    check_keys(record, "a result", required={"critiques"})
    return {name: _critique_from_json(critique) for name, critique in record["critiques"].items()}


def _critique_to_json(critique: Critique | UnparsedCritique) -> dict[str, Any]:
    if isinstance(critique, UnparsedCritique):
        return {"unparsed": critique.text, "error": critique.error}
    plain = critique.to_dict()
    return plain | {"repaired_from": critique.text} if isinstance(critique, RepairedCritique) else plain


def _critique_from_json(record: Any) -> Critique | UnparsedCritique:
    if isinstance(record, Mapping) and "unparsed" in record:
        check_keys(record, "a critique", required={"unparsed", "error"})
        return UnparsedCritique(record["unparsed"], record["error"])
    check_keys(record, "a critique", required={"reasoning"}, optional={"edit_region", "repaired_from"})
    critique = Critique.from_dict({name: value for name, value in record.items() if name != "repaired_from"})
    if "repaired_from" not in record:
        return critique
    return RepairedCritique(critique.reasoning, critique.edit_region, record["repaired_from"])
