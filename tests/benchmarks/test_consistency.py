"""What the studies of dimensions and layouts read out of their runs; the runs themselves take an hour."""

import pytest

from benchmarks import consistency, layout_study
from jrm_plugin.records.preferences import PreferencePair
from jrm_plugin.records.samples import DIMENSIONS, KNOWN_DIMENSIONS
from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS


def test_a_pair_is_labelled_overall_by_the_dimensions_of_the_arm():
    (pair,) = SHAPE_EDITS.over_edits(1, dimensions=KNOWN_DIMENSIONS)
    one = {"instruction_following": 3.0, "visual_quality": 4.0, "consistency": 1.0}
    other = {"instruction_following": 3.0, "visual_quality": 3.0, "consistency": 4.0}
    pair = PreferencePair(pair.chosen, pair.rejected, {"overall": -1}, one, other)
    labels = {arm: consistency.labelled(pair, dimensions).labels for arm, dimensions in consistency.ARMS.items()}
    assert labels["without"] == {"instruction_following": 0, "visual_quality": 1, "overall": 1}
    assert labels["with"] == {"instruction_following": 0, "visual_quality": 1, "consistency": -1, "overall": -1}
    assert consistency.ARMS["without"] == DIMENSIONS


def run(*accuracies: float, cost: float) -> list[dict]:
    steps = (80, 160)
    return [
        {"step": step, "train_gigaflops": step * cost, "overall": accuracy}
        for step, accuracy in zip(steps, accuracies, strict=True)
    ]


def test_layouts_are_read_at_equal_steps_and_at_equal_cost_of_the_same_run():
    cheap, dear = run(0.6, 0.7, cost=1.0), run(0.6, 0.8, cost=1.6)
    assert layout_study.at_equal_steps(dear, "overall") == 0.8
    assert layout_study.at_equal_cost(cheap, "overall", 160.0) == pytest.approx(0.7)
    assert layout_study.at_equal_cost(dear, "overall", 160.0) == pytest.approx(0.65)  # at step 100 of it
