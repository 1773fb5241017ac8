"""The judge of ShapeEdits: reads pictures and instructions back, and knows what an edit is worth.

`read_scene` and `read_quality` read a picture, `read_instruction` an instruction; `judge_edit` and `oracle_score` judge
an edit by these. The judge sees pixels only. A picture of ShapeEdits is read back exactly, also under noise, blur or a
seam: every cell is compared with everything that can be drawn there.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jrm_plugin.errors import JRMError
from jrm_plugin.records.images import load_image
from jrm_plugin.synthetic.preferences import FAILURE_SCORES, GRID, PLACES, overall_score, spoil
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
    """What a picture shows, without its flaw."""

    background: str
    items: dict[int, Item]  # by place
    shifts: dict[int, tuple[int, int]]  # of each item by place: (down, right) in pixels


# All outlines that a cell can show, as (shape, shift), and which of the cell's pixels the left and the right half of
# each cover: [outline, half, pixel], that is [27, 2, 256].
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
    in_palette = (pixels[:, :, None] == palette).all(-1).any(-1)  # the pixels that have a colour of ShapeEdits
    # [place, pixel of the cell, 3]
    cells = pixels.reshape(GRID, CELL, GRID, CELL, 3).swapaxes(1, 2).reshape(GRID * GRID, CELL * CELL, 3)
    distance = ((cells[:, :, None] - palette) ** 2).sum(-1)
    flawed = np.flatnonzero(~in_palette.all(0))  # columns
    if not len(flawed) or _is_strip(flawed):  # clean, or with a seam, whose colours say nothing: count pixels
        distance = (distance > 0) * 1.0
    distance = dict(zip([*COLOURS, *BACKGROUNDS], np.moveaxis(distance, 2, 0), strict=True))
    scene = min((_read_on(background, distance) for background in BACKGROUNDS), key=lambda reading: reading[0])[1]
    if in_palette.mean() > 0.5 and len(flawed) and not _is_strip(flawed):  # blurred: outlines may be a pixel off
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
    """How far the picture is from the best reading on this background, and that reading.

    `distance[colour]` is `[place, pixel of the cell]`.
    """
    remaining, items, shifts, names = 0.0, {}, {}, list(COLOURS)
    # How much nearer the picture gets when a half of an outline is painted in a colour: [place, outline, half, colour]
    gains = np.stack(
        [np.tensordot(distance[background] - distance[name], _HALVES, axes=(1, 2)) for name in names], axis=-1
    )
    for place, gain in enumerate(gains):
        remaining += distance[background][place].sum()
        left, right = gain[:, 0], gain[:, 1].max(-1)
        best = int((right + np.maximum(left.max(-1), 0)).argmax())  # a left half that shows nothing gains nothing
        best_gain = right[best] + max(left[best].max(), 0)
        if best_gain <= 0:  # the place is empty
            continue
        colour = names[gain[best, 1].argmax()]
        left_colour = names[left[best].argmax()] if left[best].max() > 0 else "nothing"
        shape, shifts[place] = _OUTLINES[best]
        items[place] = Item(place, colour, shape, None if left_colour == colour else left_colour)
        remaining -= best_gain
    return remaining, Scene(background, items, shifts)


def draw_scene(scene: Scene) -> np.ndarray:
    """The flawless picture of a scene, `[48, 48, 3]` of uint8: what `read_scene` reads back."""
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
    return "mild_noise" if np.std(pixels.astype(float) - clean) < 35 else "heavy_noise"  # 35: between those of `NOISE`


# --- the judge --------------------------------------------------------------------------------------------------------


TOLERANCES = (10, 20, 35)  # of generated pictures: distances from which visual quality is 3, 2, 1, in levels of 255


def judge_edit(source, instruction: str, image) -> tuple[str, str]:
    """What went wrong in an edit, as a (failure, quality) of `preferences`: the oracle behind ShapeEdits' scores.

    Two failures in one picture count as one: `several_copies` where the object that was asked for stands at two places
    or more of which nobody spoke; `over_edit` where what was asked for is done but the rest is not as it was;
    `wrong_object` where it is not done either.

    Args:
        source, image: anything `load_image` reads.
        instruction: one of ShapeEdits.

    Raises:
        JRMError: a picture has another size than ShapeEdits', or the instruction is none about this source.
    """
    before, after = read_scene(source), read_scene(image)
    request = read_instruction(instruction, before)
    return _failure(before, request, after), read_quality(image, after)


def oracle_score(source, instruction: str, image) -> int:
    """The overall score of an edit, 2 (ignored, heavy noise) to 8 (as asked, clean); arguments as of `judge_edit`."""
    return overall_score(*judge_edit(source, instruction, image))


class GeneratedEdit(NamedTuple):
    """What the judge says of a picture that a model painted; `distance` is in levels of 255."""

    failure: str
    instruction_following: int
    visual_quality: int
    distance: float


def judge_generated(source, instruction: str, image) -> GeneratedEdit:
    """The judge of pictures that a model painted, of which none equals what it shows pixel for pixel.

    The failure is judged as in `judge_edit`, on the scene that is nearest to the picture. Visual quality is how near:
    with the distance, the root mean square of the difference from the scene's flawless picture, or half of that of the
    worst place where this is more, it is 4 below 10 levels of 255, 3 below 20, 2 below 35, else 1. Eight pixels of
    another object's colour in one place are enough for 3.

    Args:
        source, image: anything `load_image` reads.
        instruction: one of ShapeEdits.

    Raises:
        JRMError: a picture has another size than ShapeEdits', or the instruction is none about this source.
    """
    before, after = read_scene(source), read_scene(image)
    failure = _failure(before, read_instruction(instruction, before), after)
    error = (np.asarray(load_image(image), dtype=np.float64) - draw_scene(after)) ** 2
    by_place = error.reshape(GRID, CELL, GRID, CELL, 3).mean((1, 3, 4))
    distance = float(max(error.mean() ** 0.5, by_place.max() ** 0.5 / 2))
    quality = 4 - sum(distance >= bound for bound in TOLERANCES)
    return GeneratedEdit(failure, FAILURE_SCORES[failure], quality, distance)


def _failure(before: Scene, request: Request, after: Scene) -> str:
    old, new = before.items, after.items
    asked = _as_asked(before, request)
    same_background = before.background == after.background
    places = {request.target.place, request.place}  # what the instruction is about
    copied = f"{request.colour} {request.target.shape}"
    copies = [p for p, item in new.items() if p not in places and item.name == copied and item != old.get(p)]
    if len(copies) > 1:
        return "several_copies"
    if same_background and new == asked:
        return "none"
    if same_background and new == old:
        return "ignored"
    if all(new.get(place) == asked.get(place) for place in places):
        return "over_edit"
    shown = {place: new[place] for place in places if place in new}
    changed = [p for p in range(GRID * GRID) if p not in places and new.get(p) != old.get(p)]
    if changed or not same_background:
        # Nothing but the right object where it should not be, and nothing where it should.
        misplaced = same_background and not shown and new.get(changed[0]) == request.target._replace(place=changed[0])
        return "wrong_value" if misplaced and len(changed) == 1 else "wrong_object"
    left_behind = request.kind == "move" and new.get(request.place) == asked[request.place]
    if left_behind or any(item.left for item in shown.values()):
        return "partial"
    if request.kind == "add" and shown and new[request.place].shape != request.target.shape:
        return "wrong_object"
    return "wrong_value"


def _as_asked(scene: Scene, request: Request) -> dict[int, Item]:
    return {item.place: item for item in as_asked(list(scene.items.values()), request).items}


# --- instructions -----------------------------------------------------------------------------------------------------

# What the sentences of ShapeEdits name, instructions and critiques alike: regular expressions of one group each.
OBJECT = f"((?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)}))"
COLOUR = f"({'|'.join(COLOURS)})"
PLACE = f"({'|'.join(sorted(PLACES, key=len, reverse=True))})"


def read_instruction(instruction: str, scene: Scene) -> Request:
    """What an instruction of ShapeEdits asks for in a scene.

    Raises:
        JRMError: it is no such instruction, or speaks of an object that the scene does not have.
    """
    by_name = {item.name: item for item in scene.items.values()}
    if match := re.fullmatch(f"add a {OBJECT} at the {PLACE}", instruction):
        place = PLACES.index(match[2])
        colour, shape = match[1].split()
        return Request("add", Item(place, colour, shape), colour, place)
    for kind, pattern in (
        ("recolour", f"make the {OBJECT} {COLOUR}"),
        ("remove", f"remove the {OBJECT}"),
        ("move", f"move the {OBJECT} to the {PLACE}"),
    ):
        if (match := re.fullmatch(pattern, instruction)) and match[1] in by_name:
            target = by_name[match[1]]
            colour = match[2] if kind == "recolour" else target.colour
            return Request(kind, target, colour, PLACES.index(match[2]) if kind == "move" else target.place)
    raise JRMError(f"{instruction[:80]!r} is no instruction of ShapeEdits about an object that its source shows.")
