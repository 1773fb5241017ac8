"""What the commands share about files."""

import tempfile
from pathlib import Path

from jrm_plugin.errors import JRMError


def check_writable(folder: str | Path) -> None:
    """Makes `folder` and tries to write into it; a [`JRMError`] if that fails."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # several processes may try at once
            pass
    except OSError as error:
        raise JRMError(f"the output folder {folder} cannot be written: {error.strerror}; choose another.") from error
