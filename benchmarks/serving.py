"""What `jrm serve` does under load: right answers, throughput, latency, overload, its end, and a dead replica.

    python -m benchmarks.serving

A server in a process of its own, with jrm-tiny and one thread of torch; clients in this one. Offline scoring has one
thread of torch too. All of them may use every core, as on a user's machine: what the clients take, the server beside
them lacks. Every answer of every part is compared with the score that the scorer gives directly. Writes
`benchmarks/results/serving-<device>.csv`.

Parts: `load` (64 clients, requests of 1 to 8 samples on each JSON wire; throughput beside that of scoring the same
samples offline, block by block, one after the other), `latency` (requests that come by chance, at 25, 50 and 90 % of
the rate of `load`), `overload` (three times that rate), `sigterm`, and `ray` (two replicas, one killed).
"""

import argparse
import asyncio
import base64
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import httpx
import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from benchmarks.measuring import device_description, slug, write_csv
from jrm_plugin.records.samples import Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.records.wire import REQUEST_KEY, sample_to_json
from jrm_plugin.scoring.protocol import ranked
from jrm_plugin.scoring.scorer import RewardScorer
from jrm_plugin.synthetic.shape_edits import draw_edit

RESULTS = Path(__file__).with_name("results")
CANDIDATES = 8  # of a prompt
SIZES = (1, 1, 1, 2, 4, 8)  # samples of a request
CLIENTS = 64
TOLERANCE = 1e-5
FRACTIONS = (0.25, 0.5, 0.9)
WIRES = ("score, blocks", "score, fields", "rank", "UniRL", "Flow-Factory")


class Request(NamedTuple):
    """One request, and whether an answer to it is right."""

    wire: str
    path: str
    body: bytes
    samples: list[Sample]
    is_right: Callable[[Any], bool]


# --- what is asked ----------------------------------------------------------------------------------------------------


def png(pixels: np.ndarray, size: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((size, size)).save(buffer, "PNG")
    return buffer.getvalue()


def make_groups(prompts: int, seed: int = 0) -> list[list[Sample]]:
    """Samples of ShapeEdits by their prompts: candidates of one scene, all of them different."""
    groups = []
    for number in range(prompts):
        rng = np.random.default_rng([seed, number])
        edit = draw_edit(rng, heldout=True, outcomes=[("none", "clean")])
        size = int(rng.choice([48, 64, 96]))
        source = png(edit.source, size)
        noisy = [edit.source.copy() for _ in range(CANDIDATES)]
        for k, pixels in enumerate(noisy):
            pixels[:, 6 * k : 6 * k + 3] = rng.integers(0, 256, 3)
        groups.append([Sample.edit(source, edit.instruction, png(pixels, size)) for pixels in noisy])
    return groups


def make_requests(groups: list[list[Sample]], scores: dict[str, RewardScore], count: int, seed: int) -> list[Request]:
    """Requests on each wire in turn; a request of several samples has whole groups, as a trainer's has."""
    rng = random.Random(seed)
    return [make_request(WIRES[k % len(WIRES)], groups, scores, rng) for k in range(count)]


def make_request(wire: str, groups: list, scores: dict[str, RewardScore], rng: random.Random) -> Request:
    size = rng.choice(SIZES)
    samples = [sample for group in rng.sample(groups, -(-size // CANDIDATES)) for sample in group][:size]
    if wire == "rank":
        samples = samples[:CANDIDATES]
    expected = [scores[sample.key()] for sample in samples]
    overall = [score.mu["overall"] for score in expected]
    images = [[encoded(image) for image in (*s.prompt_images, *s.response_images)] for s in samples]
    texts = [sample.prompt_text for sample in samples]

    def close(numbers: Any, others: list[float]) -> bool:
        return np.shape(numbers) == np.shape(others) and bool(np.allclose(numbers, others, rtol=0, atol=TOLERANCE))

    def same(record: dict, score: RewardScore) -> bool:
        parts = [(record[kind], getattr(score, kind)) for kind in ("mu", "sigma")]
        return all(one.keys() == other.keys() and close([*one.values()], [*other.values()]) for one, other in parts)

    if wire.startswith("score"):
        fields = [{"source": i[0], "instruction": t, "edited": i[1]} for i, t in zip(images, texts, strict=True)]
        body = {"samples": fields if wire == "score, fields" else [*map(sample_to_json, samples)]}
        path = "/v1/score"

        def is_right(answer: Any) -> bool:
            return all(same(r["score"], s) for r, s in zip(answer["results"], expected, strict=True))

    elif wire == "rank":
        path, body = "/v1/rank", {"source": images[0][0], "instruction": texts[0], "candidates": [i[1] for i in images]}
        order = [place.position for place in ranked(expected)]

        def is_right(answer: Any) -> bool:
            places = answer["ranking"]
            right = all(same(place["score"], expected[place["position"]]) for place in places)
            return right and close([overall[p["position"]] for p in places], [overall[k] for k in order])

    elif wire == "UniRL":
        turns = [[{"text": t, "image_b64": image} for image in i] for i, t in zip(images, texts, strict=True)]
        path, body = "/score", {"requests": [{"history": turn, "required_rewards": ["jrm"]} for turn in turns]}

        def is_right(answer: Any) -> bool:
            first = [next(iter(result["jrm"].values())) for result in answer["results"]]
            return not any(answer["errors"]) and close(first, overall)

    else:
        path = "/compute"
        body = {"prompt": texts, "image": [i[1] for i in images], "condition_images": [[i[0]] for i in images]}

        def is_right(answer: Any) -> bool:
            return close(answer["rewards"], overall)

    return Request(wire, path, json.dumps(body).encode(), samples, is_right)


def encoded(image: bytes) -> str:
    return base64.b64encode(image).decode()


# --- the server -------------------------------------------------------------------------------------------------------


class Server(NamedTuple):
    process: subprocess.Popen
    url: str
    log: Path

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        return 4096 * int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])


@contextmanager
def serving(*arguments: str) -> Iterator[Server]:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
        command = [sys.executable, "-m", "jrm_plugin.cli", "serve", "--model", "jrm-tiny", "--device", "cpu"]
        with log.open("w") as stream:
            process = subprocess.Popen([*command, *arguments], stderr=stream, env=environment)
        try:
            port = re.search(r"--port ([1-9]\d*)", " ".join(arguments))
            url = f"http://127.0.0.1:{port[1]}" if port else ""
            while not is_ready(url):
                if process.poll() is not None:
                    raise SystemExit(f"the server ended: {log.read_text()}")
                if not port and (said := re.search(r"http://[\w.:]+", log.read_text())):
                    url = said[0]
                time.sleep(0.1)
            yield Server(process, url, log)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def is_ready(url: str) -> bool:
    try:
        return bool(url) and httpx.get(f"{url}/ready", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


# --- clients ----------------------------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """How a request ended: its status, or the name of the exception; what came; how long it took."""

    request: Request
    status: int | str
    content: bytes
    seconds: float
    tries: int = 1

    @property
    def right(self) -> bool:
        return self.status == 200 and self.request.is_right(json.loads(self.content))


async def send(client: aiohttp.ClientSession, request: Request, *, key: str | None = None) -> Answer:
    start = time.perf_counter()
    try:
        headers = {"Content-Type": "application/json"} | ({} if key is None else {REQUEST_KEY: key})
        async with client.post(request.path, data=request.body, headers=headers) as response:
            return Answer(request, response.status, await response.read(), time.perf_counter() - start)
    except aiohttp.ClientError as error:
        return Answer(request, type(error).__name__, b"", time.perf_counter() - start)


async def send_again(client: aiohttp.ClientSession, request: Request, key: str) -> Answer:
    """Sends until there is an answer that is none of 5xx, as `RewardClient` does."""
    for tries in range(1, 40):
        answer = await send(client, request, key=key)
        if isinstance(answer.status, int) and answer.status < 500:
            break
        await asyncio.sleep(min(0.05 * 2**tries, 1.0))
    return answer._replace(tries=tries)


def open_client(url: str, connections: int) -> aiohttp.ClientSession:
    # aiohttp: httpx takes several times as long for a request, which the server beside it would lack.
    connector = aiohttp.TCPConnector(limit=connections)
    return aiohttp.ClientSession(url, connector=connector, timeout=aiohttp.ClientTimeout(300))


async def closed_loop(url: str, requests: list[Request], clients: int, ask: Callable = send) -> list[Answer]:
    """Clients that each send their next request when they have their answer."""
    waiting = iter(enumerate(requests))
    answers = []
    async with open_client(url, clients) as client:

        async def work() -> None:
            for number, request in waiting:
                extra = {} if ask is send else {"key": f"{id(requests)}-{number}"}
                answers.append(await ask(client, request, **extra))

        await asyncio.gather(*(work() for _ in range(clients)))
    return answers


async def open_loop(
    url: str, requests: list[Request], rate: float, watch: Callable[[], None] = lambda: None
) -> list[Answer]:
    """Requests that come by chance, `rate` a second on average, whatever their answers do."""
    rng, tasks, answers = random.Random(1), set(), []
    async with open_client(url, 1000) as client:
        due = time.perf_counter()
        for request in requests:
            due += rng.expovariate(rate)
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            task = asyncio.create_task(send(client, request))
            tasks.add(task)
            task.add_done_callback(lambda task: (tasks.discard(task), answers.append(task.result())))
            watch()
        await asyncio.gather(*tasks)
        await asyncio.sleep(0)
    return answers


# --- the parts --------------------------------------------------------------------------------------------------------


class Results:
    """Rows of the table, printed as they come."""

    def __init__(self) -> None:
        self.rows: list[dict] = []

    def add(self, part: str, what: str, value: float, unit: str = "", low: float | None = None, high=None) -> None:
        self.rows.append({"part": part, "what": what, "value": value, "low": low, "high": high, "unit": unit})
        spread = "" if low is None else f" ({low:.3g} to {high:.3g})"
        tqdm.write(f"{part}: {what}: {value:.4g}{spread} {unit}")

    def count_wrong(self, part: str, answers: list[Answer]) -> None:
        self.add(part, "answers with 200", sum(answer.status == 200 for answer in answers))
        self.add(part, "of them wrong or crossed", sum(a.status == 200 and not a.right for a in answers))
        for status, count in sorted(Counter(str(a.status) for a in answers if a.status != 200).items()):
            self.add(part, f"answers with {status}", count)


def load(results: Results, scorer: RewardScorer, server: Server, requests: list[Request], blocks: int) -> float:
    """The rate of requests a second at which the server is full."""
    ratios, cpu_ratios, rates, answers = [], [], [], []
    for block in range(blocks):
        part = requests[block::blocks]
        samples = [sample for request in part for sample in request.samples]
        order = ("offline", "served") if block % 2 else ("served", "offline")
        seconds, cpu = {}, {}
        for way in order:
            start, computing = time.perf_counter(), time.process_time if way == "offline" else server.cpu_seconds
            cpu_start = computing()
            if way == "offline":
                scorer.score(samples)
            else:
                answers += asyncio.run(closed_loop(server.url, part, CLIENTS))
            seconds[way], cpu[way] = time.perf_counter() - start, computing() - cpu_start
        cpu_ratios.append(cpu["offline"] / cpu["served"])
        ratios.append(seconds["offline"] / seconds["served"])
        rates.append(len(part) / seconds["served"])
        results.add("load", f"block {block}: samples offline", len(samples) / seconds["offline"], "samples/s")
        results.add("load", f"block {block}: samples served", len(samples) / seconds["served"], "samples/s")
    results.add("load", "requests", len(answers))
    results.add("load", "samples", sum(len(request.samples) for request in requests))
    results.add("load", "wires", len({answer.request.wire for answer in answers}))
    results.count_wrong("load", answers)
    results.add("load", "served over offline", float(np.median(ratios)), "", min(ratios), max(ratios))
    what = "served over offline, by CPU time of the server alone"
    results.add("load", what, float(np.median(cpu_ratios)), "", min(cpu_ratios), max(cpu_ratios))
    results.add("load", "rate", float(np.median(rates)), "requests/s", min(rates), max(rates))
    return float(np.median(rates))


def latency(results: Results, server: Server, requests: list[Request], rate: float, seconds: float) -> None:
    for fraction in FRACTIONS:
        part = requests[: max(50, int(fraction * rate * seconds))]
        answers = asyncio.run(open_loop(server.url, part, fraction * rate))
        name = f"latency at {fraction:.0%}"
        results.count_wrong(name, answers)
        p50, p99 = np.quantile([answer.seconds for answer in answers], [0.5, 0.99]).tolist()
        results.add(name, "p50", p50, "s")
        results.add(name, "p99", p99, "s")


def overload(results: Results, requests: list[Request], rate: float, seconds: float) -> None:
    with serving("--port", "0", "--max-waiting", "256") as server:
        asyncio.run(closed_loop(server.url, requests[:200], CLIENTS))
        before, memory = server.resident_bytes(), []
        part = (requests * 10)[: int(3 * rate * seconds)]
        answers = asyncio.run(open_loop(server.url, part, 3 * rate, lambda: memory.append(server.resident_bytes())))
        name = "overload"
        results.count_wrong(name, answers)
        fine = [answer.seconds for answer in answers if answer.status == 200]
        results.add(name, "p99 of answers with 200", float(np.quantile(fine, 0.99)), "s")
        refused = [answer.seconds for answer in answers if answer.status == 503]
        if refused:
            results.add(name, "p50 of answers with 503", float(np.quantile(refused, 0.5)), "s")
        half = len(memory) // 2
        for what, value in (
            ("before", before),
            ("first half", max(memory[:half])),
            ("second half", max(memory[half:])),
        ):
            results.add(name, f"memory, {what}", value / 2**20, "MiB")
        after = asyncio.run(closed_loop(server.url, requests[:50], 1))
        results.count_wrong("after overload", after)
        results.add("after overload", "first answer", after[0].seconds, "s")


def sigterm(results: Results, requests: list[Request]) -> None:
    with serving("--port", "0") as server:

        async def run() -> list[Answer]:
            running = asyncio.create_task(closed_loop(server.url, requests, CLIENTS))
            await asyncio.sleep(3)
            server.process.send_signal(signal.SIGTERM)
            return await running

        answers = asyncio.run(run())
        code = server.process.wait(120)
        taken, answered = map(
            int, re.search(r"(\d+) requests were taken and (\d+) answered", server.log.read_text()).groups()
        )
    results.count_wrong("SIGTERM", answers)
    results.add("SIGTERM", "requests taken", taken)
    results.add("SIGTERM", "requests answered", answered)
    results.add("SIGTERM", "answers at the clients", sum(isinstance(answer.status, int) for answer in answers))
    results.add("SIGTERM", "exit code", code)


def kill_a_replica(results: Results, requests: list[Request]) -> None:
    import ray
    from ray.util.state import list_actors

    with serving("--ray", "--replicas", "2", "--gpus-per-replica", "0", "--port", "8765") as server:
        ray.init(address="auto", log_to_driver=False)
        replicas = [a for a in list_actors(filters=[("state", "=", "ALIVE")]) if "ServeReplica" in a.class_name]

        async def run() -> list[Answer]:
            running = asyncio.create_task(closed_loop(server.url, requests, 16, send_again))
            await asyncio.sleep(3)
            os.kill(replicas[0].pid, signal.SIGKILL)
            return await running

        answers = asyncio.run(run())
        ray.shutdown()
    results.add("SIGKILL of one of two replicas", "requests", len(requests))
    results.count_wrong("SIGKILL of one of two replicas", answers)
    results.add("SIGKILL of one of two replicas", "requests sent more than once", sum(a.tries > 1 for a in answers))
    results.add("SIGKILL of one of two replicas", "longest", max(a.seconds for a in answers), "s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--prompts", type=int, default=400, help="of which samples are drawn")
    parser.add_argument("--blocks", type=int, default=5, help="in which requests and offline scoring take turns")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each rate")
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second that fill a server, without `load`")
    parser.add_argument("--serve", nargs="*", default=[], help="further arguments of jrm serve, without their dashes")
    parser.add_argument("--parts", nargs="+", default=["load", "latency", "overload", "sigterm", "ray"])
    parser.add_argument("--output", type=Path, help="CSV (default: in benchmarks/results, named after the device)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    output = options.output or RESULTS / f"serving-{slug(device_description())}.csv"
    scorer = RewardScorer.from_pretrained("jrm-tiny", device="cpu")
    groups = make_groups(options.prompts)
    samples = [sample for group in groups for sample in group]
    scores = {s.key(): score for s, score in zip(samples, scorer.score(samples, progress=True), strict=True)}
    requests = make_requests(groups, scores, options.requests, seed=0)
    results, rate = Results(), options.rate
    with serving("--port", "0", *(f"--{argument}" for argument in options.serve)) as server:
        asyncio.run(closed_loop(server.url, requests[:100], CLIENTS))  # warm
        if "load" in options.parts:
            rate = load(results, scorer, server, requests, options.blocks)
        if "latency" in options.parts:
            latency(results, server, requests, rate, options.seconds)
    if "overload" in options.parts:
        overload(results, requests, rate, options.seconds)
    if "sigterm" in options.parts:
        sigterm(results, requests)
    if "ray" in options.parts:
        kill_a_replica(results, requests[: max(200, len(requests) // 5)])
    write_csv(output, results.rows)


if __name__ == "__main__":
    main()
