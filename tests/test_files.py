"""Files are read with one sentence where that fails, and written whole or not at all."""

import os

import pytest
from PIL import Image

from jrm_plugin.errors import JRMError
from jrm_plugin.files import (
    check_image_writable,
    read_json,
    read_text,
    replacing,
    write_image,
    write_json,
    write_text,
)


def test_a_byte_order_mark_is_no_part_of_the_content(tmp_path):
    for name, content in (("a.txt", "täxt"), ("a.json", '{"a": 1}')):
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
    assert read_text(tmp_path / "a.txt") == "täxt"
    assert read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize("read", [read_text, read_json])
def test_what_cannot_be_read_is_named(tmp_path, read):
    (tmp_path / "latin").write_bytes("täxt".encode("latin-1"))
    for name, reason in (("nowhere", "does not exist"), ("", "cannot be read"), ("latin", "is not UTF-8")):
        with pytest.raises(JRMError, match=f"{tmp_path / name} {reason}"):
            read(tmp_path / name)


def test_what_is_no_json_is_named_with_its_line(tmp_path):
    path = write_text(tmp_path / "broken", "{\n a: [")
    with pytest.raises(JRMError, match="broken, line 2: not valid JSON"):
        read_json(path)
    for content, said in (
        ("[" * 50_000, "nested too deep"),
        ("1" * 5000, "a number that is too long"),
        ("[" * 150 + "]" * 150, "nested too deep"),
        ('{"a": 1, "a": 2}', "the key 'a' twice"),
    ):
        with pytest.raises(JRMError, match=f"broken .*{said}"):
            read_json(write_text(path, content))


def test_a_file_that_could_not_be_written_is_the_old_one(tmp_path):
    path = write_json(tmp_path / "a.json", ["old"])
    for error, raised in ((KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space left on device"), JRMError)):
        with pytest.raises(raised), replacing(path) as staging:
            staging.write_text("half of the n")
            raise error
        assert read_json(path) == ["old"] and os.listdir(tmp_path) == ["a.json"]
    with pytest.raises(JRMError, match="a.json/b.txt cannot be written"):
        write_text(path / "b.txt", "new")


def test_an_image_is_written_as_its_name_says(tmp_path):
    for name, format in (("a.png", "PNG"), ("b.JPG", "JPEG")):
        check_image_writable(tmp_path / "new" / name)
        write_image(tmp_path / "new" / name, Image.new("RGB", (4, 4)))
        with Image.open(tmp_path / "new" / name) as written:
            assert written.format == format
    with pytest.raises(JRMError, match="must have a name that ends in .png"):
        check_image_writable(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["folder.png", "x.xbm", "x.hdf", "y" * 300 + ".png"])
def test_an_image_that_cannot_be_written_is_told_before_the_work(tmp_path, name):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(JRMError, match=name[:20]):
        check_image_writable(tmp_path / name)
    assert os.listdir(tmp_path) == ["folder.png"]
