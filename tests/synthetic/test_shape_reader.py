"""The judge of ShapeEdits knows what its pictures show and what they are worth."""

import numpy as np
import pytest

from jrm_plugin.errors import JRMError
from jrm_plugin.synthetic.preferences import FAILURE_SCORES, QUALITY_SCORES
from jrm_plugin.synthetic.shape_edits import KINDS, draw_edit
from jrm_plugin.synthetic.shape_reader import draw_scene, judge_edit, oracle_score, read_instruction, read_scene


@pytest.fixture(scope="module")
def drawn():
    """Edits of both splits and one of their candidates each."""
    rng = np.random.default_rng(5)
    edits = [draw_edit(rng, heldout=bool(k % 2)) for k in range(120)]
    return [(edit, edit.candidates[k // 2 % 2]) for k, edit in enumerate(edits)]


def test_the_judge_reads_failure_and_flaw_off_the_picture(drawn):
    for edit, candidate in drawn:
        outcome = judge_edit(edit.source, edit.instruction, candidate.image)
        assert outcome == (candidate.failure, candidate.quality), (edit.instruction, edit.scene)
        assert oracle_score(edit.source, edit.instruction, candidate.image) == sum(candidate.scores().values())
    assert {edit.kind for edit, _ in drawn} == set(KINDS)
    assert {candidate.failure for _, candidate in drawn} == set(FAILURE_SCORES)
    assert {candidate.quality for _, candidate in drawn} == set(QUALITY_SCORES)


def test_a_scene_that_is_read_draws_the_picture_again(drawn):
    for edit, _ in drawn[:30]:
        scene = read_scene(edit.source)
        assert np.array_equal(draw_scene(scene), edit.source)
        assert read_instruction(edit.instruction, scene).instruction == edit.instruction


def test_what_is_not_of_shape_edits_is_refused(drawn):
    edit, candidate = drawn[0]
    with pytest.raises(JRMError, match="48x48 pixels, and this one 20x30"):
        judge_edit(edit.source, edit.instruction, np.zeros((30, 20, 3), np.uint8))
    for instruction in ("paint it black", "remove the pink dragon"):
        with pytest.raises(JRMError, match=f"'{instruction}' is no instruction of ShapeEdits"):
            judge_edit(edit.source, instruction, candidate.image)
