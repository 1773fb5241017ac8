"""Corrections of a preference set: what a pair's name depends on, and what each action makes of it."""

import json
import shutil

import pytest

from jrm_plugin.data.corrections import CorrectedExamples, PairNames, read_corrections
from jrm_plugin.data.editreward import read_edit_reward
from jrm_plugin.data.preference_table import write_preferences
from jrm_plugin.data.preferences import read_preferences
from jrm_plugin.errors import JRMError
from jrm_plugin.records.preferences import CritiqueExample, PreferencePair
from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight pairs with right labels, and beside them the same pairs with every label swapped."""
    path = tmp_path_factory.mktemp("sets")
    for name, noise in (("right", 0.0), ("swapped", 1.0)):
        SHAPE_EDITS.write(path / name, train=8, heldout=0, language=1, label_noise=noise, progress=False)
    return path


@pytest.fixture(scope="module")
def pairs(folder):
    return read_edit_reward(folder / "right" / "train.json", progress=False).examples


@pytest.fixture
def corrected(pairs, tmp_path):
    """`corrected(*lines)`: the pairs with the corrections of a file of these lines."""

    def make(*lines: dict | str, examples=pairs):
        path = tmp_path / "corrections.jsonl"
        path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
        return CorrectedExamples(examples, read_corrections(path), path=path)

    return make


def plain(pair: PreferencePair) -> tuple:
    critiques = [
        {name: c.to_json() for name, c in of.items()} for of in (pair.chosen_critiques, pair.rejected_critiques)
    ]
    return pair.chosen, pair.rejected, pair.labels, pair.chosen_scores, pair.rejected_scores, critiques


def test_a_name_stays_where_rows_and_files_are_moved_and_samples_change_places(folder, pairs, tmp_path):
    names = [PairNames()(pair) for pair in pairs]
    assert len({*names}) == len(pairs)
    shutil.copytree(folder / "right" / "images", tmp_path / "pictures")
    rows = json.loads((folder / "right" / "train.json").read_text())[::-1]
    for row in rows:
        row |= {key: row[key].replace("images/", "pictures/") for key in ("path_src", "path1", "path2")}
    (tmp_path / "moved.json").write_text(json.dumps(rows))
    moved = read_edit_reward(tmp_path / "moved.json", progress=False).examples
    assert [PairNames()(pair) for pair in moved] == names[::-1]
    table = read_preferences(write_preferences(tmp_path / "table.jsonl", pairs), progress=False).examples
    assert [PairNames()(pair) for pair in table] == names
    turned = PreferencePair(
        pairs[0].rejected, pairs[0].chosen, labels={name: -label for name, label in pairs[0].labels.items()}
    )
    assert PairNames()(turned) == names[0]


def test_another_label_and_another_picture_are_another_pair(folder, pairs):
    names = PairNames()
    other = PreferencePair(pairs[0].chosen, pairs[0].rejected, labels=dict(pairs[0].labels) | {"overall": 0})
    assert names(other) != names(pairs[0]) and names.of_samples(other) == names.of_samples(pairs[0])
    assert names.of_samples(pairs[0]) != names.of_samples(pairs[1])


def test_a_flip_undoes_an_annotator_who_took_one_for_the_other(folder, pairs, corrected):
    """Critiques tell the truth in both sets, so they stay with their samples."""
    swapped = read_edit_reward(folder / "swapped" / "train.json", progress=False).examples
    names = PairNames()
    mended = corrected(*({"pair": names(pair), "action": "flip"} for pair in swapped), examples=swapped)
    right = {pair.chosen.prompt_text: plain(pair)[2:] for pair in pairs}
    for pair, wrong in zip(mended, swapped, strict=True):
        assert (pair.chosen, pair.rejected) == (wrong.rejected, wrong.chosen)
        assert plain(pair)[2:] == right[pair.chosen.prompt_text]


def test_each_action_does_what_it_says_and_all_else_stays(pairs, corrected):
    names = PairNames()
    actions = dict(enumerate(("drop", "flip", "tie", "keep")))
    examples = corrected(*({"pair": names(pairs[k]), "action": action} for k, action in actions.items()))
    assert dict(examples.counts) == {"drop": 1, "flip": 1, "tie": 1, "keep": 1}
    assert len(examples) == len(pairs) - 1
    assert examples[0].chosen == pairs[1].rejected
    assert set(examples[1].labels.values()) == {0} and examples[1].labels.keys() == pairs[2].labels.keys()
    assert [plain(pair) for pair in examples[2:]] == [plain(pair) for pair in pairs[3:]]
    assert len(corrected()) == len(pairs)  # what has found nothing to correct
    text = CritiqueExample(pairs[0].chosen, "it is blue")
    assert list(corrected(examples=[text])) == [text]


def test_what_is_no_correction_is_said_in_one_sentence(pairs, corrected):
    name = PairNames()(pairs[0])
    for lines, said in (
        (({"pair": name, "action": "drop"}, {"pair": "0-0", "action": "drop"}), "line 2: no pair of the data is 0-0"),
        (({"pair": name, "action": "remove"},), "line 1: action must be one of drop, flip, tie, keep, not 'remove'"),
        (({"pair": name},), "line 1: missing action"),
        (({"pair": 3, "action": "drop"},), "line 1: pair must be the name of a pair, not 3"),
        (("drop it",), "line 1: not valid JSON"),
        (({"pair": name, "action": "drop"}, {"pair": name, "action": "flip"}), "line 2: line 1 has another action"),
    ):
        with pytest.raises(JRMError, match=said):
            corrected(*lines)


def test_a_label_that_was_mended_by_hand_is_not_flipped_back(pairs, corrected):
    with pytest.raises(JRMError, match="no pair of the data is"):
        corrected({"pair": PairNames()(pairs[0]), "action": "flip"}, examples=[_turned(pairs[0]), *pairs[1:]])


def _turned(pair: PreferencePair) -> PreferencePair:
    return PreferencePair(pair.rejected, pair.chosen, labels=pair.labels)
