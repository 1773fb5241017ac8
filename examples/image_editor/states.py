"""States of runs that go on after a stop: written whole or not at all, with the settings that they belong to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from jrm_plugin.errors import JRMError
from jrm_plugin.files import replacing


def write_state(path: Path, settings: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Puts a state into the place of the one before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as staging:
        torch.save({"settings": dict(settings)} | dict(state), staging)


def read_state(path: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state of an earlier run with these settings; None where there is none.

    Raises:
        JRMError: the file cannot be read, or its run had other settings.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        differing = [name for name, value in settings.items() if state["settings"].get(name) != value]
    except Exception as error:  # torch.load raises whatever a damaged file leads it to
        raise JRMError(f"{path} is no state of this example; remove it, and that stage begins anew.") from error
    if differing:
        raise JRMError(
            f"{path} is of a run with another {', '.join(differing)}; go on with the same settings, or choose another "
            "output folder."
        )
    return state
