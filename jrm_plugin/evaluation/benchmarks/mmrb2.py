"""MMRB2, image editing (arXiv 2512.16899): pairs with one to three source images; table 2 of the JRM paper.

Its JSON, `{"pairs": […]}`, holds content as `[["image", path], ["text", …]]`; on the hub a prompt is text with
`<image_N>` and a list of images. Its README names some keys otherwise than its data do; both are read. Of a response
the edited image is judged, not what was said beside it.
"""

import re
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from jrm_plugin.data.reading import need
from jrm_plugin.data.tables import Table
from jrm_plugin.errors import JRMError, shortened
from jrm_plugin.evaluation.agreement import accuracy
from jrm_plugin.evaluation.benchmarks.benchmark import (
    Benchmark,
    Column,
    Published,
    TablePairs,
    benchmark_table,
    file_in,
    one_of,
    pair_of,
)
from jrm_plugin.files import read_json
from jrm_plugin.records.preferences import PreferencePair
from jrm_plugin.records.samples import OVERALL

HUB = None  # its images have to be fetched from several places, as its README says
_HUB_COLUMNS = ("pair_id", "prompt_text", "prompt_images", "response_a_images", "response_b_images", "chosen")
_README = {"pair_id": "id", "human_preference": "chosen"}  # what the README calls some keys
_LABELS = {"A": 1, "B": -1}
_COLUMNS = (
    Column("Single", accuracy, OVERALL, where=("sources", "single")),
    Column("Multi", accuracy, OVERALL, where=("sources", "multi")),
    Column("Overall", accuracy, OVERALL),
)
_PUBLISHED = Published(
    "JRM paper, table 2, pointwise",
    {
        "Qwen3-VL-8B": (0.425, 0.393, 0.419),
        "Qwen3-VL-32B": (0.467, 0.461, 0.466),
        "Gemini-2.5-Pro": (0.545, 0.483, 0.534),
        "EditScore-8B": (0.579, 0.528, 0.570),
        "Gemini-3.0-Pro": (0.594, 0.573, 0.590),
        "GPT-5": (0.627, 0.584, 0.619),
        "Gemini-3.0-Flash": (0.627, 0.596, 0.621),
        "EditReward": (0.672, 0.590, 0.657),
        "JRM": (0.703, 0.646, 0.693),
    },
)


def read(source: str | Path, *, progress: bool = True) -> Benchmark:
    table = _table(source)
    return Benchmark(
        "mmrb2",
        "MMRB2, image editing",
        TablePairs(table, partial(_pair, table=table), progress),
        _COLUMNS,
        divisions=("sources",),
        published=_PUBLISHED,
    )


def _table(source: str | Path) -> Table:
    path = Path(file_in(source))
    if path.suffix.lower() != ".json":
        return benchmark_table(source, "MMRB2", _HUB_COLUMNS)
    content = read_json(path)
    rows = content.get("pairs") if isinstance(content, Mapping) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, Mapping) for row in rows):
        raise JRMError(f'{path} is not MMRB2: it must hold {{"pairs": [{{…}}, …]}}; give the published file.')
    return Table(str(path), "JSON", rows, tuple(rows[0]), path.parent)


def _pair(row: Mapping[str, Any], table: Table) -> list[PreferencePair]:
    if "prompt_images" in row:
        images, pieces = row["prompt_images"], _pieces_of_text(row["prompt_text"], row["prompt_images"])
        candidates = tuple(_one_image(row[f"response_{side}_images"], f"response_{side}_images") for side in "ab")
        row = {"id": row["pair_id"], **row}
    else:
        row = {_README.get(name, name): value for name, value in row.items()}
        need(row, ("id", "prompt_content", "response_a", "response_b", "chosen"))
        parts = _parts(row["prompt_content"], "prompt_content")
        images = [part for kind, part in parts if kind == "image"]
        numbers = iter(range(1, len(images) + 1))
        pieces = [part if kind == "text" else next(numbers) for kind, part in parts]
        candidates = tuple(_edited(row[side], side) for side in ("response_a", "response_b"))
    return [
        pair_of(
            table,
            _instruction(pieces),
            images,
            candidates,
            {OVERALL: one_of(row, "chosen", _LABELS)},
            id=str(row["id"]),
            sources="multi" if len(images) > 1 else "single",
        )
    ]


def _edited(response: Any, side: str) -> Any:
    if not isinstance(response, Mapping) or "response_content" not in response:
        raise JRMError(f"{side} must be an object with response_content, not {shortened(response)}")
    parts = _parts(response["response_content"], side)
    return _one_image([part for kind, part in parts if kind == "image"], side)


def _one_image(images: Any, what: str) -> Any:
    if not isinstance(images, list) or len(images) != 1:
        raise JRMError(f"{what} must hold one image, not {shortened(images)}")
    return images[0]


def _parts(content: Any, what: str) -> list[tuple[str, Any]]:
    is_content = isinstance(content, list) and all(
        isinstance(part, list) and len(part) == 2 and part[0] in ("image", "text") for part in content
    )
    if not is_content:
        raise JRMError(f'{what} must be a list of ["image", path] and ["text", text], not {shortened(content)}')
    return [(kind, part) for kind, part in content]


def _pieces_of_text(text: Any, images: Any) -> list[str | int]:
    """Texts, and numbers of images, by turns."""
    if not isinstance(text, str) or not isinstance(images, list):
        raise JRMError(f"prompt_text must be text and prompt_images a list, not {shortened(text)}, {shortened(images)}")
    pieces: list[str | int] = [*re.split(r"<image_(\d+)>", text)]
    pieces[1::2] = [int(number) for number in pieces[1::2]]
    if wrong := [number for number in pieces[1::2] if not 1 <= int(number) <= len(images)]:
        raise JRMError(f"prompt_text names <image_{wrong[0]}>, and there are {len(images)} prompt_images")
    return pieces


def _instruction(pieces: list[str | int]) -> str:
    """The text of a prompt, whose images are all shown before it: images between words are named by their numbers."""
    pieces = [piece if isinstance(piece, int) else piece.strip() for piece in pieces if piece != ""]
    pieces = [piece for piece in pieces if piece]
    changes = sum(isinstance(a, int) != isinstance(b, int) for a, b in pairwise(pieces))
    if changes <= 1:  # the images stand before all words or behind them
        return " ".join(piece for piece in pieces if isinstance(piece, str))
    return " ".join(piece if isinstance(piece, str) else f"image {piece}" for piece in pieces)
