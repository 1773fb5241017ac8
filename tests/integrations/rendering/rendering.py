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


async def jrm_and_brevity(data_source, solution_str, ground_truth, extra_info, **settings):
    """A user's reward of two parts, as verl calls it."""
    from jrm_plugin.integrations.verl import compute_score_jrm

    jrm = await compute_score_jrm(data_source, solution_str, ground_truth, extra_info, **settings)
    brevity = -len(solution_str)
    return jrm | {"score": jrm["score"] + brevity, "brevity": brevity}
