"""What is learned from: preference pairs, ranked groups and critiques, and all of them as plain JSON."""

import json
import math
import numbers
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, TypeAlias, TypeVar

import numpy as np

from jrm_plugin.errors import JRMError
from jrm_plugin.records.checks import check_keys, checked_text, kind_of
from jrm_plugin.records.critiques import Critique
from jrm_plugin.records.images import to_data_url
from jrm_plugin.records.samples import OVERALL, Sample, image_block

T = TypeVar("T")
P = TypeVar("P", "PreferencePair", "RankedGroup")


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

    def pairs(self) -> list["PreferencePair"]:
        """Itself, as the one pair of its group."""
        return [self]

    # -- as a group of two

    @property
    def candidates(self) -> tuple[Sample, ...]:
        """The samples."""
        return self.chosen, self.rejected

    @property
    def critiques(self) -> tuple[Mapping[str, Critique], ...]:
        """The critiques of each candidate, by dimension."""
        return self.chosen_critiques, self.rejected_critiques

    @property
    def ranks(self) -> dict[str, tuple[int | None, ...]]:
        """The places of both, by dimension or overall, as in [`RankedGroup`]."""
        return {name: ((1, 2), (1, 1), (2, 1))[1 - label] for name, label in self.labels.items()}


@dataclass(frozen=True)
class RankedGroup:
    """Candidates for one prompt and what is known of their order; a [`PreferencePair`] is a group of two.

    Attributes:
        candidates: the samples, two or more.
        ranks: by dimension or `"overall"`, the place of each candidate: the lowest number is the best, equal ones are a
            tie, None is a candidate that was not ranked. They are kept as 1, 2, 3, …. Missing ranks are derived where
            two candidates have a score of that name.
        scores: by dimension or `"overall"`, the score of each candidate, higher is better, or None.
        critiques: of each candidate, by dimension; empty if there are none.
        info: what else the record says.
    """

    candidates: Sequence[Sample]
    ranks: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    scores: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    critiques: Sequence[Mapping[str, Critique]] = ()
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        candidates = tuple(self.candidates)
        count = len(candidates)
        if count < 2:
            raise JRMError(f"a ranked group must have two candidates or more, not {count}.")
        for candidate in candidates:
            if not isinstance(candidate, Sample):
                raise JRMError(f"candidates of a ranked group must be Samples, not {kind_of(candidate)}.")
        first = candidates[0]
        if any(c.prompt != first.prompt and c.prompt_key() != first.prompt_key() for c in candidates):
            raise JRMError("the samples of a ranked group must have the same prompt: same images, same text and order.")
        scores = {name: _of_each(values, count, f"scores[{name!r}]") for name, values in dict(self.scores).items()}
        ranks = {name: _of_each(values, count, f"ranks[{name!r}]") for name, values in dict(self.ranks).items()}
        for name, values in ranks.items():
            if sum(value is not None for value in values) < 2:
                raise JRMError(f"ranks[{name!r}] of a ranked group must place two candidates or more; leave it out.")
        for name, values in scores.items():
            if name not in ranks and sum(value is not None for value in values) > 1:
                ranks[name] = tuple(None if value is None else -value for value in values)
        if not ranks:
            raise JRMError("a ranked group has no label: give ranks for a dimension or overall, or scores.")
        critiques = tuple(self.critiques) or ({},) * count
        if len(critiques) != count:
            raise JRMError(f"a ranked group has {count} candidates and critiques of {len(critiques)}.")
        object.__setattr__(self, "candidates", candidates)
        object.__setattr__(self, "ranks", {name: _places(values) for name, values in ranks.items()})
        object.__setattr__(self, "scores", scores)
        object.__setattr__(
            self, "critiques", tuple(_by_dimension(values, "critiques", _critique, "group") for values in critiques)
        )
        object.__setattr__(self, "info", _info(self.info))

    def pairs(self) -> list[PreferencePair]:
        """Every two candidates that a label compares, the one that is better overall (else first) as `chosen`."""
        first = self.ranks.get("overall") or next(iter(self.ranks.values()))
        pairs = []
        for i, j in combinations(range(len(self.candidates)), 2):
            if _compared(first, i, j) == -1:
                i, j = j, i
            compared = {name: _compared(ranks, i, j) for name, ranks in self.ranks.items()}
            labels = {name: label for name, label in compared.items() if label is not None}
            scores, other_scores = (self._scores_of(k) or None for k in (i, j))
            if labels:
                one, other = self.candidates[i], self.candidates[j]
                critiques, other_critiques = self.critiques[i], self.critiques[j]
                pairs.append(
                    PreferencePair(one, other, labels, scores, other_scores, critiques, other_critiques, self.info)
                )
        return pairs

    def _scores_of(self, candidate: int) -> dict[str, float]:
        of_it = {name: scores[candidate] for name, scores in self.scores.items()}
        return {name: score for name, score in of_it.items() if score is not None}


def _compared(ranks: Sequence[float | None], i: int, j: int) -> int | None:
    """1 where i is better, -1 where j is, 0 for a tie; None where one of them is not ranked."""
    rank_i, rank_j = ranks[i], ranks[j]
    return None if rank_i is None or rank_j is None else (rank_i < rank_j) - (rank_i > rank_j)


def in_dimensions(pair: P, dimensions: Collection[str]) -> P:
    """The pair or group with its labels, scores and critiques in these dimensions, and overall, alone.

    Raises:
        JRMError: it has no label in any of them.
    """
    names = {*dimensions, OVERALL}
    if not names & pair.ranks.keys():
        raise JRMError(
            f"a pair is labelled in {', '.join(pair.ranks)} alone; name that dimension too, or leave it out."
        )

    def of_these(values: Mapping[str, T]) -> dict[str, T]:
        return {name: value for name, value in values.items() if name in names}

    if isinstance(pair, RankedGroup):
        fields: dict[str, Any] = {"ranks": of_these(pair.ranks), "scores": of_these(pair.scores)}
        fields["critiques"] = [of_these(of_one) for of_one in pair.critiques]
    else:
        names_of_fields = ("labels", "chosen_scores", "rejected_scores", "chosen_critiques", "rejected_critiques")
        values = {name: getattr(pair, name) for name in names_of_fields}
        fields = {name: value and of_these(value) for name, value in values.items()}
    return replace(pair, **fields)


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


Example: TypeAlias = PreferencePair | RankedGroup | CritiqueExample


def samples_of_example(example: Example) -> tuple[Sample, ...]:
    """The samples in it."""
    return (example.sample,) if isinstance(example, CritiqueExample) else tuple(example.candidates)


def _of_each(values: object, count: int, what: str) -> tuple[float | None, ...]:
    """A finite number of each candidate, or None."""
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)) or len(values) != count:
        raise JRMError(f"{what} of a ranked group must give {count} candidates a number each, or None.")
    return tuple(None if value is None else _score(value, f"{what} of a ranked group") for value in values)


def _places(values: Sequence[float | None]) -> tuple[int | None, ...]:
    """1 for the lowest number, 2 for the next."""
    order = sorted({value for value in values if value is not None})
    return tuple(None if value is None else order.index(value) + 1 for value in values)


def _by_dimension(values: object, what: str, read: Callable[[Any, str], T], of: str = "pair") -> dict[str, T]:
    if not isinstance(values, Mapping):
        raise JRMError(f"{what} of a {of} must map dimensions to values, not be {kind_of(values)}.")
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


def example_to_record(example: Example) -> dict[str, Any]:
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
    elif isinstance(example, RankedGroup):
        record = {
            "prompt": _blocks_to_record(example.candidates[0].prompt),
            "candidates": [_blocks_to_record(candidate.response) for candidate in example.candidates],
            "ranks": {name: [*values] for name, values in example.ranks.items()},
            "scores": {name: [*values] for name, values in example.scores.items()},
            "critiques": [{name: each.to_json() for name, each in of_one.items()} for of_one in example.critiques],
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


def example_from_record(record: Mapping[str, Any]) -> Example:
    """Read what `example_to_record` wrote."""
    if isinstance(record, Mapping) and "text" in record:
        check_keys(record, "a critique example's record", required={"prompt", "response", "text", "info"})
        return CritiqueExample(Sample(record["prompt"], record["response"]), record["text"], record["info"])
    if isinstance(record, Mapping) and "candidates" in record:
        check_keys(
            record, "a group's record", required={"prompt", "candidates", "ranks", "scores", "critiques", "info"}
        )
        return RankedGroup(
            [Sample(record["prompt"], response) for response in record["candidates"]],
            record["ranks"],
            record["scores"],
            [{key: Critique.parse(text) for key, text in of_one.items()} for of_one in record["critiques"]],
            record["info"],
        )
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
