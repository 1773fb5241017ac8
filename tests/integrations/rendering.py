"""A `render` function that a config names, importable in Ray's workers too."""

import io

import numpy as np
from PIL import Image

from jrm_plugin.rollouts import InvalidAnswer


def render(text: str, row: dict) -> Image.Image:
    """The source with as many of its columns black as the text has letters; an empty text cannot be drawn."""
    if not text:
        raise InvalidAnswer("nothing to draw")
    pixels = np.array(Image.open(io.BytesIO(row["source_image"])).convert("RGB"))
    pixels[:, : len(text)] = 0
    return Image.fromarray(pixels)
