"""A user's files: read with one sentence where that fails, and written whole or not at all."""

import codecs
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image

from jrm_plugin.errors import JRMError

# Byte order marks; UTF-32's begins as UTF-16's does, so it is asked for first.
_MARKS = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"))
_MARKS += ((codecs.BOM_UTF16_BE, "utf-16"),)

_MOST_LEVELS = 100  # of lists in lists, in JSON: what Python reads at its limit it cannot write again
_TOO_DEEP = "is nested too deep: write it with fewer levels"

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
    text = read_text(path)
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        raise JRMError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}).") from None
    except JRMError as error:
        raise JRMError(f"{path} {error}.") from None


def parse_json(text: str) -> Any:
    """What a JSON text holds.

    Raises:
        json.JSONDecodeError: it is no JSON.
        JRMError: part of a sentence: it is nested too deep to be written again, has a key twice, or too long a number.
    """
    try:
        content = json.loads(text, object_pairs_hook=_without_repetition)
    except RecursionError:
        raise JRMError(_TOO_DEEP) from None
    except (json.JSONDecodeError, JRMError):
        raise
    except ValueError:  # a number of thousands of digits
        raise JRMError("holds a number that is too long: shorten it") from None
    level = [content]
    for _ in range(_MOST_LEVELS):
        nested = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, (dict, list))]
        if not nested:
            return content
        level = list(chain.from_iterable(nested))
    raise JRMError(_TOO_DEEP)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):  # Python takes the last
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise JRMError(f"holds the key {repeated!r} twice in one object: leave one out")
    return content


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
    return write_text(path, to_json(content, indent=1) + "\n")


def write_jsonl(path: Path, records: Iterable[dict]) -> Path:
    """Writes one compact JSON object per line."""
    return write_text(path, "".join(map(json_line, records)))


def json_line(record: Mapping[str, Any]) -> str:
    """A record as a line of JSONL."""
    return to_json(record) + "\n"


def to_json(content: Any, *, encoding: str = "utf-8", indent: int | None = None) -> str:
    """JSON in letters that `encoding` has, and that stays readable where it can: else all are escaped.

    What is no Unicode, such as names of files may hold, no encoding has; escaped, it is read back as it was.
    """
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(content, indent=indent)
    return text


def write_image(path: Path, image: Image.Image) -> Path:
    """Writes an image in the format that the name's ending says."""
    with replacing(path) as staging:
        image.save(staging)
    return path


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Gives an empty folder beside `path` to write to, which is then called `path`.

    Raises:
        JRMError: it cannot be written, or `path` holds files.
    """
    staging = path.with_name(f".unfinished.{path.name}")
    try:
        try:
            shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
            staging.mkdir(parents=True)
            yield staging
            os.replace(staging, path)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise JRMError(f"the folder {path} cannot be written: {error.strerror or error}.") from error


# --- asked before the work, not after it ------------------------------------------------------------------------------


def check_writable(folder: str | Path) -> None:
    """Makes `folder` and tries to write into it; a [`JRMError`] if that fails."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # several processes may try at once
            pass
    except OSError as error:
        raise JRMError(f"the output folder {folder} cannot be written: {error.strerror}; choose another.") from error


def check_new_folder(path: Path) -> None:
    """A [`JRMError`] if `path` is no empty folder, or cannot be made one."""
    check_writable(path.parent)
    try:
        if os.path.lexists(path) and (not path.is_dir() or any(path.iterdir())):
            raise JRMError(f"{path} is there already and is no empty folder; remove it or choose another.")
    except OSError as error:
        raise JRMError(f"the folder {path} cannot be read: {error.strerror}; choose another.") from error


def check_image_writable(path: Path) -> None:
    """A [`JRMError`] if no colour image can be written to `path`: one is tried beside it. Makes the folder."""
    endings = {ending for ending, format in Image.registered_extensions().items() if format in Image.SAVE}
    if path.suffix.lower() not in endings:
        raise JRMError(f"the image {path} must have a name that ends in .png, .jpg or another kind of image.")
    check_writable(path.parent)
    if os.path.isdir(path):  # not `Path.is_dir`, which raises where a name is too long
        raise JRMError(f"the image {path} is a folder; choose another name.")
    staging = path.with_name(f".unfinished.{path.name}")
    try:
        try:
            Image.new("RGB", (8, 8)).save(staging)  # Pillow lists writers that write no colours, or nothing at all
        finally:
            staging.unlink(missing_ok=True)
    except (OSError, ValueError, KeyError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise JRMError(f"the image {path} cannot be written ({reason}); choose another name, such as x.png.") from error
