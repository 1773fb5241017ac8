"""The records everything else is written in: what is scored, what is learned from, and what comes out.

All of them are frozen, can be pickled and compared, and check themselves when made. Images inside are paths (`str`),
`data:` URLs (`str`), `bytes` or `PIL.Image`s; `jrm_plugin.images.load_image` opens them when they are needed.
"""

import json
import math
import numbers
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from PIL import Image

from jrm_plugin.errors import JRMError
from jrm_plugin.images import load_image, to_data_url

DIMENSIONS = ("instruction_following", "visual_quality")  # the default, in order; a model's config may hold others
OVERALL = "overall"
TASKS = ("edit", "generation", "response")

# --- what is scored ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """What is scored: a prompt and a response, each a sequence of content blocks in the Hugging Face chat form.

    A block is `{"type": "image", "image": image}` or `{"type": "text", "text": str}`. Lists are accepted and stored as
    tuples; a `Path` is stored as `str`, a numpy array as the `PIL.Image` that `load_image` makes of it. The prompt must
    hold text (the instruction or the question), the response at least one block.

    Example:
        >>> sample = Sample.edit("cat.png", "make the cat blue", "blue-cat.png")
        >>> sample.task
        'edit'
    """

    prompt: tuple[dict, ...]
    response: tuple[dict, ...]

    def __post_init__(self):
        object.__setattr__(self, "prompt", _blocks(self.prompt, "prompt"))
        object.__setattr__(self, "response", _blocks(self.response, "response"))
        if not self.prompt_text:
            raise JRMError("a sample's prompt has no text: give the instruction or the question.")
        if not self.response:
            raise JRMError("a sample has no response: give the image or the text to be scored.")

    @classmethod
    def edit(cls, source, instruction: str, edited) -> "Sample":
        """An edited image; `source` is one image, a list of images or `None` (then it is a generation)."""
        return cls(_prompt(source, _text_block(instruction, "instruction")), (_image_block(edited),))

    @classmethod
    def generation(cls, instruction: str, image) -> "Sample":
        """An image made from text alone."""
        return cls.edit(None, instruction, image)

    @classmethod
    def text_response(cls, images, question: str, text: str) -> "Sample":
        """A text answer to a question about images; `images` as `source` in `edit`."""
        return cls(_prompt(images, _text_block(question, "question")), (_text_block(text, "response text"),))

    @property
    def task(self) -> str:
        """`edit` (an image made from images), `generation` (an image made from text) or `response` (a text)."""
        if not self.response_images:
            return "response"
        return "edit" if self.prompt_images else "generation"

    @property
    def prompt_images(self) -> tuple:
        return tuple(block["image"] for block in self.prompt if block["type"] == "image")

    @property
    def response_images(self) -> tuple:
        return tuple(block["image"] for block in self.response if block["type"] == "image")

    @property
    def prompt_text(self) -> str:
        return "\n".join(block["text"] for block in self.prompt if block["type"] == "text")

    @property
    def response_text(self) -> str:
        return "\n".join(block["text"] for block in self.response if block["type"] == "text")


def _prompt(images, text_block: dict) -> tuple[dict, ...]:
    """The images first, then the text; `images` is one image, a list or `None`."""
    images = [] if images is None else images if isinstance(images, (list, tuple)) else [images]
    return (*map(_image_block, images), text_block)


def _image_block(image) -> dict:
    return {"type": "image", "image": image}


def _text_block(text, what: str) -> dict:
    return {"type": "text", "text": _text(text, what)}


def _blocks(blocks, side: str) -> tuple[dict, ...]:
    if not isinstance(blocks, (list, tuple)):
        raise JRMError(f"a sample's {side} must be a list of content blocks, not {_kind(blocks)}.")
    return tuple(_block(block, f"{side} block {position}") for position, block in enumerate(blocks))


def _block(block, where: str) -> dict:
    if not isinstance(block, Mapping) or block.get("type") not in ("image", "text"):
        raise JRMError(f'{where} must be a dict with "type" "image" or "text", not {str(block)[:80]}.')
    kind = block["type"]
    if set(block) != {"type", kind}:
        raise JRMError(f'{where} must have the keys "type" and "{kind}" and no other, not {sorted(map(str, block))}.')
    if kind == "text":
        return _text_block(block["text"], f"text of {where}")
    return _image_block(_image(block["image"], where))


def _image(image, where: str):
    """The image in a form that can be compared and pickled; files are not opened here."""
    if isinstance(image, np.ndarray):
        return load_image(image, name=where)
    if isinstance(image, os.PathLike):
        image = os.fspath(image)
    if not isinstance(image, (str, bytes, Image.Image)):
        raise JRMError(f"image of {where} must be a PIL image, path, bytes, data: URL or array, not {_kind(image)}.")
    if isinstance(image, (str, bytes)) and not image:
        raise JRMError(f"image of {where} is empty: give a path, a data: URL or the bytes of a file.")
    return image


# --- critiques --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EditRegion:
    """A region that was edited: `bbox_2d` is x1, y1, x2, y2 in thousandths of the image's width and height."""

    id: int
    label: str
    bbox_2d: tuple[int, int, int, int]

    def __post_init__(self):
        _whole(self.id, "the id of an edit region")
        if self.id < 0:
            raise JRMError(f"the id of an edit region must be 0 or more, not {self.id}.")
        _text(self.label, f"label of edit region {self.id}")
        if not isinstance(self.bbox_2d, (list, tuple)) or len(self.bbox_2d) != 4:
            raise JRMError(f"bbox_2d of edit region {self.id} must be [x1, y1, x2, y2], not {self.bbox_2d!r}.")
        for value in self.bbox_2d:
            _whole(value, f"a coordinate of edit region {self.id}")
        x1, y1, x2, y2 = self.bbox_2d
        if not (0 <= x1 <= x2 <= 1000 and 0 <= y1 <= y2 <= 1000):
            raise JRMError(
                f"bbox_2d of edit region {self.id} must be x1 <= x2, y1 <= y2 in 0..1000, not {self.bbox_2d!r}."
            )
        object.__setattr__(self, "bbox_2d", (x1, y1, x2, y2))


@dataclass(frozen=True)
class Critique:
    """A judgement in words (appendices A and C of the paper), as the model learns to write it.

    `reasoning` refers to a region by `<|bbox_k|>`, with k its id, and to the image as a whole by `<|global|>`. Every
    `<|bbox_k|>` must have its region.
    """

    reasoning: str
    edit_region: tuple[EditRegion, ...] = ()

    def __post_init__(self):
        _text(self.reasoning, "reasoning of a critique")
        if not isinstance(self.edit_region, (list, tuple)):
            raise JRMError(f"edit_region of a critique must be a list of regions, not {_kind(self.edit_region)}.")
        if not all(isinstance(region, EditRegion) for region in self.edit_region):
            raise JRMError("edit_region of a critique must hold EditRegions: read dicts with Critique.parse.")
        object.__setattr__(self, "edit_region", tuple(self.edit_region))
        ids = [region.id for region in self.edit_region]
        if len(set(ids)) < len(ids):
            raise JRMError(f"the edit regions of a critique must have different ids, not {ids}.")
        for tag, digits in re.findall(r"(<\|bbox_([0-9]+)\|>)", self.reasoning):
            if digits not in map(str, ids):
                raise JRMError(f"the reasoning of a critique refers to {tag}, and no edit region has that id.")

    def to_json(self) -> str:
        """Compact JSON; `edit_region` comes first and is left out when there is none."""
        record: dict[str, Any] = {}
        if self.edit_region:
            record["edit_region"] = [
                {"id": region.id, "label": region.label, "bbox_2d": list(region.bbox_2d)} for region in self.edit_region
            ]
        record["reasoning"] = self.reasoning
        return json.dumps(record, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def parse(cls, text: str) -> "Critique":
        """Read `to_json`'s form, strictly: other keys, other types or anything around the JSON is an error."""
        try:
            return cls._from_dict(json.loads(text, object_pairs_hook=_dict_without_repeats))
        except (JRMError, ValueError, RecursionError) as error:
            raise JRMError(f"not a valid critique: {str(error).rstrip('.')}; it begins {text[:80]!r}.") from None

    @classmethod
    def from_appendix_a(cls, record: Mapping) -> "Critique":
        """Read a record whose boxes are ymin, xmin, ymax, xmax, the order of the paper's appendix A.1."""
        return cls._from_dict(record, box=lambda ymin, xmin, ymax, xmax: (xmin, ymin, xmax, ymax))

    @classmethod
    def _from_dict(cls, record, box=lambda *corners: corners) -> "Critique":
        _keys(record, "a critique", required={"reasoning"}, optional={"edit_region"})
        rows = record.get("edit_region", [])
        if not isinstance(rows, (list, tuple)):
            raise JRMError(f"edit_region of a critique must be a list, not {_kind(rows)}.")
        for row in rows:
            _keys(row, "an edit region", required={"id", "label", "bbox_2d"})
            if not isinstance(row["bbox_2d"], (list, tuple)) or len(row["bbox_2d"]) != 4:
                raise JRMError(f"bbox_2d of an edit region must be a list of 4 whole numbers, not {row['bbox_2d']!r}.")
        regions = tuple(EditRegion(row["id"], row["label"], box(*row["bbox_2d"])) for row in rows)
        return cls(record["reasoning"], regions)


def _dict_without_repeats(pairs: list[tuple[str, Any]]) -> dict:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise JRMError("a key occurs twice")
    return record


def _keys(record, what: str, *, required: set[str], optional: set[str] = frozenset()) -> None:
    if not isinstance(record, Mapping):
        raise JRMError(f"{what} must be an object with the keys {sorted(required)}, not {_kind(record)}.")
    if not required <= set(record) <= required | optional:
        raise JRMError(f"{what} must have the keys {sorted(required | optional)}, not {sorted(map(str, record))}.")


# --- what is learned from ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PreferencePair:
    """Two samples with one prompt and what is known of their order.

    Attributes:
        chosen, rejected: the samples.
        labels: by dimension or `"overall"`: 1 (chosen is better), 0 (a tie) or -1 (rejected is better). A missing label
            is derived where both sides have a score of that name; equal scores are a tie.
        chosen_scores, rejected_scores: scores by dimension or `"overall"`, 1 to 4 in the paper; any finite number here.
        chosen_critiques, rejected_critiques: critiques by dimension.
        info: what else the record says (kind of edit, models, file and row).
    """

    chosen: Sample
    rejected: Sample
    labels: Mapping[str, int] = field(default_factory=dict)
    chosen_scores: Mapping[str, float] | None = None
    rejected_scores: Mapping[str, float] | None = None
    chosen_critiques: Mapping[str, Critique] = field(default_factory=dict)
    rejected_critiques: Mapping[str, Critique] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        for side in ("chosen", "rejected"):
            if not isinstance(getattr(self, side), Sample):
                raise JRMError(f"{side} of a pair must be a Sample, not {_kind(getattr(self, side))}.")
            for name, read in (("scores", _score), ("critiques", _critique)):
                values = getattr(self, f"{side}_{name}")
                if values is not None or name == "critiques":
                    object.__setattr__(self, f"{side}_{name}", _by_dimension(values, f"{side}_{name}", read))
        if self.chosen.prompt != self.rejected.prompt:
            raise JRMError("the two samples of a pair must have the same prompt: same images, same text, same order.")
        chosen, rejected = self.chosen_scores or {}, self.rejected_scores or {}
        both = [name for name in chosen if name in rejected]
        derived = {name: (chosen[name] > rejected[name]) - (chosen[name] < rejected[name]) for name in both}
        labels = derived | _by_dimension(self.labels, "labels", _label)
        if not labels:
            raise JRMError("a pair has no label: give one for a dimension or overall, or scores of both samples.")
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "info", _info(self.info))


@dataclass(frozen=True)
class CritiqueExample:
    """A sample and the text to learn to write about it, without a preference: for the language warm start."""

    sample: Sample
    text: str
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if not isinstance(self.sample, Sample):
            raise JRMError(f"sample of a critique example must be a Sample, not {_kind(self.sample)}.")
        _text(self.text, "text of a critique example")
        object.__setattr__(self, "info", _info(self.info))


def _by_dimension(values, what: str, read) -> dict:
    if not isinstance(values, Mapping):
        raise JRMError(f"{what} of a pair must map dimensions to values, not be {_kind(values)}.")
    return {_text(name, f"dimension in {what}"): read(value, f"{what}[{name!r}]") for name, value in values.items()}


def _label(value, what: str) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real) or value not in (-1, 0, 1):
        raise JRMError(f"{what} must be 1 (chosen is better), 0 (tie) or -1 (rejected is better), not {value!r}.")
    return int(value)


def _score(value, what: str) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise JRMError(f"{what} must be a finite number, not {value!r}.")
    return float(value)


def _critique(value, what: str) -> Critique:
    if not isinstance(value, Critique):
        raise JRMError(f"{what} must be a Critique, not {_kind(value)}: read text with Critique.parse.")
    return value


def _info(info) -> dict:
    if not isinstance(info, Mapping) or not all(isinstance(key, str) for key in info):
        raise JRMError("info must be a mapping with keys of type str.")
    return dict(info)


# --- records: examples as plain JSON ----------------------------------------------------------------------------------


def example_to_record(example: PreferencePair | CritiqueExample) -> dict:
    """An example as a dict that `json.dumps` can write; `example_from_record` reads it back.

    Paths and `data:` URLs stay strings; other images become `data:` URLs without loss, so that the example that is read
    back shows the same pixels. To keep examples in a table of fixed columns, store `json.dumps` of the record.
    """
    if isinstance(example, CritiqueExample):
        record = {
            "prompt": _blocks_to_record(example.sample.prompt),
            "response": _blocks_to_record(example.sample.response),
            "text": example.text,
        }
    else:
        record = {
            "prompt": _blocks_to_record(example.chosen.prompt),
            "chosen": _blocks_to_record(example.chosen.response),
            "rejected": _blocks_to_record(example.rejected.response),
            "labels": dict(example.labels),
            "chosen_scores": example.chosen_scores and dict(example.chosen_scores),
            "rejected_scores": example.rejected_scores and dict(example.rejected_scores),
            "chosen_critiques": {name: each.to_json() for name, each in example.chosen_critiques.items()},
            "rejected_critiques": {name: each.to_json() for name, each in example.rejected_critiques.items()},
        }
    for key, value in example.info.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise JRMError(f"info[{key!r}] of an example cannot be written as JSON: {error}.") from None
    return {**record, "info": dict(example.info)}


def example_from_record(record: Mapping) -> PreferencePair | CritiqueExample:
    """Read what `example_to_record` wrote."""
    if isinstance(record, Mapping) and "text" in record:
        _keys(record, "a critique example's record", required={"prompt", "response", "text", "info"})
        return CritiqueExample(Sample(record["prompt"], record["response"]), record["text"], record["info"])
    critiques = ("chosen_critiques", "rejected_critiques")
    plain = ("labels", "chosen_scores", "rejected_scores", "info")
    _keys(record, "a pair's record", required={"prompt", "chosen", "rejected", *plain, *critiques})
    return PreferencePair(
        Sample(record["prompt"], record["chosen"]),
        Sample(record["prompt"], record["rejected"]),
        **{name: record[name] for name in plain},
        **{name: {key: Critique.parse(text) for key, text in record[name].items()} for name in critiques},
    )


def _blocks_to_record(blocks: tuple[dict, ...]) -> list[dict]:
    return [
        _image_block(block["image"] if isinstance(block["image"], str) else to_data_url(block["image"]))
        if block["type"] == "image"
        else dict(block)
        for block in blocks
    ]


# --- what comes out ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RewardScore:
    """A Gaussian score per dimension: `mu` and `sigma` by name, larger `mu` is better.

    Made from the dimensions' values alone; `"overall"` is added: its `mu` is the mean of theirs, its `sigma` that of a
    mean of D independent Gaussians, `sqrt(sum of squares) / D`.

    Example:
        >>> score = RewardScore(mu={"a": 1, "b": 2}, sigma={"a": 3, "b": 4})
        >>> score.mu["overall"], score.sigma["overall"]
        (1.5, 2.5)
    """

    mu: Mapping[str, float]
    sigma: Mapping[str, float]

    def __post_init__(self):
        if not self.mu or set(self.mu) != set(self.sigma) or OVERALL in self.mu:
            names = f"{list(self.mu)} and {list(self.sigma)}"
            raise JRMError(f'a reward score needs mu and sigma of the same dimensions, none "overall", not {names}.')
        mu = {name: float(value) for name, value in self.mu.items()}
        sigma = {name: float(self.sigma[name]) for name in mu}
        if not all(map(math.isfinite, [*mu.values(), *sigma.values()])) or min(sigma.values()) < 0:
            raise JRMError(f"a reward score must be finite with sigma of 0 or more, not mu {mu} and sigma {sigma}.")
        mu[OVERALL] = math.fsum(mu.values()) / len(mu)
        sigma[OVERALL] = math.hypot(*sigma.values()) / len(sigma)
        object.__setattr__(self, "mu", mu)
        object.__setattr__(self, "sigma", sigma)

    def reward(
        self,
        mode: Literal["mean", "lower_confidence_bound", "win_probability"] = "mean",
        *,
        dimension: str = OVERALL,
        k: float = 1.0,
        against: "RewardScore | Sequence[RewardScore] | None" = None,
    ) -> float:
        """One number for an RL loop.

        - `mean`: mu.
        - `lower_confidence_bound`: mu - k sigma; an uncertain score counts less.
        - `win_probability`: P(this is better than `against`) = E[sigmoid(r - r')] (paper eq. 4), the mean over
          `against` where that is a group; between 0 and 1. `against` may be the score of the unedited source, say.

        Raises:
            JRMError: an unknown mode or dimension, k below 0, or `against` missing, empty or not wanted by the mode.
        """
        if dimension not in self.mu:
            raise JRMError(f"this score has no dimension {dimension!r}; it has {', '.join(self.mu)}.")
        if (mode == "win_probability") != (against is not None):
            raise JRMError(f"against belongs to the mode win_probability and only to it, not to {mode!r}.")
        if mode == "mean":
            return self.mu[dimension]
        if mode == "lower_confidence_bound":
            if not k >= 0:
                raise JRMError(f"k of a lower confidence bound must be at least 0, got {k!r}.")
            return self.mu[dimension] - k * self.sigma[dimension]
        if mode != "win_probability":
            raise JRMError(f"unknown reward mode {mode!r}; use mean, lower_confidence_bound or win_probability.")
        others = [against] if isinstance(against, RewardScore) else list(against)
        if not others:
            raise JRMError("win_probability needs at least one score to compare with; against is empty.")
        import torch  # torch is slow to import, and samples are made without it

        from jrm_plugin.kernels import win_probability

        mu, sigma = (
            torch.tensor([getattr(score, name)[dimension] for score in (self, *others)], dtype=torch.float64)
            for name in ("mu", "sigma")
        )
        mine = (x[:1].expand(len(others)) for x in (mu, sigma.log()))
        return float(win_probability(*mine, mu[1:], sigma[1:].log()).mean())

    def to_dict(self) -> dict[str, dict[str, float]]:
        """`{"mu": {...}, "sigma": {...}}` by dimension and overall."""
        return {"mu": dict(self.mu), "sigma": dict(self.sigma)}


# --- checks shared by the records -------------------------------------------------------------------------------------


def _text(text, what: str) -> str:
    if not isinstance(text, str):
        raise JRMError(f"the {what} must be text, not {_kind(text)}.")
    if not text.strip():
        raise JRMError(f"the {what} is empty.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise JRMError(f"the {what} holds half a surrogate pair, which is no character: {text[:80]!r}.") from None
    return text


def _whole(value, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise JRMError(f"{what} must be a whole number, not {value!r}.")


def _kind(value) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
