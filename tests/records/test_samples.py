import copy
import dataclasses
import io
import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jrm_plugin.errors import JRMError
from jrm_plugin.records.critiques import Critique, EditRegion
from jrm_plugin.records.images import load_image, to_data_url
from jrm_plugin.records.preferences import CritiqueExample, PreferencePair, example_from_record, example_to_record
from jrm_plugin.records.samples import Sample
from jrm_plugin.records.scores import RewardScore

RED, BLUE = Image.new("RGB", (6, 4), "red"), Image.new("RGB", (6, 4), "blue")
GOOD, BAD = Sample.edit("a.png", "make it blue", "b.png"), Sample.edit("a.png", "make it blue", "c.png")
BOX = EditRegion(0, "cat", (10, 20, 30, 40))


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


# --- samples ----------------------------------------------------------------------------------------------------------


def test_edit():
    sample = Sample.edit("a.png", "make it blue", RED)
    assert sample.prompt == ({"type": "image", "image": "a.png"}, {"type": "text", "text": "make it blue"})
    assert sample.response == ({"type": "image", "image": RED},)
    assert (sample.task, sample.prompt_text, sample.response_text) == ("edit", "make it blue", "")
    assert (sample.prompt_images, sample.response_images) == (("a.png",), (RED,))


def test_edit_takes_several_sources_or_none():
    assert Sample.edit(["a.png", RED], "join them", BLUE).prompt_images == ("a.png", RED)
    assert Sample.edit(None, "a cat", RED) == Sample.edit([], "a cat", RED) == Sample.generation("a cat", RED)
    assert Sample.generation("a cat", RED).task == "generation"


def test_text_response():
    sample = Sample.text_response(["a.png", "b.png"], "what differs?", "the hat")
    assert (sample.task, sample.prompt_images) == ("response", ("a.png", "b.png"))
    assert (sample.prompt_text, sample.response_text, sample.response_images) == ("what differs?", "the hat", ())
    assert Sample.text_response(None, "hello?", "hello").task == "response"


def test_a_response_of_an_image_with_words_beside_it_is_judged_as_an_image():
    response = [{"type": "text", "text": "Here it is:"}, {"type": "image", "image": RED}]
    assert Sample(GOOD.prompt, response).task == "edit"
    assert Sample([{"type": "text", "text": "a cat"}], response).task == "generation"


def test_texts_are_joined_by_lines():
    blocks = [{"type": "text", "text": "one"}, {"type": "image", "image": RED}, {"type": "text", "text": "two"}]
    assert Sample(blocks, blocks).prompt_text == Sample(blocks, blocks).response_text == "one\ntwo"


def test_images_are_stored_in_a_form_that_can_be_compared_and_sent():
    array = np.asarray(RED).copy()
    sample = Sample.edit(Path("dir/a.png"), "x", array)
    assert sample.prompt_images == ("dir/a.png",)
    array[:] = 0
    assert sample.response_images == (RED,)


def test_a_prompt_is_the_same_by_its_texts_and_images_in_their_order():
    content = png(RED)
    prompts = [
        [
            Sample.edit("a.png", "x", RED),
            Sample.edit(Path("a.png"), "x", BLUE),
            Sample.text_response("a.png", "x", "y"),
        ],
        [Sample.edit(RED, "x", "b.png"), Sample.edit(RED.copy(), "x", "c.png"), Sample.edit(np.asarray(RED), "x", RED)],
        [Sample.edit(content, "x", "b.png"), Sample.edit(to_data_url(content), "x", "b.png")],
        [Sample.edit(["a.png", "b.png"], "x", RED)],
        [Sample.edit(["b.png", "a.png"], "x", RED)],
        [Sample.edit("a.png", "x ", RED)],
        [Sample([*TEXT, *IMAGE], TEXT)],
        [Sample([*TEXT, {"type": "text", "text": "a.png"}], TEXT)],
        [Sample.generation("x", RED)],
    ]
    keys = [{sample.prompt_key() for sample in samples} for samples in prompts]
    assert [len(each) for each in keys] == [1] * len(prompts)
    assert len(set.union(*keys)) == len(prompts)
    assert all(int(key, 16) >= 0 for key in set.union(*keys))


def test_a_sample_is_the_same_by_its_response_too():
    assert GOOD.key() == Sample.edit("a.png", "make it blue", "b.png").key() != BAD.key()
    assert GOOD.prompt_key() == BAD.prompt_key()


SAMPLES = [
    GOOD,
    BAD,
    Sample.edit(RED, "make it blue", BLUE),
    Sample.edit(RED, "make it blue", RED),
    Sample.edit(png(RED), "make it blue", png(BLUE)),
    Sample.generation("a cat", RED),
    Sample.text_response(["a.png", RED], "what differs?", "the hat"),
    Sample.text_response(["a.png", RED], "what differs?", "the coat"),
    Sample([{"type": "text", "text": "x"}, {"type": "image", "image": "a.png"}], [{"type": "text", "text": "y"}]),
    Sample([{"type": "image", "image": "a.png"}, {"type": "text", "text": "x"}], [{"type": "text", "text": "y"}]),
]


@pytest.mark.parametrize("sample", SAMPLES, ids=repr)
def test_equal_samples_are_one_in_a_set(sample):
    copies = [pickle.loads(pickle.dumps(sample)), copy.deepcopy(sample), Sample(list(sample.prompt), sample.response)]
    assert {sample, *copies} == {sample}
    assert [other for other in SAMPLES if other == sample] == [sample]
    assert len({*SAMPLES, *copies}) == len(SAMPLES)


@pytest.mark.parametrize(
    ("sample", "shown"),
    [
        (GOOD, "Sample(edit, prompt=[<image 'a.png'>, 'make it blue'], response=[<image 'b.png'>])"),
        (
            Sample.generation("a cat", b"x" * 10_000),
            "Sample(generation, prompt=['a cat'], response=[<image of 10000 bytes>])",
        ),
        (
            Sample.text_response([RED, "data:image/png;base64,AAAA"], "which?", "none"),
            "Sample(response, prompt=[<image RGB 6x4>, <image in a data: URL of 26 characters>, 'which?'], "
            "response=['none'])",
        ),
        (
            Sample.edit(f"/{'far/' * 30}cat.png", "go on and " * 30, RED),
            f"Sample(edit, prompt=[<image '…{('far/' * 30 + 'cat.png')[-59:]}'>, '{('go on and ' * 30)[:59]}…'], "
            "response=[<image RGB 6x4>])",
        ),
    ],
    ids=["edit", "generation", "response", "long"],
)
def test_a_sample_shows_itself_in_short(sample, shown):
    assert repr(sample) == shown


def test_samples_are_independent_of_the_lists_they_were_made_from():
    block = {"type": "text", "text": "x"}
    sample = Sample([block], [block])
    block["text"] = "y"
    assert sample.prompt_text == sample.response_text == "x"
    with pytest.raises(dataclasses.FrozenInstanceError):
        sample.prompt = ()


@pytest.mark.parametrize("empty", ["", " ", "\n\t "])
def test_empty_texts(empty):
    with pytest.raises(JRMError, match="the instruction is empty"):
        Sample.edit("a.png", empty, "b.png")
    with pytest.raises(JRMError, match="the instruction is empty"):
        Sample.generation(empty, "b.png")
    with pytest.raises(JRMError, match="the question is empty"):
        Sample.text_response("a.png", empty, "yes")
    with pytest.raises(JRMError, match="the response text is empty"):
        Sample.text_response("a.png", "is it?", empty)


TEXT, IMAGE = [{"type": "text", "text": "x"}], [{"type": "image", "image": "a.png"}]


@pytest.mark.parametrize(
    ("prompt", "response", "says"),
    [
        (TEXT, [], "has no response"),
        (IMAGE, IMAGE, "prompt has no text"),
        ([], IMAGE, "prompt has no text"),
        ("make it blue", IMAGE, "prompt must be a list of content blocks, not a str"),
        (None, IMAGE, "prompt must be a list of content blocks, not nothing"),
        (TEXT, ["a.png"], "response block 0 must be a dict"),
        ([*TEXT, {"type": "video", "video": "a.mp4"}], IMAGE, 'prompt block 1 must be a dict with "type"'),
        (TEXT, [{"type": "image"}], r"response block 0 must have the keys \"type\" and \"image\""),
        (TEXT, [{"type": "image", "url": "a.png"}], "response block 0 must have the keys"),
        (TEXT, [{"type": "image", "image": "a.png", "max_pixels": 4}], "and no other, not .*max_pixels"),
        (TEXT, [{"type": "text", "text": " "}], "text of response block 0 is empty"),
        ([{"type": "text", "text": 7}], IMAGE, "text of prompt block 0 must be text, not a int"),
        ([{"type": "text", "text": "\ud800"}], IMAGE, "half a surrogate pair"),
        (TEXT, [{"type": "image", "image": None}], "image of response block 0 must be .*, not nothing"),
        (TEXT, [{"type": "image", "image": ["a.png"]}], "image of response block 0 must be .*, not a list"),
        (TEXT, [{"type": "image", "image": ""}], "image of response block 0 is empty"),
        (TEXT, [{"type": "image", "image": b""}], "image of response block 0 is empty"),
        (TEXT, [{"type": "image", "image": np.zeros(5)}], r"response block 0 \(image array \(float64, shape \(5,\)\)"),
    ],
)
def test_broken_samples(prompt, response, says):
    with pytest.raises(JRMError, match=says):
        Sample(prompt, response)


# --- critiques --------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(str.strip)
corners = st.tuples(*[st.integers(0, 1000)] * 4).map(lambda c: (*sorted(c[:2]), *sorted(c[2:])))
boxes = corners.map(lambda c: (c[0], c[2], c[1], c[3]))


@st.composite
def critiques(draw):
    ids = draw(st.lists(st.integers(0, 20), unique=True, max_size=4))
    regions = tuple(EditRegion(k, draw(texts), draw(boxes)) for k in ids)
    # `<` is left out of free text so that no tag can arise in it by chance
    words = [draw(texts).replace("<", "(") for _ in range(len(ids) + 1)]
    tags = [f"<|bbox_{k}|>" for k in draw(st.permutations(ids))] + ["<|global|>"]
    return Critique(" ".join(f"{tag} {word}" for tag, word in zip(tags, words, strict=True)), regions)


@given(critiques())
def test_critiques_survive_json(critique):
    assert Critique.parse(critique.to_json()) == critique
    record = json.loads(critique.to_json())
    assert list(record) == (["edit_region", "reasoning"] if critique.edit_region else ["reasoning"])


def test_json_is_compact_and_keeps_its_order():
    critique = Critique("<|bbox_0|> blau & größer. <|global|> kept", [BOX])
    assert critique.to_json() == (
        '{"edit_region":[{"id":0,"label":"cat","bbox_2d":[10,20,30,40]}],'
        '"reasoning":"<|bbox_0|> blau & größer. <|global|> kept"}'
    )
    assert Critique("fine").to_json() == '{"reasoning":"fine"}'
    assert Critique.parse('{"edit_region": [], "reasoning": "fine"}') == Critique("fine")


@given(critiques())
def test_appendix_a_boxes_are_turned(critique):
    record = json.loads(critique.to_json())
    for region in record.get("edit_region", []):
        x1, y1, x2, y2 = region["bbox_2d"]
        region["bbox_2d"] = [y1, x1, y2, x2]  # ymin, xmin, ymax, xmax
    assert Critique.from_appendix_a(record) == critique


def region_json(**changes) -> str:
    region = {"id": 0, "label": "cat", "bbox_2d": [1, 2, 3, 4], **changes}
    return json.dumps({"edit_region": [region], "reasoning": "<|bbox_0|> x"})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "Expecting value"),
        ("the cat is blue", "Expecting value"),
        ('{"reasoning": "x"', "Expecting ',' delimiter"),
        ('{"reasoning": "x"} and more', "Extra data"),
        ('```json\n{"reasoning": "x"}\n```', "Expecting value"),
        ('["reasoning"]', r"must be an object with the keys \['reasoning'\], not a list"),
        ("{}", r"a critique must have the keys \['edit_region', 'reasoning'\], not \[\]"),
        ('{"reasoning": "x", "score": 4}', "not .*'score'"),
        ('{"reasoning": "x", "reasoning": "y"}', "a key occurs twice"),
        ('{"reasoning": 7}', "reasoning of a critique must be text, not a int"),
        ('{"reasoning": " "}', "reasoning of a critique is empty"),
        ('{"reasoning": "\\ud800"}', "half a surrogate pair"),
        ('{"reasoning": "x", "edit_region": null}', "edit_region of a critique must be a list, not nothing"),
        ('{"reasoning": "x", "edit_region": [7]}', "an edit region must be an object"),
        ('{"reasoning": "<|bbox_1|> x"}', r"refers to <\|bbox_1\|>, and no edit region has that id"),
        ('{"reasoning": "<|bbox_0|> x", "edit_region": []}', r"refers to <\|bbox_0\|>"),
        ('{"reasoning": "<|bbox_00|> x", "edit_region": [{"id":0,"label":"a","bbox_2d":[1,2,3,4]}]}', "bbox_00"),
        (region_json(id="0"), "id of an edit region must be a whole number, not '0'"),
        (region_json(id=True), "must be a whole number, not True"),
        (region_json(id=-1), "must be 0 or more, not -1"),
        (region_json(label=""), "label of edit region 0 is empty"),
        (region_json(score=1), "an edit region must have the keys"),
        (region_json(bbox_2d=[1, 2, 3]), "must be a list of 4 whole numbers"),
        (region_json(bbox_2d="1234"), "must be a list of 4 whole numbers"),
        (region_json(bbox_2d=[1, 2, 3, 4.5]), "a coordinate of edit region 0 must be a whole number, not 4.5"),
        (region_json(bbox_2d=[3, 2, 1, 4]), "must be x1 <= x2, y1 <= y2 in 0..1000"),
        (region_json(bbox_2d=[1, 4, 3, 2]), "must be x1 <= x2, y1 <= y2 in 0..1000"),
        (region_json(bbox_2d=[1, 2, 3, 1001]), "must be x1 <= x2, y1 <= y2 in 0..1000"),
        (region_json(bbox_2d=[-1, 2, 3, 4]), "must be x1 <= x2, y1 <= y2 in 0..1000"),
        ("[" * 100_000, ""),  # deeper than any parser goes
        ("9" * 5000, ""),  # longer than Python reads
    ],
)
def test_broken_critiques_are_quoted(text, says):
    with pytest.raises(JRMError, match=f"^not a valid critique: .*{says}") as caught:
        Critique.parse(text)
    assert str(caught.value).endswith(f"it begins {text[:80]!r}.")


@given(st.text(max_size=60) | st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists).map(json.dumps))
def test_any_text_parses_or_is_the_one_error(text):
    try:
        critique = Critique.parse(text)
    except JRMError as error:
        assert str(error).startswith("not a valid critique")
    else:
        assert Critique.parse(critique.to_json()) == critique


def test_critiques_check_themselves_however_they_are_made():
    with pytest.raises(JRMError, match=r"refers to <\|bbox_3\|>"):
        Critique("<|bbox_3|> x", [BOX])
    with pytest.raises(JRMError, match=r"different ids, not \[0, 0\]"):
        Critique("x", [BOX, BOX])
    with pytest.raises(JRMError, match="must hold EditRegions"):
        Critique("x", [{"id": 0}])
    with pytest.raises(JRMError, match="must be a list of regions, not a EditRegion"):
        Critique("x", BOX)
    with pytest.raises(JRMError, match=r"must be \[x1, y1, x2, y2\]"):
        EditRegion(0, "cat", (1, 2, 3))


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
    content = png(RED)
    PreferencePair(Sample.edit(content, "x", BLUE), Sample.edit(to_data_url(content), "x", RED), {"overall": 1})
    PreferencePair(Sample.edit(Image.open(io.BytesIO(content)), "x", BLUE), Sample.edit(RED, "x", RED), {"overall": 1})


def test_broken_critique_examples():
    with pytest.raises(JRMError, match="sample of a critique example must be a Sample"):
        CritiqueExample("a.png", "x")
    with pytest.raises(JRMError, match="text of a critique example is empty"):
        CritiqueExample(GOOD, "")


# --- records ----------------------------------------------------------------------------------------------------------

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
        *[draw(st.dictionaries(dimensions, critiques(), max_size=2)) for _ in range(2)],
        info=draw(infos),
    )


@given(pairs() | st.builds(CritiqueExample, samples(), texts, infos))
def test_examples_survive_json_and_pickle(example):
    assert example_from_record(json.loads(json.dumps(example_to_record(example)))) == example
    assert pickle.loads(pickle.dumps(example)) == example


def test_images_in_memory_become_urls_of_the_same_pixels():
    translucent = Image.new("RGBA", (6, 4), (0, 0, 0, 99))
    example = PreferencePair(
        Sample.edit([RED, png(BLUE)], "x", translucent), Sample.edit([RED, png(BLUE)], "x", "c.png"), {"overall": 1}
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


# --- what all records share -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        Sample.edit(RED, "x", png(BLUE)),
        BOX,
        Critique("<|bbox_0|> x", [BOX]),
        PreferencePair(GOOD, BAD, {"overall": 1}, chosen_critiques={"overall": Critique("x")}),
        CritiqueExample(GOOD, "x", {"row": 1}),
        RewardScore({"a": 1}, {"a": 1}),
    ],
    ids=lambda record: type(record).__name__,
)
def test_records_are_frozen_pickled_and_compared(record):
    assert pickle.loads(pickle.dumps(record)) == record
    first = dataclasses.fields(record)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, first, None)
    assert record != "something else"
