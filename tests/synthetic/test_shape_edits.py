"""ShapeEdits: no edit is in both splits, and the picture shows what the critique says."""

import numpy as np
import pytest

from jrm_plugin.data.editreward import read_edit_reward
from jrm_plugin.synthetic.preferences import PLACES
from jrm_plugin.synthetic.shape_edits import CELL, COLOURS, SHAPE_EDITS, draw_edit, is_held_out


@pytest.fixture(scope="module")
def edits():
    """Edits of several seeds, by split."""
    return {
        split: [
            draw_edit(rng, heldout=split == "heldout", tie=False)
            for seed in range(4)
            for rng in [np.random.default_rng(seed)]
            for _ in range(150)
        ]
        for split in ("train", "heldout")
    }


def cell_colours(image, place):
    """The names of the colours that a cell of a clean image shows."""
    row, column = divmod(PLACES.index(place), 3)
    cell = image[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL].reshape(-1, 3)
    found = {tuple(pixel) for pixel in cell.tolist()}
    return {name for name, rgb in COLOURS.items() if rgb in found}


def test_the_splits_share_no_scene_with_its_instruction(edits):
    train, heldout = ({(edit.scene, edit.instruction) for edit in edits[split]} for split in ("train", "heldout"))
    assert not train & heldout
    assert not any(is_held_out(*key) for key in train)
    assert all(is_held_out(*key) for key in heldout)


def test_the_written_splits_share_no_scene_with_its_instruction(tmp_path):
    folder = SHAPE_EDITS.write(tmp_path, train=200, heldout=200, language=0, seed=3, progress=False)
    keys = [
        {(pair.info["scene"], pair.chosen.prompt_text) for pair in read_edit_reward(folder / f"{split}.json").examples}
        for split in ("train", "heldout")
    ]
    assert not keys[0] & keys[1]


def test_a_scene_names_all_that_the_source_shows(edits):
    """Two sources with one scene may differ by the objects' shifts of a pixel only: compare their cells' colours."""
    for edit in edits["train"] + edits["heldout"]:
        objects = dict(reversed(part.rsplit(" ", 1)) for part in edit.caption.split(", "))
        for place in PLACES:
            shown = cell_colours(edit.source, place)
            assert shown == ({objects[place].split()[0]} if place in objects else set())
        assert edit.scene == f"{edit.scene.split(' ', 1)[0]} {edit.caption}"


def test_about_one_edit_in_six_is_held_out():
    keys = [(f"grey red circle {place}", f"make the red circle {number}") for place in PLACES for number in range(200)]
    share = np.mean([is_held_out(*key) for key in keys])
    assert abs(share - 1 / 6) < 0.04


def test_perfect_clean_edits_do_what_the_instruction_says(edits):
    seen = set()
    for edit in edits["train"]:
        for candidate in edit.candidates:
            if (candidate.failure, candidate.quality) != ("none", "clean"):
                continue
            words = edit.instruction.split()
            objects = dict(part.rsplit(" ", 1) for part in edit.caption.split(", "))
            if edit.kind == "recolour":
                before, after = objects[" ".join(words[2:4])], objects[" ".join(words[2:4])]
                assert cell_colours(candidate.image, after) == {words[-1]}
            elif edit.kind == "remove":
                before = objects[" ".join(words[2:4])]
                assert cell_colours(candidate.image, before) == set()
            else:
                assert cell_colours(candidate.image, words[-1]) == {words[2]}
            if edit.kind == "move":
                assert cell_colours(candidate.image, objects[" ".join(words[2:4])]) == set()
            seen.add(edit.kind)
    assert seen == {"recolour", "remove", "add", "move"}


def test_the_vocabulary_stays_small(edits):
    words = set()
    for edit in edits["train"]:
        words.update(edit.instruction.split(), edit.caption.replace(",", "").split())
        for candidate in edit.candidates:
            for text in (*candidate.changes.values(), *(c.reasoning for c in candidate.critiques.values())):
                words.update(text.split())
    assert len(words) < 80
    assert all(word.isascii() for word in words)


def test_a_wrong_value_is_never_the_one_asked_for(edits):
    count = 0
    for edit in edits["train"] + edits["heldout"]:
        for candidate in edit.candidates:
            if candidate.failure == "wrong_value":
                finding = candidate.critiques["instruction_following"].reasoning.split(" <|global|> ")[0]
                assert finding.endswith("instead")
                if edit.kind == "add":
                    _, _, colour, shape, _, _, place = edit.instruction.split()
                    right_place = "at the" not in finding or f"at the {place} instead" in finding
                    assert not (right_place and f"a {colour} {shape} " in finding)
                else:
                    assert not finding.endswith(f" {edit.instruction.split()[-1]} instead")
                count += 1
    assert count > 100
