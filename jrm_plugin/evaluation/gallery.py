"""A gallery of many candidates, best first: HTML that needs nothing else, in pages of a few hundred images.

The first page is the file that is named; the others lie in a folder beside it. Photographs are shown small and linked
to their files, small images as they are.
"""

import base64
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import ImageOps
from tqdm.auto import tqdm

from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation.report import Scale, ShownGroup, template
from jrm_plugin.files import check_writable, new_folder, write_text
from jrm_plugin.records.images import ImageLike, is_data_url, load_image
from jrm_plugin.records.preferences import PreferencePair
from jrm_plugin.records.scores import RewardScore

PER_PAGE = 210  # candidates: 30 rows of 7, at most some megabytes
SHOWN_SIDE = 336  # pixels of the longer side of what is shown of a photograph
SMALL_SIDE = 128  # up to here an image is shown as it is, without loss
PAGES_NEAR = 3  # numbers of pages that are linked to each side, beside the first and the last
THREADS = 4


PageLink = tuple[int, str | int]  # the number of a page and where it is; 0 where some are left out


class RankedGroup(ShownGroup):
    """The candidates of one instruction, best first, with their names in `note`."""

    win_over_second: float | None  # P(the first is better than the second), where there are two
    failed: list[dict[str, str]]  # those without a score: name and error


@dataclass(frozen=True)
class Part:
    """What of a group stands on one page: the candidates from `start` to before `stop`."""

    number: int  # of the group, from 1
    start: int
    stop: int


def check_gallery(path: Path) -> None:
    """A [`JRMError`] if `path` is no name of a page, or the page or its folder cannot be written."""
    folder = _folder(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise JRMError(f"the gallery {path} must have a name that ends in .html.")
    check_writable(path.parent)
    if path.is_dir() or folder.is_file():
        raise JRMError(f"the gallery {path} cannot be written, nor its folder {folder}; choose another name.")
    if folder.exists() and (others := [name for name in os.listdir(folder) if not re.fullmatch(r"\d+\.html", name)]):
        raise JRMError(f"{folder} is for the gallery's pages and holds {others[0]}; choose another name.")


def _folder(path: Path) -> Path:
    return path.with_name(f"{path.stem}_pages")


def write_gallery(path: str | Path, groups: Sequence[RankedGroup], *, title: str = "Candidates, best first") -> Path:
    """Writes the gallery of `groups`; an older one of this name is replaced.

    Raises:
        JRMError: a file cannot be written, an image cannot be read, or the folder of pages holds other files.
    """
    pages = list(_pages([len(group["candidates"]) for group in groups]))
    page_of = {part.number: number for number, parts in reversed([*enumerate(pages, 1)]) for part in parts}
    render = template("gallery.html.j2").render
    shared = {"title": title, "lead": _lead(groups)}
    scales = [Scale.of([candidate["score"] for candidate in group["candidates"]]) for group in groups]

    def page(number: int, at: Path, links: list[PageLink], files: Sequence[Path]) -> str:
        contents = [
            (_in_short(group["instruction"]), f"{_url(files[page_of[k] - 1], at)}#instruction-{k}")
            for k, group in enumerate(groups, 1)
        ]
        shown = [_shown(groups[part.number - 1], part, scales[part.number - 1], at) for part in pages[number - 1]]
        return render(**shared, page=number, links=links, contents=contents if number == 1 else [], groups=shown)

    return write_pages(Path(path), len(pages), page)


def write_pages(path: Path, count: int, page: Callable[[int, Path, list[PageLink], Sequence[Path]], str]) -> Path:
    """Writes pages that link each other; older ones of this name are replaced.

    Args:
        path: of the first page; the others lie in a folder beside it.
        count: of pages.
        page: the text of a page, from its number, the folder it lies in, its links to pages, and all pages' files.

    Raises:
        JRMError: as `check_gallery`.
    """
    check_gallery(path)
    folder = _folder(path)
    files = [path, *(folder / f"{number}.html" for number in range(2, count + 1))]

    def write(number: int, place: Path) -> Path:
        at = files[number - 1].parent
        links = [(k, k and _url(files[k - 1], at)) for k in _near(number, count)]
        text = page(number, at, links, files)
        return write_text(place, text.encode(errors="replace").decode())  # names of files may hold what is no Unicode

    numbers = tqdm(range(count, 1, -1), desc="Gallery", unit="page", disable=count < 3)  # the first one last
    shutil.rmtree(folder, ignore_errors=True)  # an older gallery's pages
    if count > 1:
        with new_folder(folder) as staging:
            for number in numbers:
                write(number, staging / f"{number}.html")
    return write(1, path)


def _pages(counts: Sequence[int]) -> Iterator[list[Part]]:
    """The parts of groups of so many candidates that stand on each page; a group is divided only where it must be."""
    parts: list[Part] = []
    free = PER_PAGE
    for number, count in enumerate(counts, 1):
        start = 0
        while True:
            if parts and (free == 0 or free < count - start <= PER_PAGE):
                yield parts
                parts, free = [], PER_PAGE
            stop = min(count, start + free)
            parts.append(Part(number, start, stop))
            free -= max(1, stop - start)  # so that thousands without a score do not share a page
            start = stop
            if start == count:
                break
    yield parts


def _near(number: int, count: int) -> list[int]:
    """The pages linked from one: the first, the last, and those near it; 0 where some are left out."""
    near = sorted({1, *range(max(1, number - PAGES_NEAR), min(count, number + PAGES_NEAR) + 1), count})
    result: list[int] = []
    for k in near:
        if result and k > result[-1] + 1:
            result.append(0)
        result.append(k)
    return result


# --- what a page shows ------------------------------------------------------------------------------------------------


def _lead(groups: Sequence[RankedGroup]) -> str:
    candidates = sum(len(group["candidates"]) for group in groups)
    failed = sum(len(group["failed"]) for group in groups)
    lead = f"{candidates:,} candidates for {_counted(len(groups), 'instruction')}, in the model's order."
    return lead + (f" {failed:,} could not be scored." if failed else "")


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _shown(group: RankedGroup, part: Part, scale: Scale, at: Path) -> dict[str, Any]:
    candidates = group["candidates"][part.start : part.stop]
    with ThreadPoolExecutor(THREADS) as pool:
        images = list(pool.map(picture_url, [*group["sources"], *(candidate["image"] for candidate in candidates)]))
    sources = len(group["sources"])
    said = f"{_counted(len(group['candidates']), 'candidate')}."
    if group["win_over_second"] is not None:
        said += f" P(the first is better than the second) = {group['win_over_second']:.2f}."
    return {
        "number": part.number,
        "first": part.start + 1,
        "instruction": group["instruction"],
        "said": said,
        "sources": images[:sources],
        "candidates": [
            {
                "image": image,
                "rows": scale.rows(candidate["score"]),
                "note": candidate.get("note", ""),
                "verdict": None,
                "link": _link(candidate["image"], at),
            }
            for candidate, image in zip(candidates, images[sources:], strict=True)
        ],
        "scale": scale,
        "failed": group["failed"] if part.stop == len(group["candidates"]) else [],
    }


def shown_pair(
    pair: PreferencePair, scores: Sequence[RewardScore], notes: tuple[str, str], *, rejected_first: bool
) -> dict[str, Any]:
    """A pair as the macro `strip` of the templates shows it: source images, and both samples beside each other.

    Args:
        pair: the pair; of a sample without an image the text is shown.
        scores: of the chosen and of the rejected sample, or none.
        notes: what is said of the chosen and of the rejected one.
        rejected_first: which of the two stands first.
    """
    scale = Scale.of(scores)
    candidates = []
    for side in (1, 0) if rejected_first else (0, 1):
        sample = (pair.chosen, pair.rejected)[side]
        images = sample.response_images
        candidates.append(
            {
                "image": picture_url(images[0]) if images else "",
                "rows": scale.rows(scores[side]) if scores else [],
                "note": f"{sample.response_text} ({notes[side]})" if sample.response_text else notes[side],
                "verdict": None,
                "link": None,
            }
        )
    return {
        "instruction": pair.chosen.prompt_text,
        "sources": [picture_url(image) for image in pair.chosen.prompt_images],
        "candidates": candidates,
        "scale": scale,
    }


def picture_url(image: ImageLike) -> str:
    """What is shown of an image, as a `data:` URL."""
    picture = load_image(image)
    small = max(picture.size) <= SMALL_SIDE
    if not small:
        picture = ImageOps.contain(picture, (SHOWN_SIDE, SHOWN_SIDE)) if max(picture.size) > SHOWN_SIDE else picture
    buffer = io.BytesIO()
    picture.save(buffer, **({"format": "PNG"} if small else {"format": "JPEG", "quality": 85}))
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _link(image: Any, at: Path) -> str | None:
    """Where the image's file is, seen from a page in the folder `at`; None where there is no file."""
    return _url(Path(image), at) if isinstance(image, str) and not is_data_url(image) else None


def _url(path: Path, at: Path) -> str:
    return quote(os.fsencode(os.path.relpath(path, at)))


def _in_short(text: str, most: int = 120) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
