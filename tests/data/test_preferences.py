"""Preferences as people have them: in any kind of table, under any names, in any form."""

import csv
import json
import re
from itertools import permutations

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encode
from PIL import Image

from jrm_plugin import read_preferences
from jrm_plugin.errors import JRMError
from jrm_plugin.records.critiques import Critique
from jrm_plugin.records.images import load_image

NAMES = ("source", "one", "two", "three")
RECORDS = [  # EditReward's own
    {
        "prompt": "make it blue",
        "path_src": "source.png",
        "path1": "one.png",
        "path2": "two.png",
        "model1_dim1_score": 4,
        "model1_dim2_score": 2,
        "model2_dim1_score": 1,
        "model2_dim2_score": 3,
        "tie_case": False,
    },
    {
        "prompt": 'a "quoted", odd\ninstruction',
        "path_src": None,
        "path1": "two.png",
        "path2": "three.png",
        "model1_dim1_score": 2,
        "model1_dim2_score": 2.5,
        "model2_dim1_score": 2,
        "model2_dim2_score": 2.5,
        "tie_case": True,
    },
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four images, each of its own colour."""
    folder = tmp_path_factory.mktemp("data")
    for shade, name in enumerate(NAMES):
        (folder / f"{name}.png").write_bytes(encode(Image.new("RGB", (8, 8), (60 * shade, 90, 200))))
    return folder


def write_cells(path, records, delimiter):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*records[0]], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(records)


def with_bytes(record, folder):
    """The record with the content of its files in place of their names."""
    return {
        name: (folder / value).read_bytes() if isinstance(value, str) and value.endswith(".png") else value
        for name, value in record.items()
    }


@pytest.fixture(scope="module")
def seven(folder):
    """The same pairs in seven formats; none of the files has an ending that says which."""
    (folder / "json").write_text(json.dumps(RECORDS))
    (folder / "jsonl").write_text("\n".join(map(json.dumps, RECORDS)))
    write_cells(folder / "csv", RECORDS, ",")
    write_cells(folder / "tsv", RECORDS, "\t")
    pq.write_table(pa.Table.from_pylist(RECORDS), folder / "parquet")
    pq.write_table(pa.Table.from_pylist([with_bytes(r, folder) for r in RECORDS]), folder / "parquet_bytes")
    images = datasets.Dataset.from_list([with_bytes(r, folder) for r in RECORDS])
    for name in ("path_src", "path1", "path2"):
        images = images.cast_column(name, datasets.Image())
    datasets.DatasetDict(test=images).save_to_disk(folder / "saved")
    return [
        *(folder / n for n in ("json", "jsonl", "csv", "tsv", "parquet", "parquet_bytes")),
        f"{folder / 'saved'}:test",
    ]


def pixels(images):
    return [np.asarray(load_image(image)).tolist() for image in images]


def content(pair):
    """All that a pair says, whatever holds its images."""
    samples = [
        (s.task, s.prompt_text, pixels(s.prompt_images), pixels(s.response_images), s.response_text)
        for s in (pair.chosen, pair.rejected)
    ]
    return samples, dict(pair.labels), pair.chosen_scores, pair.rejected_scores


def test_seven_formats_give_the_same_pairs(seven):
    expected, *others = [[*map(content, read_preferences(source, progress=False).examples)] for source in seven]
    assert expected[0][1] == {"overall": 1, "instruction_following": 1, "visual_quality": -1}
    assert expected[1][0][0][0] == "generation" and expected[1][1]["overall"] == 0
    assert others == [expected] * 6


def test_rows_keep_their_number_and_what_else_they_say(folder):
    path = folder / "numbered"
    path.write_text("prompt,chosen,rejected,by\nmake it blue,one.png,two.png,me\nmake it red,two.png,one.png,\n")
    records = read_preferences(path)
    assert [example.info for example in records.examples] == [
        {"by": "me", "file": str(path), "row": 2},
        {"file": str(path), "row": 3},
    ]
    assert (
        records.understood == f"{path}: CSV, 2 pairs of images; instruction=prompt, chosen=chosen, rejected=rejected."
    )


# --- names and mappings -----------------------------------------------------------------------------------------------

NAME = st.text("abcdefghijklmnopqrstuvwxyz _-äß.0123456789", min_size=1, max_size=12).filter(
    lambda name: name.strip() == name
)


@given(
    names=st.lists(NAME, min_size=5, max_size=5, unique=True),
    order=st.permutations(range(5)),
    label=st.sampled_from(["A", "b", "tie", 0, 1, "left", "Image B", 1.0]),
    as_image=st.booleans(),
)
def test_any_names_with_their_mapping_give_the_pair_of_the_usual_names(folder, names, order, label, as_image):
    row = {"source": "source.png", "instruction": "make it blue", "a": "one.png", "b": "two.png", "label": label}
    row = (
        with_bytes(row, folder)
        if as_image
        else {n: str(folder / v) if str(v).endswith("png") else v for n, v in row.items()}
    )
    (usual,) = read_preferences([row]).examples
    mapping = dict(zip(row, names, strict=True))
    renamed = [(mapping[name], value) for name, value in row.items()]
    (mapped,) = read_preferences([dict(renamed[k] for k in order)], columns=mapping).examples
    assert content(mapped) == content(usual)
    is_second = str(label).lower() in ("b", "1", "1.0", "image b")
    assert pixels(mapped.chosen.response_images) == pixels([str(folder / ("two.png" if is_second else "one.png"))])
    assert mapped.labels["overall"] == (0 if label == "tie" else 1)


@given(names=st.lists(NAME, min_size=5, max_size=5, unique=True))
def test_an_error_shows_a_mapping_that_works(folder, names):
    values = [str(folder / f"{n}.png") for n in ("source", "one", "two")] + ["make it blue, please", "B"]
    table = [dict(zip(names, values, strict=True))]
    try:
        read_preferences(table)
    except JRMError as error:
        shown = yaml.safe_load(re.search(r"columns: (\{.*?\})(?=[.,])", str(error))[1])
        (pair,) = read_preferences(table, columns=shown).examples
        assert pair.chosen.prompt_text == "make it blue, please"
        assert pair.chosen.prompt_images == (values[0],) and pair.labels == {"overall": 1}


PAIR = {"chosen": "one.png", "rejected": "two.png", "prompt": "x"}
NEUTRAL = {"a": "one.png", "b": "two.png", "prompt": "x"}
LIST_OF_TWO = {"candidates": ["one.png", "two.png"], "prompt": "x"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (NEUTRAL, "'a' and 'b', and nothing that says which is better"),
        ({**NEUTRAL, "label": "maybe"}, "row 1: label must be A, B, tie, 0 .* 'maybe'"),
        ({**NEUTRAL, "label": -1}, "row 1: label must be A, B"),
        ({**NEUTRAL, "label": True}, "row 1: label must be A, B"),
        ({**PAIR, "before": "source.png"}, "no source, and images in 'before'"),
        ({**PAIR, "Source": None}, "no source, and a column 'Source'"),
        ({**PAIR, "image_a": "one.png", "image_b": "two.png"}, "two pairs of columns"),
        ({**PAIR, "question": "y"}, "both 'prompt' and 'question'"),
        (LIST_OF_TWO, "candidates without ranking or scores"),
        ({**LIST_OF_TWO, "scores": [1]}, "2 candidates and 1 scores of overall"),
        ({**LIST_OF_TWO, "ranking": "A>C"}, "ranking must order A, B"),
        ({"candidates": "one.png", "scores": [1], "prompt": "x"}, "candidates must be a list"),
        ({**PAIR, "rejected": "nowhere.png"}, "nowhere.png.* does not exist"),
        ({**PAIR, "rejected": "words"}, "it holds 'words', and the rows before it images"),
        ({**PAIR, "chosen": None}, "an image must be an image"),
        ({"prompt": "x"}, "has the columns prompt, and in them no pair, no list of candidates"),
    ],
)
def test_what_is_not_understood_is_said(folder, tmp_path, row, said):
    path = folder / "refused"
    path.write_text(json.dumps(row))
    with pytest.raises(JRMError, match=said):
        read_preferences(path)


def test_a_mapping_that_cannot_be(folder):
    rows = [{"prompt": "x", "chosen": "a", "rejected": "b"}]
    with pytest.raises(JRMError, match="columns has the field 'winner', which is none of source, instruction"):
        read_preferences(rows, columns={"winner": "chosen"})
    with pytest.raises(
        JRMError, match="columns says chosen: best, and the list .* has the columns prompt, chosen, rej"
    ):
        read_preferences(rows, columns={"chosen": "best"})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty: give EditReward JSON"),
        (b"one column\nof words", "has one column; give EditReward JSON"),
        (b"\x89PNG\r\n\x1a\n\0\0", "is no text and no Parquet"),
        (b"PAR1 and no more", "cannot be read as Parquet"),
        (b"{\n 1", "begins as JSON and is neither a list nor one object a line"),
        (b"a,a\n1,2", "two columns with the name 'a'"),
        (b"[]", r"\(a JSON list\) holds no usable record"),
    ],
)
def test_files_of_another_kind(tmp_path, content, said):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(JRMError, match=said):
        read_preferences(tmp_path / "file")


def test_names_that_are_not_there(folder, seven):
    with pytest.raises(JRMError, match="nowhere/train.json does not exist: check the path"):
        read_preferences("nowhere/train.json")
    with pytest.raises(JRMError, match="nobody/nothing is no file or folder here, and no data set that the hub gives"):
        read_preferences("nobody/nothing:train")
    with pytest.raises(JRMError, match="has no split 'train', only test; write .*saved:test"):
        read_preferences(f"{folder / 'saved'}:train")
    assert len(read_preferences(folder / "saved").examples) == 2  # the only split


def test_bad_rows_are_named_or_left_out(folder):
    path = folder / "bad"
    path.write_text("prompt,a,b,label\nx,one.png,two.png,A\nx,one.png,two.png\nx,one.png,two.png,neither\n")
    with pytest.raises(JRMError, match="bad, row 3: it has 3 cells, and the first line 4 .2 bad records"):
        read_preferences(path)
    records = read_preferences(path, strict=False)
    assert (len(records.examples), [bad.row for bad in records.bad]) == (1, [3, 4])


# --- forms ------------------------------------------------------------------------------------------------------------


def order(examples, folder):
    """Pairs as `one>two` or `one=two`."""
    name = {str(folder / f"{name}.png"): name for name in NAMES}
    side = [[name[s.response_images[0]] for s in (pair.chosen, pair.rejected)] for pair in examples]
    return {
        (">" if pair.labels["overall"] else "=").join(pair_of) for pair, pair_of in zip(examples, side, strict=True)
    }


LIST = ["one.png", "two.png", "three.png"]


@pytest.mark.parametrize(
    ("row", "columns", "expected"),
    [
        ({"ranked": ["three.png", "one.png", "two.png"]}, None, {"three>one", "three>two", "one>two"}),
        ({"output_images": LIST}, {"ranked": "output_images"}, {"one>two", "one>three", "two>three"}),
        ({"candidates": LIST, "scores": [1, 3, 3]}, None, {"two>one", "three>one", "two=three"}),
        ({"candidates": LIST, "ranking": [2, 1, 3]}, None, {"two>one", "two>three", "one>three"}),
        ({"candidates": LIST, "ranking": "C>A=B"}, None, {"three>one", "three>two", "one=two"}),
        (
            {"i1": "one.png", "i2": "two.png", "i3": "three.png", "s1": 1, "s2": 2, "s3": 0},
            {"candidates": ["i1", "i2", "i3"], "scores": ["s1", "s2", "s3"]},
            {"two>one", "two>three", "one>three"},
        ),
    ],
)
def test_lists_become_all_their_pairs(folder, row, columns, expected):
    path = folder / "list.jsonl"
    path.write_text(json.dumps({"source": "source.png", "instruction": "make it blue", **row}))
    examples = read_preferences(path, columns=columns).examples
    assert order(examples, folder) == expected and len(examples) == 3
    assert {example.chosen.task for example in examples} == {"edit"}


def test_candidates_in_rows_of_their_own_are_compared_within_a_prompt(folder):
    path = folder / "scored"
    rows = [("x", "one", 1), ("y", "two", 5), ("x", "two", 2), ("y", "one", 4), ("z", "three", 3), ("x", "three", 2)]
    path.write_text("instruction\tedited\tscore\n" + "".join(f"{p}\t{name}.png\t{score}\n" for p, name, score in rows))
    examples = read_preferences(path).examples
    by_prompt = {prompt: [e for e in examples if e.chosen.prompt_text == prompt] for prompt in "xyz"}
    assert order(by_prompt["x"], folder) == {"two>one", "three>one", "two=three"}
    assert order(by_prompt["y"], folder) == {"two>one"} and not by_prompt["z"]
    assert by_prompt["y"][0].chosen_scores == {"overall": 5.0}


def test_answers_in_words_with_and_without_an_image(folder):
    row = {"prompt": "what is it?", "chosen": "a square", "rejected": "a dog", "images": [str(folder / "one.png")]}
    (pair,) = read_preferences([row]).examples
    assert (pair.chosen.task, pair.chosen.response_text, len(pair.chosen.prompt_images)) == ("response", "a square", 1)
    chat = {
        "prompt": [{"role": "user", "content": "what is it?"}],
        "chosen": [{"role": "assistant", "content": "a square"}],
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "a dog"}]}],
    }
    (pair,) = read_preferences(datasets.Dataset.from_list([chat])).examples
    assert (pair.chosen.prompt_text, pair.rejected.response_text) == ("what is it?", "a dog")
    assert pair.chosen.prompt_images == ()


def test_labels_scores_and_critiques_of_dimensions_follow_their_side(folder):
    row = {"prompt": "x", "a": "one.png", "b": "two.png", "label": "B", "label_visual_quality": "A"}
    row |= {"chosen_critique_visual_quality": "smeared"}
    row |= {"beauty_of_a": 1, "beauty_of_b": 2, "critique": '{"reasoning": "done"}'}
    path = folder / "dimensions"
    path.write_text(json.dumps(row))
    columns = {"chosen_score_beauty": "beauty_of_a", "rejected_score_beauty": "beauty_of_b"}
    columns |= {"rejected_critique_visual_quality": "critique"}
    (pair,) = read_preferences(path, columns=columns).examples
    assert order([pair], folder) == {"two>one"}
    assert pair.labels == {"overall": 1, "visual_quality": -1, "beauty": 1}
    assert (pair.chosen_scores, pair.rejected_scores) == ({"beauty": 2}, {"beauty": 1})
    assert (pair.chosen_critiques, pair.rejected_critiques) == (
        {"visual_quality": Critique("done")},
        {"visual_quality": Critique("smeared")},
    )


def test_texts_to_learn(folder):
    path = folder / "texts"
    path.write_text("instruction,edited,text\nx,one.png,done as asked\n")
    (example,) = read_preferences(path).examples
    assert (example.text, example.sample.task) == ("done as asked", "generation")


def test_every_order_of_columns_is_the_same(folder):
    row = {"prompt": "x", "chosen": str(folder / "one.png"), "rejected": str(folder / "two.png")}
    for names in permutations(row):
        (pair,) = read_preferences([{name: row[name] for name in names}]).examples
        assert order([pair], folder) == {"one>two"}


def test_images_of_a_data_set_are_read_when_they_are_asked_for_and_not_decoded(folder):
    rows = [{"prompt": "x", "chosen": str(folder / "one.png"), "rejected": str(folder / "two.png")}]
    images = (
        datasets.Dataset.from_list(rows)
        .cast_column("chosen", datasets.Image())
        .cast_column("rejected", datasets.Image())
    )
    (pair,) = read_preferences(images).examples
    assert pair.chosen.response_images == (str(folder / "one.png"),)
    pictures = datasets.Dataset.from_list(
        [{**rows[0], "chosen": Image.new("RGB", (8, 8)), "rejected": Image.new("RGB", (9, 9))}]
    )
    (pair,) = read_preferences(pictures).examples
    assert isinstance(pair.chosen.response_images[0], bytes)


# --- whatever a table holds -------------------------------------------------------------------------------------------

WORDS = ["one.png", "two.png", "A", "tie", "A>B", "", " ", "1", "words", "data:image/png;base64,", "\ud800"]
KEYS = st.sampled_from(["bytes", "path", "role", "content"])
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 10**30) | st.floats() | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner),
    max_leaves=4,
)
FORMS = [
    {"prompt": "x", "source": "source.png", "chosen": "one.png", "rejected": "two.png", "tie": False},
    {"prompt": "x", "chosen": "yes", "rejected": "no", "images": ["one.png"], "chosen_critique_visual_quality": "x"},
    {"prompt": "x", "a": "one.png", "b": "two.png", "label": "A", "label_visual_quality": "B", "chosen_score": 1},
    {"prompt": "x", "ranked": ["one.png", "two.png"]},
    {"prompt": "x", "candidates": ["one.png", "two.png"], "ranking": "A>B"},
    {"prompt": "x", "candidates": ["one.png", "two.png"], "scores": [1, 2], "scores_visual_quality": [1, 1]},
    {"prompt": "x", "edited": "one.png", "score": 3},
    {"prompt": "x", "edited": "one.png", "text": "done"},
]


@settings(max_examples=200)
@given(st.sampled_from(FORMS), st.data())
def test_any_values_are_read_or_refused_in_a_sentence(folder, form, data):
    changes = st.dictionaries(st.sampled_from([*form, "source", "other"]), VALUE, max_size=2)
    rows = [form, form | data.draw(changes), form | data.draw(changes)]
    as_file = data.draw(st.booleans())
    if as_file:
        (folder / "any").write_text("\n".join(map(json.dumps, rows)))
    try:
        records = read_preferences(folder / "any" if as_file else rows, strict=False)
    except JRMError as error:
        assert "\n" not in str(error)
    else:
        assert len([*records.examples]) == len(records.examples)
        assert all("\n" not in bad.reason for bad in records.bad)


BEGINNINGS = [b"", b"[", b'{"a": 1}\n', b"a,b\n1,2\n", b"PAR1", b"prompt\tchosen\trejected\n"]


@given(st.binary(max_size=60), st.sampled_from(BEGINNINGS))
def test_any_bytes_are_refused_in_a_sentence(folder, content, begin):
    (folder / "any").write_bytes(begin + content)
    with pytest.raises(JRMError) as error:
        read_preferences(folder / "any")
    assert "\n" not in str(error.value)
