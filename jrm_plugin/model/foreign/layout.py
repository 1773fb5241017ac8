"""What is known of a foreign layout; importing this imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jrm_plugin.records.samples import Task


@dataclass(frozen=True)
class Layout:
    """A kind of checkpoint of another project.

    Attributes:
        name: as `--from` and `--to` take it.
        title: what the project is called.
        task: of the samples that it scores.
        dimensions: ours, for its scores, in their order.
        families: of backbones that it was built on.
        heads: where each dimension's head is among the weights.
        constants: each dimension's prompt, and last the text behind all of them: the names in its code, any of which.
        prompt_files: where in its code these are.
        source_images: how many a sample has.
        pixels: of every image, by family; a family that is not there has the sizes of its own image processor.
        file: what its loader calls the weights.
    """

    name: str
    title: str
    task: Task
    dimensions: tuple[str, ...]
    families: tuple[str, ...]
    heads: tuple[str, ...]
    constants: tuple[tuple[str, ...], ...]
    prompt_files: str
    source_images: int
    pixels: Mapping[str, int]
    file: str

    def rope_positions(self, family: str) -> str:
        """Both projects call the language model by itself, which counts positions one by one, but for Qwen3-VL."""
        return "mrope" if family == "qwen3_vl" else "1d"


# The settings of a run that its code wrote beside the weights, as far as they are there.
Settings = Mapping[str, Any]
