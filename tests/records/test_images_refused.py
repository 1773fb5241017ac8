"""What `load_image` and `image_size` refuse, and how the error names it."""

import base64
import errno
import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import encode
from PIL import Image, ImageFile

from jrm_plugin.errors import JRMError
from jrm_plugin.records import images
from jrm_plugin.records.images import image_size, load_image

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (11, 17, 3), dtype=np.uint8)
EXIF = Image.Exif()
EXIF[0x0112] = 6  # orientation


def data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing, as a decompression bomb does."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"this is a text, not an image\n", "is not an image that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "is not an image that can be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not an image that can be read"),
        (png_of_size(1, 10000), "is 1x10000 pixels: one side is over 200 times the other"),
        (png_of_size(10000, 1), "is 10000x1 pixels: one side is over 200 times the other"),
        (png_of_size(10000, 9000), "more than 89478485 pixels"),  # where Pillow warns
        (png_of_size(50000, 50000), "more than 89478485 pixels"),  # where Pillow raises
        (png_of_size(0, 5), "(no pixels|is not an image|damaged)"),
    ],
)
@pytest.mark.parametrize("function", [load_image, image_size])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_files_that_are_not_images_are_named(function, content, says, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(JRMError, match=f"^image '.*picture.png'.*{says}") as caught:
        function(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(JRMError, match=f"^row 3 .*{says}"):
        function(content, name="row 3")
    with pytest.raises(JRMError, match=f"^image in a data: URL.*{says}"):
        function(data_url(content))


def test_a_bomb_is_the_same_error_when_pillow_s_warning_is_one(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for size in ((10000, 9000), (50000, 50000)):
            with pytest.raises(JRMError, match="more than 89478485 pixels"):
                load_image(png_of_size(*size))


def test_the_limit_of_pixels_is_the_users_to_set_and_pillow_s_own_does_not_count(monkeypatch):
    for limit in (100, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert load_image(encode(Image.fromarray(PIXELS))).size == (17, 11)
        with pytest.raises(JRMError, match="more than 89478485 pixels"):
            load_image(png_of_size(50000, 50000))
        assert limit == Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    for image in (PIXELS, Image.fromarray(PIXELS)):
        with pytest.raises(JRMError, match="17x11, has more than 100 pixels"):
            load_image(image)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("allowed_by_others", [False, True])
def test_cut_off_files(kind, kept, allowed_by_others, tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", allowed_by_others)
    noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    content = encode(noise, kind)
    path = tmp_path / f"photo.{kind.lower()}"
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(JRMError, match=r"photo\.\w+' .*(cut off|damaged|not an image that can be read)"):
        load_image(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is allowed_by_others


def test_a_disk_that_fails_at_the_first_read_is_named(tmp_path, monkeypatch):
    class Failing(io.BytesIO):
        def read(self, *_):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "open", lambda *_: Failing())
    with pytest.raises(JRMError, match=r"photo\.png' cannot be read: Input/output error"):
        load_image(tmp_path / "photo.png")


def test_a_png_with_damaged_pixels():
    content = bytearray(encode(Image.fromarray(PIXELS)))
    content[60] ^= 0xFF
    with pytest.raises(JRMError, match=r"^image bytes \(\d+ bytes\) is damaged or cut off"):
        load_image(bytes(content))


@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"II*\0", b"BM"]),
)
@pytest.mark.filterwarnings("ignore")
def test_arbitrary_bytes_give_an_image_or_the_one_error(content, magic):
    for function in (load_image, image_size):
        try:
            function(magic + content)
        except JRMError as error:
            assert str(error).startswith("image bytes")


@given(st.integers(0, 10**6), st.integers(0, 255), st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP"]))
@pytest.mark.filterwarnings("ignore")
def test_a_changed_byte_gives_an_image_or_the_one_error(position, value, kind):
    content = bytearray(encode(Image.fromarray(PIXELS), kind, **({} if kind == "GIF" else {"exif": EXIF})))
    content[position % len(content)] = value
    for function in (load_image, image_size):
        try:
            function(bytes(content))
        except JRMError as error:
            assert str(error).startswith("image bytes")


@pytest.mark.parametrize("function", [load_image, image_size])
def test_paths_that_are_no_files(function, tmp_path):
    with pytest.raises(JRMError, match=r"'.*nothing here\.png' does not exist: check the path"):
        function(tmp_path / "nothing here.png")
    with pytest.raises(JRMError, match=r"row 3 \(image '.*'\) cannot be read: Is a directory"):
        function(str(tmp_path), name="row 3")
    with pytest.raises(JRMError, match="cannot be read"):
        function("a\0b.png")
    with pytest.raises(JRMError, match="cannot be read: File name too long") as caught:
        function("A" * 10000)
    assert len(str(caught.value)) < 500
    for url in ("http://example.com/a.png", "HTTPS://example.com/a.png", "s3://bucket/a.png"):
        with pytest.raises(JRMError, match=f"'{url}' is a URL: download it first"):
            function(url)


@pytest.mark.parametrize(
    ("url", "says"),
    [("data:image/png;base64", "no comma"), ("data:image/png;base64,*!*", "not valid base64"), ("data:,", "is empty")],
)
def test_broken_data_urls(url, says):
    with pytest.raises(JRMError, match=f"image in a data: URL of {len(url)} characters {says}|{says}"):
        load_image(url)


@pytest.mark.parametrize("thing", [None, 7, [1, 2], object()])
def test_things_that_are_no_images(thing):
    with pytest.raises(JRMError, match=f"image of type {type(thing).__name__}: give a PIL image"):
        load_image(thing)


def test_a_pil_image_whose_file_was_closed_or_cut(tmp_path):
    path = tmp_path / "photo.jpg"
    noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path.write_bytes(encode(noise, "JPEG")[:2000])
    with pytest.raises(JRMError, match=r"photo\.jpg' is damaged or cut off"):
        load_image(Image.open(path))
    with pytest.raises(JRMError, match=r"^row 3 \(PIL image \(RGB, 0x5\)\) has no pixels"):
        load_image(Image.new("RGB", (0, 5)), name="row 3")
