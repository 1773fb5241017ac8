"""YAML configs as TRL's scripts take them: the fields of several dataclasses side by side, overridden by flags."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trl import TrlParser

from jrm_plugin.errors import JRMError
from jrm_plugin.files import read_yaml


def parse_config(
    config: Path, overrides: Sequence[str], kinds: Sequence[type], *, lists: Sequence[str] = ()
) -> tuple[Any, ...]:
    """One object of each dataclass in `kinds`, from a YAML file and the flags that override it, read by `TrlParser`.

    `lists` are the fields that must be lists where they are given; the parser takes a single text for one.

    Raises:
        JRMError: the file cannot be read, has an unknown key, misses one, or holds a wrong value.
    """
    read_yaml(config)  # says in one sentence what is wrong with the file itself
    try:
        parsed = _Parser(kinds).parse_args_and_config(["--config", str(config), *overrides])
    except (ValueError, TypeError, ImportError) as error:  # ImportError: deepspeed and the like
        raise JRMError(f"the config {config} cannot be used: {' '.join(str(error).split())}") from error
    for name in lists:
        value = next(getattr(arguments, name) for arguments in parsed if hasattr(arguments, name))
        if value is not None and not isinstance(value, list):
            raise JRMError(f"the config {config} cannot be used: {name} must be a list, not {value!r}.")
    return parsed


class _Parser(TrlParser):
    def error(self, message: str):  # argparse would print the usage of two hundred options
        raise ValueError(message)
