"""Going on after a stop: settings that must be those of the earlier run, and records of what is done already.

A command that can be stopped at any point keeps two files. `check_settings` compares the settings with those that the
run began with. `append_records` adds a line of JSON for each result as soon as it is there, and `read_records` says
which results are there; a line that a stop cut off counts as not written. `locked` keeps a second command away.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from jrm_plugin.errors import JRMError
from jrm_plugin.files import json_line, read_json

T = TypeVar("T")

LOCK_FILE = ".jrm.lock"  # in the output folder of a run that has one

_HELD = "another command is writing to {}; wait for the end of process {}, or choose another output folder."
_held: set[str] = set()  # locks of this process, to which the system would give each of them again


def check_settings(path: Path, settings: Mapping[str, Any], *, results: bool) -> None:
    """Makes sure that a run goes on with the settings that it began with.

    Args:
        path: the JSON file in the output folder where the run that began wrote its settings; nothing is written here.
        settings: those of now, plain JSON: all that changes the results.
        results: whether the folder holds results. They need the settings that they were made with.

    Raises:
        JRMError: names the settings that differ, or says that there are results and no settings.
    """
    earlier = read_json(path) if path.exists() else None
    if not isinstance(earlier, dict):
        if results or path.exists():
            raise JRMError(f"{path.parent} holds results of an unknown run; choose another output folder.")
        return
    settings = json.loads(json.dumps(settings))  # as they are read back: a tuple is a list
    names = settings.keys() | earlier.keys()
    changed = sorted(name for name in names if settings.get(name) != earlier.get(name))
    if changed:
        raise JRMError(
            f"{path.parent} holds a run with another {', '.join(changed)}; "
            "go on with the same settings, or choose another output folder."
        )


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds `path` for this process, so that no other command writes the same output at the same time.

    However a process ends, it lets go: the lock is the process's own, not that of workers forked from it.

    Args:
        path: a file in the output folder, made here and removed at the end; it holds the process's number.

    Raises:
        JRMError: another process or another thread holds it, or it cannot be made.
    """
    name = os.path.realpath(path)
    if name in _held:
        raise JRMError(_HELD.format(path.parent, os.getpid()))
    while True:
        try:
            file = path.open("a+")
        except OSError as error:
            raise JRMError(f"{path} cannot be written: {error.strerror}.") from error
        with file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise JRMError(_HELD.format(path.parent, file.read(20) or "unknown")) from None
            except OSError as error:
                raise JRMError(f"{path} cannot be locked: {error.strerror}.") from error
            if not (path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())):
                continue  # its holder removed it between our two calls
            _held.add(name)
            try:
                file.truncate(0)  # of one that was killed
                print(os.getpid(), end="", file=file, flush=True)
                yield
            finally:
                _held.discard(name)
                path.unlink(missing_ok=True)
            return


def read_records(path: Path, convert: Callable[[dict], T] = dict) -> list[T]:
    """The records that an earlier run left, in order; none where there is no such file.

    Args:
        path: the JSONL file.
        convert: makes what is wanted of a record; may raise `ValueError`, `KeyError` or `TypeError`.

    Raises:
        JRMError: the file cannot be read, or a line is no JSON object that can be converted; names the line.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise JRMError(f"{path} cannot be read: {error.strerror}.") from error
    records = []
    for number, line in enumerate(content.split(b"\n")[:-1], 1):  # what stands after the last line's end was cut off
        try:
            records.append(convert(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise JRMError(
                f"{path}, line {number} is no record of such a run; remove that file, or choose another output."
            ) from error
    return records


def cut_off_line(path: Path) -> str:
    """What stands behind the last whole line of a JSONL file: the beginning of one that a stop cut off, or nothing."""
    try:
        return path.read_bytes().split(b"\n")[-1].decode(errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise JRMError(f"{path} cannot be read: {error.strerror}.") from error


def append_records(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Adds records to a JSONL file, after its last whole line: what a stop cut off is removed.

    Raises:
        JRMError: the file cannot be written.
    """
    lines = "".join(map(json_line, records))
    try:
        with path.open("a+b") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(end - 1, 0))
            if file.read() not in (b"", b"\n"):
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            file.write(lines.encode())
    except OSError as error:
        raise JRMError(f"{path} cannot be written: {error.strerror}.") from error
