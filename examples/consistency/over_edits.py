"""How often a model puts an edit as asked before one that did more than was asked, by each of its dimensions.

    python examples/consistency/over_edits.py --models without/model with/model

On held-out pairs of ShapeEdits with the same flaw or none in both pictures. Intervals are 95 % (Wilson's).
"""

import argparse

from rich.console import Console
from rich.table import Table

from jrm_plugin import RewardScorer
from jrm_plugin.evaluation.metrics import pairwise_accuracy
from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["jrm-tiny"], help="JRM folders (default: jrm-tiny)")
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    pairs = SHAPE_EDITS.over_edits(options.pairs, seed=options.seed)
    table = Table("model", "by", "right", "95 % interval")
    for model in options.models:
        scorer = RewardScorer.from_pretrained(model)
        chosen, rejected = (scorer.score([getattr(pair, side) for pair in pairs]) for side in ("chosen", "rejected"))
        for name in chosen[0].names:
            margins = [one.mu[name] - other.mu[name] for one, other in zip(chosen, rejected, strict=True)]
            right = pairwise_accuracy(margins, [1] * len(margins))
            table.add_row(model, name, f"{right['value']:.3f}", f"{right['low']:.3f} to {right['high']:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
