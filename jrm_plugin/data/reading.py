"""What the readers of data share: bad records are named, counted, and never replaced."""

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from jrm_plugin.errors import JRMError
from jrm_plugin.files import read_text
from jrm_plugin.records.images import digest, image_size, load_image
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
    """What a file holds: the examples, in the order of the file, and the records that were left out."""

    examples: list
    bad: list[BadRecord]


class ImageCheck:
    """Opens every image file once, however many records share it; a broken one stays broken for all of them."""

    def __init__(self, *, decode: bool):
        self._open = load_image if decode else image_size
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


def checked_records(examples: list, bad: list[BadRecord], strict: bool) -> Records:
    if strict and bad:
        count = "1 bad record" if len(bad) == 1 else f"{len(bad)} bad records"
        first = str(bad[0]).rstrip(".")
        raise JRMError(f"{first} ({count} in all; mend the file, or leave bad records out with strict=False).")
    return Records(examples, bad)


def read_json_list(path: Path) -> list:
    try:
        records = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise JRMError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}).") from None
    if not isinstance(records, list):
        raise JRMError(f"{path} must hold a JSON list of records, not a {type(records).__name__}.")
    return records


def read_json_lines(path: Path, bad: list[BadRecord], progress: bool) -> Iterator[tuple[int, dict]]:
    """Line number (from 1) and record of every line that is a JSON object; the others go to `bad`."""
    for row, line in enumerate(reading_bar(read_text(path).split("\n"), path, progress), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            need(record, ())
        except json.JSONDecodeError as error:
            bad.append(BadRecord(str(path), row, f"not valid JSON ({error.msg}, column {error.colno})"))
        except JRMError as error:
            bad.append(BadRecord(str(path), row, str(error)))
        else:
            yield row, record


def need(record, keys: tuple[str, ...]) -> None:
    if not isinstance(record, dict):
        raise JRMError(f"a record must be a JSON object, not a {type(record).__name__}")
    if missing := [key for key in keys if key not in record]:
        raise JRMError(f"missing {', '.join(missing)}")


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def reading_bar(items, path: Path, progress: bool):
    quiet = not progress or len(items) < 2000 or not sys.stderr.isatty()
    return tqdm(items, desc=f"reading {path.name}", unit=" records", disable=quiet)
