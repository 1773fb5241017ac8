"""What an editor is asked to do, and what an editor is."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from jrm_plugin.records.critiques import Critique, UnparsedCritique


@dataclass(frozen=True)
class EditRequest:
    """What an editor is asked to do.

    Attributes:
        sources: the source images, RGB; none where the image is made from text alone.
        instruction: what the user asked for.
        image: the edited image to be mended, RGB.
        critiques: by dimension, what the model says of `image`; empty in the control arm.
        seed: for an editor that draws random numbers; the same in both arms, another for every sample and round.
    """

    sources: tuple[Image.Image, ...]
    instruction: str
    image: Image.Image
    critiques: Mapping[str, Critique | UnparsedCritique]
    seed: int

    @property
    def critique(self) -> str:
        """The critiques as plain text, one line a dimension; empty in the control arm.

        `<|bbox_k|>` is written as the region's label in brackets, `<|global|>` as `[whole image]`. What could not be
        parsed stands as the model wrote it.
        """
        return "\n".join(f"{name.replace('_', ' ')}: {_plain(critique)}" for name, critique in self.critiques.items())

    @property
    def prompt(self) -> str:
        """Instruction and critique in one text, for editors that take one; the instruction alone in the control arm."""
        if not self.critiques:
            return self.instruction
        return f"{self.instruction}\nWhat was said of the last attempt:\n{self.critique}"


# An editor gives the mended image, as anything that `load_image` reads. What it raises is recorded for that sample.
Editor = Callable[[EditRequest], Any]


def _plain(critique: Critique | UnparsedCritique) -> str:
    if isinstance(critique, UnparsedCritique):
        return critique.text
    labels = {str(region.id): region.label for region in critique.edit_region}
    text = re.sub(r"<\|bbox_([0-9]+)\|>", lambda tag: f"[{labels[tag[1]]}]", critique.reasoning)
    return text.replace("<|global|>", "[whole image]")
