"""Which labels of a preference set a model contradicts, and how surely.

The probability of a label is P(the sample that people prefer is better) under the scores' Gaussians (paper eq. 4); the
ranking loss is its logarithm. Scores should be those of a model that has not learned from the pair: `folds_of` divides
a set so that one can be trained for each part on the others.

Shape suffixes: N pairs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from jrm_plugin.data.corrections import Action
from jrm_plugin.data.samples import SampleDigests
from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation.metrics import pairwise_accuracy, preference_calibration
from jrm_plugin.evaluation.pair_scores import PairScores
from jrm_plugin.evaluation.pairs import win_probabilities
from jrm_plugin.extras import require
from jrm_plugin.records.preferences import PreferencePair
from jrm_plugin.records.samples import OVERALL
from jrm_plugin.records.scores import RewardScore

Verdict: TypeAlias = Literal["contradicted", "doubtful", "agrees"]
TINY = 1e-300  # in place of a probability of 0, which has no logarithm
TOGETHER = ("source", "instruction")  # what pairs of different folds do not share


# --- folds ------------------------------------------------------------------------------------------------------------


def folds_of(pairs: Sequence[PreferencePair], folds: int, *, together: Sequence[str] = TOGETHER, seed: int = 0) -> list:
    """Divides pairs so that those that share something stay together, and folds are about equally large.

    Args:
        pairs: the set.
        folds: how many, at least 2.
        together: `source`: pairs with a source image in common, by the content of its file; `instruction`: pairs with
            the same text. Where neither is named, each prompt stays together.
        seed: of the order in which equally large groups are handed out.

    Returns:
        For each fold the positions of its pairs, in order.

    Raises:
        JRMError: so many pairs hang together that a fold would have more than half of them.
    """
    require("scipy", "cross-fitted scores", install="jrm-plugin[eval]")
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    digests, shared, links = SampleDigests(), dict[Any, int](), []
    for row, pair in enumerate(pairs):
        sample = pair.chosen
        images = tuple(map(digests.of_image, sample.prompt_images))
        keys: list[Any] = [(images, sample.prompt_text)]
        keys += [*images] if "source" in together else []
        keys += [sample.prompt_text] if "instruction" in together else []
        links += [(row, shared.setdefault(key, len(shared))) for key in keys]
    row_L, key_L = np.array(links).T
    size = len(pairs) + len(shared)
    graph = coo_array((np.ones(len(links)), (row_L, len(pairs) + key_L)), shape=(size, size))
    group_N = connected_components(graph, directed=False)[1][: len(pairs)]
    groups, count_G = np.unique(group_N, return_counts=True)
    if 2 * count_G.max() > len(pairs) or len(groups) < folds:
        what = " and ".join(together) or "prompt"
        raise JRMError(
            f"{count_G.max()} of {len(pairs)} pairs hang together by their {what}, so that {folds} folds of about one "
            "size are not to be had; say --together source, or --together prompt, or fewer --folds."
        )
    order = np.random.default_rng(seed).permutation(len(groups))
    fold_of_group, size_F = {}, np.zeros(folds, dtype=int)
    for k in order[np.argsort(-count_G[order], kind="stable")]:  # the largest first, each to the smallest fold
        fold_of_group[groups[k]] = int(size_F.argmin())
        size_F[size_F.argmin()] += count_G[k]
    fold_N = np.array([fold_of_group[group] for group in group_N])
    return [np.flatnonzero(fold_N == fold).tolist() for fold in range(folds)]


# --- what is said of each pair ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AuditedPair:
    """What a model said of a pair and its labels.

    Attributes:
        position: of the pair in the data, from 0.
        pair: the pair.
        name: as `PairNames` gives it.
        chosen, rejected: the scores.
        probabilities: of each label: P(the better sample is better) for a preference; for a tie 2 min(P, 1 - P), which
            is 1 where the model finds both equal.
        opposites: of each label's opposite: P(the other is better); for a tie max(P, 1 - P).
        seen: whether the model has learned from the pair.
    """

    position: int
    pair: PreferencePair
    name: str
    chosen: RewardScore
    rejected: RewardScore
    probabilities: Mapping[str, float]
    opposites: Mapping[str, float]
    seen: bool = False

    @property
    def probability(self) -> float:
        """Of the pair's preferences together, or of its ties if it has no preference: the geometric mean.

        That is exp(-L) of the ranking loss L of these labels. A tie beside preferences says nothing here: it is one
        whichever sample is better.
        """
        return self._mean(self.probabilities)

    @property
    def opposite(self) -> float:
        """Of the opposites of these labels, likewise."""
        return self._mean(self.opposites)

    def _mean(self, values: Mapping[str, float]) -> float:
        names = [name for name, label in self.pair.labels.items() if label] or [*self.pair.labels]
        return math.exp(math.fsum(math.log(max(values[name], TINY)) for name in names) / len(names))

    @property
    def is_tie(self) -> bool:
        """Whether all its labels are ties."""
        return not any(self.pair.labels.values())

    @property
    def dimension(self) -> str:
        """Overall if people labelled that, else the dimension whose label is contradicted most surely."""
        return OVERALL if OVERALL in self.pair.labels else min(self.probabilities, key=self.probabilities.__getitem__)


@dataclass(frozen=True)
class Audit:
    """The pairs of a set, those first whose labels the model contradicts most surely, and what follows from it.

    Attributes:
        pairs: by rising probability.
        threshold: a pair is contradicted if its labels' opposite has this probability or more.
    """

    pairs: list[AuditedPair]
    threshold: float

    def verdict(self, pair: AuditedPair) -> Verdict:
        """`contradicted`; `doubtful`, where the model leans to the opposite less surely; or `agrees`."""
        if pair.probability >= pair.opposite:
            return "agrees"
        return "contradicted" if pair.opposite >= self.threshold else "doubtful"

    def proposed(self, pair: AuditedPair, action: Action = "drop") -> Action:
        """What is proposed: `action` for a contradicted preference, else `keep`; a tie is kept for people to judge."""
        return action if self.verdict(pair) == "contradicted" and not pair.is_tie else "keep"

    def row(self, pair: AuditedPair, action: Action = "drop") -> dict[str, Any]:
        """What is written about a pair, as plain JSON."""
        dimension = pair.dimension
        return {
            "pair": pair.name,
            "action": self.proposed(pair, action),
            "verdict": self.verdict(pair),
            "probability": pair.probability,
            "probabilities": dict(pair.probabilities),
            "labels": dict(pair.pair.labels),
            "dimension": dimension,
            "margin": pair.chosen.mu[dimension] - pair.rejected.mu[dimension],
            "sigma": math.hypot(pair.chosen.sigma[dimension], pair.rejected.sigma[dimension]),
            "seen": pair.seen,
            "where": where(pair),
            "instruction": pair.pair.chosen.prompt_text,
        }

    def summary(self) -> dict[str, Any]:
        """Counts by verdict, how often the model orders pairs as people do, and how well P fits the labels."""
        verdicts = [self.verdict(pair) for pair in self.pairs]
        names = dict.fromkeys(name for pair in self.pairs for name in pair.pair.labels)
        return {
            "pairs": len(self.pairs),
            "seen": sum(pair.seen for pair in self.pairs),
            "verdicts": {name: verdicts.count(name) for name in ("contradicted", "doubtful", "agrees")},
            "threshold": self.threshold,
            "agreement": {name: self._agreement(name) for name in names},
            "calibration": {name: self._calibration(name) for name in names},
        }

    def _agreement(self, name: str) -> dict[str, Any]:
        labelled = [pair for pair in self.pairs if name in pair.pair.labels]
        margin_N = [pair.chosen.mu[name] - pair.rejected.mu[name] for pair in labelled]
        return pairwise_accuracy(margin_N, [pair.pair.labels[name] for pair in labelled])

    def _calibration(self, name: str) -> dict[str, Any]:
        decided = [pair for pair in self.pairs if pair.pair.labels.get(name)]
        measured = preference_calibration([pair.probabilities[name] for pair in decided])
        return {key: measured[key] for key in ("expected_calibration_error", "log_loss", "n")}


def audit(
    pairs: Sequence[PreferencePair], scores: PairScores, names: Sequence[str], seen: Sequence[bool] | None = None
) -> Audit:
    """Ranks pairs by how surely their scores contradict their labels.

    The threshold is that of confident learning (Northcutt et al. 2021, eq. 2), for a preference and its opposite: the
    mean probability that the model gives to what people said. So it is as high as the model is sure on these data, and
    nothing is contradicted where the model knows nothing.

    Args:
        pairs: the set.
        scores: of the chosen and the rejected sample of each.
        names: of each.
        seen: of each, whether the model has learned from it.

    Raises:
        JRMError: there is no pair, or all pairs are ties.
    """
    if not pairs:
        raise JRMError("there is no pair to audit.")
    chosen, rejected = map(list, zip(*scores, strict=True))
    wins = {
        name: list(
            zip(win_probabilities(chosen, rejected, name), win_probabilities(rejected, chosen, name), strict=True)
        )
        for name in dict.fromkeys(name for pair in pairs for name in pair.labels)
    }
    audited = []
    for row, pair in enumerate(pairs):
        both = {name: _of_label(label, *wins[name][row]) for name, label in pair.labels.items()}
        probabilities, opposites = ({name: values[k] for name, values in both.items()} for k in (0, 1))
        has_seen = bool(seen[row]) if seen is not None else False
        audited.append(
            AuditedPair(row, pair, names[row], chosen[row], rejected[row], probabilities, opposites, has_seen)
        )
    decided = [pair.probability for pair in audited if not pair.is_tie]
    if not decided:
        raise JRMError("all pairs are ties, and how sure the model is of preferences cannot be told; give others too.")
    return Audit(sorted(audited, key=lambda pair: pair.probability), float(np.mean(decided)))


def _of_label(label: int, chosen_wins: float, rejected_wins: float) -> tuple[float, float]:
    """The probability of a label, and that of its opposite."""
    if label == 0:
        return 2 * min(chosen_wins, rejected_wins), max(chosen_wins, rejected_wins)
    return (chosen_wins, rejected_wins) if label > 0 else (rejected_wins, chosen_wins)


def where(pair: AuditedPair) -> str:
    """Where the pair stands, for people."""
    file, row = pair.pair.info.get("file"), pair.pair.info.get("row")
    return f"pair {pair.position + 1}" if file is None else f"{file}, row {row}"
