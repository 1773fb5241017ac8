"""Prompts as they stand in another project's code: string constants are read from it, and none of it runs."""

import ast
import string
from collections.abc import Sequence
from pathlib import Path

from jrm_plugin.errors import JRMError, shortened
from jrm_plugin.files import read_text
from jrm_plugin.model.foreign.layout import Layout
from jrm_plugin.model.processing import REWARD_TOKEN, SLOT

_FIELD = "text_prompt"  # where both projects put the instruction
_MOST_BYTES = 2**20  # of a file of code


def templates(layout: Layout, files: Sequence[Path]) -> dict[str, str]:
    """The template of each dimension, up to the reward token, with our slot.

    Raises:
        JRMError: no file is given, a constant is in none of them or is no plain text, or a prompt has no slot or not
            one reward token.
    """
    if not files:
        raise JRMError(
            f"the prompts of {layout.title} are in its code and not in a checkpoint, and without them no score is its "
            f"own: give its {layout.prompt_files} with --prompts."
        )
    constants: dict[str, tuple[str, Path]] = {}
    for file in files:
        for name, text in _string_constants(file).items():
            if name in constants and constants[name][0] != text:
                raise JRMError(f"{name} is another text in {file} than in {constants[name][1]}; give one of them.")
            constants[name] = (text, file)
    *prompts, suffix = (_constant(names, constants, layout, files) for names in layout.constants)
    if suffix.count(REWARD_TOKEN) != 1:
        raise JRMError(
            f"{layout.constants[-1][0]} has {suffix.count(REWARD_TOKEN)} times the reward token {REWARD_TOKEN}; a JRM "
            "reads one in a sequence."
        )
    # What stands behind the reward token, it does not see.
    end = suffix.partition(REWARD_TOKEN)[0]
    return {
        dimension: _with_our_slot(prompt, names[0]) + end
        for dimension, prompt, names in zip(layout.dimensions, prompts, layout.constants, strict=False)
    }


def _constant(
    names: Sequence[str], constants: dict[str, tuple[str, Path]], layout: Layout, files: Sequence[Path]
) -> str:
    for name in names:
        if name in constants:
            return constants[name][0]
    raise JRMError(
        f"{' and '.join(map(str, files))} hold no text {names[0]}; give {layout.title}'s {layout.prompt_files}."
    )


def _string_constants(file: Path) -> dict[str, str]:
    """`NAME = "text"` at the top level of a file of Python, the last of each name."""
    try:
        module = ast.parse(read_text(file, most=_MOST_BYTES))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise JRMError(f"{file} cannot be read as Python: {' '.join(str(error).split())}.") from error
    constants = {}
    for statement in module.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        value = getattr(statement, "value", None)
        for target in targets:
            if isinstance(target, ast.Name):
                constants.pop(target.id, None)
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    constants[target.id] = value.value
    return constants


def _with_our_slot(prompt: str, name: str) -> str:
    """A text for `str.format` as a template of ours."""
    try:
        pieces = list(string.Formatter().parse(prompt))
    except ValueError as error:
        raise JRMError(f"{name} is no text for str.format: {error}.") from error
    fields = [field for _, field, _, _ in pieces if field is not None]
    if fields != [_FIELD] or any(spec or conversion for _, _, spec, conversion in pieces):
        raise JRMError(f"{name} must have one slot {{{_FIELD}}} and no other, not {shortened(fields)}.")
    literals = [literal for literal, _, _, _ in pieces]
    if any(SLOT in literal for literal in literals) or REWARD_TOKEN in prompt:
        raise JRMError(f"{name} holds {SLOT} or {REWARD_TOKEN} in its own text; it cannot be a template.")
    return "".join(literal + (SLOT if field is not None else "") for literal, field, _, _ in pieces)
