"""YAML configs as TRL's scripts take them: the fields of several dataclasses side by side, overridden by flags."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trl import TrlParser

from jrm_plugin.configs import check_config, set_environment
from jrm_plugin.errors import JRMError

# What TRL's and transformers' fields take beside the types that they declare.
_ALSO = {"scale_rewards": bool, "resume_from_checkpoint": bool, "fsdp": bool | list[str], "lora_target_modules": str}


def parse_config(
    config: Path, content: dict[str, Any], overrides: Sequence[str], kinds: Sequence[type]
) -> tuple[Any, ...]:
    """One object of each dataclass in `kinds`, from the content of a YAML file and the flags that override it.

    Args:
        config: the file, for errors.
        content: its keys and values; `env` holds environment variables, as in TRL's own scripts.
        overrides: flags such as `["--learning_rate", "1e-6"]`, read by `TrlParser`.
        kinds: the dataclasses.

    Raises:
        JRMError: there is an unknown key, one is missing, or a value is wrong.
    """
    what = f"the config {config}"
    variables = content.get("env", {})
    values = {name: value for name, value in content.items() if name != "env"}
    values = check_config(values, kinds, what, also=_ALSO, required=False)  # a flag may give what the file does not
    set_environment(variables, what)
    try:
        parser = _Parser(kinds, allow_abbrev=False)
        parser.set_defaults_with_config(**values)
        parsed = parser.parse_args_into_dataclasses(list(overrides), look_for_args_file=False)
    except Exception as error:  # TRL's and transformers' own checks of these values, whatever they raise
        raise JRMError(f"{what} cannot be used: {' '.join(str(error).split()) or type(error).__name__}") from error
    for arguments in parsed:
        for name, value in vars(arguments).items():
            if isinstance(value, float) and not math.isfinite(value):  # of a flag
                raise JRMError(f"{what} cannot be used: {name} must be a finite number, not {value}.")
    return parsed


class _Parser(TrlParser):
    def error(self, message: str):  # argparse would print the usage of two hundred options
        raise ValueError(message)
