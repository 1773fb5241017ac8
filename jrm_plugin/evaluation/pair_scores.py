"""Scores of many pairs, kept in a file as they come: whatever stops the run, the next one goes on from them."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm.auto import tqdm

from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation.pairs import samples_of
from jrm_plugin.records.preferences import PreferencePair
from jrm_plugin.records.samples import OVERALL
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.runs import append_records, read_records
from jrm_plugin.scoring.protocol import Scorer

PAIRS_AT_ONCE = 64  # scored and then written together: what a stop can lose

PairScores = list[tuple[RewardScore, RewardScore]]


def score_pairs(pairs: Sequence[PreferencePair], file: Path, load: Callable[[], Scorer]) -> PairScores:
    """The scores of the chosen and of the rejected sample of every pair, in their order.

    Args:
        pairs: the same in every run that goes on from `file`, which the caller checks.
        file: JSON Lines, a line for each pair; those that are there are not scored again.
        load: gives the scorer, and is called only if a pair is left to score.

    Raises:
        JRMError: a pair is labelled in a dimension that is not scored, or cannot be scored; or the file is damaged.
    """
    scores = read_scores(file)
    if len(scores) >= len(pairs):
        return scores
    scorer = load()
    for number, pair in enumerate(pairs):
        if unknown := sorted(pair.labels.keys() - {*scorer.dimensions, OVERALL}):
            raise JRMError(
                f"pair {number} is labelled in {unknown[0]!r}, and the model scores {', '.join(scorer.dimensions)}."
            )
    silent = not sys.stderr.isatty()
    with tqdm(total=len(pairs), initial=len(scores), desc="Scoring", unit="pair", disable=silent) as bar:
        while len(scores) < len(pairs):
            batch = [pairs[k] for k in range(len(scores), min(len(scores) + PAIRS_AT_ONCE, len(pairs)))]
            both = scorer.score(samples_of(batch))
            new = list(zip(both[0::2], both[1::2], strict=True))
            append_records(file, [{"chosen": c.to_dict(), "rejected": r.to_dict()} for c, r in new])
            scores += new
            bar.update(len(new))
    return scores


def read_scores(file: Path) -> PairScores:
    """What an earlier run left in the file, if there is one."""
    return read_records(
        file, lambda row: (RewardScore.from_dict(row["chosen"]), RewardScore.from_dict(row["rejected"]))
    )
