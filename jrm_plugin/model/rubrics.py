"""The texts that tell a model, or an annotator, what to judge: package data under `resources/`.

A rubric is the prompt text of one task and dimension. The criteria, the scale of 1 to 4, the region tags and the form
of the answer follow the paper's appendices C.1 and C.2 (rubrics) and A.1 and A.2 (data construction); the words are
ours, and so are the rubrics for generated images and for text answers, and all of consistency, a dimension that the
paper does not have. A rubric is part of a checkpoint: what was trained with one text is scored with the same text.
"""

from collections.abc import Sequence
from importlib.resources import files

from jrm_plugin.errors import JRMError
from jrm_plugin.records.samples import DIMENSIONS, KNOWN_DIMENSIONS, TASKS

KINDS = ("full", "short")


def default_rubrics(kind: str = "full", dimensions: Sequence[str] = DIMENSIONS) -> dict[str, dict[str, str]]:
    """The rubrics by task (`edit`, `generation`, `response`) and dimension.

    None of them has a slot for the instruction: whoever builds a prompt puts the instruction after the rubric.

    Args:
        kind: `full`, or `short`: two or three lower-case words, for very small models.
        dimensions: of `KNOWN_DIMENSIONS`. Consistency compares with a source, so with it the only task is `edit`.

    Raises:
        JRMError: there is no such kind, or no rubric for a dimension.
    """
    if kind not in KINDS:
        raise JRMError(f"the kind of rubrics must be one of {', '.join(KINDS)}, not {kind!r}.")
    if unknown := [name for name in dimensions if name not in KNOWN_DIMENSIONS]:
        raise JRMError(
            f"there are rubrics for {', '.join(KNOWN_DIMENSIONS)}, not for {unknown[0]!r}; give rubrics of your own by "
            "task and dimension."
        )
    rubrics = files("jrm_plugin").joinpath("resources", "rubrics", kind)
    return {
        task: {name: _resource("rubrics", kind, task, f"{name}.md") for name in dimensions}
        for task in TASKS
        if all(rubrics.joinpath(task, f"{name}.md").is_file() for name in dimensions)
    }


def data_prompt(dimension: str) -> str:
    """The prompt that asks a vision-language model for the critique of an image edit whose score is known.

    The answer is in `Critique.parse`'s form. Fill the slots with `str.format`, in which braces inside the instruction
    stay as they are; the prompt for visual quality does not show the instruction (appendix A.2).

    Example:
        >>> prompt = data_prompt("instruction_following").format(instruction="make the cat {blue}", score=4)
    """
    if dimension not in KNOWN_DIMENSIONS:
        raise JRMError(f"there is a data prompt for {', '.join(KNOWN_DIMENSIONS)}, not for {dimension!r}.")
    return _resource("prompts", f"{dimension}.md")


def _resource(*parts: str) -> str:
    return files("jrm_plugin").joinpath("resources", *parts).read_text(encoding="utf-8").strip()
