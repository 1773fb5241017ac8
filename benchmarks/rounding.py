"""What bfloat16 costs in exactness: the engine beside one sequence at a time, both beside float32.

    python -m benchmarks.rounding

Scores held-out ShapeEdits with jrm-tiny, every candidate of a group together, and prints the differences in mu.
"""

import numpy as np
import torch

from benchmarks.measuring import device_description
from jrm_plugin.records.samples import DIMENSIONS, Sample
from jrm_plugin.scoring.scorer import RewardScorer
from jrm_plugin.synthetic.shape_edits import draw_edit


def scores_of(scorer: RewardScorer, samples: list[Sample]) -> np.ndarray:
    return np.array([[score.mu[d] for d in DIMENSIONS] for score in scorer.score(samples)])


def main() -> None:
    random = np.random.default_rng(0)
    edits = [draw_edit(random, heldout=True) for _ in range(50)]
    samples = [Sample.edit(e.source, e.instruction, c.image) for e in edits for c in e.candidates]
    exact, rounded = (RewardScorer.from_pretrained("jrm-tiny", dtype=t) for t in (torch.float32, torch.bfloat16))
    one_by_one = [RewardScorer(scorer.model, scorer.processor, engine="plain") for scorer in (exact, rounded)]
    for scorer in one_by_one:
        scorer.engine.batch = 1
    truth, plain = (scores_of(scorer, samples) for scorer in one_by_one)
    engine = scores_of(rounded, samples)
    print(
        f"{len(samples)} samples, {device_description(exact.model.device)}; float32 scores spread by {truth.std():.2f}"
    )
    for name, difference in {
        "bfloat16 one by one - float32 one by one": plain - truth,
        "bfloat16 engine     - float32 one by one": engine - truth,
        "bfloat16 engine     - bfloat16 one by one": engine - plain,
        "float32 engine      - float32 one by one": scores_of(exact, samples) - truth,
    }.items():
        print(f"{name}: largest {np.abs(difference).max():.2g}, mean {np.abs(difference).mean():.2g}")


if __name__ == "__main__":
    main()
