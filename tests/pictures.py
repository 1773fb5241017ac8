"""What tests of several folders do with pictures."""

import io

import numpy as np
from PIL import Image


def encode(picture: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    """The picture as the content of an image file; `options` are Pillow's."""
    if not isinstance(picture, Image.Image):
        picture = Image.fromarray(picture)
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png(seed: int, size: int = 16) -> bytes:
    """A PNG file of one colour, another for each seed."""
    return encode(Image.new("RGB", (size, size), (37 * seed % 256, 91 * seed % 256, 151 * seed % 256)))
