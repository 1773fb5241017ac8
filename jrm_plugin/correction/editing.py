"""What an editor is asked to do, and what an editor is."""

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
        """The critiques as plain text (`Critique.plain_text`), one line a dimension; empty in the control arm.

        What could not be parsed stands as the model wrote it.
        """
        lines = (f"{name.replace('_', ' ')}: {critique.plain_text()}" for name, critique in self.critiques.items())
        return "\n".join(lines)

    @property
    def prompt(self) -> str:
        """Instruction and critique in one text, for editors that take one; the instruction alone in the control arm."""
        if not self.critiques:
            return self.instruction
        return f"{self.instruction}\nWhat was said of the last attempt:\n{self.critique}"


# An editor gives the mended image, as anything that `load_image` reads. What it raises is recorded for that sample.
Editor = Callable[[EditRequest], Any]
