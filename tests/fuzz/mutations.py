"""Files as no one means them: bytes that are flipped, values of other types, keys that are missing or nearly right."""

import contextlib
import copy
import io
import random
from pathlib import Path
from typing import Any

from jrm_plugin.cli.app import main

ODD_VALUES = [
    *(None, True, False, 0, -1, 3, 2**31, 2**63, 2**70, -(2**63) - 1, 10**300, 0.5, -1e308, 1e308, float("inf")),
    *(float("nan"), "", " ", "0", "1e-3", "no", "null", "é", "\ud800", "\udce9.png", "\0", "x" * 5000, "../..", "/"),
    *("a.png", "data:image/png;base64,", "data:,", "https://x.org/a.png", "{}", "\u2028", "NaN", "~", "&a"),
    *([], [None], [[]], ["a.png", None], [1, "a"], {}, {"": ""}, {"bytes": "", "path": None}, {"a": {"b": [{}]}}),
]
ODD_VALUES += [[[[[["deep"]]]]], list(range(50)), ["1e0"], [0, "5e-1"]]
PIECES = [
    b"\xff",
    b"\x00",
    b"\xef\xbb\xbf",
    b"\r",
    b"\n",
    b"\\ud800",
    b'"',
    b"{",
    b"[" * 300,
    b"]",
    b":",
    b", ",
    b"9" * 5000,
]
PIECES += [
    b"1e999",
    b"&a [*a]",
    b"!!bool x",
    b"!!python/name:os.system ''",
    b"2024-13-45",
    b"\t",
    b"<<: *a",
    b"? ",
    b"- ",
]


def odd_bytes(rng: random.Random, content: bytes) -> bytes:
    """`content` with one to four pieces changed, taken out, doubled or put in."""
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(content) + 1)
        end = min(len(content), start + rng.choice((0, 1, 1, 2, 8, 40)))
        piece = rng.choice((b"", bytes([rng.randrange(256)]), rng.choice(PIECES), content[start:end] * 2))
        content = content[:start] + piece + content[end:]
    return content


def odd_record(rng: random.Random, record: dict) -> dict:
    """`record` with one or two keys dropped, doubled under a near name, or given another value."""
    record = copy.deepcopy(record)
    for _ in range(rng.randint(1, 2)):
        name = rng.choice(list(record) or ["x"])
        kind = rng.randrange(4)
        if kind == 0:
            record.pop(name, None)
        elif kind == 1 and name in record:
            value, place = record.pop(name), rng.randrange(len(name) + 1)
            record[rng.choice((name.upper(), name + "s", name[:place] + name[place + 1 :], f"{name}_1"))] = value
        elif kind == 2 and isinstance(record.get(name), list) and record[name]:
            record[name] = list(record[name])
            record[name][rng.randrange(len(record[name]))] = _odd_value(rng)
        else:
            record[name] = _odd_value(rng)
    return record


def _odd_value(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(ODD_VALUES))


def ends_in_a_sentence(arguments: list[str | Path]) -> str | None:
    """What is wrong with the end of a command that runs in this process: nothing, or what it raised or said."""
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True)
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    try:
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
            main([str(argument) for argument in arguments])
    except SystemExit as end:
        said = err.buffer.getvalue().decode().strip().split("\n")[-1]
        if end.code == 0 or (end.code == 2 and said.startswith("jrm: ")):
            return None
        return f"exit code {end.code}, {said[:300]!r}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "it did not end"
