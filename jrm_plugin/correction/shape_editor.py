"""An editor for ShapeEdits that does what a critique says, and samples for it to correct.

It stands where an image generator would: it sees the pictures, the instruction and the critique, and believes the
critique. What the pictures and the instruction say it reads with the judge's eyes (`synthetic.shape_reader`), but it
never asks the judge what an edit is worth: an edit gets better only as far as its critique is true.
"""

import re

import numpy as np
from PIL import Image

from jrm_plugin.correction.editing import EditRequest
from jrm_plugin.errors import JRMError
from jrm_plugin.records.samples import Sample
from jrm_plugin.synthetic.preferences import GRID, PLACES, QUALITY_WEIGHTS, QUALITY_WORDS, pick, spoil
from jrm_plugin.synthetic.shape_edits import BACKGROUNDS, Item, Request, carry_out, draw_edit, failure_weights
from jrm_plugin.synthetic.shape_reader import (
    COLOUR,
    OBJECT,
    PLACE,
    Scene,
    draw_scene,
    read_instruction,
    read_quality,
    read_scene,
)


def edit_shapes(request: EditRequest) -> Image.Image:
    """Edits a picture of ShapeEdits: anew without a critique, and by the letter of the critique with one.

    Without a critique, the edit is drawn anew from the source, with a failure and a flaw by the weights with which
    ShapeEdits draws them (`failure_weights`, `QUALITY_WEIGHTS`).

    With a critique, nothing is random but noise that stays. The picture is left as it is but for what the critique
    finds fault with; each sentence is believed, whether it is true or not, and taken as one of these orders. X is an
    object, P a place, C a colour; "home" is where the source shows X, and an X that it does not show has none, so that
    the sentence is passed over.

    1. What was not asked for is undone:
       `the X is now C`, `the X is removed`: X is drawn at home, as the source has it;
       `the X is now at the P`: P is cleared and X drawn at home;
       `a X is at the P and the P too`: each P is cleared;
       `the background changed`: the source's background is put back.
    2. Then what was asked for is done, at the instruction's place and in its colour:
       `the X is still C`, `the X is now C instead`, `only half of the X is now C`: X is drawn at home in the colour;
       `the X is still there`, `only half of the X is removed`, `the X is now at the P but a copy is still there`: X's
       home is cleared;
       `a X is not added`, `only half of the X is added`: X is drawn at the place;
       `a X is added instead`: wherever the picture shows an X that the source does not, it is cleared, and the object
       asked for is drawn at the place;
       `a X is added at the P instead`: P is cleared and X drawn at the place;
       `the X is not moved`: X's home is cleared and X drawn at the place;
       `the X is now at the P instead`: P is cleared and X drawn at the place.
    3. A flaw of the picture that the critique names in the words of `QUALITY_WORDS` is removed; another one stays.

    Any other sentence (`… as asked`, `the rest is unchanged`, what is no critique) changes nothing. So a true critique
    mends the edit in one round, and a false one leaves the fault or makes a new one.

    Raises:
        JRMError: there is not exactly one source, or the pictures or the instruction are not of ShapeEdits.
    """
    if len(request.sources) != 1:
        raise JRMError(f"an edit of ShapeEdits has one source image, and this one {len(request.sources)}.")
    source, rng = read_scene(request.sources[0]), np.random.default_rng(request.seed)
    wish = read_instruction(request.instruction, source)
    if not request.critique:
        return _edit_anew(source, wish, rng)
    picture = read_scene(request.image)
    flaw = read_quality(request.image, picture)
    mended = _follow(request.critique, source, wish, picture)
    clean = flaw == "clean" or QUALITY_WORDS[flaw] in request.critique
    same_scene = (mended.background, mended.items) == (picture.background, picture.items)
    if same_scene and clean == (flaw == "clean"):
        return request.image
    return Image.fromarray(spoil(draw_scene(mended), "clean" if clean else flaw, rng))


def _edit_anew(source: Scene, wish: Request, rng: np.random.Generator) -> Image.Image:
    failure, quality = pick(rng, failure_weights(wish.kind)), pick(rng, QUALITY_WEIGHTS)
    result = carry_out(sorted(source.items.values()), wish, failure, rng)
    background = source.background
    if result.new_background:
        background = pick(rng, [name for name in BACKGROUNDS if name != background])
    shifts = dict(enumerate(map(tuple, rng.integers(-1, 2, (GRID * GRID, 2)).tolist()))) | source.shifts
    scene = Scene(background, {item.place: item for item in result.items}, shifts)
    return Image.fromarray(spoil(draw_scene(scene), quality, rng))


def _follow(critique: str, source: Scene, wish: Request, picture: Scene) -> Scene:
    """The picture's scene after every sentence of the critique was taken as an order."""
    # A sentence ends with its line or where the critique turns to another region: "[label]".
    sentences = [part.strip() for part in re.split(r"\n|\[[^\]\n]*\]|^[\w ]+:", critique, flags=re.MULTILINE)]
    items, background = dict(picture.items), picture.background
    for orders in (_undo, _do):
        for sentence in sentences:
            for place, item in orders(sentence, source, wish, items).items():
                items.pop(place, None)
                if item is not None:
                    items[place] = item._replace(place=place)
    if "the background changed" in sentences:
        background = source.background
    return Scene(background, items, picture.shifts | source.shifts)


def _undo(sentence: str, source: Scene, wish: Request, items: dict[int, Item]) -> dict[int, Item | None]:
    """What a sentence orders to undo: the objects to draw by place, None to clear it."""
    if match := re.fullmatch(f"a {OBJECT} is at the ({PLACE}(?: and the {PLACE})+) too", sentence):
        return {PLACES.index(place): None for place in match[2].split(" and the ")}
    match = re.fullmatch(f"the {OBJECT} is (?:removed|now {COLOUR}|now at the {PLACE})", sentence)
    home = match and _home(match[1], source)
    if not home:
        return {}
    return ({PLACES.index(match[3]): None} if match[3] else {}) | {home.place: home}


def _do(sentence: str, source: Scene, wish: Request, items: dict[int, Item]) -> dict[int, Item | None]:
    """What a sentence orders to do, in the same form."""

    def says(*patterns: str) -> re.Match | None:
        return next((match for pattern in patterns if (match := re.fullmatch(pattern, sentence))), None)

    if match := says(f"a {OBJECT} is not added", f"only half of the {OBJECT} is added"):
        return {wish.place: _new(match[1])}
    if match := says(f"a {OBJECT} is added instead"):
        wrong = [p for p, item in items.items() if item.name == match[1] and source.items.get(p) != item]
        return dict.fromkeys(wrong) | {wish.place: wish.target}
    if match := says(f"a {OBJECT} is added at the {PLACE} instead"):
        return {PLACES.index(match[2]): None, wish.place: _new(match[1])}
    by_home = says(
        f"the {OBJECT} is still {COLOUR}",
        f"the {OBJECT} is now {COLOUR} instead",
        f"only half of the {OBJECT} is now {COLOUR}",
    )
    if by_home and (home := _home(by_home[1], source)):
        return {home.place: home._replace(colour=wish.colour)}
    left_over = says(
        f"the {OBJECT} is still there",
        f"only half of the {OBJECT} is removed",
        f"the {OBJECT} is now at the {PLACE} but a copy is still there",
    )
    if left_over and (home := _home(left_over[1], source)):
        return {home.place: None}
    if (match := says(f"the {OBJECT} is not moved")) and (home := _home(match[1], source)):
        return {home.place: None, wish.place: home}
    if (match := says(f"the {OBJECT} is now at the {PLACE} instead")) and (home := _home(match[1], source)):
        return {PLACES.index(match[2]): None, wish.place: home}
    return {}


def _home(name: str, source: Scene) -> Item | None:
    """The object of that name as the source shows it."""
    return next((item for item in source.items.values() if item.name == name), None)


def _new(name: str) -> Item:
    return Item(0, *name.split())


# --- samples to correct -----------------------------------------------------------------------------------------------


def draw_samples(count: int, seed: int) -> list[Sample]:
    """Held-out edits of ShapeEdits as `edit_shapes` makes them on the first try, images in memory."""
    rng = np.random.default_rng([seed, 0])
    samples = []
    for _ in range(count):
        edit = draw_edit(rng, heldout=True, outcomes=[("none", "clean")])
        source = Image.fromarray(edit.source)
        first_try = EditRequest((source,), edit.instruction, source, {}, seed=int(rng.integers(2**32)))
        samples.append(Sample.edit(source, edit.instruction, edit_shapes(first_try)))
    return samples
