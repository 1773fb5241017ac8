"""YAML configs as TRL's scripts take them: the fields of several dataclasses side by side, overridden by flags."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from trl import TrlParser

from jrm_plugin.configs import check_config, set_environment
from jrm_plugin.errors import JRMError

# What TRL's and transformers' fields take beside the types that they declare.
_ALSO = {"scale_rewards": bool, "resume_from_checkpoint": bool, "fsdp": bool | list[str], "lora_target_modules": str}
_ALSO |= {"train_data": dict | list[dict]}


def parse_config(
    config: Path, content: Mapping[str, Any], overrides: Sequence[str], *stages: Sequence[type]
) -> Iterator[tuple[Any, ...]]:
    """One object of each dataclass, from the content of a YAML file and the flags that override it, stage by stage.

    The types of all keys are checked at once. What a dataclass itself checks, it checks in its stage: a caller that has
    something to say of the first objects says it before the next ones are made.

    Args:
        config: the file, for errors.
        content: its keys and values; `env` holds environment variables, as in TRL's own scripts.
        overrides: flags such as `["--learning_rate", "1e-6"]`, read by `TrlParser`.
        stages: the dataclasses of each stage.

    Yields:
        For each stage, one object of each of its dataclasses.

    Raises:
        JRMError: there is an unknown key, one is missing, or a value is wrong.
    """
    what = f"the config {config}"
    variables = content.get("env", {})
    values = {name: value for name, value in content.items() if name != "env"}
    kinds = [kind for stage in stages for kind in stage]
    values = check_config(values, kinds, what, also=_ALSO, required=False)  # a flag may give what the file does not
    set_environment(variables, what)
    flags = list(overrides)
    for number, stage in enumerate(stages, 1):
        names = {field.name for kind in stage for field in fields(kind)}
        try:
            parser = _Parser(stage, allow_abbrev=False)
            parser.set_defaults_with_config(**{name: value for name, value in values.items() if name in names})
            *parsed, flags = parser.parse_args_into_dataclasses(
                flags, look_for_args_file=False, return_remaining_strings=True
            )
            if flags and number == len(stages):
                raise ValueError(f"unrecognized arguments: {' '.join(flags)}")
        except Exception as error:  # TRL's and transformers' own checks of these values, whatever they raise
            raise JRMError(f"{what} cannot be used: {' '.join(str(error).split()) or type(error).__name__}") from error
        for arguments in parsed:
            for name, value in vars(arguments).items():
                if isinstance(value, float) and not math.isfinite(value):  # of a flag
                    raise JRMError(f"{what} cannot be used: {name} must be a finite number, not {value}.")
        yield tuple(parsed)


class _Parser(TrlParser):
    def error(self, message: str):  # argparse would print the usage of two hundred options
        raise ValueError(message)
