"""A user's files: read with one sentence where that fails, and written whole or not at all."""

import codecs
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from jrm_plugin.errors import JRMError

# Byte order marks; UTF-32's begins as UTF-16's does, so it is asked for first.
_MARKS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"))
_MARKS += ((codecs.BOM_UTF16_BE, "utf-16"),)

# --- reading ----------------------------------------------------------------------------------------------------------


def read_text(path: str | Path, *, most: int | None = None) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark, as Windows editors write it.

    Raises:
        JRMError: the file is not there, cannot be read, is in another encoding, or has more than `most` bytes.
    """
    try:
        with open(path, "rb") as file:
            content = file.read() if most is None else file.read(most + 1)
        if most is not None and len(content) > most:
            raise JRMError(f"{path} has more than {most} bytes: check the path, or shorten the file.")
        encoding = next((encoding for mark, encoding in _MARKS if content.startswith(mark)), "utf-8")
        return content.decode(encoding).removeprefix("\ufeff").replace("\r\n", "\n")
    except FileNotFoundError:
        raise JRMError(f"{path} does not exist: check the path.") from None
    except OSError as error:
        raise JRMError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeError:
        raise JRMError(f"{path} is not UTF-8 text: save it as UTF-8.") from None
    except JRMError:
        raise
    except ValueError:  # a path with a null character
        raise JRMError(f"{str(path)!r} is no path: check it.") from None


def read_json(path: str | Path) -> Any:
    """What a JSON file holds; a [`JRMError`] where `read_text` raises one, or with the line that is no JSON."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise JRMError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}).") from None
    except JRMError:
        raise
    except ValueError:  # a number of thousands of digits
        raise JRMError(f"{path} holds a number that is too long: shorten it.") from None
    except RecursionError:
        raise JRMError(f"{path} is nested too deep: write it with fewer levels.") from None


def content_digest(path: str | Path) -> bytes:
    """SHA-256 of a file's content; a [`JRMError`] where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise JRMError(f"{str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


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
    return write_text(path, "".join(map(json_line, records)))


def json_line(record: Mapping[str, Any]) -> str:
    """A record as a line of JSONL; text stays readable but for what is no Unicode, such as names of files may hold."""
    line = json.dumps(record, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:
        line = json.dumps(record)
    return line + "\n"


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
