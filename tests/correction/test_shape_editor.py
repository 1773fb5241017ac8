"""The editor of ShapeEdits takes a critique at its word."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jrm_plugin.correction.editing import EditRequest
from jrm_plugin.correction.shape_editor import draw_samples, edit_shapes
from jrm_plugin.errors import JRMError
from jrm_plugin.records.critiques import Critique, UnparsedCritique
from jrm_plugin.records.samples import DIMENSIONS
from jrm_plugin.synthetic.preferences import FAILURE_WEIGHTS, QUALITY_SCORES
from jrm_plugin.synthetic.shape_edits import draw_edit
from jrm_plugin.synthetic.shape_reader import judge_edit, oracle_score, read_scene


@pytest.fixture(scope="module")
def drawn():
    """Edits of both splits and one of their candidates each."""
    rng = np.random.default_rng(5)
    edits = [draw_edit(rng, heldout=bool(k % 2)) for k in range(120)]
    return [(edit, edit.candidates[k // 2 % 2]) for k, edit in enumerate(edits)]


def request(edit, image, critiques, seed=0) -> EditRequest:
    """`critiques`: as the model writes them, or a text."""
    if isinstance(critiques, str):
        critiques = {"instruction_following": UnparsedCritique(critiques, "")}
    return EditRequest((Image.fromarray(edit.source),), edit.instruction, Image.fromarray(image), critiques, seed)


def test_a_true_critique_mends_everything_in_one_round(drawn):
    for edit, candidate in drawn:
        made = edit_shapes(request(edit, candidate.image, candidate.critiques))
        assert judge_edit(edit.source, edit.instruction, made) == ("none", "clean"), edit.instruction


def test_only_what_the_critique_names_is_mended(drawn):
    for edit, candidate in drawn[:60]:
        following, quality = ({name: candidate.critiques[name]} for name in DIMENSIONS)
        made = edit_shapes(request(edit, candidate.image, following))
        assert judge_edit(edit.source, edit.instruction, made) == ("none", candidate.quality)
        made = edit_shapes(request(edit, candidate.image, quality))
        assert judge_edit(edit.source, edit.instruction, made) == (candidate.failure, "clean")


@pytest.mark.parametrize(
    "text", ["all is well", "the image is clean", "the pink dragon is removed", "the rest is unchanged"]
)
def test_a_critique_that_names_no_fault_changes_no_pixel(drawn, text):
    for edit, candidate in drawn[:20]:
        assert (np.asarray(edit_shapes(request(edit, candidate.image, text))) == candidate.image).all()


def test_a_false_critique_spoils_a_good_edit(drawn):
    """Each sentence is about the edit's own objects, is false, and is believed."""
    spoiled = Counter()
    for edit, candidate in drawn:
        if (candidate.failure, candidate.quality) != ("none", "clean") or edit.kind == "add":
            continue
        target = " ".join(edit.instruction.split()[2:4])
        other = next(item for item in read_scene(edit.source).items.values() if item.name != target)
        false = {
            "recolour": f"the {target} is removed",  # it is drawn as it was before the edit
            "remove": f"the {target} is now red",
            "move": f"the {other.name} is now at the {edit.instruction.split()[-1]}",  # what was moved there is cleared
        }[edit.kind]
        made = edit_shapes(request(edit, candidate.image, false))
        failure, quality = judge_edit(edit.source, edit.instruction, made)
        assert failure != "none" and quality == "clean", (edit.instruction, false)
        spoiled[edit.kind] += 1
    assert min(spoiled[kind] for kind in ("recolour", "remove", "move")) > 2


def test_a_critique_of_another_fault_leaves_the_fault(drawn):
    count = 0
    for edit, candidate in drawn:
        if candidate.failure == "ignored" and candidate.quality == "seam":
            made = edit_shapes(request(edit, candidate.image, "the background changed\nthe image is blurred"))
            assert judge_edit(edit.source, edit.instruction, made) == ("ignored", "seam")
            count += 1
    assert count


def test_without_a_critique_the_edit_is_drawn_anew_by_the_usual_weights(drawn):
    edit, candidate = next((e, c) for e, c in drawn if e.kind == "recolour")
    found = Counter()
    for seed in range(150):
        made = edit_shapes(request(edit, candidate.image, {}, seed))
        found.update(judge_edit(edit.source, edit.instruction, made))
    # Standard errors are 0.040 and less.
    assert found["none"] / 150 == pytest.approx(0.36, abs=0.12)
    assert found["clean"] / 150 == pytest.approx(0.60, abs=0.12)
    assert all(found[name] > 2 for name in (*FAILURE_WEIGHTS, *QUALITY_SCORES))
    again = edit_shapes(request(edit, edit.source, {}, 149))  # whatever the image to be mended shows
    assert (np.asarray(again) == np.asarray(made)).all()


SAID = "the a is now at still there removed instead added not moved only half of but copy background changed red blue "
SAID += "green circle square triangle top left middle bottom-right [x]"
WORDS = st.sampled_from([*SAID.split(), "\n"])


@settings(max_examples=40)
@given(words=st.lists(WORDS, min_size=1, max_size=20), text=st.text(min_size=1, max_size=20), k=st.integers(0, 119))
def test_any_critique_gives_a_picture_of_shape_edits(drawn, words, text, k):
    edit, candidate = drawn[k]
    made = edit_shapes(request(edit, candidate.image, " ".join(words) + text))
    assert np.asarray(made).shape == (48, 48, 3)
    judge_edit(edit.source, edit.instruction, made)


def test_samples_to_correct_are_first_tries():
    samples, again = draw_samples(4, seed=1), draw_samples(6, seed=1)
    assert [s.prompt_text for s in samples] == [s.prompt_text for s in again[:4]]
    for one, two in zip(samples, again, strict=False):
        assert one == two
        assert 2 <= oracle_score(one.prompt_images[0], one.prompt_text, one.response_images[0]) <= 8


def test_what_is_not_of_shape_edits_is_refused(drawn):
    edit, candidate = drawn[0]
    image, source = Image.fromarray(candidate.image), Image.fromarray(edit.source)
    critiques = {"visual_quality": Critique("there is a seam")}
    with pytest.raises(JRMError, match="48x48 pixels, and this one 20x30"):
        edit_shapes(EditRequest((Image.new("RGB", (20, 30)),), edit.instruction, image, critiques, 0))
    with pytest.raises(JRMError, match="'paint it black' is no instruction of ShapeEdits"):
        edit_shapes(EditRequest((source,), "paint it black", image, critiques, 0))
    with pytest.raises(JRMError, match="one source image, and this one 2"):
        edit_shapes(EditRequest((source, source), edit.instruction, image, critiques, 0))
