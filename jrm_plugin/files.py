"""What the commands share about files."""

import json
import os
import tempfile
from collections.abc import Iterable
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


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise JRMError(f"{path} does not exist: check the path.") from None
    except OSError as error:
        raise JRMError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise JRMError(f"{path} is not UTF-8 text: save it as UTF-8.") from None


def write_jsonl(path: Path, records: Iterable[dict]) -> Path:
    """Write one compact JSON object per line."""
    return write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def write_text(path: Path, text: str) -> Path:
    """Write a file in one step: at any moment it is the old one or the new one."""
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        raise JRMError(f"{path} cannot be written: {error.strerror}.") from None
    return path
