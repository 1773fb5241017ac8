"""Pages of critiques to look at: each sample with its boxes on it, and what is said of it beside its score.

The boxes are drawn by the browser, so that an image stands in the page once and as it is.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from jrm_plugin.evaluation.drawing import region_colour
from jrm_plugin.evaluation.gallery import THREADS, PageLink, picture_url, write_pages
from jrm_plugin.evaluation.report import reasoning_html, template
from jrm_plugin.records.critiques import Critique
from jrm_plugin.records.samples import Sample

PROMPTS_PER_PAGE = 30


class ShownCritique(TypedDict):
    """What is said of a sample in a dimension, or why nothing is."""

    dimension: str
    critique: Critique | None
    score: NotRequired[float | None]  # that the data give it
    note: NotRequired[str]  # what a reviewer should know of it, or why there is none


class CritiquedSample(TypedDict):
    """A sample of a prompt."""

    name: str  # "preferred"
    sample: Sample
    critiques: list[ShownCritique]


class CritiquedPrompt(TypedDict):
    """Samples of one prompt."""

    name: str  # "pair 3"
    samples: list[CritiquedSample]


def write_critique_pages(
    path: str | Path, prompts: Sequence[CritiquedPrompt], *, title: str, lead: str, facts: Mapping[str, Any]
) -> Path:
    """Writes the pages; older ones of this name are replaced.

    Args:
        path: of the first page; the others lie in a folder beside it.
        prompts: in the order in which they are shown.
        title, lead: of the first page; `lead` is a sentence.
        facts: counts and the like, by their names.

    Raises:
        JRMError: a file cannot be written, an image cannot be read, or the folder of pages holds other files.
    """
    render = template("critiques.html.j2").render
    count = max(1, -(-len(prompts) // PROMPTS_PER_PAGE))

    def page(number: int, at: Path, links: list[PageLink], files: Sequence[Path]) -> str:
        shown = prompts[(number - 1) * PROMPTS_PER_PAGE : number * PROMPTS_PER_PAGE]
        with ThreadPoolExecutor(THREADS) as pool:
            rows = list(pool.map(_prompt, shown))
        return render(
            title=title, lead=lead, facts=facts if number == 1 else {}, page=number, links=links, prompts=rows
        )

    return write_pages(Path(path), count, page)


def _prompt(prompt: CritiquedPrompt) -> dict[str, Any]:
    first = prompt["samples"][0]["sample"]
    return {
        "name": prompt["name"],
        "instruction": first.prompt_text,
        "sources": [picture_url(image) for image in first.prompt_images],
        "samples": [_sample(sample) for sample in prompt["samples"]],
    }


def _sample(shown: CritiquedSample) -> dict[str, Any]:
    sample = shown["sample"]
    return {
        "name": shown["name"],
        "images": [picture_url(image) for image in sample.response_images],
        "text": sample.response_text,
        "critiques": [_critique(critique) for critique in shown["critiques"]],
    }


def _critique(shown: ShownCritique) -> dict[str, Any]:
    critique = shown["critique"]
    regions = []
    for region in critique.edit_region if critique else ():
        x1, y1, x2, y2 = (corner / 10 for corner in region.bbox_2d)
        box = {"left": x1, "top": y1, "width": x2 - x1, "height": y2 - y1}
        regions.append({"id": region.id, "label": region.label, "colour": region_colour(region.id), "box": box})
    return {
        "dimension": shown["dimension"],
        "score": shown.get("score"),
        "note": shown.get("note", ""),
        "text": critique and reasoning_html(critique.reasoning),
        "regions": regions,
    }
