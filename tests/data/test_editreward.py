"""EditReward's format: what is read, what is refused and how it is named, and that writing loses nothing."""

import json

import numpy as np
import pytest
from PIL import Image

from jrm_plugin.data.editreward import read_edit_reward, read_language, write_edit_reward, write_language
from jrm_plugin.errors import JRMError
from jrm_plugin.records.critiques import Critique, EditRegion
from jrm_plugin.records.preferences import CritiqueExample, PreferencePair
from jrm_plugin.records.samples import Sample

RECORD = {
    "prompt": "make it blue",
    "choice_dist": None,
    "confidence": None,
    "path_src": "img/source.png",
    "path1": "img/a.png",
    "path2": "img/b.png",
    "model1": "one",
    "model2": "two",
    "model1_dim1_score": 4,
    "model1_dim2_score": 2,
    "model1_overall_score": 6,
    "model2_dim1_score": 1,
    "model2_dim2_score": 3,
    "model2_overall_score": 4,
    "tie_case": False,
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "img").mkdir()
    for shade, name in enumerate(("source", "second", "a", "b", "c")):
        Image.new("RGB", (8, 8), (20 * shade, 90, 200)).save(tmp_path / "img" / f"{name}.png")
    (tmp_path / "img" / "text.png").write_text("this is no picture")
    (tmp_path / "img" / "empty.png").write_bytes(b"")
    Image.new("RGB", (4, 2000)).save(tmp_path / "img" / "line.png")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "img" / "whole.png")
    content = (tmp_path / "img" / "whole.png").read_bytes()
    (tmp_path / "img" / "cut.png").write_bytes(content[: len(content) // 2])
    return tmp_path


def save(folder, records, name="train.json"):
    path = folder / name
    if name.endswith(".jsonl"):
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_text(json.dumps(records))
    return path


def without(record, *keys):
    return {key: value for key, value in record.items() if key not in keys}


def test_every_field_arrives(folder):
    record = {**RECORD, "choice_dist": [3, 1], "confidence": 0.75, "country": "Chile"}
    (pair,) = read_edit_reward(save(folder, [record])).examples
    assert pair.chosen == Sample.edit(str(folder / "img/source.png"), "make it blue", str(folder / "img/a.png"))
    assert pair.rejected.response_images == (str(folder / "img/b.png"),)
    assert pair.chosen_scores == {"instruction_following": 4, "visual_quality": 2}
    assert pair.rejected_scores == {"instruction_following": 1, "visual_quality": 3}
    assert pair.labels == {"overall": 1, "instruction_following": 1, "visual_quality": -1}
    told = {"model1": "one", "model2": "two", "choice_dist": [3, 1], "confidence": 0.75, "country": "Chile"}
    assert pair.info == {**told, "file": str(folder / "train.json"), "row": 1}


def test_ties_overall_and_by_dimension(folder):
    record = {**RECORD, "tie_case": True, "model1_dim1_score": 2.5, "model2_dim1_score": 2.5}
    (pair,) = read_edit_reward(save(folder, [record])).examples
    assert pair.labels == {"overall": 0, "instruction_following": 0, "visual_quality": -1}


def test_a_pair_without_scores_is_labelled_overall_only(folder):
    bare = {key: RECORD[key] for key in ("prompt", "path_src", "path1", "path2")}
    half = {**bare, "model1_dim2_score": 3, "model2_dim2_score": 3, "model1_dim1_score": None}
    pairs = read_edit_reward(save(folder, [bare, half])).examples
    assert [pair.labels for pair in pairs] == [{"overall": 1}, {"overall": 1, "visual_quality": 0}]


def test_no_source_and_several_sources(folder):
    records = [{**RECORD, "path_src": None}, {**RECORD, "path_src": ["img/source.png", "img/second.png"]}]
    none, several = (pair.chosen for pair in read_edit_reward(save(folder, records)).examples)
    assert none.task == "generation"
    assert several.prompt_images == (str(folder / "img/source.png"), str(folder / "img/second.png"))


def test_images_root_and_absolute_paths(folder):
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    record = {**RECORD, "path_src": "source.png", "path1": "a.png", "path2": str(folder / "img" / "b.png")}
    path = save(elsewhere, [record])
    (pair,) = read_edit_reward(path, images_root=folder / "img").examples
    assert pair.chosen.response_images == (str(folder / "img/a.png"),)
    assert pair.rejected.response_images == (str(folder / "img/b.png"),)
    with pytest.raises(JRMError, match="does not exist"):
        read_edit_reward(path)


BAD = {
    "missing key": (without(RECORD, "path1", "prompt"), "missing prompt, path1"),
    "not an object": (["prompt"], "must be a JSON object, not a list"),
    "missing file": ({**RECORD, "path2": "img/nowhere.png"}, "nowhere.png.*does not exist"),
    "not an image": ({**RECORD, "path1": "img/text.png"}, "text.png.*not an image"),
    "empty file": ({**RECORD, "path_src": "img/empty.png"}, "empty.png.*empty"),
    "extreme aspect": ({**RECORD, "path1": "img/line.png"}, "line.png.*4x2000"),
    "a folder": ({**RECORD, "path1": "img"}, "img.*cannot be read"),
    "URL": ({**RECORD, "path1": "https://example.org/a.png"}, "download it first"),
    "path is a number": ({**RECORD, "path1": 3}, "path, not 3"),
    "empty instruction": ({**RECORD, "prompt": "  "}, "instruction is empty"),
    "instruction is null": ({**RECORD, "prompt": None}, "instruction must be text"),
    "unknown label": ({**RECORD, "tie_case": "maybe"}, "tie_case must be true or false, not 'maybe'"),
    "score is text": ({**RECORD, "model2_dim1_score": "good"}, "model2_dim1_score must be a number, not 'good'"),
    "score of one side": (without(RECORD, "model1_dim2_score"), "model1_dim2_score must be a number, not None"),
    "choice_dist": ({**RECORD, "choice_dist": [1]}, "choice_dist must be null or a list of two numbers"),
    "confidence": ({**RECORD, "confidence": "high"}, "confidence must be null or a number"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_stops_or_is_listed(name, folder):
    record, reason = BAD[name]
    path = save(folder, [RECORD, record, RECORD, record])
    with pytest.raises(JRMError, match=rf"train\.json, row 2: .*{reason}.*\(2 bad records in all"):
        read_edit_reward(path)
    records = read_edit_reward(path, strict=False)
    assert [pair.info["row"] for pair in records.examples] == [1, 3]
    assert [(bad.file, bad.row) for bad in records.bad] == [(str(path), 2), (str(path), 4)]
    assert str(records.bad[0]).startswith(f"{path}, row 2: ")


def test_a_file_that_is_cut_off_is_found_by_its_end(folder):
    path = save(folder, [RECORD, {**RECORD, "path2": "img/cut.png"}])
    with pytest.raises(JRMError, match=r"row 2: image .*cut\.png' is damaged or cut off.* \(1 bad record in all"):
        read_edit_reward(path)


def test_damage_in_the_middle_of_a_file_is_found_by_decoding(folder):
    content = bytearray((folder / "img" / "whole.png").read_bytes())
    content[len(content) // 2] ^= 255
    (folder / "img" / "flipped.png").write_bytes(content)
    path = save(folder, [RECORD, {**RECORD, "path2": "img/flipped.png"}])
    assert len(read_edit_reward(path).examples) == 2
    with pytest.raises(JRMError, match=r"row 2: image .*flipped\.png' is damaged"):
        read_edit_reward(path, decode=True)
    records = read_edit_reward(path, strict=False)  # what is to be left out must be known
    assert len(records.examples) == 1
    assert "flipped.png" in records.bad[0].reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'[\n{"prompt": 1,}\n]', "line 2: not valid JSON"),
        (b'{"prompt": "x"}', "must hold a JSON list"),
        (b"\xc3\x28", "not UTF-8"),
        (b"", "line 1: not valid JSON"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_a_file_that_is_no_list_of_records(content, reason, strict, folder):
    path = folder / "train.json"
    path.write_bytes(content)
    with pytest.raises(JRMError, match=reason):
        read_edit_reward(path, strict=strict)


def test_a_missing_file(tmp_path):
    with pytest.raises(JRMError, match="nowhere.json does not exist"):
        read_edit_reward(tmp_path / "nowhere.json")
    with pytest.raises(JRMError, match="nowhere.jsonl does not exist"):
        read_language(tmp_path / "nowhere.jsonl")


# --- critiques --------------------------------------------------------------------------------------------------------

FOLLOWING = {
    "edit_region": [{"id": 0, "label": "cat", "bbox_2d": [0, 10, 500, 900]}],
    "reasoning": "<|bbox_0|> the cat is blue <|global|> fine",
}
LINE = {
    "prompt": "make it blue",
    "path_src": "img/source.png",
    "path": "img/a.png",
    "instruction_following": FOLLOWING,
    "visual_quality": {"reasoning": "sharp"},
}


def test_critiques_belong_to_an_image_wherever_it_occurs(folder):
    path = save(folder, [RECORD, {**RECORD, "path1": "img/c.png", "path2": "img/a.png"}])
    save(folder, [LINE], "train_critiques.jsonl")
    first, second = read_edit_reward(path).examples
    expected = {
        "instruction_following": Critique(FOLLOWING["reasoning"], (EditRegion(0, "cat", (0, 10, 500, 900)),)),
        "visual_quality": Critique("sharp"),
    }
    assert first.chosen_critiques == expected == second.rejected_critiques
    assert first.rejected_critiques == {} == second.chosen_critiques


def test_critiques_from_a_named_file_and_unused_lines(folder):
    path = save(folder, [RECORD])
    other = save(folder, [LINE, {**LINE, "path": "img/c.png"}], "mine.jsonl")
    with pytest.warns(UserWarning, match="1 of 2 lines of .*mine.jsonl belong to no record"):
        (pair,) = read_edit_reward(path, critiques=other).examples
    assert set(pair.chosen_critiques) == {"instruction_following", "visual_quality"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": "make', "not valid JSON"),
        ("[1]", "must be a JSON object"),
        (without(LINE, "path"), "missing path"),
        ({**LINE, "path": ["img/a.png"]}, "must be text"),
        ({**LINE, "path": "img/b.png", "visual_quality": {"reason": "x"}}, "not a valid critique"),
        ({**LINE, "path": "img/b.png", "visual_quality": {"reasoning": "<|bbox_1|> x"}}, "bbox_1"),
        (LINE, "second line"),
    ],
)
def test_a_bad_line_of_critiques(line, reason, folder):
    path = save(folder, [RECORD])
    save(folder, [LINE, line], "train_critiques.jsonl")
    with pytest.raises(JRMError, match=rf"train_critiques.jsonl, row 2: .*{reason}"):
        read_edit_reward(path)
    records = read_edit_reward(path, strict=False)
    assert len(records.examples) == 1 and records.examples[0].chosen_critiques
    assert [bad.row for bad in records.bad] == [2]


# --- language ---------------------------------------------------------------------------------------------------------

TEXT = {"prompt": "list objects", "path_src": None, "path": "img/a.png", "text": "a cat", "kind": "caption"}


def test_language_rows(folder):
    edit = {**TEXT, "path_src": "img/source.png", "prompt": "list changes"}
    path = save(folder, [TEXT, "", edit], "language.jsonl")
    caption, change = read_language(path).examples
    assert caption.sample == Sample.generation("list objects", str(folder / "img/a.png"))
    assert (caption.text, caption.info) == ("a cat", {"kind": "caption", "file": str(path), "row": 1})
    assert change.sample.task == "edit" and change.info["row"] == 3


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt"', "not valid JSON"),
        ("3", "must be a JSON object, not a int"),
        (without(TEXT, "text"), "missing text"),
        ({**TEXT, "text": " "}, "empty"),
        ({**TEXT, "prompt": ""}, "instruction is empty"),
        ({**TEXT, "path": "img/text.png"}, "not an image"),
    ],
)
def test_a_bad_language_row(line, reason, folder):
    path = save(folder, [TEXT, line, TEXT], "language.jsonl")
    with pytest.raises(JRMError, match=rf"language.jsonl, row 2: .*{reason}.*\(1 bad record in all"):
        read_language(path)
    records = read_language(path, strict=False)
    assert len(records.examples) == 2 and [bad.row for bad in records.bad] == [2]


# --- writing ----------------------------------------------------------------------------------------------------------


def pair_of(folder, chosen="a", rejected="b", **changes):
    sample = {
        name: Sample.edit(str(folder / "img/source.png"), "make it “blau”", str(folder / f"img/{name}.png"))
        for name in "abc"
    }
    fields = {
        "chosen_scores": {"instruction_following": 4.0, "visual_quality": 1.0},
        "rejected_scores": {"instruction_following": 2.0, "visual_quality": 2.0},
        "labels": {"overall": 1},
        "info": {"edit": "recolour", "choice_dist": [2, 1]},
    }
    return PreferencePair(sample[chosen], sample[rejected], **{**fields, **changes})


def plain(pair):
    """All of a pair but where it was read."""
    info = {key: value for key, value in pair.info.items() if key not in ("file", "row")}
    return pair.chosen, pair.rejected, dict(pair.labels), pair.chosen_scores, pair.chosen_critiques, info


def test_pairs_survive_writing_and_reading(folder):
    critiques = {"instruction_following": Critique("<|bbox_0|> blau", (EditRegion(0, "cat", (1, 2, 3, 4)),))}
    pairs = [
        pair_of(folder, chosen_critiques=critiques),
        pair_of(folder, "c", "a", rejected_critiques=critiques, labels={"overall": 0}),
        pair_of(folder, "b", "c", chosen_scores=None, rejected_scores=None, info={}),
        pair_of(folder, "b", "c", chosen_scores={"visual_quality": 3}, rejected_scores={"visual_quality": 3}),
        pair_of(
            folder,
            "b",
            "a",
            chosen_scores={"instruction_following": 4.0, "visual_quality": 1.0, "consistency": 4.0},
            rejected_scores={"instruction_following": 3.0, "visual_quality": 4.0, "consistency": 1.0},
        ),
    ]
    path = write_edit_reward(folder / "train.json", pairs)
    again = read_edit_reward(path).examples
    assert list(map(plain, again)) == list(map(plain, pairs))
    assert again[1].rejected_critiques == critiques
    written = json.loads(path.read_text())
    assert written[0]["path1"] == "img/a.png" and written[0]["model1_overall_score"] == 5
    assert (written[4]["model1_overall_score"], written[4]["model2_consistency_score"]) == (9, 1)
    assert len((folder / "train_critiques.jsonl").read_text().splitlines()) == 1
    before = path.read_text()
    assert write_edit_reward(path, again).read_text() == before


def test_files_outside_the_folder_are_written_with_their_whole_path(folder):
    (folder / "out").mkdir()
    path = write_edit_reward(folder / "out" / "train.json", [pair_of(folder)])
    assert json.loads(path.read_text())[0]["path1"] == str(folder / "img" / "a.png")
    assert plain(read_edit_reward(path).examples[0]) == plain(pair_of(folder))


def test_old_critiques_do_not_outlive_their_pairs(folder):
    write_edit_reward(folder / "train.json", [pair_of(folder, chosen_critiques={"visual_quality": Critique("x")})])
    write_edit_reward(folder / "train.json", [pair_of(folder)])
    assert not (folder / "train_critiques.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"labels": {"overall": -1}}, "overall"),
        ({"labels": {"visual_quality": -1}}, "overall"),
        ({"labels": {"overall": 1, "visual_quality": 1}}, "contradicts"),
        ({"chosen_scores": None, "labels": {"overall": 1, "visual_quality": 1}}, "score of both"),
        ({"chosen_scores": {"beauty": 3}, "rejected_scores": {"beauty": 2}}, "beauty"),
    ],
)
def test_what_the_format_cannot_say(changes, reason, folder):
    with pytest.raises(JRMError, match=f"pair 2 .*{reason}"):
        write_edit_reward(folder / "train.json", [pair_of(folder), pair_of(folder, **changes)])
    assert not (folder / "train.json").exists()


def test_images_in_memory_and_texts_as_response_are_refused(folder):
    image = Image.new("RGB", (4, 4))
    pictures = PreferencePair(*[Sample.edit(image, "x", image)] * 2, labels={"overall": 0})
    texts = PreferencePair(*[Sample.text_response(str(folder / "img/a.png"), "x", "y")] * 2, labels={"overall": 0})
    with pytest.raises(JRMError, match="must be files"):
        write_edit_reward(folder / "train.json", [pictures])
    with pytest.raises(JRMError, match="one image"):
        write_edit_reward(folder / "train.json", [texts])


def test_language_survives_writing_and_reading(folder):
    sample = Sample.edit(str(folder / "img/source.png"), "list changes", str(folder / "img/a.png"))
    rows = [CritiqueExample(sample, "rot → blau", {"kind": "diff"})]
    path = write_language(folder / "language.jsonl", rows)
    (again,) = read_language(path).examples
    assert (again.sample, again.text, again.info["kind"]) == (sample, "rot → blau", "diff")
    assert write_language(folder / "again.jsonl", [again]).read_text() == path.read_text()


def test_a_folder_that_does_not_exist(folder):
    with pytest.raises(JRMError, match="train.json cannot be written"):
        write_edit_reward(folder / "nowhere" / "train.json", [pair_of(folder)])
