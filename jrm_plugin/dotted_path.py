"""Functions that a user names by dotted path in a config."""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from jrm_plugin.errors import JRMError


def import_function(path: str, what: str, takes: str) -> Callable[..., Any]:
    """The function `package.module.name`, installed or in the current folder.

    `what` names it in errors ("the editor"), and `takes` says what it is a function of.
    """
    if "" not in sys.path:  # a module in the current folder, as `python -m` finds it
        sys.path.insert(0, "")
    module, _, name = path.rpartition(".")
    if not all(part.isidentifier() for part in path.split(".")) or not module:
        raise JRMError(f"{what} {path} is no dotted path; give package.module.name.")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise JRMError(f"{what} {path} cannot be imported ({error}); give package.module.name.") from error
    if not callable(found):
        raise JRMError(f"{what} {path} cannot be called; give a function of {takes}.")
    return found
