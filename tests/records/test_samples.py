import copy
import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
from pictures import encode
from PIL import Image

from jrm_plugin.errors import JRMError
from jrm_plugin.records.critiques import Critique, EditRegion
from jrm_plugin.records.images import to_data_url
from jrm_plugin.records.preferences import CritiqueExample, PreferencePair
from jrm_plugin.records.samples import Sample
from jrm_plugin.records.scores import RewardScore

RED, BLUE = Image.new("RGB", (6, 4), "red"), Image.new("RGB", (6, 4), "blue")
GOOD, BAD = Sample.edit("a.png", "make it blue", "b.png"), Sample.edit("a.png", "make it blue", "c.png")
BOX = EditRegion(0, "cat", (10, 20, 30, 40))


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
    content = encode(RED)
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
    Sample.edit(encode(RED), "make it blue", encode(BLUE)),
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


# --- what all records share -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record",
    [
        Sample.edit(RED, "x", encode(BLUE)),
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
