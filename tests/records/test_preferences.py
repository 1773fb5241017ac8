import io
import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import encode
from PIL import Image

from jrm_plugin.errors import JRMError
from jrm_plugin.records.critiques import Critique, EditRegion
from jrm_plugin.records.images import load_image, to_data_url
from jrm_plugin.records.preferences import (
    CritiqueExample,
    PreferencePair,
    example_from_record,
    example_to_record,
    in_dimensions,
)
from jrm_plugin.records.samples import Sample

RED, BLUE = Image.new("RGB", (6, 4), "red"), Image.new("RGB", (6, 4), "blue")
GOOD, BAD = Sample.edit("a.png", "make it blue", "b.png"), Sample.edit("a.png", "make it blue", "c.png")


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_labels_are_derived_from_scores_where_none_is_given():
    pair = PreferencePair(
        GOOD,
        BAD,
        labels={"visual_quality": 1},
        chosen_scores={"instruction_following": 4, "visual_quality": 2, "overall": 3, "mood": 1, "only_here": 2},
        rejected_scores={"instruction_following": 2.5, "visual_quality": 3, "overall": 3.0, "mood": np.float32(1.5)},
    )
    assert pair.labels == {"instruction_following": 1, "visual_quality": 1, "overall": 0, "mood": -1}
    assert all(type(label) is int for label in pair.labels.values())
    assert type(pair.rejected_scores["mood"]) is float


def test_one_label_is_enough():
    pair = PreferencePair(GOOD, BAD, {"overall": np.int64(-1)})
    assert pair.labels == {"overall": -1} and type(pair.labels["overall"]) is int
    assert (pair.chosen_scores, pair.chosen_critiques, pair.info) == (None, {}, {})


def test_a_pair_in_some_dimensions_keeps_overall_and_says_nothing_of_others():
    critiques = {name: Critique(name) for name in ("a", "b")}
    scores = {"a": 2, "b": 1, "overall": 3}
    pair = PreferencePair(
        GOOD, BAD, {"b": -1, "c": 1, "overall": 1}, scores, {"a": 1}, critiques, {"b": Critique("x")}, {"row": 3}
    )
    assert in_dimensions(pair, ["a", "d"]) == PreferencePair(
        GOOD, BAD, {"a": 1, "overall": 1}, {"a": 2, "overall": 3}, {"a": 1}, {"a": Critique("a")}, {}, {"row": 3}
    )
    assert in_dimensions(PreferencePair(GOOD, BAD, {"a": 1, "b": 0}), ["b"]) == PreferencePair(GOOD, BAD, {"b": 0})
    with pytest.raises(JRMError, match="labelled in a, b alone; name that dimension too"):
        in_dimensions(PreferencePair(GOOD, BAD, {"a": 1, "b": 0}), ["c"])


def test_pairs_are_independent_of_the_mappings_they_were_made_from():
    labels, info = {"overall": 1}, {"row": 3}
    pair = PreferencePair(GOOD, BAD, labels, info=info)
    labels["overall"] = info["row"] = 0
    assert pair.labels == {"overall": 1} and pair.info == {"row": 3}
    assert "mood" not in labels


@pytest.mark.parametrize("label", [2, 0.5, "1", None, True, math.nan])
def test_unknown_labels(label):
    with pytest.raises(JRMError, match=r"labels\['overall'\] must be 1 .*, 0 .* or -1"):
        PreferencePair(GOOD, BAD, {"overall": label})


@pytest.mark.parametrize("score", ["4", None, math.nan, math.inf, True])
def test_unknown_scores(score):
    with pytest.raises(JRMError, match=r"rejected_scores\['overall'\] must be a finite number"):
        PreferencePair(GOOD, BAD, {"overall": 1}, {"overall": 1}, {"overall": score})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "a pair has no label"),
        ({"chosen_scores": {"overall": 1}}, "a pair has no label"),
        ({"chosen_scores": {"a": 1}, "rejected_scores": {"b": 1}}, "a pair has no label"),
        ({"labels": [1, 0]}, "labels of a pair must map dimensions to values, not be a list"),
        ({"labels": {"": 1}}, "the dimension in labels is empty"),
        ({"labels": {7: 1}}, "the dimension in labels must be text"),
        ({"rejected": "c.png"}, "rejected of a pair must be a Sample, not a str"),
        ({"rejected": Sample.edit("a.png", "make it red", "c.png")}, "must have the same prompt"),
        ({"rejected": Sample.edit("z.png", "make it blue", "c.png")}, "must have the same prompt"),
        ({"chosen_critiques": {"overall": "good"}}, r"chosen_critiques\['overall'\] must be a Critique"),
        ({"chosen_critiques": None}, "chosen_critiques of a pair must map"),
        ({"labels": {"overall": 1}, "info": {1: 2}}, "info must be a mapping with keys of type str"),
    ],
)
def test_broken_pairs(arguments, says):
    with pytest.raises(JRMError, match=says):
        PreferencePair(**{"chosen": GOOD, "rejected": BAD, **arguments})


def test_one_source_image_in_memory_is_one_prompt():
    pair = PreferencePair(Sample.edit(RED, "x", BLUE), Sample.edit(RED.copy(), "x", RED), {"overall": 1})
    assert pair.chosen.prompt == pair.rejected.prompt


def test_one_source_image_opened_and_decoded_is_one_prompt():
    content = encode(RED)
    PreferencePair(Sample.edit(content, "x", BLUE), Sample.edit(to_data_url(content), "x", RED), {"overall": 1})
    PreferencePair(Sample.edit(Image.open(io.BytesIO(content)), "x", BLUE), Sample.edit(RED, "x", RED), {"overall": 1})


def test_broken_critique_examples():
    with pytest.raises(JRMError, match="sample of a critique example must be a Sample"):
        CritiqueExample("a.png", "x")
    with pytest.raises(JRMError, match="text of a critique example is empty"):
        CritiqueExample(GOOD, "")


# --- records --------------------------------------------------------------------------------------------------------
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(str.strip)
critiques = st.sampled_from(
    [Critique("blau & größer"), Critique("<|bbox_0|> x <|global|> y", [EditRegion(0, "cat", (1, 2, 3, 4))])]
)
dimensions = st.sampled_from(["instruction_following", "visual_quality", "overall", "größe"])
scores = st.dictionaries(dimensions, st.floats(-10, 10), max_size=4)
infos = st.dictionaries(
    texts, st.recursive(st.none() | st.booleans() | st.integers() | texts, st.lists, max_leaves=4), max_size=3
)
stored_images = st.sampled_from(["a.png", "sub dir/ü.png", "data:image/png;base64,AAAA"])


@st.composite
def samples(draw, images=stored_images):
    prompt = [{"type": "image", "image": image} for image in draw(st.lists(images, max_size=3))]
    prompt.insert(draw(st.integers(0, len(prompt))), {"type": "text", "text": draw(texts)})
    response = {"type": "text", "text": draw(texts)}
    return Sample(prompt, [draw(st.sampled_from([response, {"type": "image", "image": draw(images)}]))])


@st.composite
def pairs(draw):
    chosen = draw(samples())
    return PreferencePair(
        chosen,
        Sample(chosen.prompt, draw(samples()).response),
        {draw(dimensions): draw(st.sampled_from([-1, 0, 1]))},
        *draw(st.tuples(st.none() | scores, st.none() | scores)),
        *[draw(st.dictionaries(dimensions, critiques, max_size=2)) for _ in range(2)],
        info=draw(infos),
    )


@given(pairs() | st.builds(CritiqueExample, samples(), texts, infos))
def test_examples_survive_json_and_pickle(example):
    assert example_from_record(json.loads(json.dumps(example_to_record(example)))) == example
    assert pickle.loads(pickle.dumps(example)) == example


def test_images_in_memory_become_urls_of_the_same_pixels():
    translucent = Image.new("RGBA", (6, 4), (0, 0, 0, 99))
    example = PreferencePair(
        Sample.edit([RED, encode(BLUE)], "x", translucent),
        Sample.edit([RED, encode(BLUE)], "x", "c.png"),
        {"overall": 1},
    )
    record = json.loads(json.dumps(example_to_record(example)))
    back = example_from_record(record)
    assert back.rejected.response_images == ("c.png",)
    for before, after in zip(
        (*example.chosen.prompt_images, *example.chosen.response_images),
        (*back.chosen.prompt_images, *back.chosen.response_images),
        strict=True,
    ):
        assert after.startswith("data:image/png;base64,")
        assert load_image(after) == load_image(before)
    assert example_to_record(back) == record


def test_an_image_that_cannot_be_read_is_named_when_written():
    with pytest.raises(JRMError, match=r"image bytes \(5 bytes\) is not an image"):
        example_to_record(CritiqueExample(Sample.edit(b"hello", "x", RED), "text"))


@pytest.mark.parametrize("value", [{1, 2}, np.int64(3), RED])
def test_info_that_json_cannot_hold_is_named(value):
    with pytest.raises(JRMError, match=r"info\['row'\] of an example cannot be written as JSON"):
        example_to_record(CritiqueExample(GOOD, "text", {"row": value}))


def test_broken_records():
    record = example_to_record(PreferencePair(GOOD, BAD, {"overall": 1}))
    for broken in ({key: value for key, value in record.items() if key != "labels"}, {**record, "more": 1}, {}, None):
        with pytest.raises(JRMError, match="a pair's record must"):
            example_from_record(broken)
    with pytest.raises(JRMError, match="a critique example's record must have the keys"):
        example_from_record({"text": "x"})
