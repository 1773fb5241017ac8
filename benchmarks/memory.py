"""Whether memory stays flat while many samples are scored.

    python -m benchmarks.memory --samples 10000 --budget 2

Scores edits of 48 x 48 pixels with jrm-tiny from files, one of them broken, and prints the process's memory on the way.
"""

import argparse
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measuring import device_description
from jrm_plugin.errors import JRMError
from jrm_plugin.records.samples import Sample
from jrm_plugin.scoring.scorer import RewardScorer

GROUP = 24


def write_samples(folder: Path, count: int) -> list[Sample]:
    """Groups of one source; the sample in the middle has a broken image."""
    random = np.random.default_rng(0)
    paths = [folder / f"{k}.png" for k in range(max(count // 4, 2))]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(path)
    (folder / "broken.png").write_text("no image")
    edited = [paths[7 * k % len(paths)] for k in range(count)]
    edited[count // 2] = folder / "broken.png"
    colours = ("red", "green", "blue")
    return [
        Sample.edit(paths[k // GROUP % len(paths)], f"make the circle {colours[k // GROUP % 3]}", edited[k])
        for k in range(count)
    ]


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--budget", type=float, default=2.0, help="memory budget in GiB")
    options = parser.parse_args()
    scorer = RewardScorer.from_pretrained("jrm-tiny", device="cpu", memory_budget=int(options.budget * 2**30))
    seen, done = [], threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            seen.append(resident_mib())

    with tempfile.TemporaryDirectory() as folder:
        samples = write_samples(Path(folder), options.samples)
        scorer.score(samples[:1])
        threading.Thread(target=watch, daemon=True).start()
        start = time.monotonic()
        results = scorer.score(samples, on_error="return", progress=True)
        seconds = time.monotonic() - start
        done.set()
    broken = [k for k, result in enumerate(results) if isinstance(result, JRMError)]
    quarters = [round(seen[k * (len(seen) - 1) // 4]) for k in range(5)]
    print(f"{len(samples)} samples in {seconds:.0f} s on {device_description()}; not scored: {broken}")
    print(f"resident MiB at the start, each quarter and the end: {quarters}; most: {max(seen):.0f}")
    print(f"images found in the cache: {scorer.engine.features.hit_rate:.0%}")


if __name__ == "__main__":
    main()
