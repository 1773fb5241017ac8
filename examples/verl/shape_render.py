"""The `render` of reward_path_on_cpu.py: what a command such as "recolour circle blue" makes of a ShapeEdits scene.

It is a module of its own because the reward workers import it by its dotted path, `shape_render.draw`.
"""

import re

from PIL import Image

from jrm_plugin.rollouts import InvalidAnswer
from jrm_plugin.synthetic.preferences import GRID
from jrm_plugin.synthetic.shape_edits import COLOURS, SHAPES, render
from jrm_plugin.synthetic.shape_reader import read_scene

COMMAND = re.compile(f"recolour ({'|'.join(SHAPES)}) ({'|'.join(COLOURS)})")


def draw(command: str, row: dict) -> Image.Image:
    """The scene after the command; `row["source_images"]` holds the prompt's image as the bytes of its file.

    Raises:
        InvalidAnswer: the text is no command, or the scene has no such shape.
    """
    found = COMMAND.fullmatch(command.strip())
    if found is None:
        raise InvalidAnswer(f"{command!r} is no command")
    shape, colour = found.groups()
    scene = read_scene(row["source_images"][0])
    if shape not in {item.shape for item in scene.items.values()}:
        raise InvalidAnswer(f"there is no {shape}")
    items = [item._replace(colour=colour) if item.shape == shape else item for item in scene.items.values()]
    shifts = [scene.shifts.get(place, (0, 0)) for place in range(GRID * GRID)]
    return Image.fromarray(render(items, scene.background, shifts))
