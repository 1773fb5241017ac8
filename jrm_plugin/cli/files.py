"""What the commands share about files."""

import tempfile
from pathlib import Path

import yaml
from PIL import Image

from jrm_plugin.errors import JRMError


def check_writable(folder: str | Path) -> None:
    """Makes `folder` and tries to write into it; a [`JRMError`] if that fails."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # several processes may try at once
            pass
    except OSError as error:
        raise JRMError(f"the output folder {folder} cannot be written: {error.strerror}; choose another.") from error


def read_yaml(config: Path) -> dict:
    """The keys and values of a YAML file; a [`JRMError`] where it holds none."""
    try:
        content = yaml.safe_load(config.read_text())
    except OSError as error:
        raise JRMError(f"the config {config} cannot be read: {error.strerror}.") from error
    except yaml.YAMLError as error:
        raise JRMError(f"the config {config} is no valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise JRMError(f"the config {config} must hold keys and values, such as `model: …`.")
    return content


def check_image_file(path: Path) -> None:
    """A [`JRMError`] if no image can be written to `path`: asked before the work, not after it."""
    if path.suffix.lower() not in (
        ending for ending, kind in Image.registered_extensions().items() if kind in Image.SAVE
    ):
        raise JRMError(f"the image {path} must have a name that ends in .png, .jpg or another kind of image.")
    check_writable(path.parent)
