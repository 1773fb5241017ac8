"""Samples to score in bulk, named as people and their systems name them."""

import csv
import json
import logging
import shutil

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from pictures import encode
from PIL import Image

from jrm_plugin.data.samples import read_samples
from jrm_plugin.errors import JRMError


@pytest.fixture
def folder(tmp_path):
    """A folder of one edit: a source, one edited image, an instruction."""
    one = tmp_path / "set" / "one"
    one.mkdir(parents=True)
    for name, colour in (("source.png", "red"), ("edited.png", "blue")):
        (one / name).write_bytes(encode(Image.new("RGB", (8, 8), colour)))
    (one / "instruction.txt").write_text("make it blue")
    return one


def edited_and_sources(folder):
    return {item.record["edited"]: item.record["source"] for item in read_samples(folder.parent)}


def test_capital_letters_make_no_difference(folder):
    (folder / "source.png").rename(folder / "Source.PNG")
    (folder / "instruction.txt").rename(folder / "Instruction.TXT")
    assert edited_and_sources(folder) == {"one/edited.png": ["one/Source.PNG"]}


def test_only_source_and_its_numbers_are_sources(folder):
    for name in ("source_of_light.png", "source_10.png", "source_9.png"):
        shutil.copy(folder / "edited.png", folder / name)
    sources = ["one/source.png", "one/source_9.png", "one/source_10.png"]
    assert edited_and_sources(folder) == {"one/edited.png": sources, "one/source_of_light.png": sources}


@pytest.mark.parametrize("name", ["sources.png", "original.png", "Before.png", "src.png"])
def test_what_may_be_a_source_is_refused_where_there_is_none(folder, name):
    (folder / "source.png").rename(folder / name)
    with pytest.raises(JRMError, match=f"{name} may be the source of the edits beside it; call it source.png"):
        read_samples(folder.parent)


def test_what_systems_leave_beside_images_is_no_part_of_it(folder, caplog):
    (folder / "._edited.png").write_bytes(b"of a Mac")
    (folder / "Thumbs.db").write_bytes(b"of Windows")
    (folder.parent / "__MACOSX").mkdir()
    shutil.copy(folder / "edited.png", folder.parent / "__MACOSX" / "edited.png")
    assert edited_and_sources(folder) == {"one/edited.png": ["one/source.png"]}
    assert not caplog.messages
    (folder / "notes.md").write_text("what I thought")
    read_samples(folder.parent)
    assert caplog.messages == [
        f"1 files in {folder.parent} are no images and are not scored; the first is {folder / 'notes.md'}."
    ]


def test_images_without_an_instruction_are_not_passed_over(folder):
    shutil.copytree(folder, folder.parent / "two")
    (folder.parent / "two" / "instruction.txt").rename(folder.parent / "two" / "prompt.txt")
    with pytest.raises(JRMError, match="two must hold one instruction.txt beside its images, not 0"):
        read_samples(folder.parent)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_encoding_of_text_makes_no_difference(folder, encoding):
    (folder / "instruction.txt").write_text("mach es grün", encoding=encoding)
    (item,) = read_samples(folder.parent)
    record = {"source": "one/source.png", "instruction": "mach es grün", "edited": "one/edited.png"}
    lines = folder.parent / "input.jsonl"
    lines.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding=encoding)
    (same,) = read_samples(lines)
    assert same.sample == item.sample


def test_every_name_of_a_field_gives_the_same_sample(folder):
    lines, samples = folder / "input.jsonl", set()
    for source in ("source", "source_image", "path_src", "source_images"):
        record = {source: "source.png", "instruction": "make it blue", "edited_image": "edited.png", "id": 3}
        lines.write_text(json.dumps(record))
        (item,) = read_samples(lines)
        assert item.record == record
        samples.add(item.sample)
    assert len(samples) == 1 and next(iter(samples)).task == "edit"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"Source": "source.png"}, "row 1: it has 'Source', which means nothing; write 'source', or rename it"),
        ({"input_image": "source.png"}, "row 1: it has no source, and an image in 'input_image'"),
        ({"source": "source.png", "path_src": "source.png"}, "row 1: it has both 'source' and 'path_src'"),
    ],
)
def test_a_line_whose_source_would_be_passed_over_is_refused(folder, record, reason):
    lines = folder / "input.jsonl"
    lines.write_text(json.dumps({"instruction": "make it blue", "edited": "edited.png", **record}))
    with pytest.raises(JRMError, match=reason):
        read_samples(lines)


def test_samples_of_several_tasks_are_said(folder, caplog):
    lines = folder / "input.jsonl"
    records = [
        {"instruction": "make it blue", "edited": "edited.png", **more} for more in ({}, {"source": "source.png"}, {})
    ]
    lines.write_text("\n".join(map(json.dumps, records)))
    with caplog.at_level(logging.WARNING):
        read_samples(lines)
    assert caplog.messages == [f"{lines} holds samples of several tasks: 2 as generations and 1 as edits are scored."]


def test_tables_of_every_kind_hold_the_same_samples(folder):
    """Told by their content; images as paths or as the content of files."""
    record = {"source": "source.png", "instruction": "make it blue", "edited": "edited.png", "id": "7"}
    stored = {**record, **{name: (folder / record[name]).read_bytes() for name in ("source", "edited")}}
    (folder / "lines").write_text(json.dumps(record))
    (folder / "list").write_text(json.dumps([record]))
    (folder / "commas").write_text("source,instruction,edited,id\nsource.png,make it blue,edited.png,7\n")
    (folder / "tabs").write_text("source\tinstruction\tedited\tid\nsource.png\tmake it blue\tedited.png\t7\n")
    pq.write_table(pa.Table.from_pylist([record]), folder / "parquet")
    pq.write_table(pa.Table.from_pylist([stored]), folder / "bytes")
    Dataset.from_list([stored]).cast_column("edited", datasets.Image()).save_to_disk(folder / "saved")
    expected, *others = [read_samples(folder / name) for name in ("lines", "list", "commas", "tabs", "parquet")]
    assert [item for (item,) in others] == expected * 4 and expected[0].record == record
    for name in ("bytes", "saved"):
        (item,) = read_samples(folder / name)
        images = [*item.sample.prompt_images, *item.sample.response_images]
        assert images == [(folder / file).read_bytes() for file in ("source.png", "edited.png")]
        assert json.dumps(item.record) and item.record["id"] == "7" and item.record["edited"] == f"{name}#1"


def test_a_mapping_of_columns(folder):
    (folder / "lines").write_text(json.dumps({"before": "source.png", "what": "make it blue", "after": "edited.png"}))
    with pytest.raises(JRMError, match="row 1: missing instruction"):
        read_samples(folder / "lines")
    (item,) = read_samples(folder / "lines", columns={"source": "before", "instruction": "what", "edited": "after"})
    assert item.record == {"source": "source.png", "instruction": "make it blue", "edited": "edited.png"}
    assert item.sample.task == "edit"
    with pytest.raises(JRMError, match="columns has the field 'chosen', which is none of source, instruction, edited"):
        read_samples(folder / "lines", columns={"chosen": "after"})


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_tables_give_the_samples_of_json_lines(folder, ending):
    records = [
        {"source": "source.png", "instruction": 'make it "blue", or\ngreen', "edited": "edited.png", "id": "007"},
        {"source": ["source.png", "edited.png"], "instruction": "join them", "edited": "edited.png", "id": "x"},
        {"source": None, "instruction": "[a cat]", "edited": "edited.png", "id": None},
    ]
    (folder / "in.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if ending == "parquet":
        for record in records:
            record["source"] = [record["source"]] if isinstance(record["source"], str) else record["source"]
        pq.write_table(pa.Table.from_pylist(records), folder / "in.parquet")
    else:
        with (folder / f"in.{ending}").open("w", newline="") as file:
            writer = csv.DictWriter(file, records[0], delimiter="\t" if ending == "tsv" else ",")
            writer.writeheader()
            for record in records:
                source = record["source"]
                writer.writerow(record | {"source": json.dumps(source) if isinstance(source, list) else source})
    items, same = read_samples(folder / "in.jsonl"), read_samples(folder / f"in.{ending}")
    assert [item.sample for item in items] == [item.sample for item in same]
    assert [item.record["id"] for item in items] == [item.record["id"] for item in same]
    assert len(read_samples(folder / f"i*.{ending}")) == 3


def test_a_row_with_another_number_of_cells_is_refused(folder):
    (folder / "in.csv").write_text("instruction,edited,source\nx,edited.png,\n\na cat, or a dog,edited.png,\n")
    with pytest.raises(JRMError, match="row 4: it has 4 cells, and the first line 3"):
        read_samples(folder / "in.csv")
    (folder / "in.parquet").write_text("no table")
    with pytest.raises(JRMError, match="in.parquet has one column|in.parquet is no table"):
        read_samples(folder / "in.parquet")


def test_images_for_an_instruction_that_is_given(folder, caplog):
    (folder / "instruction.txt").rename(folder / "notes.md")
    (item,) = read_samples(folder.parent, instruction="make it blue", sources=[str(folder / "source.png")])
    assert item.sample.prompt_images == (str(folder / "source.png"),) and item.record["edited"] == "one/edited.png"
    assert "notes.md" in caplog.text
    with pytest.raises(JRMError, match="source.png may be the source"):
        read_samples(folder.parent, instruction="make it blue")
    (folder / "notes.md").rename(folder / "instruction.txt")
    with pytest.raises(JRMError, match="is an instruction already"):
        read_samples(folder, instruction="make it blue", sources=[str(folder / "source.png")])
