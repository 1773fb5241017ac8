"""Judgements in words: what a model learns to write, and what is read out of what it wrote."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import json_repair

from jrm_plugin.errors import JRMError
from jrm_plugin.records.checks import check_keys, check_whole, checked_text, kind_of

# The tags by which a critique's reasoning points at the whole image and at its regions (paper appendices A.1 and C.1).
GLOBAL_TAG = "<|global|>"
# Those that are added tokens. They are not special, so that they survive decoding.
REGION_TAGS = (GLOBAL_TAG, *(f"<|bbox_{k}|>" for k in range(10)))
# Any of them in a text; group 1 is the region's id, or None for the whole image.
TAG = re.compile(r"<\|(?:global|bbox_([0-9]+))\|>")


@dataclass(frozen=True)
class EditRegion:
    """A region that was edited: `bbox_2d` is x1, y1, x2, y2 in thousandths of the image's width and height."""

    id: int
    label: str
    bbox_2d: tuple[int, int, int, int]

    def __post_init__(self) -> None:
        check_whole(self.id, "the id of an edit region")
        if self.id < 0:
            raise JRMError(f"the id of an edit region must be 0 or more, not {self.id}.")
        checked_text(self.label, f"label of edit region {self.id}")
        if not isinstance(self.bbox_2d, (list, tuple)) or len(self.bbox_2d) != 4:
            raise JRMError(f"bbox_2d of edit region {self.id} must be [x1, y1, x2, y2], not {self.bbox_2d!r}.")
        for value in self.bbox_2d:
            check_whole(value, f"a coordinate of edit region {self.id}")
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
    edit_region: Sequence[EditRegion] = ()  # stored as a tuple

    def __post_init__(self) -> None:
        checked_text(self.reasoning, "reasoning of a critique")
        if not isinstance(self.edit_region, (list, tuple)):
            raise JRMError(f"edit_region of a critique must be a list of regions, not {kind_of(self.edit_region)}.")
        if not all(isinstance(region, EditRegion) for region in self.edit_region):
            raise JRMError("edit_region of a critique must hold EditRegions: read dicts with Critique.parse.")
        object.__setattr__(self, "edit_region", tuple(self.edit_region))
        ids = [region.id for region in self.edit_region]
        if len(set(ids)) < len(ids):
            raise JRMError(f"the edit regions of a critique must have different ids, not {ids}.")
        for tag in TAG.finditer(self.reasoning):
            if tag[1] is not None and tag[1] not in map(str, ids):
                raise JRMError(f"the reasoning of a critique refers to {tag[0]}, and no edit region has that id.")

    def plain_text(self) -> str:
        """The reasoning for readers who know no tags: a region's label in brackets, and `[whole image]`."""
        labels = {str(region.id): region.label for region in self.edit_region}
        return TAG.sub(lambda tag: f"[{'whole image' if tag[1] is None else labels[tag[1]]}]", self.reasoning)

    def split_at_global(self) -> tuple[str, str]:
        """The finding about the regions and the remark on the whole image: what is before and after `<|global|>`."""
        finding, _, whole_image = self.reasoning.partition(GLOBAL_TAG)
        return finding.strip(), whole_image.strip()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; `edit_region` comes first and is left out when there is none."""
        record: dict[str, Any] = {}
        if self.edit_region:
            record["edit_region"] = [
                {"id": region.id, "label": region.label, "bbox_2d": list(region.bbox_2d)} for region in self.edit_region
            ]
        record["reasoning"] = self.reasoning
        return record

    def to_json(self) -> str:
        """`to_dict` as compact JSON."""
        return json.dumps(self.to_dict(), separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def parse(cls, text: str) -> "Critique":
        """Read `to_json`'s form, strictly: other keys, other types or anything around the JSON is an error."""
        try:
            return cls.from_dict(json.loads(text, object_pairs_hook=_dict_without_repeats))
        except (JRMError, ValueError, RecursionError) as error:
            raise JRMError(f"not a valid critique: {str(error).rstrip('.')}; it begins {text[:80]!r}.") from None

    @staticmethod
    def parse_leniently(text: str) -> "Critique | UnparsedCritique":
        """Read what a model wrote; where its JSON is broken, a [`RepairedCritique`] or an [`UnparsedCritique`]."""
        try:
            return Critique.parse(text)
        except JRMError as error:
            try:
                repaired = Critique.parse(json.dumps(json_repair.loads(text)))
            except (JRMError, ValueError, RecursionError):
                return UnparsedCritique(text, str(error))
        return RepairedCritique(repaired.reasoning, repaired.edit_region, text)

    @classmethod
    def from_dict(cls, record: Any) -> "Critique":
        """Read `to_dict`'s form, strictly."""
        return cls._read(record, box=lambda *corners: corners)

    @classmethod
    def from_appendix_a(cls, record: Mapping[str, Any]) -> "Critique":
        """Read a record whose boxes are ymin, xmin, ymax, xmax, the order of the paper's appendix A.1."""
        return cls._read(record, box=lambda ymin, xmin, ymax, xmax: (xmin, ymin, xmax, ymax))

    @classmethod
    def _read(cls, record: Any, *, box: Callable[..., Any]) -> "Critique":
        check_keys(record, "a critique", required={"reasoning"}, optional={"edit_region"})
        rows = record.get("edit_region", [])
        if not isinstance(rows, (list, tuple)):
            raise JRMError(f"edit_region of a critique must be a list, not {kind_of(rows)}.")
        for row in rows:
            check_keys(row, "an edit region", required={"id", "label", "bbox_2d"})
            if not isinstance(row["bbox_2d"], (list, tuple)) or len(row["bbox_2d"]) != 4:
                raise JRMError(f"bbox_2d of an edit region must be a list of 4 whole numbers, not {row['bbox_2d']!r}.")
        regions = tuple(EditRegion(row["id"], row["label"], box(*row["bbox_2d"])) for row in rows)
        return cls(record["reasoning"], regions)


@dataclass(frozen=True)
class RepairedCritique(Critique):
    """A critique read out of JSON that had to be repaired (a bracket or a quote was missing, say).

    `text` is what the language head wrote.
    """

    text: str = ""


@dataclass(frozen=True)
class UnparsedCritique:
    """What the language head wrote where it is no valid [`Critique`]: the raw text, and what is wrong with it."""

    text: str
    error: str

    def plain_text(self) -> str:
        """The text, as `Critique.plain_text` gives it of a critique."""
        return self.text


def _dict_without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise JRMError("a key occurs twice")
    return record
