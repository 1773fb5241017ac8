"""Hostile requests on every wire of a real server: no 5xx but 503, no code run, memory bounded, the server alive.

    python tests/fuzz/hostile_requests.py [--pickles 10000] [--others 4000] [--seed 0] [--output FILE.json]

Pickles: real requests of trainers with bytes and instructions changed, the known ways to run code, deep nesting, sizes
that are not there, and plain values of the wrong types. Others: the same on the wires that are JSON, and images that
are cut off, broken, or many times larger than their files. The quick share of it in the test suite is
`tests/server/test_hostile_requests.py`.
"""

import argparse
import base64
import io
import json
import os
import pickle
import pickletools
import random
import re
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from hostile_pickles import BOMBS, gadgets
from mutations import ODD_VALUES, odd_bytes, odd_record
from PIL import Image

PATHS = {"flow_grpo": "/flow_grpo", "edit_r1": "/mode/logits_non_cot", "omnigen2_rl": "/"}
SECRET = "/etc/hostname"  # a file of the server's, which no request may name


class Hostile(NamedTuple):
    """A request, and what is wrong with it."""

    kind: str
    path: str
    body: bytes
    json: bool = False


# --- images -----------------------------------------------------------------------------------------------------------


def encoded(format_name: str, size: int = 32) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(size).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format_name)
    return buffer.getvalue()


def bomb(width: int, height: int, rows: int | None = None) -> bytes:
    """A PNG of one bit a pixel, all 0, that says to be of this size; `rows` of it are there."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    packed, row = zlib.compressobj(9), bytes(1 + (width + 7) // 8)
    content = b"".join(packed.compress(row) for _ in range(height if rows is None else rows)) + packed.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", content) + chunk(b"IEND", b"")


FORMATS = [encoded(name) for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")]
BAD_IMAGES = [bomb(12_000, 12_000), bomb(2**31 - 1, 1, 0), bomb(60_000, 60_000, 1), bomb(30_000, 100), bomb(0, 5, 0)]
BAD_IMAGES += [b"", b"\0" * 100, b"%!PS-Adobe-3.0 EPSF-3.0\n(ls) system", b"<svg xmlns='http://www.w3.org/2000/svg'/>"]
BAD_IMAGES += [b"GIF89a" + b"\xff" * 7, b"RIFF\xff\xff\xff\xffWEBPVP8X", b"P6 999999999 999999999 255\n"]


def bad_image(rng: random.Random) -> bytes:
    if rng.random() < 0.4:
        return rng.choice(BAD_IMAGES)
    image = rng.choice(FORMATS)
    return image[: rng.randrange(len(image))] if rng.random() < 0.5 else odd_bytes(rng, image)


# --- requests of trainers ---------------------------------------------------------------------------------------------


def good_pickles() -> dict[str, dict[str, Any]]:
    png, picture = FORMATS[0], Image.open(io.BytesIO(FORMATS[1]))
    return {
        "flow_grpo": {"images": [png] * 2, "prompts": np.array(["a", "b"]), "metadata": {"ref_images": [png] * 2}},
        "edit_r1": {"ref_images": [png], "images": [png], "prompts": ("a",), "metadatas": [{"n": np.float32(1)}]},
        "omnigen2_rl": {
            "input_images": [[picture, picture]], "output_image": [picture], "server_type": "vlm",
            "meta_datas": [json.dumps({"instruction": "a"})],
        },
    }  # fmt: skip


def good_json() -> dict[str, dict[str, Any]]:
    image = base64.b64encode(FORMATS[0]).decode()
    fields = {"source": image, "instruction": "make it blue", "edited": image}
    return {
        "/v1/score": {"samples": [fields]},
        "/v1/critique": {"samples": [fields], "max_new_tokens": 2},
        "/v1/rank": {"source": image, "instruction": "a", "candidates": [image, image]},
        "/score": {"requests": [{"history": [{"text": "a", "image_b64": image}] * 2, "required_rewards": ["jrm"]}]},
        "/compute": {"prompt": ["a"], "image": [image], "condition_images": [[image]], "video": None},
    }


def replaced(rng: random.Random, value: Any, odd: Any, chance: float = 0.3) -> Any:
    """A value with some of what is in it exchanged for something odd."""
    if rng.random() < chance:
        return odd()
    if isinstance(value, dict):
        return {key: replaced(rng, inner, odd, chance) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(replaced(rng, inner, odd, chance) for inner in value)
    return value


def spliced(rng: random.Random, one: bytes, other: bytes) -> bytes:
    """A pickle with a run of its instructions exchanged for a run of another's."""

    def run(content: bytes) -> tuple[int, int]:
        places = [position for _, _, position in pickletools.genops(content)]
        start = rng.randrange(len(places))
        return places[start], places[min(start + rng.randint(0, 6), len(places) - 1)]

    (a, b), (c, d) = run(one), run(other)
    return one[:a] + other[c:d] + one[b:]


def pickles(rng: random.Random, count: int, witness: Path) -> Iterator[Hostile]:
    good, runs = good_pickles(), [*gadgets(witness).values()]
    odd_plain = [value for value in ODD_VALUES if _pickles(value)] + [
        SECRET,
        Path(SECRET),
        np.zeros((2, 2, 7)),
        {1: {2}},
    ]
    for number in range(count):
        name = rng.choice([*PATHS])
        path, sent = PATHS[name], good[name]
        content = pickle.dumps(sent, rng.choice((2, 3, 4, 5)))
        kind = ("bytes changed", "instructions changed", "code", "bomb", "wrong types", "image")[number % 6]
        if kind == "bytes changed":
            content = odd_bytes(rng, content)
        elif kind == "instructions changed":
            content = spliced(rng, content, rng.choice([content, pickle.dumps(good[rng.choice([*PATHS])]), *VALID]))
        elif kind == "code":
            content = rng.choice(runs)
            content = content if rng.random() < 0.5 else odd_bytes(rng, content)
        elif kind == "bomb":
            content = rng.choice([*BOMBS.values()])
            content = content if rng.random() < 0.5 or len(content) > 2**16 else odd_bytes(rng, content)
        elif kind == "wrong types":
            content = pickle.dumps(replaced(rng, sent, lambda: rng.choice(odd_plain)))
        else:
            images = [key for key, value in sent.items() if isinstance(value, list) and key != "meta_datas"]
            broken = sent | {key: replaced(rng, sent[key], lambda: bad_image(rng), 0.8) for key in images}
            content = pickle.dumps(broken)
        yield Hostile(kind, path, content)


def _pickles(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except (UnicodeEncodeError, pickle.PicklingError):
        return False
    return True


VALID = [pickle.dumps({"a": [1, (2.5, None)], "b": {"c": b"d" * 300}}), pickle.dumps([np.arange(6).reshape(2, 3)])]


def others(rng: random.Random, count: int) -> Iterator[Hostile]:
    good = good_json()
    for number in range(count):
        path = rng.choice([*good])
        sent: Any = good[path]
        kind = ("wrong types", "keys", "bytes changed", "image", "nested")[number % 5]
        if kind == "wrong types":
            body = json.dumps(replaced(rng, sent, lambda: rng.choice(ODD_VALUES)))
        elif kind == "keys":
            body = json.dumps(odd_record(rng, sent))
        elif kind == "image":

            def image() -> str:
                return base64.b64encode(bad_image(rng)).decode()

            body = json.dumps(json.loads(json.dumps(sent), object_hook=lambda record: _with_images(record, image)))
        elif kind == "nested":
            depth = rng.choice((10, 1000, 10**5))
            body = json.dumps(sent).replace("null", "[" * depth).replace('"a"', "[" * depth + "]" * depth)
        else:
            body = json.dumps(sent)
        content = body.encode("utf-8", "surrogatepass")
        yield Hostile(kind, path, odd_bytes(rng, content) if kind == "bytes changed" else content, json=True)


def _with_images(record: dict[str, Any], image: Any) -> dict[str, Any]:
    names = ("source", "edited", "image_b64")
    record = {key: image() if key in names else value for key, value in record.items()}
    for key in ("candidates", "image"):
        if key in record:
            record[key] = [image() for _ in record[key]]
    return record


# --- asking -----------------------------------------------------------------------------------------------------------


def ask(client: httpx.Client, hostile: Hostile) -> tuple[str, int, str | None]:
    """The kind, the status, and what is wrong with the answer, where something is."""
    content_type = "application/json" if hostile.json else "application/octet-stream"
    try:
        response = client.post(hostile.path, content=hostile.body, headers={"Content-Type": content_type})
    except httpx.HTTPError as error:
        return hostile.kind, 0, f"{type(error).__name__}: {error}"
    if response.status_code >= 500 and response.status_code != 503:
        return hostile.kind, response.status_code, f"{response.status_code} {response.text[:200]}"
    if Path(SECRET).exists() and (secret := Path(SECRET).read_text().strip()) and secret in response.text:
        return hostile.kind, response.status_code, "a file of the server was shown"
    return hostile.kind, response.status_code, None


def run(client: httpx.Client, requests: Iterator[Hostile]) -> tuple[Counter, list[str]]:
    """How many requests of each kind had which status; and the problems, each with its request."""
    counts: Counter = Counter()
    problems = []
    with ThreadPoolExecutor(4) as pool:
        for (kind, status, problem), hostile in pool.map(lambda hostile: (ask(client, hostile), hostile), requests):
            counts[kind, status] += 1
            if problem is not None:
                problems.append(f"{kind} on {hostile.path}: {problem} for {hostile.body[:300]!r}")
    return counts, problems


@contextmanager
def running_server(*arguments: str) -> Iterator[tuple[int, str, Path]]:
    """`jrm serve` with the built-in model, ready: its process, its address, and a folder for what is made meanwhile."""
    command = [sys.executable, "-m", "jrm_plugin.cli", "serve", "--model", "jrm-tiny", "--device", "cpu", "--port", "0"]
    folder = Path(tempfile.mkdtemp(prefix="fuzz-server-"))
    with open(folder / "log", "w") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        server = subprocess.Popen([*command, *arguments], stderr=log, env=environment)
    try:
        while not (address := re.search(r"http://\S+\d", (folder / "log").read_text())):
            assert server.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        while httpx.get(f"{address[0]}/ready", trust_env=False).status_code != 200:
            time.sleep(0.1)
        yield server.pid, address[0], folder
    finally:
        server.terminate()
        server.wait(60)


def memory(pid: int, name: str) -> float:
    """`VmRSS` or `VmHWM` (the most so far) of a process, in MiB."""
    return int(re.search(rf"{name}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pickles", type=int, default=10_000)
    parser.add_argument("--others", type=int, default=4_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON with the figures")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with (
        running_server(*(f"--{name.replace('_', '-')}" for name in PATHS)) as (pid, address, folder),
        httpx.Client(base_url=address, timeout=300, trust_env=False) as client,
    ):
        sample = good_json()["/v1/score"]

        def score() -> float:
            return client.post("/v1/score", json=sample).json()["results"][0]["score"]["mu"]["overall"]

        # what a request may take at most is no leak: one of each kind first
        before_score = score()
        run(client, pickles(random.Random(-1), 60, folder / "run"))
        run(client, others(random.Random(-1), 50))
        before, most_before = memory(pid, "VmRSS"), memory(pid, "VmHWM")
        figures: dict[str, Any] = {"seed": options.seed}
        problems = []
        for name, requests in (
            ("pickles", pickles(rng, options.pickles, folder / "run")),
            ("others", others(rng, options.others)),
        ):
            counts, wrong = run(client, requests)
            problems += wrong
            figures[name] = {kind: {} for kind, _ in sorted(counts)}
            for (kind, status), count in sorted(counts.items()):
                figures[name][kind][str(status)] = count
        after_score = score()
        figures["resident_mib"] = {"before": round(before), "after": round(memory(pid, "VmRSS"))}
        figures["most_mib"] = {"before": round(most_before), "after": round(memory(pid, "VmHWM"))}
    if (folder / "run").exists():
        problems.append(f"code was run: {folder / 'run'} is there")
    if after_score != before_score:
        problems.append(f"the score of a sample was {before_score} and is {after_score}")
    figures["problems"] = len(problems)
    print("\n".join(problems[:20]))
    print(json.dumps(figures, indent=2))
    if options.output:
        options.output.write_text(json.dumps(figures, indent=2) + "\n")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
