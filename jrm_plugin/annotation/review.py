"""The page on which people look at what was annotated."""

from pathlib import Path
from typing import Any

from jrm_plugin.annotation.annotating import SIDES, Annotation
from jrm_plugin.errors import shortened
from jrm_plugin.evaluation.critique_pages import CritiquedPrompt, CritiquedSample, ShownCritique, write_critique_pages
from jrm_plugin.records.samples import OVERALL


def write_review(path: str | Path, annotation: Annotation, *, pairs: int = 200) -> Path:
    """Writes the page, with the pairs that miss a critique first.

    Args:
        path: of the page.
        annotation: what `annotate` returned.
        pairs: how many are shown at most.

    Raises:
        JRMError: it cannot be written.
    """
    incomplete = {number for number, *_ in annotation.missing}
    order = sorted(range(len(annotation.pairs)), key=lambda number: number not in incomplete)[:pairs]
    summary = annotation.summary
    counts = summary["critiques"]
    lead = f"Pairs: {summary['pairs']:,}; critiques by {summary['critic']}: {counts['written']:,}."
    if len(order) < len(annotation.pairs):
        lead += f" The page shows {len(order):,} pairs."
    if incomplete:
        lead += " Those that miss a critique stand first."
    prompts = [_shown(annotation, number) for number in order]
    return write_critique_pages(path, prompts, title="Critiques to review", lead=lead, facts=facts_of(summary))


def facts_of(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary's counts under names for people."""
    counts = summary["critiques"]
    facts = {
        "critiques written": counts["written"],
        "critiques that the data had": counts["in_the_data"],
        "critiques that are missing": counts["missing"],
        "samples without a score to explain": counts["without_a_score"],
        "questions, each asked once": summary["questions"],
        "answers whose JSON was repaired": summary["repaired"],
        "answers": summary["answers"],
        "tokens of prompts": summary["prompt_tokens"],
        "tokens of answers": summary["completion_tokens"],
        "answers without a count of tokens": summary["answers_without_token_counts"],
    }
    facts = {name: value for name, value in facts.items() if value}
    if "seconds_median" in summary:
        facts["seconds an answer, median"] = f"{summary['seconds_median']:.2f}"
    if "cost" in summary:
        facts["cost"] = f"{summary['cost']:.4g}"
    facts |= {f"answers that were no critique: {fault}": count for fault, count in summary["faults_of_answers"].items()}
    return facts | {f"requests sent again: {why}": count for why, count in summary["unanswered_requests"].items()}


def _shown(annotation: Annotation, number: int) -> CritiquedPrompt:
    pair = annotation.pairs[number]
    names = ("one", "the other") if pair.labels.get(OVERALL) == 0 else ("preferred", "the other")
    samples: list[CritiquedSample] = []
    for side, name in zip(SIDES, names, strict=True):
        critiques, scores = getattr(pair, f"{side}_critiques"), getattr(pair, f"{side}_scores") or {}
        shown: list[ShownCritique] = []
        for dimension in dict.fromkeys([*annotation.dimensions, *critiques]):
            place = (number, side, dimension)
            answer = annotation.answers.get(place)
            if place in annotation.missing:
                note = f"No critique: {annotation.missing[place]}."
                note += f" The last answer: {shortened(answer.text)}" if answer else ""
            elif answer is None:
                note = "From the data."
            else:
                note = "Its JSON was repaired." if answer.repaired else ""
            shown.append(
                {
                    "dimension": dimension,
                    "critique": critiques.get(dimension),
                    "score": scores.get(dimension),
                    "note": note,
                }
            )
        samples.append({"name": name, "sample": getattr(pair, side), "critiques": shown})
    return {"name": f"Pair {number + 1}", "samples": samples}
