"""Models side by side: what their representations, their attention and their gradients are like (paper section 4.3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jrm_plugin.evaluation.attention import Attention, read_attention
from jrm_plugin.evaluation.gradients import Gradients, check_enough, read_gradients, with_critiques
from jrm_plugin.evaluation.metrics import check_groups
from jrm_plugin.evaluation.pairs import check_pairs
from jrm_plugin.evaluation.representation import compare_representations, hidden_states_of
from jrm_plugin.records.preferences import PreferencePair

if TYPE_CHECKING:
    from jrm_plugin.scoring.scorer import RewardScorer


@dataclass(frozen=True)
class Plan:
    """How much is read.

    Attributes:
        attention: of how many pairs; 0 reads none.
        shown: of how many samples the attention is shown as pictures.
        batches, batch_size: of how many pairs with critiques the gradients are taken; 0 batches take none.
    """

    attention: int = 200
    shown: int = 6
    batches: int = 16
    batch_size: int = 8


def check_plan(pairs: Sequence[PreferencePair], plan: Plan) -> None:
    """A `JRMError` where the pairs are too few for the plan, before a model is loaded."""
    check_groups(len(pairs))
    if criticised := with_critiques(pairs):
        check_enough(criticised, plan.batches, plan.batch_size)


@dataclass(frozen=True)
class Reading:
    """What was read of one model; `notes` say what could not be."""

    hidden_NH: np.ndarray
    attention: Attention | None
    gradients: Gradients | None
    notes: tuple[str, ...]


def read_model(
    scorer: "RewardScorer", pairs: Sequence[PreferencePair], plan: Plan, *, progress: bool = False
) -> Reading:
    """All that is read of one model, which may then be let go of.

    Raises:
        JRMError: a sample cannot be read, or more is asked for than the pairs have.
    """
    check_pairs(pairs)
    hidden_NH = hidden_states_of(scorer, pairs, progress=progress)
    notes = []
    attention = gradients = None
    if plan.attention:
        attention = read_attention(scorer, pairs[: plan.attention], shown=plan.shown, progress=progress)
    criticised = with_critiques(pairs)
    if plan.batches and not scorer.model.config.writes_critiques:
        notes.append("It writes no critiques, so it has no second loss whose gradient could be compared.")
    elif plan.batches and not criticised:
        notes.append("The data have no critiques, so there is no second loss whose gradient could be compared.")
    elif plan.batches:
        gradients = read_gradients(scorer, criticised, batches=plan.batches, size=plan.batch_size, progress=progress)
    return Reading(hidden_NH, attention, gradients, tuple(notes))


def summarize_readings(
    readings: Mapping[str, Reading], pairs: int, *, bootstrap: int = 200, seed: int = 0
) -> dict[str, Any]:
    """Every number of the models, and the first model's less each other's on the same pairs, with intervals.

    Args:
        readings: by the name of the model.
        pairs: how many were read.
        bootstrap, seed: see `compare_representations`.

    Returns:
        `pairs`, `models` in order, `representation` as `compare_representations` gives it, and `attention` and
        `gradients`: `models` and `differences` by name, of those models that have them; `notes` by name.
    """
    first = next(iter(readings))
    hidden = {name: reading.hidden_NH for name, reading in readings.items()}
    results: dict[str, Any] = {
        "pairs": pairs,
        "models": list(readings),
        "representation": compare_representations(hidden, pairs, bootstrap=bootstrap, seed=seed),
        "notes": {name: list(reading.notes) for name, reading in readings.items() if reading.notes},
    }
    for kind in ("attention", "gradients"):
        read = {name: found for name, reading in readings.items() if (found := getattr(reading, kind)) is not None}
        results[kind] = {
            "models": {name: found.summary() for name, found in read.items()},
            "differences": {
                name: read[first].less(found) for name, found in read.items() if first in read and name != first
            },
        }
    return results
