"""Pictures for people: small images made visible, and the boxes of a critique drawn where they belong."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jrm_plugin.records.critiques import Critique
from jrm_plugin.records.images import load_image

SHOWN_SIDE = 336  # pixels of the longer side below which an image is enlarged
BOXES_SIDE = 672  # the same for one with boxes, so that their names stay smooth when a page makes it smaller

ATTENTION_COLOUR = "#D55E00"
# Region k has colour k (modulo their number); white text is readable on each of them.
REGION_COLOURS = ("#BF5000", "#0072B2", "#9C4078", "#007A5A")


def region_colour(region_id: int) -> str:
    return REGION_COLOURS[region_id % len(REGION_COLOURS)]


def enlarged(image, side: int = SHOWN_SIDE) -> Image.Image:
    """The image in RGB, enlarged by a whole factor without smoothing until its longer side reaches about `side`.

    A pixel becomes a square of pixels, so that nothing is seen which the model did not see. Larger images stay as
    they are.
    """
    picture = load_image(image)
    factor = max(1, round(side / max(picture.size)))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def draw_attention(image, share: np.ndarray, most: float) -> Image.Image:
    """The image, small ones `enlarged`, in grey, and over it how much attention each of its tokens gets.

    Args:
        image: anything `load_image` reads.
        share: `[rows, columns]`, one value a token.
        most: the share that has the full colour, for all pictures that are compared.
    """
    picture = enlarged(image)
    heat = Image.fromarray(np.uint8(np.clip(255 * share / (most or 1.0), 0, 255)))
    heat = heat.resize(picture.size, Image.Resampling.NEAREST)  # a token is seen as a square: it is no finer than that
    grey = Image.blend(picture.convert("L").convert("RGB"), Image.new("RGB", picture.size, "white"), 0.35)
    return Image.composite(Image.new("RGB", picture.size, ATTENTION_COLOUR), grey, heat.point(lambda x: x * 0.85))


def draw_boxes(image, critique: Critique) -> Image.Image:
    """The image with every edit region of `critique` outlined and named; small images are `enlarged` first.

    Args:
        image: anything `load_image` reads.
        critique: its boxes are x1, y1, x2, y2 in thousandths of the image's width and height.
    """
    picture = enlarged(image, BOXES_SIDE)
    draw = ImageDraw.Draw(picture)
    line = max(3, round(max(picture.size) / 150))
    font = ImageFont.load_default(size=max(14, round(max(picture.size) / 18)))
    for region in critique.edit_region:
        x1, y1, x2, y2 = region.bbox_2d
        box = [
            round(x1 / 1000 * (picture.width - 1)),
            round(y1 / 1000 * (picture.height - 1)),
            round(x2 / 1000 * (picture.width - 1)),
            round(y2 / 1000 * (picture.height - 1)),
        ]
        # A white line inside the coloured one keeps the box visible on any background.
        draw.rectangle(box, outline="white", width=line + max(1, line // 2))
        draw.rectangle(box, outline=region_colour(region.id), width=line)
        _draw_name(draw, picture.size, box, f"{region.id} {region.label}", region_colour(region.id), font)
    return picture


def _draw_name(draw: ImageDraw.ImageDraw, size: tuple[int, int], box: list[int], name: str, colour: str, font) -> None:
    """Writes the name on a plate of the box's colour: above the box where there is room, else inside its top edge."""
    if not name.isascii():  # Pillow's own font knows Latin letters only; the number still says which region it is
        name = name.split(" ", 1)[0]
    pad = max(2, font.size // 5)
    left, top, right, bottom = draw.textbbox((0, 0), name, font=font)
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    x = max(0, min(box[0], size[0] - width))
    y = box[1] - height if box[1] >= height else box[1]
    draw.rectangle([x, y, x + width, y + height], fill=colour)
    draw.text((x + pad - left, y + pad - top), name, font=font, fill="white")
