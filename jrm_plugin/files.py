"""A user's files: read with one sentence where that fails, and written whole or not at all."""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from jrm_plugin.errors import JRMError

# --- reading ----------------------------------------------------------------------------------------------------------


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises:
        JRMError: the file is not there, cannot be read, or is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise JRMError(f"{path} does not exist: check the path.") from None
    except OSError as error:
        raise JRMError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise JRMError(f"{path} is not UTF-8 text: save it as UTF-8.") from None


def read_json(path: str | Path) -> Any:
    """What a JSON file holds; a [`JRMError`] where `read_text` raises one, or with the line that is no JSON."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise JRMError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}).") from None


def read_yaml(path: str | Path) -> dict:
    """The keys and values of a YAML config; a [`JRMError`] where it holds none."""
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise JRMError(f"the config {path} is no valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise JRMError(f"the config {path} must hold keys and values, such as `model: …`.")
    return content


# --- writing ----------------------------------------------------------------------------------------------------------


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path beside `path`, with the same ending, to write to; what is written there then takes its place.

    At any moment `path` is the old file or the new one, and the old one stays where writing fails.

    Raises:
        JRMError: the file cannot be written.
    """
    staging = path.with_name(f".unfinished.{path.name}")
    try:
        try:
            yield staging
            os.replace(staging, path)
        finally:
            staging.unlink(missing_ok=True)
    except OSError as error:
        raise JRMError(f"{path} cannot be written: {error.strerror or error}.") from error


def write_text(path: Path, text: str) -> Path:
    """Writes a UTF-8 file in one step."""
    with replacing(path) as staging:
        staging.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, content: Any) -> Path:
    """Writes a JSON file that people can read."""
    return write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, records: Iterable[dict]) -> Path:
    """Writes one compact JSON object per line."""
    return write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def write_image(path: Path, image: Image.Image) -> Path:
    """Writes an image in the format that the name's ending says."""
    with replacing(path) as staging:
        image.save(staging)
    return path


# --- asked before the work, not after it ------------------------------------------------------------------------------


def check_writable(folder: str | Path) -> None:
    """Makes `folder` and tries to write into it; a [`JRMError`] if that fails."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # several processes may try at once
            pass
    except OSError as error:
        raise JRMError(f"the output folder {folder} cannot be written: {error.strerror}; choose another.") from error


def check_image_writable(path: Path) -> None:
    """A [`JRMError`] if no image can be written to `path`, by its ending or its folder; makes the folder."""
    endings = {ending for ending, format in Image.registered_extensions().items() if format in Image.SAVE}
    if path.suffix.lower() not in endings:
        raise JRMError(f"the image {path} must have a name that ends in .png, .jpg or another kind of image.")
    check_writable(path.parent)
