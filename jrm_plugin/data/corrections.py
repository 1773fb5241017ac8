"""Corrections of a preference set, kept beside the data: which pairs are left out, turned around, or called a tie.

JSON Lines, an object for each pair: `pair` (its name, as `PairNames` gives it), `action` (one of `ACTIONS`), and
whatever else helps people; `jrm audit` proposes such a file, and `corrections` of `jrm train` takes it.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from jrm_plugin.data.reading import BadRecord, need, read_json_lines
from jrm_plugin.data.samples import SampleDigests
from jrm_plugin.errors import JRMError
from jrm_plugin.records.preferences import Example, PreferencePair

Action: TypeAlias = Literal["drop", "flip", "tie", "keep"]
ACTIONS = get_args(Action)


class PairNames:
    """Names of pairs by what they hold: texts, the content of image files, and labels.

    Where a pair stands, how its images are called, and which of its samples comes first make no difference. Each file
    is read once; with `digests`, those of files that were read before are taken.
    """

    def __init__(self, digests: SampleDigests | None = None) -> None:
        self._digests = digests or SampleDigests()

    def __call__(self, pair: PreferencePair) -> str:
        """The name of a labelled pair; a pair that people labelled twice, and differently, has two."""
        first, second = self._digests(pair.chosen), self._digests(pair.rejected)
        sign = -1 if second < first else 1
        labels = json.dumps(sorted((name, sign * label) for name, label in pair.labels.items()))
        return f"{self.of_samples(pair)}-{hashlib.sha256(labels.encode()).hexdigest()[:8]}"

    def of_samples(self, pair: PreferencePair) -> str:
        """The name of a pair whatever its labels."""
        both = sorted([self._digests(pair.chosen), self._digests(pair.rejected)])
        return hashlib.sha256(b"".join(both)).hexdigest()[:20]


@dataclass(frozen=True)
class Correction:
    """What is done with a pair, and the line that says so."""

    action: Action
    line: int


def read_corrections(path: str | Path) -> dict[str, Correction]:
    """The corrections of a file by the pairs' names.

    Raises:
        JRMError: it cannot be read, a line is no correction, or two lines disagree about a pair.
    """
    bad: list[BadRecord] = []
    corrections: dict[str, Correction] = {}
    for line, record in read_json_lines(Path(path), bad, progress=False):
        try:
            need(record, ("pair", "action"))
            name, action = record["pair"], record["action"]
            if not isinstance(name, str):
                raise JRMError(f"pair must be the name of a pair, not {name!r}")
            if action not in ACTIONS:
                raise JRMError(f"action must be one of {', '.join(ACTIONS)}, not {action!r}")
            if name in corrections and corrections[name].action != action:
                raise JRMError(f"line {corrections[name].line} has another action for the same pair")
            corrections.setdefault(name, Correction(action, line))
        except JRMError as error:
            bad.append(BadRecord(str(path), line, str(error)))
    if bad:
        raise JRMError(f"{path}, line {bad[0].row}: {bad[0].reason.rstrip('.')}; mend that line, or remove it.")
    return corrections


class CorrectedExamples(Sequence):
    """Examples with their corrections; what no correction names stays as it is.

    Attributes:
        counts: how many pairs each action is done to.
    """

    def __init__(self, examples: Sequence[Example], corrections: Mapping[str, Correction], *, path: str | Path):
        """
        Raises:
            JRMError: a correction is of no pair that is there; `path` names the file.
        """
        names, open_ones = PairNames(), {*corrections}
        self.counts: Counter[str] = Counter()
        self._examples, self._rows = examples, list[tuple[int, str]]()
        for row, example in enumerate(examples):
            name = names(example) if isinstance(example, PreferencePair) else ""
            action = "keep"
            if name in corrections:
                action = corrections[name].action
                self.counts[action] += 1
                open_ones.discard(name)
            if action != "drop":
                self._rows.append((row, action))
        if open_ones:
            first = min(open_ones, key=lambda name: corrections[name].line)
            raise JRMError(
                f"{path}, line {corrections[first].line}: no pair of the data is {first} "
                f"({len(open_ones)} such lines); remove it, or audit the data as they are now."
            )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            return [self[k] for k in range(*position.indices(len(self)))]
        row, action = self._rows[position]
        return _CORRECT[action](self._examples[row])


def _flipped(pair: PreferencePair) -> PreferencePair:
    """Labels and scores change places; what critiques say of a sample stays with it."""
    return replace(
        pair,
        chosen=pair.rejected,
        rejected=pair.chosen,
        chosen_critiques=pair.rejected_critiques,
        rejected_critiques=pair.chosen_critiques,
    )


def _tied(pair: PreferencePair) -> PreferencePair:
    """A tie in all that it is labelled in; scores that say something else are left out."""
    return replace(pair, labels=dict.fromkeys(pair.labels, 0), chosen_scores=None, rejected_scores=None)


_CORRECT = {"flip": _flipped, "tie": _tied, "keep": lambda example: example}
