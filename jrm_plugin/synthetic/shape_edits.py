"""ShapeEdits: a made-up preference set of image edits, coloured shapes on a 3x3 grid, with exact scores and critiques.

An image has 48x48 pixels, a place of the grid 16x16. A scene has two or three objects that differ in colour and in
shape. An instruction asks to recolour, remove, move or add one object.

Held out is the pair of scene and instruction: a hash of the scene (background and every object with its place) together
with the instruction decides whether an edit may be trained on, so that no seed and no size of the set can bring a
training edit into the held-out split. Every colour, shape, place and kind of edit occurs in both.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from jrm_plugin.synthetic.preferences import (
    FAILURE_WEIGHTS,
    GRID,
    PLACES,
    QUALITY_WORDS,
    WHOLE,
    Candidate,
    Edit,
    EditSet,
    Outcome,
    Unasked,
    box_of,
    draw_outcomes,
    make_critiques,
    pick,
    spoil,
)

CELL = 16  # pixels of a place's side
SHAPES = ("circle", "square", "triangle")
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (240, 210, 40),
    "purple": (160, 60, 190),
}
BACKGROUNDS = {"white": (245, 245, 245), "grey": (170, 170, 170), "black": (60, 60, 60)}
KINDS = ("recolour", "remove", "add", "move")
_HELD_OUT_OF = 6  # one edit in six is held out


class Item(NamedTuple):
    """An object of a scene. `left` is what its left half shows where only half of an edit was done: a colour, or
    "nothing" for an object cut in half."""

    place: int  # index into PLACES
    colour: str
    shape: str
    left: str | None = None

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


class Request(NamedTuple):
    """What an instruction asks for."""

    kind: str
    target: Item  # for "add": the object to be added
    colour: str  # for "recolour": the new colour
    place: int  # where the edit shows: for "move" the new place, else the target's

    @property
    def instruction(self) -> str:
        return {
            "recolour": f"make the {self.target.name} {self.colour}",
            "remove": f"remove the {self.target.name}",
            "add": f"add a {self.target.name} at the {PLACES[self.place]}",
            "move": f"move the {self.target.name} to the {PLACES[self.place]}",
        }[self.kind]


class Result(NamedTuple):
    """A scene after an edit: its objects, whether the background changed, and the critique's two parts.

    `unasked` is what the second part speaks of where the rest is not unchanged.
    """

    items: list[Item]
    finding: str
    rest: str = "the rest is unchanged"
    new_background: bool = False
    unasked: Unasked | None = None


def draw_edit(
    rng: np.random.Generator,
    *,
    heldout: bool,
    tie: bool = False,
    outcomes: Sequence[Outcome] | None = None,
    failures: Mapping[str, float] = FAILURE_WEIGHTS,
) -> Edit:
    """Draw a scene, an instruction of the wanted split and two candidates, which go wrong as `failures` weighs it.

    With `outcomes`, a sequence of (failure, quality), there is one candidate for each instead: a group to rank.
    """
    while True:
        items, background, request = _draw_request(rng)
        scene = f"{background} {_caption(items)}"
        if is_held_out(scene, request.instruction) == heldout:
            break
    weights = failure_weights(request.kind, failures)
    shifts = rng.integers(-1, 2, (GRID * GRID, 2)).tolist()  # objects sit up to a pixel off the middle of their cell
    candidates = []
    for failure, quality in outcomes or draw_outcomes(rng, tie=tie, failures=weights):
        result = carry_out(items, request, failure, rng)
        behind = pick(rng, [b for b in BACKGROUNDS if b != background]) if result.new_background else background
        image = spoil(render(result.items, behind, shifts), quality, rng)
        box = box_of(request.place)
        critiques = make_critiques(request.target.name, box, result.finding, result.rest, quality, result.unasked)
        texts = {"diff": _changes_by_place(items, result), "objdiff": _changes_by_object(items, result)}
        texts = {kind: f"{QUALITY_WORDS[quality]} {text}" for kind, text in texts.items()}
        candidates.append(Candidate(image, failure, quality, critiques, texts, result.unasked))
    source = render(items, background, shifts)
    return Edit(request.kind, request.instruction, scene, source, _caption(items), tuple(candidates))


SHAPE_EDITS = EditSet(
    "shape-edits",
    draw_edit,
    caption_prompt="list objects",
    train=12_000,
    heldout=1_000,
    language=12_000,
    failures=(*FAILURE_WEIGHTS, "several_copies"),
)


def failure_weights(kind: str, failures: Mapping[str, float] = FAILURE_WEIGHTS) -> dict[str, float]:
    """How often an edit of a kind goes wrong, and in which way."""
    weights = dict(failures)
    if kind == "remove" and "wrong_value" in weights:  # there is no value to get wrong
        weights["wrong_object"] = weights.get("wrong_object", 0.0) + weights.pop("wrong_value")
    return weights


def is_held_out(scene: str, instruction: str) -> bool:
    """Whether an edit belongs to the held-out split; it does or does not for every seed."""
    return zlib.crc32(f"{scene} | {instruction}".encode()) % _HELD_OUT_OF == 0


# --- scenes and instructions ------------------------------------------------------------------------------------------


def _draw_request(rng: np.random.Generator) -> tuple[list[Item], str, Request]:
    """Objects in the order of their places, the background, and what to do with them."""
    count = int(rng.integers(2, 4))
    places = rng.permutation(len(PLACES)).tolist()
    colours, shapes = rng.permutation(list(COLOURS)).tolist(), rng.permutation(SHAPES).tolist()
    items = [Item(*parts) for parts in zip(places[:count], colours, shapes, strict=False)]
    target, free, kind = items[0], places[count], pick(rng, KINDS)
    if kind == "recolour":
        request = Request(kind, target, _another(rng, COLOURS, target.colour), target.place)
    elif kind == "remove":
        request = Request(kind, target, target.colour, target.place)
    elif kind == "move":
        request = Request(kind, target, target.colour, free)
    else:
        names = {item.name for item in items}
        new = [Item(free, c, s) for c in COLOURS for s in SHAPES if f"{c} {s}" not in names]
        request = Request(kind, target := pick(rng, new), target.colour, free)
    return sorted(items), pick(rng, list(BACKGROUNDS)), request


def _another(rng: np.random.Generator, values: Iterable[str], *excluded: str) -> str:
    return pick(rng, [value for value in values if value not in excluded])


# --- what a model made of an instruction ------------------------------------------------------------------------------


def as_asked(items: list[Item], request: Request) -> Result:
    """The scene after an edit in which nothing went wrong."""
    return {"recolour": _recolour, "remove": _remove, "add": _add, "move": _move}[request.kind](items, request)


def carry_out(items: list[Item], request: Request, failure: str, rng: np.random.Generator) -> Result:
    """The scene after an edit that went wrong in one of the ways of `FAILURE_SCORES`, or in none."""
    kind, target, name = request.kind, request.target, request.target.name
    done = as_asked(items, request)
    others = [item for item in items if item != target]
    if failure == "none":
        return done
    if failure == "several_copies":
        return _with_copies(items, done, request, rng)
    if failure == "over_edit":
        if rng.random() < 0.5:
            unasked = Unasked("background", WHOLE)
            return done._replace(rest="the background changed", new_background=True, unasked=unasked)
        victim = pick(rng, others)
        colour = _another(rng, COLOURS, victim.colour)
        changed = _replaced(done.items, victim, victim._replace(colour=colour))
        return done._replace(items=changed, rest=f"the {victim.name} is now {colour}", unasked=_unasked(victim))
    not_done = {
        "recolour": f"the {name} is still {target.colour}",
        "remove": f"the {name} is still there",
        "add": f"a {name} is not added",
        "move": f"the {name} is not moved",
    }[kind]
    if failure == "ignored":
        return Result(items, not_done)
    if failure == "partial":
        if kind == "move":
            moved = target._replace(place=request.place)
            return Result([*items, moved], f"the {name} is now at the {_at(moved)} but a copy is still there")
        half = target._replace(left=request.colour if kind == "recolour" else "nothing")
        halved = [*items, half] if kind == "add" else _replaced(items, target, half)
        became = {"recolour": f"now {request.colour}", "remove": "removed", "add": "added"}[kind]
        return Result(halved, f"only half of the {name} is {became}")
    if failure == "wrong_object":
        if kind == "add":
            wrong = target._replace(shape=_another(rng, SHAPES, target.shape))
            return Result([*items, wrong], f"a {wrong.name} is added instead")
        victim = pick(rng, others)
        if kind == "remove":
            removed = f"the {victim.name} is removed"
            return Result(_replaced(items, victim), not_done, removed, unasked=_unasked(victim))
        if kind == "move":
            moved = victim._replace(place=request.place)
            at = f"the {victim.name} is now at the {_at(moved)}"
            return Result(_replaced(items, victim, moved), not_done, at, unasked=_unasked(moved))
        colour = request.colour if victim.colour != request.colour else _another(rng, COLOURS, victim.colour)
        changed = _replaced(items, victim, victim._replace(colour=colour))
        return Result(changed, not_done, f"the {victim.name} is now {colour}", unasked=_unasked(victim))
    # wrong_value: the right object, but another colour or place than asked for
    free = [place for place in range(len(PLACES)) if place != request.place and all(place != i.place for i in items)]
    if kind == "recolour":
        colour = _another(rng, COLOURS, target.colour, request.colour)
        return Result(_replaced(items, target, target._replace(colour=colour)), f"the {name} is now {colour} instead")
    if kind == "move":
        moved = target._replace(place=pick(rng, free))
        return Result(_replaced(items, target, moved), f"the {name} is now at the {_at(moved)} instead")
    if rng.random() < 0.5:
        wrong = target._replace(colour=_another(rng, COLOURS, target.colour))
        return Result([*items, wrong], f"a {wrong.name} is added instead")
    wrong = target._replace(place=pick(rng, free))
    return Result([*items, wrong], f"a {name} is added at the {_at(wrong)} instead")


def _with_copies(items: list[Item], done: Result, request: Request, rng: np.random.Generator) -> Result:
    """What was asked for, and its object two times or more at places that were empty and not asked about."""
    taken = {item.place for item in (*items, *done.items)}
    empty = [place for place in range(len(PLACES)) if place not in taken]
    count = int(rng.integers(2, len(empty) + 1))
    places = sorted(rng.permutation(empty)[:count].tolist())
    copies = [request.target._replace(colour=request.colour, place=place) for place in places]
    at = " and the ".join(_at(copy) for copy in copies)
    return done._replace(
        items=[*done.items, *copies],
        rest=f"a {copies[0].name} is at the {at} too",
        unasked=_unasked(copies[0]),
    )


def _unasked(victim: Item) -> Unasked:
    return Unasked(victim.name, box_of(victim.place))


def _recolour(items: list[Item], request: Request) -> Result:
    new = request.target._replace(colour=request.colour)
    return Result(_replaced(items, request.target, new), f"the {request.target.name} is now {request.colour} as asked")


def _remove(items: list[Item], request: Request) -> Result:
    return Result(_replaced(items, request.target), f"the {request.target.name} is removed as asked")


def _add(items: list[Item], request: Request) -> Result:
    return Result([*items, request.target], f"a {request.target.name} is added as asked")


def _move(items: list[Item], request: Request) -> Result:
    new = request.target._replace(place=request.place)
    return Result(_replaced(items, request.target, new), f"the {request.target.name} is now at the {_at(new)} as asked")


def _at(item: Item) -> str:
    return PLACES[item.place]


def _replaced(items: list[Item], old: Item, *new: Item) -> list[Item]:
    return [item for item in items if item != old] + list(new)


# --- scenes in words --------------------------------------------------------------------------------------------------


def _caption(items: list[Item]) -> str:
    return ", ".join(f"{item.name} {_at(item)}" for item in items)


def _changes_by_place(before: list[Item], result: Result) -> str:
    """For each of the nine places: same, added, removed or changed."""
    items_before, items_after = ({item.place: item for item in items} for items in (before, result.items))
    words = []
    for place, name in enumerate(PLACES):
        old, new = items_before.get(place), items_after.get(place)
        word = "same" if old == new else "added" if old is None else "removed" if new is None else "changed"
        words.append(f"{name} {word}")
    return " ".join(words) + _background_words(result)


def _changes_by_object(before: list[Item], result: Result) -> str:
    """For each object of the source what became of it, then what is new."""
    after = {item.place: item for item in result.items}
    old_places = {item.place for item in before}
    appeared = [item for item in sorted(result.items) if item.place not in old_places]
    words = []
    for old in before:
        new = after.get(old.place)
        elsewhere = [item for item in appeared if item.name == old.name]
        if new is None:
            places = " copy ".join(_at(item) for item in elsewhere)
            words.append(f"{old.name} now {places}" if elsewhere else f"{old.name} removed")
        elif new == old:
            words.append(" copy ".join([f"{old.name} same", *(_at(item) for item in elsewhere)]))
        else:
            words.append(f"{old.name} half" if new.left else f"{old.name} now {new.colour}")
    known = {item.name for item in before}
    for item in appeared:
        if item.name not in known:
            words.append(f"added {item.name} {_at(item)}" + (" half" if item.left else ""))
    return " ".join(words) + _background_words(result)


def _background_words(result: Result) -> str:
    return " background changed" if result.new_background else ""


# --- drawing ----------------------------------------------------------------------------------------------------------

_RGB = {name: np.array(rgb, np.uint8) for name, rgb in (COLOURS | BACKGROUNDS).items()}
_LEFT_HALF = np.arange(CELL)[:, None] < CELL // 2  # [16, 1]: of the columns


@cache
def shape_mask(shape: str, down: int, right: int) -> np.ndarray:
    """Which pixels of a cell, as `[16, 16, 1]`, a shape covers, moved by up to a pixel."""
    y, x, _ = np.mgrid[0:CELL, 0:CELL, 0:1].astype(np.float32)
    middle, radius = (CELL - 1) / 2, 0.4 * CELL
    x, y = x - middle - right, y - middle - down
    if shape == "circle":
        return x**2 + y**2 <= radius**2
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= 0.86 * radius
    return (y >= -radius) & (y <= 0.8 * radius) & (abs(x) <= 0.58 * (y + radius))


def render(items: list[Item], background: str, shifts: list[list[int]]) -> np.ndarray:
    """The scene as `[48, 48, 3]` uint8; `shifts[place]` is (down, right) in pixels."""
    image = np.empty((GRID * CELL, GRID * CELL, 3), np.uint8)
    image[:] = _RGB[background]
    for item in items:
        row, column = divmod(item.place, GRID)
        cell = image[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
        mask = shape_mask(item.shape, *shifts[item.place])
        if item.left == "nothing":
            mask = mask & ~_LEFT_HALF
        np.copyto(cell, _RGB[item.colour], where=mask)
        if item.left in COLOURS:
            np.copyto(cell, _RGB[item.left], where=mask & _LEFT_HALF)
    return image
