"""PhotoEdits: the idea of ShapeEdits on real photographs, with the same kinds of failure, exact scores and critiques.

Source images are 96x96 pixels, crops of eight colour photographs that scikit-image, scikit-learn and matplotlib carry
in their wheels (`pip install "jrm-plugin[photos]"`); nothing is downloaded. Three photographs are held out: no crop of
them is trained on. Edits: greyscale, brighter, mirrored, warmer, blurred background, a coloured box added at a place.

The "background" is what lies outside a disc in the middle of the crop: a crop has no labelled subject. Captions name
the colour of each of a crop's nine places. 1,000 pairs take about 55 MB.
"""

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from jrm_plugin.errors import JRMError
from jrm_plugin.records.images import load_image
from jrm_plugin.synthetic.preferences import (
    FAILURE_WEIGHTS,
    GRID,
    PLACES,
    QUALITY_WEIGHTS,
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

SIDE = 96  # pixels of an image's side
CELL = SIDE // GRID  # and of a place's
# Name: the package that carries it, the file inside that package.
TRAIN_PHOTOS = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "grace_hopper": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
}
HELDOUT_PHOTOS = {
    "cat": ("skimage", "data/chelsea.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
}
BOX_COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 180, 60),
    "blue": (40, 70, 230),
    "yellow": (245, 215, 30),
    "purple": (165, 50, 200),
}
# By effect: what is done instead where the value is wrong, and the instruction. A "box" has both of its own.
WRONG_VALUE = {
    "grey": "purple",
    "brighter": "darker",
    "mirrored": "upside down",
    "warmer": "cooler",
    "background blurred": "middle blurred",
}
INSTRUCTIONS = {
    "grey": "make the photo grey",
    "brighter": "make the photo brighter",
    "mirrored": "make the photo mirrored",
    "warmer": "make the photo warmer",
    "background blurred": "make the background blurred",
}
KINDS = {
    "greyscale": "grey",
    "brighter": "brighter",
    "mirrored": "mirrored",
    "warmer": "warmer",
    "blurred_background": "background blurred",
    "box": "box",
}


class Step(NamedTuple):
    """One thing done to a photograph: an effect by its word, or a "box" or "circle" of a colour at a place."""

    what: str
    half: bool = False  # only the left half of it
    colour: str = ""
    place: int = 0  # index into PLACES

    @property
    def is_thing(self) -> bool:
        return self.what in ("box", "circle")

    @property
    def subject(self) -> str:
        """What the step is about: a thing, or the part of the photograph that it changes."""
        if self.is_thing:
            return f"{self.colour} {self.what}"
        return self.what.removesuffix(" blurred") if self.what.endswith(" blurred") else "photo"

    @property
    def sentence(self) -> str:
        if self.is_thing:
            return f"only half of the {self.subject} is added" if self.half else f"a {self.subject} is added"
        word = "blurred" if self.what.endswith(" blurred") else self.what
        return f"{'only half of ' if self.half else ''}the {self.subject} is now {word}"

    @property
    def denial(self) -> str:
        return f"a {self.subject} is not added" if self.is_thing else self.sentence.replace(" is now ", " is not ")


def draw_edit(
    rng: np.random.Generator,
    *,
    heldout: bool,
    tie: bool = False,
    outcomes: Sequence[Outcome] | None = None,
    failures: Mapping[str, float] = FAILURE_WEIGHTS,
) -> Edit:
    """Draw a crop of a photograph of the wanted split, an instruction and two candidates, wrong as `failures` has it.

    With `outcomes`, a sequence of (failure, quality), there is one candidate for each instead: a group to rank.
    """
    name, corner, source = _draw_crop(rng, HELDOUT_PHOTOS if heldout else TRAIN_PHOTOS)
    kind = pick(rng, list(KINDS))
    request = Step(KINDS[kind])
    if request.is_thing:
        request = request._replace(colour=pick(rng, list(BOX_COLOURS)), place=int(rng.integers(len(PLACES))))
        instruction, box = f"add a {request.subject} at the {PLACES[request.place]}", box_of(request.place)
    else:
        instruction, box = INSTRUCTIONS[request.what], WHOLE
    qualities = dict(QUALITY_WEIGHTS)
    if kind == "blurred_background":  # in a picture that is all blurred, nobody could see whether it was done
        qualities.pop("blur")
    candidates = []
    for failure, quality in outcomes or draw_outcomes(rng, tie=tie, failures=failures, qualities=qualities):
        steps, finding, rest, unasked = _carry_out(request, failure, rng)
        image = spoil(_apply(source, steps), quality, rng)
        critiques = make_critiques(request.subject, box, finding, rest, quality, unasked)
        texts = {"diff": _changes_by_place(steps), "objdiff": _changes_by_object(steps)}
        texts = {order: f"{QUALITY_WORDS[quality]} {text}" for order, text in texts.items()}
        candidates.append(Candidate(image, failure, quality, critiques, texts, unasked))
    scene = f"{name} {' '.join(map(str, corner))}"
    return Edit(kind, instruction, scene, source, _caption(source), tuple(candidates))


def _check_photos() -> None:
    for name in (*TRAIN_PHOTOS, *HELDOUT_PHOTOS):
        _photo(name)


PHOTO_EDITS = EditSet(
    "photo-edits",
    draw_edit,
    caption_prompt="list colours",
    train=6_000,
    heldout=600,
    language=6_000,
    check=_check_photos,
)


# --- photographs ------------------------------------------------------------------------------------------------------


@cache
def _photo(name: str) -> Image.Image:
    package, file = (TRAIN_PHOTOS | HELDOUT_PHOTOS)[name]
    spec = importlib.util.find_spec(package)  # finds the folder without importing the package
    path = Path(spec.submodule_search_locations[0], file) if spec else None
    if path is None or not path.exists():
        raise JRMError(
            f"the photograph {name!r} comes with {package}, which is not installed or does not carry it: "
            'install it with pip install "jrm-plugin[photos]".'
        )
    return load_image(path)


def _draw_crop(rng: np.random.Generator, photos: Iterable[str]) -> tuple[str, tuple[int, int, int], np.ndarray]:
    """A crop in which every edit can be seen: neither dark nor bright, coloured, detailed, not symmetric.

    Returns the photograph's name, the crop's (left, top, side) in its pixels, and the crop, `[96, 96, 3]` of uint8.
    """
    name = pick(rng, list(photos))  # all photographs alike, however many of their crops are refused
    photo = _photo(name)
    while True:
        side = int(rng.integers(int(0.35 * min(photo.size)), int(0.9 * min(photo.size))))
        left, top = (int(rng.integers(length - side)) for length in photo.size)
        crop = photo.resize((SIDE, SIDE), Image.Resampling.BOX, box=(left, top, left + side, top + side))
        pixels = np.asarray(crop)
        rows = pixels[::4].astype(np.int16)  # every fourth row, and of it every fourth pixel, is enough to judge by
        sparse = rows[:, ::4]
        bright = sparse.mean()
        colour = (sparse.max(axis=2) - sparse.min(axis=2)).mean()
        detail = abs(np.diff(rows, axis=1)).mean()
        one_sided = abs(rows - rows[:, ::-1]).mean()
        if 40 < bright < 190 and colour > 25 and detail > 5 and one_sided > 25:
            return name, (left, top, side), pixels


# --- what a model made of an instruction ------------------------------------------------------------------------------


class Result(NamedTuple):
    """The steps that were really done, in their order, and the critique's two parts: on what was asked for, and on the
    rest. `unasked` is what the second speaks of where the rest is not unchanged."""

    steps: list[Step]
    finding: str
    rest: str = "the rest is unchanged"
    unasked: Unasked | None = None


def _carry_out(request: Step, failure: str, rng: np.random.Generator) -> Result:
    if failure == "none":
        return Result([request], f"{request.sentence} as asked")
    if failure == "ignored":
        return Result([], request.denial)
    if failure == "partial":
        step = request._replace(half=True)
        return Result([step], step.sentence)
    if failure == "over_edit":
        extra = _another_step(request, rng)
        steps = sorted((request, extra), key=lambda step: list(KINDS.values()).index(step.what))  # things come last
        return Result(steps, f"{request.sentence} as asked", f"{extra.sentence} too", _unasked(extra))
    if failure == "wrong_object":
        if request.is_thing:
            step = request._replace(what="circle")
            return Result([step], f"{step.sentence} instead")
        step = _another_step(request, rng)
        return Result([step], request.denial, step.sentence, _unasked(step))
    if failure != "wrong_value":
        raise JRMError(f"edits of photographs have no failure {failure!r}.")
    # The opposite effect, or a thing in another colour or place.
    if not request.is_thing:
        step = Step(WRONG_VALUE[request.what])
        return Result([step], f"{step.sentence} instead")
    if rng.random() < 0.5:
        step = request._replace(colour=pick(rng, [c for c in BOX_COLOURS if c != request.colour]))
        return Result([step], f"{step.sentence} instead")
    step = request._replace(place=pick(rng, [p for p in range(len(PLACES)) if p != request.place]))
    return Result([step], f"{step.sentence} at the {PLACES[step.place]} instead")


def _unasked(step: Step) -> Unasked:
    return Unasked(step.subject, box_of(step.place) if step.is_thing else WHOLE)


def _another_step(request: Step, rng: np.random.Generator) -> Step:
    """Something nobody asked for, visible beside what was."""
    hidden_by = {"grey": "warmer", "warmer": "grey"}  # where one of these is done, the other does not show
    what = pick(rng, [w for w in KINDS.values() if w not in (request.what, hidden_by.get(request.what))])
    if what == "box":
        return Step("box", colour=pick(rng, list(BOX_COLOURS)), place=int(rng.integers(len(PLACES))))
    return Step(what)


def _apply(source: np.ndarray, steps: list[Step]) -> np.ndarray:
    """The source `[96, 96, 3]` of uint8 after the steps."""
    image = source
    for step in steps:
        changed = _with_thing(image, step) if step.is_thing else _with_effect(image, step.what)
        image = np.where(_LEFT_HALF, changed, image) if step.half and not step.is_thing else changed
    return image


def _with_effect(image: np.ndarray, what: str) -> np.ndarray:
    if what == "mirrored":
        return image[:, ::-1]
    if what == "upside down":
        return image[::-1]
    if what.endswith(" blurred"):
        blurred = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(SIDE / 24)))
        share = _MIDDLE if what == "middle blurred" else 1 - _MIDDLE
        return _to_pixels(image + share * (blurred.astype(np.float32) - image))
    pixels = image.astype(np.float32)
    grey = (pixels @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    return _to_pixels(
        {
            "grey": lambda: np.broadcast_to(grey, image.shape),
            "purple": lambda: grey * np.array([0.95, 0.6, 1.25], np.float32),
            "brighter": lambda: pixels + 0.45 * (255 - pixels),
            "darker": lambda: 0.5 * pixels,
            "warmer": lambda: pixels * np.array([1.2, 1.0, 0.6], np.float32) + np.array([25, 8, 0], np.float32),
            "cooler": lambda: pixels * np.array([0.6, 1.0, 1.2], np.float32) + np.array([0, 8, 25], np.float32),
        }[what]()
    )


def _with_thing(image: np.ndarray, step: Step) -> np.ndarray:
    row, column = divmod(step.place, GRID)
    y, x = np.mgrid[0:CELL, 0:CELL] - (CELL - 1) / 2
    covered = np.maximum(abs(x), abs(y)) < 0.4 * CELL if step.what == "box" else x**2 + y**2 < (0.42 * CELL) ** 2
    if step.half:
        covered &= x < 0
    image = image.copy()
    image[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL][covered] = BOX_COLOURS[step.colour]
    return image


def _to_pixels(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _soft_disc() -> np.ndarray:
    """`[96, 96, 1]`: 1 in the middle of the image, 0 outside a disc, a soft edge between."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] - (SIDE - 1) / 2
    radius = np.hypot(x, y) / SIDE
    return np.clip((0.32 - radius) / 0.06, 0, 1).astype(np.float32)[..., None]


_MIDDLE = _soft_disc()
_LEFT_HALF = np.arange(SIDE)[:, None] < SIDE // 2  # [96, 1]: of the columns


# --- photographs and changes in words ---------------------------------------------------------------------------------


def _caption(image: np.ndarray) -> str:
    """The mean colour of each place in a word."""
    means = image.reshape(GRID, CELL, GRID, CELL, 3).mean(axis=(1, 3)).reshape(-1, 3)
    return " ".join(f"{place} {_colour_word(*mean)}" for place, mean in zip(PLACES, means, strict=True))


def _colour_word(red: float, green: float, blue: float) -> str:
    high, low = max(red, green, blue), min(red, green, blue)
    if high < 50:
        return "black"
    if high - low < 30:
        return "dark" if high < 110 else "grey" if high < 190 else "white"
    if high == blue:
        return "purple" if red > green + 10 else "blue"
    if high == green:
        return "green"
    if green - blue > 0.5 * (high - low):
        return "yellow"
    return "brown" if high < 130 else "red"


def _changes_by_place(steps: list[Step]) -> str:
    """For each of the nine places what changed there."""
    words = []
    for place, name in enumerate(PLACES):
        here = [change for step in steps if (change := _change_at(step, place))]
        words.append(f"{name} {' '.join(here) or 'same'}")
    return " ".join(words)


def _change_at(step: Step, place: int) -> str:
    column = place % GRID
    if step.is_thing:
        return f"{'half ' if step.half else ''}{step.subject}" if place == step.place else ""
    if step.half and column == 2:
        return ""
    if step.what.endswith(" blurred"):
        return "blurred" if (place == PLACES.index("middle")) == (step.what == "middle blurred") else ""
    return f"half {step.what}" if step.half and column == 1 else step.what


def _changes_by_object(steps: list[Step]) -> str:
    """What became of the photograph, then what was added."""
    words = []
    for step in steps:
        half = "half " if step.half else ""
        if step.is_thing:
            words.append(f"added {half}{step.subject} {PLACES[step.place]}")
        else:
            words.append(f"{half}{step.what}" if step.what.endswith(" blurred") else f"photo now {half}{step.what}")
    return " ".join(words) or "photo same"
