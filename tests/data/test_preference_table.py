"""Pairs written as a table, and read back by the reader that trainers use."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jrm_plugin import read_preferences
from jrm_plugin.data.preference_table import write_preferences
from jrm_plugin.errors import JRMError
from jrm_plugin.records.critiques import Critique, EditRegion
from jrm_plugin.records.images import load_image
from jrm_plugin.records.preferences import PreferencePair
from jrm_plugin.records.samples import DIMENSIONS, Sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    for name in ("s", "a", "b"):
        Image.new("RGB", (4, 4), (ord(name), 0, 0)).save(folder / f"{name}.png")
    return folder


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1).filter(str.strip)
critiques = st.dictionaries(
    st.sampled_from(DIMENSIONS),
    st.builds(lambda text: Critique(f"<|bbox_0|> {text} <|global|>", (EditRegion(0, "x", (1, 2, 3, 4)),)), words),
)
scores = st.fixed_dictionaries({name: st.sampled_from([1, 2.5, 4]) for name in DIMENSIONS})


@st.composite
def pairs(draw, folder, labelled: bool):
    source = draw(st.sampled_from([None, "s", ["s", "b"]]))
    files = [str(folder / f"{name}.png") for name in source] if source else None
    instruction = draw(words)
    with_scores = not labelled or draw(st.booleans())
    labels = draw(st.dictionaries(st.sampled_from(DIMENSIONS), st.sampled_from([-1, 0, 1])))
    return PreferencePair(
        *(Sample.edit(files, instruction, str(folder / f"{name}.png")) for name in "ab"),
        labels=labels | ({"overall": draw(st.sampled_from([0, 1]))} if labelled else {}),
        chosen_scores=draw(scores) if with_scores else None,
        rejected_scores=draw(scores) if with_scores else None,
        chosen_critiques=draw(critiques),
        rejected_critiques=draw(critiques),
        info={"edit": "colour", "seed": 3},
    )


@given(st.data(), st.booleans())
@settings(max_examples=15, deadline=None)
def test_what_is_written_is_read_back(folder, data, labelled):
    written = data.draw(st.lists(pairs(folder, labelled), min_size=1, max_size=3))
    path = write_preferences(folder / "pairs.jsonl", written)
    for before, after in zip(written, read_preferences(path).examples, strict=True):
        assert (after.chosen, after.rejected, after.labels) == (before.chosen, before.rejected, before.labels)
        for name in ("chosen_scores", "rejected_scores", "chosen_critiques", "rejected_critiques"):
            assert getattr(after, name) == getattr(before, name)
        assert {name: after.info[name] for name in before.info} == before.info


def test_texts_images_in_memory_and_paths_are_kept(folder):
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    one = PreferencePair(
        Sample.edit(str(folder / "s.png"), "x", picture),
        Sample.edit(str(folder / "s.png"), "x", str(folder / "b.png")),
        labels={"overall": 1},
    )
    path = write_preferences(folder / "memory.jsonl", [one])
    row = json.loads(path.read_text())
    assert (row["source"], row["b"]) == ("s.png", "b.png")
    (back,) = read_preferences(path).examples
    assert load_image(back.chosen.response_images[0]).tobytes() == picture.tobytes()
    two = PreferencePair(*(Sample.text_response(None, "why?", text) for text in "ab"), labels={"overall": 1})
    (back,) = read_preferences(write_preferences(folder / "texts.jsonl", [two])).examples
    assert (back.chosen.response_text, back.rejected.response_text) == ("a", "b")


def test_a_key_of_info_is_never_taken_for_a_field(folder):
    pair = PreferencePair(
        *(Sample.edit(None, "x", str(folder / f"{name}.png")) for name in "ab"),
        labels={"overall": 1},
        info={"winner": "nobody", "src": "a.png", "score": 3, "row": 7},
    )
    path = write_preferences(folder / "info.jsonl", [pair])
    (back,) = read_preferences(path).examples
    assert back.labels == {"overall": 1} and back.chosen.task == "generation"
    assert back.info["info_winner"] == "nobody" and back.info["info_score"] == 3 and back.info["row"] == 1


def test_pairs_without_a_place_in_the_table_are_named(folder):
    samples = [Sample.edit(None, "x", str(folder / f"{name}.png")) for name in "ab"]
    labelled, bare = PreferencePair(*samples, labels={"overall": 1}), PreferencePair(*samples, labels={"x": 1})
    with pytest.raises(JRMError, match="pair 2 .* it has no overall label, and others have one"):
        write_preferences(folder / "no.jsonl", [labelled, bare])
    with pytest.raises(JRMError, match="pair 1 .* neither an overall label nor scores"):
        write_preferences(folder / "no.jsonl", [bare])
    assert not (folder / "no.jsonl").exists()
