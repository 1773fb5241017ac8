"""What is learned from: preference pairs and critiques, and both as plain JSON."""

import json
import math
import numbers
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from jrm_plugin.errors import JRMError
from jrm_plugin.records.checks import check_keys, checked_text, kind_of
from jrm_plugin.records.critiques import Critique
from jrm_plugin.records.images import to_data_url
from jrm_plugin.records.samples import OVERALL, Sample, image_block

T = TypeVar("T")


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

    def __post_init__(self) -> None:
        for side in ("chosen", "rejected"):
            if not isinstance(getattr(self, side), Sample):
                raise JRMError(f"{side} of a pair must be a Sample, not {kind_of(getattr(self, side))}.")
            for name, read in (("scores", _score), ("critiques", _critique)):
                values = getattr(self, f"{side}_{name}")
                if values is not None or name == "critiques":
                    object.__setattr__(self, f"{side}_{name}", _by_dimension(values, f"{side}_{name}", read))
        # equal blocks need no digest
        if self.chosen.prompt != self.rejected.prompt and self.chosen.prompt_key() != self.rejected.prompt_key():
            raise JRMError("the two samples of a pair must have the same prompt: same images, same text, same order.")
        chosen, rejected = self.chosen_scores or {}, self.rejected_scores or {}
        both = [name for name in chosen if name in rejected]
        derived = {name: (chosen[name] > rejected[name]) - (chosen[name] < rejected[name]) for name in both}
        labels = derived | _by_dimension(self.labels, "labels", _label)
        if not labels:
            raise JRMError("a pair has no label: give one for a dimension or overall, or scores of both samples.")
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "info", _info(self.info))


def in_dimensions(pair: PreferencePair, dimensions: Collection[str]) -> PreferencePair:
    """The pair with its labels, scores and critiques in these dimensions, and overall, alone.

    Raises:
        JRMError: it has no label in any of them.
    """
    names = {*dimensions, OVERALL}
    if not names & pair.labels.keys():
        raise JRMError(
            f"a pair is labelled in {', '.join(pair.labels)} alone; name that dimension too, or leave it out."
        )

    def of_these(values: Mapping[str, T]) -> dict[str, T]:
        return {name: value for name, value in values.items() if name in names}

    return replace(
        pair,
        labels=of_these(pair.labels),
        chosen_scores=pair.chosen_scores and of_these(pair.chosen_scores),
        rejected_scores=pair.rejected_scores and of_these(pair.rejected_scores),
        chosen_critiques=of_these(pair.chosen_critiques),
        rejected_critiques=of_these(pair.rejected_critiques),
    )


@dataclass(frozen=True)
class CritiqueExample:
    """A sample and the text to learn to write about it, without a preference: for the language warm start."""

    sample: Sample
    text: str
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.sample, Sample):
            raise JRMError(f"sample of a critique example must be a Sample, not {kind_of(self.sample)}.")
        checked_text(self.text, "text of a critique example")
        object.__setattr__(self, "info", _info(self.info))


def _by_dimension(values: object, what: str, read: Callable[[Any, str], T]) -> dict[str, T]:
    if not isinstance(values, Mapping):
        raise JRMError(f"{what} of a pair must map dimensions to values, not be {kind_of(values)}.")
    return {
        checked_text(name, f"dimension in {what}"): read(value, f"{what}[{name!r}]") for name, value in values.items()
    }


def _label(value: object, what: str) -> int:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real) or value not in (-1, 0, 1):
        raise JRMError(f"{what} must be 1 (chosen is better), 0 (tie) or -1 (rejected is better), not {value!r}.")
    return int(float(value))


def _score(value: object, what: str) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise JRMError(f"{what} must be a finite number, not {value!r}.")
    return float(value)


def _critique(value: object, what: str) -> Critique:
    if not isinstance(value, Critique):
        raise JRMError(f"{what} must be a Critique, not {kind_of(value)}: read text with Critique.parse.")
    return value


def _info(info: object) -> dict[str, Any]:
    if not isinstance(info, Mapping) or not all(isinstance(key, str) for key in info):
        raise JRMError("info must be a mapping with keys of type str.")
    return dict(info)


# --- examples as plain JSON -------------------------------------------------------------------------------------------


def example_to_record(example: PreferencePair | CritiqueExample) -> dict[str, Any]:
    """An example as a dict that `json.dumps` can write; `example_from_record` reads it back.

    Paths and `data:` URLs stay strings; other images become `data:` URLs without loss, so that the example that is read
    back shows the same pixels. To keep examples in a table of fixed columns, store `json.dumps` of the record.
    """
    if isinstance(example, CritiqueExample):
        record: dict[str, Any] = {
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


def example_from_record(record: Mapping[str, Any]) -> PreferencePair | CritiqueExample:
    """Read what `example_to_record` wrote."""
    if isinstance(record, Mapping) and "text" in record:
        check_keys(record, "a critique example's record", required={"prompt", "response", "text", "info"})
        return CritiqueExample(Sample(record["prompt"], record["response"]), record["text"], record["info"])
    critiques = ("chosen_critiques", "rejected_critiques")
    plain = ("labels", "chosen_scores", "rejected_scores", "info")
    check_keys(record, "a pair's record", required={"prompt", "chosen", "rejected", *plain, *critiques})
    values = {name: record[name] for name in plain}
    values |= {name: {key: Critique.parse(text) for key, text in record[name].items()} for name in critiques}
    return PreferencePair(
        Sample(record["prompt"], record["chosen"]), Sample(record["prompt"], record["rejected"]), **values
    )


def _blocks_to_record(blocks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        image_block(block["image"] if isinstance(block["image"], str) else to_data_url(block["image"]))
        if block["type"] == "image"
        else dict(block)
        for block in blocks
    ]
