"""Bulk scoring of broken lines.

    python tests/fuzz/jsonl_lines.py [--count 1000] [--seed 0]

Every run must end with rows, or in one sentence. The scorer is a stub that opens the images, so that a run takes
milliseconds; reading, going on, JSONL and Parquet are the command's own.
"""

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

from mutations import ends_in_a_sentence, odd_bytes, odd_record
from PIL import Image

from jrm_plugin.errors import JRMError
from jrm_plugin.records.images import load_image
from jrm_plugin.records.scores import RewardScore


class StubScorer:
    def score(self, samples, *, on_error="raise", progress=False):
        return [self._score(sample) for sample in samples]

    def _score(self, sample):
        try:
            for image in (*sample.prompt_images, *sample.response_images):
                load_image(image)
        except JRMError as error:
            return error
        return RewardScore({"a": 0.5}, {"a": 1.0})


def run(count: int, seed: int) -> list[str]:
    """Scores `count` broken files; gives what was wrong with the end of any, with the file's content."""
    rng, problems = random.Random(seed), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for letter in "abc":
            Image.new("RGB", (8, 8), "red").save(folder / f"{letter}.png")
        good = [
            {"source": "a.png", "instruction": "make it blue", "edited": "b.png", "id": 3, "tags": ["x"]},
            {"source": ["a.png", "b.png"], "instruction": "é", "edited": "c.png", "meta": {"a": [1, {}]}},
            {"source": None, "instruction": "a cat", "edited": "c.png", "weight": 0.5},
        ]
        for number in range(count):
            records = [odd_record(rng, record) if rng.random() < 0.5 else record for record in good]
            content = "".join(json.dumps(record) + "\n" for record in records).encode()
            if rng.random() < 0.5:
                content = odd_bytes(rng, content)
            (folder / "in.jsonl").write_bytes(content)
            output = folder / rng.choice(("out.jsonl", "out.parquet", "out.csv"))
            with patch("jrm_plugin.cli.bulk.make_scorer", lambda options: StubScorer()):
                problem = ends_in_a_sentence(
                    ["score", "--model", "jrm-tiny", "--input", folder / "in.jsonl", "--output", output]
                )
            if problem:
                problems.append(f"{number}: {problem} for {content!r}")
            if rng.random() < 0.8:  # else the next run finds the output of this one
                for path in folder.glob("out.*"):
                    path.unlink()
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    problems = run(options.count, options.seed)
    print("\n".join(problems) or f"{options.count} files: every run ends with rows or in one sentence")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
