"""The judge of ShapeEdits knows what its pictures show and what they are worth."""

import numpy as np
import pytest

from jrm_plugin.errors import JRMError
from jrm_plugin.synthetic.preferences import FAILURE_SCORES, FAILURE_WEIGHTS, PLACES, QUALITY_SCORES
from jrm_plugin.synthetic.shape_edits import KINDS, draw_edit
from jrm_plugin.synthetic.shape_reader import (
    draw_scene,
    judge_edit,
    judge_generated,
    oracle_score,
    read_instruction,
    read_scene,
)


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
    assert {candidate.failure for _, candidate in drawn} == set(FAILURE_WEIGHTS)
    assert {candidate.quality for _, candidate in drawn} == set(QUALITY_SCORES)


def test_a_scene_that_is_read_draws_the_picture_again(drawn):
    for edit, _ in drawn[:30]:
        scene = read_scene(edit.source)
        assert np.array_equal(draw_scene(scene), edit.source)
        assert read_instruction(edit.instruction, scene).instruction == edit.instruction


def test_copies_of_the_object_are_a_failure_that_is_drawn_where_it_is_named():
    rng = np.random.default_rng(1)
    assert "several_copies" not in FAILURE_WEIGHTS
    kinds = set()
    for _ in range(24):
        edit = draw_edit(rng, heldout=False, outcomes=[("several_copies", "clean"), ("several_copies", "mild_noise")])
        kinds.add(edit.kind)
        for candidate in edit.candidates:
            outcome = judge_edit(edit.source, edit.instruction, candidate.image)
            assert outcome == (candidate.failure, candidate.quality) == ("several_copies", candidate.quality)
            finding, rest = candidate.critiques["instruction_following"].reasoning.split(" <|global|> ")
            assert finding.endswith("as asked")
            name, places = rest.removeprefix("a ").removesuffix(" too").split(" is at the ")
            before, after = read_scene(edit.source).items, read_scene(candidate.image).items
            shown = {PLACES.index(place) for place in places.split(" and the ")}
            new = {place for place, item in after.items() if item.name == name and before.get(place) != item}
            assert len(shown) > 1 and shown <= new
            assert candidate.scores()["instruction_following"] == FAILURE_SCORES["several_copies"] == 2
    assert kinds == set(KINDS)


def test_the_judge_of_generated_pictures_has_a_tolerance():
    """The scene decides the failure; visual quality falls with the distance from its flawless picture."""
    rng = np.random.default_rng(2)
    for _ in range(5):
        edit = draw_edit(rng, heldout=True, outcomes=[("none", "clean"), ("wrong_object", "clean")])
        asked, wrong = (candidate.image for candidate in edit.candidates)
        assert judge_generated(edit.source, edit.instruction, asked) == ("none", 4, 4, 0.0)
        assert judge_generated(edit.source, edit.instruction, wrong)[:3] == ("wrong_object", 2, 4)
        for levels, quality in ((6, 4), (14, 3), (27, 2)):
            rough = np.where(asked > 127, asked - levels, asked + levels).astype(np.uint8)
            judged = judge_generated(edit.source, edit.instruction, rough)
            assert judged.distance == pytest.approx(levels) and judged.visual_quality == quality
        noise = rng.choice((-50, 50), asked.shape)
        judged = judge_generated(edit.source, edit.instruction, np.clip(asked + noise, 0, 255).astype(np.uint8))
        assert judged.distance > 35 and judged.visual_quality == 1
        one_place = asked.copy()
        one_place[:16, :16] = np.where(asked[:16, :16] > 127, asked[:16, :16] - 24, asked[:16, :16] + 24)
        # the root mean square over all nine places is 8; the worst place's half counts
        judged = judge_generated(edit.source, edit.instruction, one_place)
        assert judged.distance == pytest.approx(12) and judged.visual_quality == 3


def test_what_is_not_of_shape_edits_is_refused(drawn):
    edit, candidate = drawn[0]
    with pytest.raises(JRMError, match="48x48 pixels, and this one 20x30"):
        judge_edit(edit.source, edit.instruction, np.zeros((30, 20, 3), np.uint8))
    for instruction in ("paint it black", "remove the pink dragon"):
        with pytest.raises(JRMError, match=f"'{instruction}' is no instruction of ShapeEdits"):
            judge_edit(edit.source, instruction, candidate.image)
