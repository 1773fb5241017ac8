"""What the readers of data share: bad records are named, counted, and never replaced."""

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jrm_plugin.errors import JRMError
from jrm_plugin.files import parse_json, read_json, read_text
from jrm_plugin.records.images import check_image, digest, is_data_url, load_image, plain_image
from jrm_plugin.records.samples import Sample


@dataclass(frozen=True)
class BadRecord:
    """A record that could not be used. `row` counts from 1: the records of a JSON list, the lines of JSONL."""

    file: str
    row: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}: {self.reason}"


@dataclass(frozen=True)
class Records:
    """What a file holds: the examples, in the order of the file, and the records that were left out.

    `understood` says in a line how its columns were read, where that was found out from their names.
    """

    examples: Sequence
    bad: list[BadRecord]
    understood: str = ""


def checked_records(examples: Sequence, bad: list[BadRecord], strict: bool, understood: str = "") -> Records:
    """The records of a file; a [`JRMError`] with the first bad one if there is one and `strict`."""
    if strict and bad:
        count = "1 bad record" if len(bad) == 1 else f"{len(bad)} bad records"
        first = str(bad[0]).rstrip(".")
        raise JRMError(f"{first} ({count} in all; mend the file, or leave bad records out with strict=False).")
    return Records(examples, bad, understood)


# --- a file's records -------------------------------------------------------------------------------------------------


def read_json_list(path: Path) -> list:
    records = read_json(path)
    if not isinstance(records, list):
        raise JRMError(f"{path} must hold a JSON list of records, not a {type(records).__name__}.")
    return records


def read_json_lines(path: Path, bad: list[BadRecord], progress: bool) -> Iterator[tuple[int, dict]]:
    """Line number (from 1) and record of every line that is a JSON object; the others go to `bad`."""
    lines = read_text(path).split("\n")  # `splitlines` cuts texts at U+2028 and the like
    for row, line in enumerate(reading_bar(lines, path, progress), 1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
            need(record, ())
        except JRMError as error:
            bad.append(BadRecord(str(path), row, str(error)))
        except json.JSONDecodeError as error:
            bad.append(BadRecord(str(path), row, f"not valid JSON ({error.msg}, column {error.colno})"))
        else:
            yield row, record


def reading_bar(items: list, path: Path, progress: bool) -> tqdm:
    quiet = not progress or len(items) < 2000 or not sys.stderr.isatty()
    return tqdm(items, desc=f"reading {path.name}", unit=" records", disable=quiet)


# --- one record -------------------------------------------------------------------------------------------------------


def need(record: Any, keys: tuple[str, ...]) -> None:
    """A [`JRMError`] unless `record` is a JSON object with these keys."""
    if not isinstance(record, dict):
        raise JRMError(f"a record must be a JSON object, not a {type(record).__name__}")
    if missing := [key for key in keys if key not in record]:
        raise JRMError(f"missing {', '.join(missing)}")


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def to_edit(instruction: Any, sources: Any, edited: Any, root: Path) -> Sample:
    """The sample in a record's fields; `sources` is a path, a list of paths, or None for a generation.

    Paths are relative to `root`; `data:` URLs and bytes stay as they are.
    """
    sources = [] if sources is None else sources if isinstance(sources, list) else [sources]
    return Sample.edit([_located(source, root) for source in sources], instruction, _located(edited, root))


def _located(path: Any, root: Path) -> str | bytes:
    path = plain_image(path)
    if isinstance(path, bytes) and path:
        return path
    if not isinstance(path, str) or not path:
        raise JRMError(f"an image must be given as a path, not {path!r}")
    return path if is_data_url(path) or "://" in path else os.path.join(root, path)


class ImageCheck:
    """Opens every image file once, however many records share it; a broken one stays broken for all of them."""

    def __init__(self, *, decode: bool):
        self._open = load_image if decode else check_image
        self._errors: dict[bytes, str | None] = {}

    def check(self, *samples: Sample) -> None:
        for image in (image for sample in samples for image in (*sample.prompt_images, *sample.response_images)):
            key = digest(image)
            if key not in self._errors:
                try:
                    self._open(image)
                    self._errors[key] = None
                except JRMError as error:
                    self._errors[key] = str(error)
            if self._errors[key] is not None:
                raise JRMError(self._errors[key])
