"""Critiques for a preference set: what is open is asked, each question once, and the set is written with all critiques.

A folder holds `answers.sqlite` (each answer, as soon as it is there), `settings.json` (what they depend on), and at the
end `pairs.jsonl`, the set that `jrm train` reads, and `summary.json`. Whatever stops the run, the same one goes on.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from jrm_plugin.annotation.answers import Answers, CriticAnswer
from jrm_plugin.annotation.critics import HIGHEST, LOWEST, Critic, Question
from jrm_plugin.data.preference_table import check_preferences, write_preferences
from jrm_plugin.data.samples import SampleDigests
from jrm_plugin.errors import JRMError
from jrm_plugin.files import check_writable, write_json
from jrm_plugin.records.critiques import Critique
from jrm_plugin.records.preferences import PreferencePair
from jrm_plugin.runs import LOCK_FILE, check_settings, locked

ANSWERS, SETTINGS, PAIRS, SUMMARY = "answers.sqlite", "settings.json", "pairs.jsonl", "summary.json"
SIDES = ("chosen", "rejected")

Place = tuple[int, str, str]  # a pair, its side, and the dimension


@dataclass(frozen=True)
class Annotation:
    """What came of a run.

    Attributes:
        pairs: those of the data, with all critiques that are there.
        dimensions: in which there was something to ask.
        asked: the places where there was something to ask.
        answers: the last answer at each of them that has one.
        missing: why there is no critique, by place, those included that have no score to be explained.
        summary: counts, tokens, cost and failures, as plain JSON.
        path: of the set that was written.
    """

    pairs: list[PreferencePair]
    dimensions: Sequence[str]
    asked: set[Place]
    answers: dict[Place, CriticAnswer]
    missing: dict[Place, str]
    summary: dict[str, Any]
    path: Path


def annotate(
    pairs: Sequence[PreferencePair],
    critic: Critic,
    folder: str | Path,
    *,
    prices: tuple[float, float] | None = None,
    progress: bool = True,
) -> Annotation:
    """Asks a critic for the critiques that pairs do not have, and writes the set with them.

    Args:
        pairs: critiques that they have are kept.
        critic: writes them, in its dimensions.
        folder: of the run, made where it is not there, or gone on in.
        prices: of a million tokens of prompts and of answers, for the cost.
        progress: show a bar.

    Raises:
        JRMError: a score cannot be explained, or none is there; the critic cannot be asked any more; another command
            works in the folder, or it holds the answers of another critic.
    """
    folder = Path(folder)
    check_writable(folder)
    check_preferences(pairs, folder / PAIRS)
    with locked(folder / LOCK_FILE):
        settings = folder / SETTINGS
        check_settings(settings, critic.settings, results=any((folder / name).exists() for name in (ANSWERS, PAIRS)))
        if not settings.exists():
            write_json(settings, critic.settings)
        questions, unscored = _questions(pairs, critic)
        with Answers(folder / ANSWERS) as answers:
            unanswered = _ask({q.key: q for q in questions.values()}, critic, answers, progress)
            last = {place: next(reversed(answers.of(q.key)), None) for place, q in questions.items()}
            used = answers.summary(prices)
        missing = unscored | {
            place: unanswered.get(questions[place].key) or _in_words(answer)
            for place, answer in last.items()
            if answer is None or answer.critique is None
        }
        written = {place: answer for place, answer in last.items() if answer is not None}
        critiques = {place: answer.critique for place, answer in written.items() if answer.critique is not None}
        annotated = [_with_critiques(pair, number, critic.dimensions, critiques) for number, pair in enumerate(pairs)]
        summary = {
            "pairs": len(pairs),
            "critic": critic.name,
            "critiques": {
                "in_the_data": sum(len(getattr(pair, f"{side}_critiques")) for pair in pairs for side in SIDES),
                "written": len(critiques),
                "missing": len(missing) - len(unscored),
                "without_a_score": len(unscored),
            },
            "questions": len({q.key for q in questions.values()}),
            "repaired": sum(answer.repaired for answer in written.values()),
            **used,
        }
        write_json(folder / SUMMARY, summary)
        path = write_preferences(folder / PAIRS, annotated)
    return Annotation(annotated, critic.dimensions, {*questions}, written, missing, summary, path)


def _questions(pairs: Sequence[PreferencePair], critic: Critic) -> tuple[dict[Place, Question], dict[Place, str]]:
    """What there is to ask, and where there is no score to be explained."""
    digests = SampleDigests()
    questions: dict[Place, Question] = {}
    unscored: dict[Place, str] = {}
    for number, pair in enumerate(pairs):
        for side in SIDES:
            sample, scores = getattr(pair, side), getattr(pair, f"{side}_scores") or {}
            for dimension in critic.dimensions:
                if dimension in getattr(pair, f"{side}_critiques"):
                    continue
                place, score = (number, side, dimension), scores.get(dimension)
                if critic.explains_scores and score is None:
                    unscored[place] = "the data give it no score to explain"
                    continue
                try:
                    if critic.explains_scores:
                        _check_score(score)
                    key = critic.key(sample, dimension, score, digests)
                except JRMError as error:
                    raise JRMError(f"{_name_of(pair, number)}, {side}, {dimension}: {error}.") from error
                questions[place] = Question(key, sample, dimension, score)
    if unscored and not questions:
        raise JRMError(
            f"no pair has scores in {', '.join(critic.dimensions)}, and {critic.name} is asked why a sample has its "
            f"score of {LOWEST} to {HIGHEST}: give columns of scores, or let a JRM annotate, which needs none."
        )
    return questions, unscored


def _check_score(score: Any) -> None:
    if not LOWEST <= score <= HIGHEST:
        raise JRMError(
            f"its score is {score:g}, and what is explained are scores of {LOWEST} to {HIGHEST}; bring the data's to "
            "that scale"
        )


def _name_of(pair: PreferencePair, number: int) -> str:
    file, row = pair.info.get("file"), pair.info.get("row")
    return f"pair {number + 1}" if file is None else f"{file}, row {row}"


def _ask(questions: dict[str, Question], critic: Critic, answers: Answers, progress: bool) -> dict[str, str]:
    """Asks what is open; why it stays open where it does, by the question's key."""
    waiting = [question for question in questions.values() if _is_open(answers.of(question.key), critic.attempts)]
    stays: dict[str, str] = {}
    total = len(questions)
    bar = tqdm(total=total, initial=total - len(waiting), desc="Annotating", unit="critique", disable=not progress)
    # Closed before the file of answers, whatever happens: what is being asked is still stored.
    with bar, closing(critic.answer(waiting, answers)) as answering:
        for key, problem in answering:
            if problem is not None:
                stays[key] = problem
            bar.update()
    return stays


def _is_open(earlier: Sequence[CriticAnswer], attempts: int) -> bool:
    return len(earlier) < attempts and not (earlier and earlier[-1].critique is not None)


def _in_words(answer: CriticAnswer | None) -> str:
    return "it was not asked" if answer is None else f"{answer.fault}: {answer.problem}"


def _with_critiques(
    pair: PreferencePair, number: int, dimensions: Sequence[str], critiques: Mapping[Place, Critique]
) -> PreferencePair:
    chosen, rejected = (
        {name: critiques[number, side, name] for name in dimensions if (number, side, name) in critiques}
        for side in SIDES
    )
    return replace(
        pair,
        chosen_critiques={**pair.chosen_critiques, **chosen},
        rejected_critiques={**pair.rejected_critiques, **rejected},
    )
