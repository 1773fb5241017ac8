"""The calibration that lies with a checkpoint."""

from pathlib import Path
from typing import Any

from jrm_plugin.errors import JRMError
from jrm_plugin.files import write_json
from jrm_plugin.model.checkpoint import CALIBRATION_FILE, built_in_folder, find_file, read_object
from jrm_plugin.records.calibration import Calibration


def read_calibration(path_or_name: str | Path, *, revision: str | None = None) -> Calibration | None:
    """The calibration of a checkpoint, which `jrm calibrate` measured; None where there is none.

    Raises:
        JRMError: the file holds something else.
    """
    path = find_file(built_in_folder(path_or_name), CALIBRATION_FILE, revision=revision)
    if path is None:
        return None
    try:
        return Calibration.from_dict({name: value for name, value in read_object(path).items() if name != "report"})
    except JRMError as error:
        raise JRMError(f"{path} cannot be read: {error} Remove it, or run jrm calibrate again.") from error


def write_calibration(folder: str | Path, calibration: Calibration, report: dict[str, Any]) -> Path:
    """Writes the calibration of the checkpoint in `folder`, and beside it what was measured with it."""
    return write_json(Path(folder, CALIBRATION_FILE), calibration.to_dict() | {"report": report})


def drop_calibration(folder: str | Path) -> None:
    """Removes a calibration: the model in `folder` is about to be another."""
    Path(folder, CALIBRATION_FILE).unlink(missing_ok=True)
