"""How far scores move where a trainer's client sends JPEG instead of the pixels that the policy made.

Held-out ShapeEdits, two candidates of each: the score of the pixels, and of source and edited image as JPEG with the
qualities that clients use: 95 (UniRL) and 75, Pillow's default (flow_grpo, verl-omni, Edit-R1). A candidate's shift is
the difference of its mus, in units of the deviation of mu over the set; a pair is turned where the other candidate is
the better one of the two. Intervals of shares are Wilson's, of 95 %.

    python -m benchmarks.jpeg [--pairs 1000] [--csv benchmarks/results/jpeg.csv]
"""

import argparse
import csv
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from jrm_plugin import RewardScorer, Sample
from jrm_plugin.evaluation.metrics import proportion
from jrm_plugin.synthetic.shape_edits import draw_edit

QUALITIES = (95, 75)


def as_jpeg(image: np.ndarray, quality: int | None) -> Image.Image | bytes:
    if quality is None:
        return Image.fromarray(image)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def measure(pairs: int, seed: int = 0) -> list[dict[str, object]]:
    """A row for each quality and dimension."""
    rng = np.random.default_rng(seed)
    edits = [draw_edit(rng, heldout=True) for _ in range(pairs)]
    scorer = RewardScorer.from_pretrained("jrm-tiny", device="cpu")
    scores = {
        quality: scorer.score(
            [
                Sample.edit(as_jpeg(edit.source, quality), edit.instruction, as_jpeg(candidate.image, quality))
                for edit in edits
                for candidate in edit.candidates
            ],
            progress=True,
        )
        for quality in (None, *QUALITIES)
    }
    rows = []
    for quality in QUALITIES:
        for name in scores[None][0].names:
            before, after = (np.array([score.mu[name] for score in scores[which]]) for which in (None, quality))
            shift = np.abs(after - before) / before.std()
            sigma = np.array([score.sigma[name] for score in scores[None]])
            turned = np.sign(after[0::2] - after[1::2]) != np.sign(before[0::2] - before[1::2])
            share = proportion(int(turned.sum()), pairs)
            rows.append(
                {"quality": quality, "dimension": name, "pairs": pairs, "seed": seed}
                | {f"shift_p{p}": round(float(np.percentile(shift, p)), 4) for p in (50, 95)}
                | {"beyond_sigma": round(float((np.abs(after - before) > sigma).mean()), 4)}
                | {
                    f"turned{end}": round(share[key], 4)
                    for end, key in (("", "value"), ("_low", "low"), ("_high", "high"))
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    rows = measure(options.pairs)
    with open(options.csv, "w", newline="") if options.csv else sys.stdout as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
