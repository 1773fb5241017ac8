"""What the columns of a table mean: preference pairs, ranked lists, candidates with scores, or texts to learn.

A mapping `{field: column}` says it where names differ from those of `records.names`:

| fields | a row is |
|---|---|
| `chosen`, `rejected` | a pair; with `label`, `A` is `chosen` and `B` is `rejected` |
| `a`, `b`, and `label` or scores | a pair, whose order the label says: A/B, 0/1 (0 is a), or tie |
| `ranked` | a list, best first |
| `candidates`, and `ranking` (places, or `C>A=B`) or `scores` | a list |
| `edited`, and `score` or `rank` | one candidate; the rows with one source and instruction are a list |
| `edited`, `text` | a text to learn |

A list is a `RankedGroup`, or all pairs of it. `instruction` belongs to each, `source` to edits (`source: null`: made
from text alone). `chosen`, `rejected` and candidates are images, or texts where they are answers. A field of several
columns is written as a list.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from jrm_plugin.data.reading import is_number
from jrm_plugin.data.tables import Table
from jrm_plugin.errors import JRMError, shortened
from jrm_plugin.records.critiques import Critique
from jrm_plugin.records.images import is_data_url, plain_image
from jrm_plugin.records.names import (
    A_AND_B,
    ACCEPTED,
    BY_DIMENSION,
    CHOSEN_AND_REJECTED,
    PREFERENCE,
    is_near,
    names_an_image,
)
from jrm_plugin.records.preferences import CritiqueExample, Example, PreferencePair, RankedGroup
from jrm_plugin.records.samples import KNOWN_DIMENSIONS, OVERALL, Sample

Columns = Mapping[str, str | Sequence[str] | None]

FIELDS = (*ACCEPTED, "chosen", "rejected", "a", "b", *(name for name in PREFERENCE if not re.match(".*_score_", name)))
_LOOKED_AT = 20  # rows, to tell images from texts
_OPEN = {"source": "…", "instruction": "…", "chosen": "…", "rejected": "…"}
_FIRST = {"a", "0", "left", "leftvote", "first", "chosen", "imagea", "responsea", "a>b", "b<a"}
_SECOND = {"b", "1", "right", "rightvote", "second", "rejected", "imageb", "responseb", "b>a", "a<b"}
_TIE = {"tie", "tied", "same", "equal", "draw", "a=b", "a=b=good", "a=b=bad"}
_LABELS_IN_WORDS = "A, B, tie, 0 (the first) or 1 (the second)"


class Layout:
    """Which columns hold which fields, and what a row of them is.

    Args:
        table: whose columns, and whose first row tells images from texts.
        columns: the mapping; fields that it leaves out are found by their usual names.
        groups: whether a list of candidates is one `RankedGroup`; otherwise every two of it are a pair.

    Raises:
        JRMError: says what was found, what is accepted, and a mapping that would work.
    """

    def __init__(self, table: Table, columns: Columns | None = None, *, groups: bool = False):
        self.table, self._given, self._groups = table, dict(columns or {}), groups
        check_columns(table, self._given, FIELDS)
        self.fields: dict[str, str | list[str]] = {
            name: column if isinstance(column, str) else [*column]
            for name, column in self._given.items()
            if column is not None
        }
        self._find()
        self._kind = self._kind_of_rows()
        if "source" not in self._given:
            self._look_for_a_source()
        self.labels: Counter[str] = Counter()
        self._answers: str | None = None  # images or texts, as the first row has them

    # -- what is where

    def _find(self) -> None:
        used = {c for column in self.fields.values() for c in ([column] if isinstance(column, str) else column)}
        free = [name for name in self.table.names if name not in used]
        pairs = [("chosen", "rejected", pair) for pair in CHOSEN_AND_REJECTED]
        pairs += [("a", "b", pair) for pair in A_AND_B]
        if not {"chosen", "rejected", "a", "b", "ranked", "candidates", "edited"} & self.fields.keys():
            there = [pair for pair in pairs if {*pair[2]} <= {*free}]
            if len(there) > 1:
                raise self._no("two pairs of columns that may be compared, " + " and ".join(str(p[2]) for p in there))
            for first, second, (one, other) in there:
                self.fields |= {first: one, second: other}
                free = [name for name in free if name not in (one, other)]
        if {"a", "b"} <= self.fields.keys() and "label" not in self.fields and "chosen" in free:
            self.fields["label"] = "chosen"  # which of the two it is
            free.remove("chosen")
        for field, names in (ACCEPTED | PREFERENCE).items():
            if field in self._given or field in self.fields:
                continue
            present = [name for name in dict.fromkeys((field, *names)) if name in free]
            if len(present) > 1 and field in ACCEPTED:
                raise JRMError(
                    f"{self.table.name} has both {present[0]!r} and {present[1]!r}, which mean the same; say which "
                    f"one with columns: {{{field}: {present[0]}}}."
                )
            if present:
                self.fields[field] = present[0]
                free.remove(present[0])
        for name in list(free):
            if _dimension_of(name) in KNOWN_DIMENSIONS and name not in self._given:
                self.fields[name] = name
                free.remove(name)
        self._free = free

    def _look_for_a_source(self) -> None:
        """A source under another name would make a generation of an edit, whose score means something else."""
        if "source" in self.fields:
            return
        if self._first_answer_is_text() and (name := next((n for n in ("images", "image") if n in self._free), None)):
            self.fields["source"] = name
            self._free.remove(name)
            return
        images = [name for name in self._free if _is_image(self._first[name])]
        near = [name for name in self._free if is_near(name, "source")]
        if maybe := [*near, *images]:
            mapping = {field: column for field, column in self.fields.items() if isinstance(column, str)}
            what = f"images in {maybe[0]!r}" if maybe[0] in images else f"a column {maybe[0]!r}"
            raise JRMError(
                f"{self.table.name} ({self.table.kind}) has no source, and {what}; say columns: "
                f"{self._in_yaml({'source': maybe[0]} | mapping)}, or columns: {{source: null}} for images made from "
                "text alone."
            )

    @cached_property
    def _first(self) -> dict[str, Any]:
        """The first value of each column that is there, among the first rows."""
        rows = [self.table.rows[row] for row in range(min(_LOOKED_AT, len(self.table.rows)))]
        return {name: next((row[name] for row in rows if row.get(name) is not None), None) for name in self.table.names}

    def _first_answer_is_text(self) -> bool:
        for field in ("chosen", "a"):
            if field in self.fields:
                return _is_text_answer(self.value(self._first, field), self.table.root)
        for field in ("ranked", "candidates"):
            if field in self.fields and (values := self._list(self._first, field)):
                return _is_text_answer(values[0], self.table.root)
        return False

    def _kind_of_rows(self) -> str:
        fields = self.fields.keys()
        scored = any(name == "chosen_score" or name.startswith("chosen_score_") for name in fields)
        if "instruction" not in fields:
            raise self._no("no instruction")
        if {"chosen", "rejected"} <= fields:
            return "pair"
        if {"a", "b"} <= fields:
            if not ({"label", "tie"} & fields or scored):
                raise self._no(f"{self.fields['a']!r} and {self.fields['b']!r}, and nothing that says which is better")
            return "pair"
        if "ranked" in fields:
            return "ranked"
        if "candidates" in fields:
            if not any(name.split("_")[0] in ("ranking", "scores") for name in fields):
                raise self._no("candidates without ranking or scores")
            return "candidates"
        if "edited" in fields and any(name.split("_")[0] in ("score", "rank") for name in fields):
            return "scored rows"
        if "edited" in fields and "text" in fields:
            return "text"
        raise self._no("no pair, no list of candidates, no scores and no text to learn")

    # -- what is said

    def _no(self, found: str) -> JRMError:
        would = f"columns: {self._in_yaml(self._suggestion() or _OPEN)}"
        return JRMError(
            f"{self.table.name} ({self.table.kind}) has the columns {', '.join(self.table.names)}, and in "
            f"them {found}; accepted are source and instruction with chosen and rejected, with a, b and label, with "
            "ranked, with candidates and ranking or scores, or with edited and score, by these or their usual names; "
            f"say which is which with {would}."
        )

    def _suggestion(self) -> dict[str, str | None] | None:
        """A mapping that would work, from what the first row holds; None where that cannot be told."""
        row = self._first
        images = [name for name in self.table.names if _is_image(row.get(name))]
        labels = [name for name in self.table.names if name not in images and _is_label(row.get(name), images[-2:])]
        texts = [name for name in self.table.names if isinstance(row.get(name), str) and name not in images + labels]
        scores = [name for name in self.table.names if is_number(row.get(name)) and "score" in name]
        if not texts or not images:
            return None
        source: dict[str, str | None] = {"source": images[0] if len(images) in (2, 3) else None}
        prompt = {"instruction": max(texts, key=lambda name: len(row[name]))}
        if len(images) == 3 and labels:
            return source | prompt | {"a": images[1], "b": images[2], "label": labels[0]}
        if len(images) == 3:
            return source | prompt | {"chosen": images[1], "rejected": images[2]}
        if len(images) < 3 and scores:
            return source | prompt | {"edited": images[-1], "score": scores[0]}
        if len(images) == 2:
            sides = (
                {"a": images[0], "b": images[1], "label": labels[0]}
                if labels
                else dict(zip(("chosen", "rejected"), images, strict=True))
            )
            return {"source": None} | prompt | sides
        return None

    @staticmethod
    def _in_yaml(mapping: Mapping[str, str | None]) -> str:
        quoted = {name: "null" if column is None else _quoted(column) for name, column in mapping.items()}
        return "{" + ", ".join(f"{name}: {text}" for name, text in quoted.items()) + "}"

    def understood(self, examples: int) -> str:
        """A line that says how the table was read."""
        counts = ", ".join(f"{label} {count}" for label, count in sorted(self.labels.items()))
        after = {"label": f" ({counts})" if counts else ""}
        order = sorted(self.fields, key=lambda name: (FIELDS.index(name) if name in FIELDS else len(FIELDS), name))
        columns = {n: column if isinstance(column, str) else "+".join(column) for n, column in self.fields.items()}
        fields = ", ".join(f"{name}={columns[name]}{after.get(name, '')}" for name in order)
        lists = "groups" if self._groups else "pairs"
        what = {"text": "texts to learn", "pair": "pairs"}.get(self._kind, lists)
        answers = f" of {self._answers}" if self._answers else ""
        return f"{self.table.name}: {self.table.kind}, {examples} {what}{answers}; {fields}."

    # -- a row's values

    def value(self, row: Mapping[str, Any], field: str) -> Any:
        column = self.fields.get(field)
        if column is None:
            return None
        return row.get(column) if isinstance(column, str) else [row.get(name) for name in column]

    def _list(self, row: Mapping[str, Any], field: str) -> list:
        return _as_list(self.value(row, field), field)

    # -- rows to examples

    @property
    def is_scattered(self) -> bool:
        """Whether a list of candidates stands in several rows."""
        return self._kind == "scored rows"

    def units(self) -> list[list[int]]:
        """The rows that belong together: each by itself, or those with one prompt where each is a candidate."""
        if self._kind != "scored rows":
            return [[row] for row in range(len(self.table.rows))]
        groups: dict[str, list[int]] = {}
        for number in range(len(self.table.rows)):
            row = self.table.rows[number]
            key = repr((self.value(row, "source"), self.value(row, "instruction")))
            groups.setdefault(key, []).append(number)
        return [*groups.values()]

    def of_unit(self, unit: Sequence[int]) -> list[Example]:
        """The examples that a unit's rows hold; counts no labels."""
        return self.examples([self.table.rows[number] for number in unit])

    def examples(self, rows: Sequence[Mapping[str, Any]], *, count: bool = False) -> list[Example]:
        """The examples of a row, or of the rows of one list of candidates.

        Raises:
            JRMError: part of a sentence, about this row.
        """
        row = rows[0]
        if self._kind == "pair":
            return [self._pair(row, count)]
        if self._kind == "text":
            sample = self._sample(row, self.value(row, "edited"))
            return [CritiqueExample(sample, self.value(row, "text"), self._info(row))]
        group = self._group(rows)
        return [] if group is None else [group] if self._groups else group.pairs()

    def _pair(self, row: Mapping[str, Any], count: bool) -> PreferencePair:
        first, second = ("chosen", "rejected") if "chosen" in self.fields else ("a", "b")
        one, other = (self._sample(row, self.value(row, side)) for side in (first, second))
        sign, said = self._order(row, first)
        if count and said:
            self.labels[said] += 1
        scores = [self._by_dimension(row, f"{side}_score", _score) for side in ("chosen", "rejected")]
        critiques = [self._by_dimension(row, f"{side}_critique", _to_critique) for side in ("chosen", "rejected")]
        labels = {
            name: _sign(value, self._column("label", name), ())
            for name, value in self._by_dimension(row, "label", lambda value: value).items()
            if name != OVERALL
        }
        if sign is not None:
            labels[OVERALL] = sign
        if sign == -1:  # the better one is `chosen`, in every format
            one, other, scores, critiques = other, one, scores[::-1], critiques[::-1]
            labels = {name: -label for name, label in labels.items()}
        return PreferencePair(
            one,
            other,
            labels=labels,
            chosen_scores=scores[0] or None,
            rejected_scores=scores[1] or None,
            chosen_critiques=critiques[0],
            rejected_critiques=critiques[1],
            info=self._info(row),
        )

    def _order(self, row: Mapping[str, Any], first: str) -> tuple[int | None, str]:
        """The overall label of the first against the second, and how the table spells it."""
        if "tie" in self.fields and _truth(self.value(row, "tie")):
            return 0, "tie"
        label = self.value(row, "label")
        if "label" in self.fields:
            sides = [
                self.fields["chosen" if first == "chosen" else "a"],
                self.fields["rejected" if first == "chosen" else "b"],
            ]
            return _sign(label, str(self.fields["label"]), sides), str(label)
        return (1, "") if first == "chosen" else (None, "")

    def _group(self, rows: Sequence[Mapping[str, Any]]) -> RankedGroup | None:
        """The candidates of a list; None of a single one whose row is by itself."""
        row = rows[0]
        if self._kind == "scored rows":
            values = [self.value(r, "edited") for r in rows]
            scores, ranks, critiques = (
                self._of_rows(rows, *field)
                for field in (("score", _score), ("rank", _score), ("critique", _to_critique))
            )
        else:
            values = self._list(row, "ranked" if self._kind == "ranked" else "candidates")
            scores = self._by_dimension(
                row, "scores", lambda of_all: [_score_or_none(v) for v in _as_list(of_all, "scores")]
            )
            ranks = self._by_dimension(row, "ranking", lambda ranking: _places(ranking, len(values)))
            critiques = self._by_dimension(
                row, "critiques", lambda of_all: [v and _to_critique(v) for v in _as_list(of_all, "critiques")]
            )
            if self._kind == "ranked":
                ranks[OVERALL] = [*range(len(values))]
        if not scores and not ranks:
            raise JRMError("it has neither scores nor a ranking of its candidates")
        for what, lists in (("scores", scores), ("places", ranks), ("critiques", critiques)):
            for name, of_name in lists.items():
                if len(of_name) != len(values):
                    about = f" of {name}" if what != "places" or name != OVERALL else ""
                    raise JRMError(f"it has {len(values)} candidates and {len(of_name)} {what}{about}")
        if len(values) < 2:
            if self._kind == "scored rows":
                return None
            raise JRMError(f"it has {len(values)} candidates, and two are compared")
        return RankedGroup(
            [self._sample(row, value) for value in values],
            ranks,
            scores,
            [{name: of_name[k] for name, of_name in critiques.items() if of_name[k]} for k in range(len(values))],
            self._info(row),
        )

    def _of_rows(self, rows: Sequence[Mapping[str, Any]], field: str, read: Any) -> dict[str, list[Any]]:
        """A field's values by dimension, one of each row; None where a cell is empty."""
        by_row = [self._by_dimension(row, field, read) for row in rows]
        return {name: [values.get(name) for values in by_row] for name in dict.fromkeys(chain(*by_row))}

    def _by_dimension(self, row: Mapping[str, Any], field: str, read: Any) -> dict[str, Any]:
        """A field's values by dimension: `field` itself is overall, `field_x` is of x; none where a cell is empty."""
        values = {}
        for name in self.fields:
            if name == field or name.startswith(f"{field}_"):
                value = self.value(row, name)
                dimension = name.removeprefix(field).removeprefix("_") or OVERALL
                if value is not None and not (field == "chosen_critique" and value == ""):
                    try:
                        values[dimension] = read(value)
                    except JRMError as error:
                        raise JRMError(f"{self._column(field, dimension)}: {str(error).rstrip('.')}") from None
        return values

    def _column(self, field: str, dimension: str) -> str:
        return str(self.fields[field if dimension == OVERALL else f"{field}_{dimension}"])

    def _sample(self, row: Mapping[str, Any], answer: Any) -> Sample:
        prompt, root = _text_of(self.value(row, "instruction"), "user"), self.table.root
        source = self.value(row, "source")
        if isinstance(source, str) and not source.strip():
            source = None
        sources = source if isinstance(source, list) else [] if source is None else [source]
        images = [_to_image(image, root, "source") for image in sources if image is not None]
        is_text = _is_text_answer(answer, root)
        kind = "texts" if is_text else "images"
        if self._answers not in (None, kind):
            raise JRMError(f"it holds {shortened(answer)}, and the rows before it {self._answers}")
        self._answers = kind
        if is_text:
            return Sample.text_response(images, prompt, _text_of(answer, "assistant"))
        return Sample.edit(images, prompt, _to_image(answer, root, "an image"))

    def _info(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """What else the row says, as far as it is plain."""
        return {name: row[name] for name in self._free if name in row and _is_plain(row[name])}


def check_columns(table: Table, columns: Columns, fields: Collection[str]) -> None:
    """Raises a [`JRMError`] where a mapping names a field that is none of `fields`, or a column that is not there."""
    for name, column in columns.items():
        if name not in fields and not (fields is FIELDS and _dimension_of(name)):
            raise JRMError(f"columns has the field {name!r}, which is none of {', '.join(fields)}.")
        parts = [] if column is None else column if isinstance(column, (list, tuple)) else [column]
        for part in parts:
            if not isinstance(part, str):
                raise JRMError(f"columns says {name}: {shortened(part)}, which is no text; put it in quotes.")
            if part not in table.names:
                raise JRMError(
                    f"columns says {name}: {part}, and {table.name} ({table.kind}) has the columns "
                    f"{', '.join(table.names)}."
                )


def is_understood(name: str) -> bool:
    """Whether a column of this name means something by itself."""
    usual = {usual for names in (ACCEPTED | PREFERENCE).values() for usual in names}
    usual |= {column for pair in (*CHOSEN_AND_REJECTED, *A_AND_B) for column in pair}
    return name in usual or name in FIELDS or _dimension_of(name) is not None or is_near(name, "source")


# --- values -----------------------------------------------------------------------------------------------------------


def _quoted(name: str) -> str:
    """A column's name as YAML takes it for this text."""
    is_plain = re.fullmatch(r"\w+", name) and yaml.safe_load(name) == name
    return name if is_plain or name == "…" else json.dumps(name, ensure_ascii=False)


def _dimension_of(name: str) -> str | None:
    """The dimension in the name of a field such as `label_visual_quality`."""
    matches = [re.fullmatch(rf"{field}_(\w+)", name) for field in BY_DIMENSION]
    return next((match[1] for match in matches if match), None)


def _as_list(values: Any, what: str) -> list:
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
        raise JRMError(f"{what} must be a list, not {shortened(values)}")
    return [*values]


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return isinstance(value, (str, bool, int)) or is_number(value)


def _is_image(value: Any) -> bool:
    """Whether a value looks like an image, or a list of them."""
    if isinstance(value, list):
        return bool(value) and all(map(_is_image, value))
    return names_an_image(value) or (
        value is not None and not isinstance(plain_image(value), (str, int, float, bool, Mapping))
    )


def _is_text_answer(value: Any, root: Path | None) -> bool:
    """Text, and neither an image's name nor a file that is there; or a conversation's messages."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(message, Mapping) and "content" in message for message in value)
    if not isinstance(value, str) or names_an_image(value):
        return False
    is_path = len(value) < 1024 and "\n" not in value and "\0" not in value
    return not (is_path and os.path.isfile(os.path.join(root or "", value)))


def _text_of(value: Any, role: str) -> Any:
    """A text, or that of the one message of `role` in a conversation, as TRL's data sets hold them."""
    if not isinstance(value, list):
        return value
    messages = [message for message in value if isinstance(message, Mapping) and message.get("role") == role]
    if len(messages) != 1:
        raise JRMError(f"a conversation must hold one message of the {role}, not {len(messages)}")
    content = messages[0].get("content")
    if isinstance(content, list):
        content = "\n".join(str(block.get("text")) for block in content if block.get("type") == "text")
    return content


def _to_image(value: Any, root: Path | None, what: str) -> Any:
    image = plain_image(value)
    if isinstance(image, str):
        if not image:
            raise JRMError(f"{what} is empty")
        return image if root is None or is_data_url(image) or "://" in image else os.path.join(root, image)
    if image is None or isinstance(image, (int, float, Mapping, list)):
        raise JRMError(f"{what} must be an image (a path, bytes, or a dict of both), not {shortened(value)}")
    return image


def _is_label(value: Any, sides: Sequence[str]) -> bool:
    try:
        _sign(value, "", sides)
    except JRMError:
        return False
    return True


def _sign(label: Any, column: str, sides: Sequence[Any]) -> int:
    """1 where the label names the first, -1 where the second, 0 for a tie; `sides` are the two columns' own names."""
    if isinstance(label, str) and label in sides[:2]:
        return 1 if label == sides[0] else -1
    if not isinstance(label, bool) and isinstance(label, (str, int, float)):
        word = re.sub(r"[\s_]", "", str(int(label) if isinstance(label, float) and label == int(label) else label))
        word = word.lower().removesuffix(".0")
        for words, sign in ((_FIRST, 1), (_SECOND, -1), (_TIE, 0)):
            if word in words:
                return sign
    raise JRMError(f"{column} must be {_LABELS_IN_WORDS}, not {shortened(label)}")


def _truth(value: Any) -> bool:
    if isinstance(value, bool) or value is None:
        return bool(value)
    if str(value).lower() in ("true", "1", "false", "0"):
        return str(value).lower() in ("true", "1")
    raise JRMError(f"tie must be true or false, not {shortened(value)}")


def _score(value: Any) -> float:
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if not is_number(number):
        raise JRMError(f"a score must be a number, not {shortened(value)}")
    return float(number)


def _score_or_none(value: Any) -> float | None:
    return None if value is None else _score(value)


def _places(ranking: Any, count: int) -> list[float | None]:
    """The place of each candidate, the best being the lowest, from a list of them or from words."""
    if isinstance(ranking, Mapping) and "ranking" in ranking:  # EditReward-Bench's `human_vote`
        ranking = ranking["ranking"]
    if isinstance(ranking, str):
        letters = "".join(chr(ord("A") + k) for k in range(count))
        places = places_in_words(ranking, letters)
        return [places[letter] for letter in letters]
    return [_score_or_none(place) for place in _as_list(ranking, "ranking")]


def places_in_words(ranking: Any, letters: str) -> dict[str, int]:
    """The place of each candidate in `C>A=B`, `A<B` or `A=B=Good`, the best being the lowest."""
    text = re.sub(r"\s|=(good|bad)\s*$", "", str(ranking), flags=re.IGNORECASE).upper()
    steps = text.split("<")[::-1] if "<" in text else text.split(">")
    places = {letter: place for place, step in enumerate(steps) for letter in step.split("=")}
    if sorted(re.findall("[^<>=]+", text)) != [*letters] or ("<" in text and ">" in text):
        raise JRMError(f"ranking must order {', '.join(letters)} as in B>A, A<B or A=B, not be {shortened(ranking)}")
    return places


def _to_critique(value: Any) -> Critique:
    """A critique as JSON, as the object of it, or in plain words."""
    if isinstance(value, Mapping):
        return Critique.parse(json.dumps({name: part for name, part in value.items() if part is not None}))
    return Critique.parse(value) if isinstance(value, str) and value.lstrip().startswith("{") else Critique(value)
