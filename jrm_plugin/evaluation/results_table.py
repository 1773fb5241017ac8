"""The tables of a run of judges on benchmarks, in words: for a terminal, Markdown and the page."""

from typing import Any


def rows_of(result: dict[str, Any]) -> list[list[str]]:
    """The rows of a benchmark's table: the judges of this run, then those of a paper."""
    titles = result["columns"]
    rows = [[name, *(in_words(of["columns"][title]) for title in titles)] for name, of in result["judges"].items()]
    for name, values in (result["published"] or {"judges": {}})["judges"].items():
        rows.append([f"{name} (published)", *("–" if (v := values[t]) is None else f"{v:.3f}" for t in titles)])
    return rows


def in_words(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        return "–"
    return f"{figure['value']:.3f} ({figure['low']:.3f}–{figure['high']:.3f})"


def notes_of(result: dict[str, Any]) -> list[str]:
    """What a reader of a benchmark's table has to know."""
    notes = [f"{result['pairs']} pairs; 95 % bootstrap intervals over prompts."]
    notes += [result["note"]] if result["note"] else []
    if result["published"]:
        notes.append(f"Published: {result['published']['source']}.")
    for name, of in result["judges"].items():
        notes += [
            f"{name}: {dimension.replace('_', ' ')} is answered by {said['by'].replace('_', ' ')}."
            for dimension, said in of["dimensions"].items()
            if said["by"] != dimension
        ]
        if not any("calibration" in said for said in of["dimensions"].values()):
            notes.append(f"{name}: no sigma, so no calibration.")
        if "consistency" in of and of["consistency"]["n"]:
            notes.append(f"{name}: the same verdict in both orders in {100 * of['consistency']['value']:.1f} %.")
        if "answers" in of:
            notes.append(f"{name}: {usage_in_words(of['answers'])}.")
        if of["failed"]:
            notes.append(f"{name}: no answer for {of['failed']} pairs, which count as wrong.")
    return notes


def usage_in_words(usage: dict[str, Any]) -> str:
    words = [f"{usage['requests']:,} requests"]
    if "seconds_median" in usage:
        words.append(f"{usage['seconds_median']:.2f} s each ({usage['seconds_95_percent']:.2f} s at 95 %)")
    words.append(f"{usage['prompt_tokens']:,} + {usage['completion_tokens']:,} tokens")
    return ", ".join(words + ([f"cost {usage['cost']:.2f}"] if "cost" in usage else []))


def markdown(results: dict[str, Any]) -> str:
    """The tables of a run with their notes, as Markdown."""
    parts = []
    for result in results["benchmarks"].values():
        header = ["judge", *result["columns"]]
        lines = [header, ["---", *["---:"] * len(result["columns"])], *rows_of(result)]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts.append(f"## {result['title']}\n\n{table}\n\n" + "\n".join(f"- {note}" for note in notes_of(result)))
    return "\n\n".join(parts) + "\n"
