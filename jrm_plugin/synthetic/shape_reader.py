"""The judge of ShapeEdits: reads a picture and an instruction back, and knows what an edit is worth.

It sees pixels only. A picture of ShapeEdits is read back exactly, also under noise, blur or a seam: every cell is
compared with everything that can be drawn there.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jrm_plugin.errors import JRMError
from jrm_plugin.records.images import load_image
from jrm_plugin.synthetic.preferences import GRID, PLACES, overall_score, spoil
from jrm_plugin.synthetic.shape_edits import (
    BACKGROUNDS,
    CELL,
    COLOURS,
    SHAPES,
    Item,
    Request,
    as_asked,
    render,
    shape_mask,
)

# --- reading a picture ------------------------------------------------------------------------------------------------


class Scene(NamedTuple):
    """What a picture shows."""

    background: str
    items: dict[int, Item]  # by place
    shifts: dict[int, tuple[int, int]]  # of each item by place: (down, right) in pixels


# Everything that has an outline: shape, shift, and its pixels of a cell, `[N, 2, 256]` for its left and right half.
_OUTLINES = [(shape, (down, right)) for shape in SHAPES for down in (-1, 0, 1) for right in (-1, 0, 1)]
_LEFT = np.arange(CELL)[None, :] < CELL // 2
_HALVES = np.stack(
    [
        [(mask & half).ravel() for half in (_LEFT, ~_LEFT)]
        for shape, shift in _OUTLINES
        for mask in [shape_mask(shape, *shift)[:, :, 0]]
    ]
).astype(np.float64)


def read_scene(image) -> Scene:
    """The scene that a picture shows, whatever flaw it has.

    Args:
        image: anything `load_image` reads, 48x48 pixels.

    Raises:
        JRMError: the picture has another size.
    """
    pixels = np.asarray(load_image(image), dtype=np.float64)
    if pixels.shape != (GRID * CELL, GRID * CELL, 3):
        size = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise JRMError(f"a picture of ShapeEdits has {GRID * CELL}x{GRID * CELL} pixels, and this one {size}.")
    palette = np.array([*COLOURS.values(), *BACKGROUNDS.values()], dtype=np.float64)
    known = (pixels[:, :, None] == palette).all(-1).any(-1)  # pixels that have a colour of ShapeEdits
    # [place, pixel of the cell, 3]
    cells = pixels.reshape(GRID, CELL, GRID, CELL, 3).swapaxes(1, 2).reshape(GRID * GRID, CELL * CELL, 3)
    distance = ((cells[:, :, None] - palette) ** 2).sum(-1)
    strange = np.flatnonzero(~known.all(0))
    if not len(strange) or _is_strip(strange):  # clean, or with a seam, whose colours say nothing: count pixels
        distance = (distance > 0) * 1.0
    distance = dict(zip([*COLOURS, *BACKGROUNDS], np.moveaxis(distance, 2, 0), strict=True))
    scene = min((_read_on(background, distance) for background in BACKGROUNDS), key=lambda reading: reading[0])[1]
    if known.mean() > 0.5 and len(strange) and not _is_strip(strange):  # blurred: an outline is a pixel off at times
        scene = _sharpened(scene, pixels)
    return scene


def _is_strip(columns: np.ndarray) -> bool:
    """Whether these columns are no wider than a seam."""
    return columns[-1] - columns[0] < GRID * CELL // 16


def _sharpened(scene: Scene, pixels: np.ndarray) -> Scene:
    """The scene with the outlines, then the colours, whose blurred picture comes closest."""

    def closest(scenes: list[Scene]) -> Scene:
        return min(scenes, key=lambda other: np.abs(_blurred(other) - pixels).sum())

    for place in scene.items:
        scene = closest([_with(scene, scene.items[place]._replace(shape=shape), shift) for shape, shift in _OUTLINES])
        halves = [(colour, left) for colour in COLOURS for left in (None, "nothing", *COLOURS) if left != colour]
        shift = scene.shifts[place]
        scene = closest([_with(scene, scene.items[place]._replace(colour=c, left=left), shift) for c, left in halves])
    return scene


def _with(scene: Scene, item: Item, shift: tuple[int, int]) -> Scene:
    return scene._replace(items=scene.items | {item.place: item}, shifts=scene.shifts | {item.place: shift})


def _read_on(background: str, distance: Mapping[str, np.ndarray]) -> tuple[float, Scene]:
    """The best reading if this is the background, and how far the picture is from it.

    `distance[colour]` is `[place, pixel of the cell]`.
    """
    far, items, shifts, names = 0.0, {}, {}, list(COLOURS)
    # What each outline's halves gain when they are painted in a colour: [place, outline, half, colour]
    gained = [np.einsum("ohp,cp->coh", _HALVES, distance[background] - distance[name]) for name in names]
    for place, gain in enumerate(np.stack(gained, -1)):
        far += distance[background][place].sum()
        left, right = gain[:, 0], gain[:, 1].max(-1)
        best = int((right + np.maximum(left.max(-1), 0)).argmax())
        found = right[best] + max(left[best].max(), 0)
        if found <= 0:
            continue
        colour = names[gain[best, 1].argmax()]
        shown = names[left[best].argmax()] if left[best].max() > 0 else "nothing"
        shape, shifts[place] = _OUTLINES[best]
        items[place] = Item(place, colour, shape, None if shown == colour else shown)
        far -= found
    return far, Scene(background, items, shifts)


def draw_scene(scene: Scene) -> np.ndarray:
    shifts = [scene.shifts.get(place, (0, 0)) for place in range(GRID * GRID)]
    return render(list(scene.items.values()), scene.background, shifts)


def _blurred(scene: Scene) -> np.ndarray:
    return spoil(draw_scene(scene), "blur", np.random.default_rng())  # nothing about blur is random


def read_quality(image, scene: Scene) -> str:
    """Which flaw of `QUALITY_SCORES` a picture of this scene has: its difference from the flawless picture tells."""
    pixels, clean = np.asarray(load_image(image)), draw_scene(scene)
    if (pixels == clean).all():
        return "clean"
    if (pixels == _blurred(scene)).all():
        return "blur"
    if _is_strip(np.flatnonzero((pixels != clean).any((0, 2)))):
        return "seam"
    # 18 and 60 are the noises' standard deviations.
    return "mild_noise" if np.std(pixels.astype(float) - clean) < 35 else "heavy_noise"


# --- the judge --------------------------------------------------------------------------------------------------------


def judge_edit(source, instruction: str, image) -> tuple[str, str]:
    """What went wrong in an edit, as (failure, quality) of `edit_sets`: the oracle behind ShapeEdits' scores.

    Two failures in one picture count as one: where the thing asked for is done and the rest is not as it was, as
    `over_edit`; where it is not done either, as `wrong_object`.
    """
    before, after = read_scene(source), read_scene(image)
    request = read_instruction(instruction, before)
    return _failure(before, request, after), read_quality(image, after)


def oracle_score(source, instruction: str, image) -> int:
    """The overall score of an edit, 2 (ignored, heavy noise) to 8 (as asked, clean)."""
    return overall_score(*judge_edit(source, instruction, image))


def _failure(before: Scene, request: Request, after: Scene) -> str:
    old, new = before.items, after.items
    asked = _as_asked(before, request)
    same_background = before.background == after.background
    if same_background and new == asked:
        return "none"
    if same_background and new == old:
        return "ignored"
    places = {request.target.place, request.place}  # what the instruction is about
    if all(new.get(place) == asked.get(place) for place in places):
        return "over_edit"
    shown = {place: new[place] for place in places if place in new}
    changed = [p for p in range(GRID * GRID) if p not in places and new.get(p) != old.get(p)]
    if changed or not same_background:
        # Nothing but the right object where it should not be, and nothing where it should.
        misplaced = same_background and not shown and new.get(changed[0]) == request.target._replace(place=changed[0])
        return "wrong_value" if misplaced and len(changed) == 1 else "wrong_object"
    copied = request.kind == "move" and new.get(request.place) == asked[request.place]
    if copied or any(item.left for item in shown.values()):
        return "partial"
    if request.kind == "add" and shown and new[request.place].shape != request.target.shape:
        return "wrong_object"
    return "wrong_value"


def _as_asked(scene: Scene, request: Request) -> dict[int, Item]:
    return {item.place: item for item in as_asked(list(scene.items.values()), request).items}


# --- instructions -----------------------------------------------------------------------------------------------------


OBJECT = f"((?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)}))"
COLOUR = f"({'|'.join(COLOURS)})"
PLACE = f"({'|'.join(sorted(PLACES, key=len, reverse=True))})"


def read_instruction(instruction: str, scene: Scene) -> Request:
    """What an instruction of ShapeEdits asks for in a scene; a `JRMError` where it is none."""
    by_name = {item.name: item for item in scene.items.values()}
    if found := re.fullmatch(f"add a {OBJECT} at the {PLACE}", instruction):
        place = PLACES.index(found[2])
        colour, shape = found[1].split()
        return Request("add", Item(place, colour, shape), colour, place)
    for kind, pattern in (
        ("recolour", f"make the {OBJECT} {COLOUR}"),
        ("remove", f"remove the {OBJECT}"),
        ("move", f"move the {OBJECT} to the {PLACE}"),
    ):
        if (found := re.fullmatch(pattern, instruction)) and found[1] in by_name:
            target = by_name[found[1]]
            colour = found[2] if kind == "recolour" else target.colour
            return Request(kind, target, colour, PLACES.index(found[2]) if kind == "move" else target.place)
    raise JRMError(f"{instruction[:80]!r} is no instruction of ShapeEdits about an object that its source shows.")
