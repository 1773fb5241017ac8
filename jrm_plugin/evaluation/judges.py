"""Judges: any scorer, or a generative model, behind one face for the evaluation on benchmarks."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from jrm_plugin.errors import JRMError
from jrm_plugin.records.samples import CONSISTENCY, OVERALL, Sample
from jrm_plugin.scoring.protocol import Scorer

Row = dict[str, Any]

# Dimensions of benchmarks that have another name here.
_SAME = {
    "prompt_following": "instruction_following",
    "instruction_adherence": "instruction_following",
    "visual_consistency": CONSISTENCY,
}


class Comparison(NamedTuple):
    """Which of two samples of one prompt is better, in one of a judge's dimensions or overall."""

    first: Sample
    second: Sample
    dimension: str


class Judge(Protocol):
    """What the evaluation asks of a judge.

    Attributes:
        name: what it is called in tables.
        settings: all that its answers depend on, as plain JSON.
        dimensions: what it judges, without `overall`.
        compares: whether it is asked for the better of two; otherwise it gives each sample a score.
    """

    name: str
    settings: Mapping[str, Any]
    dimensions: list[str]
    compares: bool

    def answer(self, questions: Sequence[Any]) -> Iterator[list[tuple[int, Row]]]:
        """Answers to samples, or to `Comparison`s: which question, and its row, some at a time as they come.

        A row has the columns of a score, or `votes`; or `error`, where there is no answer and asking again would give
        none.

        Raises:
            JRMError: the judge cannot be asked any more; what was answered before stays.
        """
        ...


class ScorerJudge:
    """A [`Scorer`] as a judge."""

    compares = False

    def __init__(self, name: str, scorer: Scorer, settings: Mapping[str, Any]):
        self.name, self.settings, self._scorer = name, settings, scorer
        self.dimensions = [*scorer.dimensions]

    def answer(self, questions: Sequence[Sample]) -> Iterator[list[tuple[int, Row]]]:
        scores = self._scorer.score(questions, on_error="return")
        yield [(k, {"error": str(s)} if isinstance(s, JRMError) else s.to_columns()) for k, s in enumerate(scores)]


def dimension_for(dimension: str, there: Sequence[str], chosen: Mapping[str, str] | None = None) -> str:
    """In which of a judge's dimensions it is asked for a benchmark's dimension.

    It is the one that was chosen, the one of that name or meaning, or overall where it has none.

    Args:
        dimension: the benchmark's.
        there: the judge's.
        chosen: the judge's by the benchmark's, where names do not say it.

    Raises:
        JRMError: the judge has not the chosen one.
    """
    wanted, names = (chosen or {}).get(dimension), [*there, OVERALL]
    if wanted is not None and wanted not in names:
        raise JRMError(f"no judge's dimension {wanted!r} can answer for {dimension}; there are {', '.join(names)}.")
    return next((name for name in (wanted, dimension, _SAME.get(dimension)) if name in names), OVERALL)


def file_name(judge: str) -> str:
    """A judge's name as that of a file."""
    return re.sub(r"[^\w.-]+", "_", judge).strip("_.")[-80:] or "judge"
