import base64
import io
import struct
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import encode
from PIL import Image, ImageFile

from jrm_plugin.errors import JRMError
from jrm_plugin.records.images import MeasuredFile, check_image, digest, image_size, load_image, to_data_url

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (11, 17, 3), dtype=np.uint8)  # 17 wide, 11 high: no dimension can be mistaken


def pixels(image, **options) -> np.ndarray:
    picture = load_image(image, **options)
    assert picture.mode == "RGB"
    assert picture.size == image_size(image, **options)
    return np.asarray(picture)


def data_url(content: bytes, head: str = "data:image/png;base64,") -> str:
    return head + base64.b64encode(content).decode()


def is_refused(read, content: bytes) -> bool:
    try:
        read(content)
    except JRMError:
        return True
    return False


# --- where an image comes from ----------------------------------------------------------------------------------------


def test_every_source_gives_the_same_pixels(tmp_path):
    picture = Image.fromarray(PIXELS)
    png = encode(picture)
    path = tmp_path / "ünïcode näme.png"
    path.write_bytes(png)
    sources = [picture, Image.open(path), path, str(path), png, data_url(png), data_url(png, "DATA:;BASE64,"), PIXELS]
    sources.append("data:image/png," + "".join(f"%{byte:02x}" for byte in png))
    sources.append(data_url(png).rstrip("="))
    for source in sources:
        np.testing.assert_array_equal(pixels(source), PIXELS)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000"])
def test_lossless_formats_keep_their_pixels(kind):
    flat = np.full((8, 9, 3), (200, 30, 90), dtype=np.uint8)
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(flat), kind, **options)), flat)


def test_a_phone_photograph_with_two_pictures_gives_the_first():
    first, second = Image.new("RGB", (16, 8), "red"), Image.new("RGB", (16, 8), "blue")
    content = encode(first, "MPO", save_all=True, append_images=[second])
    assert Image.open(io.BytesIO(content)).format == "MPO"
    assert pixels(content)[0, 0, 0] > 200


def test_a_measured_file_is_opened_for_its_size_once():
    content = encode(Image.fromarray(PIXELS), "PNG")
    file = MeasuredFile(content)
    assert file == content and digest(file) == digest(content) and np.array_equal(pixels(file), PIXELS)
    with patch("PIL.Image.open", side_effect=AssertionError("it is opened again")):
        assert image_size(file) == (17, 11)
    with pytest.raises(JRMError, match=r"image bytes \(7 bytes\) is not an image"):
        image_size(MeasuredFile(b"nothing"))


def test_the_result_shares_nothing_with_the_input():
    picture = Image.fromarray(PIXELS)
    load_image(picture).putpixel((0, 0), (1, 2, 3))
    np.testing.assert_array_equal(np.asarray(picture), PIXELS)


def test_to_data_url_keeps_the_bytes_of_a_file_and_the_pixels_of_anything_else():
    jpeg = encode(Image.fromarray(PIXELS), "JPEG", quality=50)
    url = to_data_url(jpeg)
    assert url == data_url(jpeg, "data:image/jpeg;base64,")
    np.testing.assert_array_equal(pixels(url), pixels(jpeg))
    rgba = Image.fromarray(np.dstack([PIXELS, PIXELS[:, :, 0]]))
    np.testing.assert_array_equal(pixels(to_data_url(rgba)), pixels(rgba))


# --- what an image is -------------------------------------------------------------------------------------------------


def test_images_are_the_same_by_what_they_are(tmp_path):
    picture, png = Image.fromarray(PIXELS), encode(Image.fromarray(PIXELS))
    path = tmp_path / "a.png"
    path.write_bytes(png)
    groups = [
        [path, str(path)],
        [png, bytes(bytearray(png)), data_url(png), data_url(png, "DATA:;base64,")],
        [picture, picture.copy(), Image.open(path), PIXELS, PIXELS[::-1][::-1]],
        [picture.transpose(Image.Transpose.ROTATE_90), np.rot90(PIXELS)],
        [Image.fromarray(255 - PIXELS)],
        [Image.new("RGB", (17, 11)), Image.new("RGBA", (17, 11), (0, 0, 0, 255)), Image.new("P", (17, 11), 0)],
        [Image.new("RGB", (11, 17))],
        ["a.png"],
        ["data:image/png;base64,?"],  # broken, but one image all the same
        [b"a.png"],
    ]
    digests = [{digest(image) for image in group} for group in groups]
    assert [len(each) for each in digests] == [1] * len(groups)
    assert len(set.union(*digests)) == len(groups)


def test_no_file_is_opened_to_tell_which_image_it_is():
    assert digest("nowhere/a.png") != digest("nowhere/b.png")


@given(st.sampled_from(["RGB", "RGBA", "L"]), st.integers(0, 11 * 17 - 1))
def test_one_pixel_makes_another_image(mode, place):
    picture = Image.fromarray(PIXELS).convert(mode)
    other = picture.copy()
    bands = picture.getpixel((place % 17, place // 17))
    bands = bands if isinstance(bands, tuple) else (bands,)
    other.putpixel((place % 17, place // 17), (bands[0] ^ 128, *bands[1:]))
    assert digest(picture) != digest(other)


# --- arrays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_scaled_and_rounded(dtype):
    np.testing.assert_array_equal(pixels((PIXELS / 255).astype(dtype)), PIXELS)


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_uint16_is_scaled_not_clipped(order):
    np.testing.assert_array_equal(pixels((PIXELS.astype(np.uint32) * 257).astype(order)), PIXELS)


def test_uint16_is_rounded_to_the_nearest():
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(pixels(every)[:, :, 0], np.rint(every / 257))


def test_bool_is_black_and_white():
    mask = PIXELS[:, :, 0] > 100
    np.testing.assert_array_equal(pixels(mask), np.repeat(mask[:, :, None] * np.uint8(255), 3, axis=2))


def test_grey_arrays_with_and_without_a_channel_axis():
    grey = PIXELS[:, :, :1]
    expected = np.repeat(grey, 3, axis=2)
    np.testing.assert_array_equal(pixels(grey), expected)
    np.testing.assert_array_equal(pixels(grey[:, :, 0]), expected)


def test_strided_arrays():
    np.testing.assert_array_equal(pixels(PIXELS[::-1, ::2]), PIXELS[::-1, ::2])
    np.testing.assert_array_equal(pixels(np.asfortranarray(PIXELS)), PIXELS)


def test_alpha_of_an_array_is_laid_over_white():
    array = np.zeros((2, 2, 4))
    array[0, 0, 3] = 1.0
    result = pixels(array)
    assert result[0, 0].tolist() == [0, 0, 0] and result[1, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (PIXELS.astype(np.int64), "int64"),
        (PIXELS.astype(np.uint32), "uint32"),
        (PIXELS.astype(np.float32), r"floats must lie in \[0, 1\]"),
        (np.full((4, 4), np.nan), r"floats must lie in \[0, 1\]"),
        (np.full((4, 4), -0.1), r"floats must lie in \[0, 1\]"),
        (np.zeros((4, 4), dtype=complex), "complex128"),
        (np.array([["a", "b"]]), "<U1"),
        (np.zeros((3, 11, 17), dtype=np.uint8), "shape"),
        (np.zeros((4, 4, 2), dtype=np.uint8), "shape"),
        (np.zeros(7, dtype=np.uint8), "shape"),
        (np.zeros((0, 5, 3), dtype=np.uint8), "has no pixels"),
        (np.zeros((5, 0), dtype=np.float32), "has no pixels"),
        (np.zeros((1, 10000), dtype=np.uint8), "200 times"),
    ],
)
def test_arrays_that_are_not_images(array, says):
    with pytest.raises(JRMError, match=f"row 7, source .*{says}"):
        load_image(array, name="row 7, source")


# --- modes ------------------------------------------------------------------------------------------------------------


def test_palette():
    picture = Image.fromarray(PIXELS).quantize(16)
    np.testing.assert_array_equal(pixels(encode(picture)), np.asarray(picture.convert("RGB")))


def test_palette_with_one_transparent_colour():
    picture = Image.new("P", (4, 2), 0)
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((0, 0), 1)
    for options in ({"transparency": 0}, {"transparency": bytes([0, 255])}):
        content = encode(picture, **options)
        assert Image.open(io.BytesIO(content)).mode == "P"
        result = pixels(content)
        assert result[0, 0].tolist() == [40, 50, 60] and result[1, 3].tolist() == [255, 255, 255]


def test_palette_with_half_transparent_colours():
    result = pixels(encode(Image.new("P", (2, 2), 0), transparency=bytes([128])))
    assert np.all(result == 127)  # black, half of it, over white


def test_palette_that_holds_alpha():
    picture = Image.new("P", (2, 1), 0)
    picture.putpalette([10, 20, 30, 255, 40, 50, 60, 0], rawmode="RGBA")
    picture.putpixel((1, 0), 1)
    assert pixels(picture).tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_transparent_colour_of_rgb_and_grey():
    picture = Image.new("RGB", (2, 1), (1, 2, 3))
    picture.putpixel((1, 0), (7, 8, 9))
    assert pixels(encode(picture, transparency=(1, 2, 3))).tolist() == [[[255, 255, 255], [7, 8, 9]]]
    grey = Image.fromarray(np.array([[3, 90]], dtype=np.uint8))
    assert pixels(encode(grey, transparency=3))[0, :, 0].tolist() == [255, 90]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_alpha_over_white(mode):
    rgba = Image.new("RGBA", (3, 1), (0, 0, 0, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 0))
    rgba.putpixel((2, 0), (0, 0, 0, 128))
    if mode == "PA":  # Pillow's own conversion to PA loses the alpha
        picture = Image.new("P", (3, 1))
        picture.putalpha(rgba.getchannel("A"))
    else:
        picture = rgba.convert("LA").convert(mode) if mode == "La" else rgba.convert(mode)
    assert picture.mode == mode
    assert pixels(picture)[0, :, 0].tolist() == [0, 255, 127]


def test_one_bit():
    picture = Image.fromarray(PIXELS).convert("1")
    expected = np.asarray(picture.convert("RGB"))
    assert set(np.unique(expected)) == {0, 255}
    np.testing.assert_array_equal(pixels(encode(picture)), expected)


def test_sixteen_bit_png_is_scaled():
    grey = np.array([[0, 256, 257, 32896, 65535]], dtype=np.uint16)
    assert pixels(encode(Image.fromarray(grey)))[0, :, 0].tolist() == [0, 1, 1, 128, 255]


def test_sixteen_bit_big_endian_tiff():
    picture = Image.frombytes("I;16B", (2, 1), struct.pack(">2H", 257 * 9, 65535))
    assert pixels(picture)[0, :, 0].tolist() == [9, 255]


def test_sixteen_bit_png_with_a_transparent_grey():
    grey = np.array([[5, 6]], dtype=np.uint16)
    content = encode(Image.fromarray(grey), transparency=5)
    assert Image.open(io.BytesIO(content)).mode == "I;16"
    assert pixels(content)[0, :, 0].tolist() == [255, 0]


def test_sixteen_bit_grey_in_mode_i():
    picture = Image.fromarray(np.array([[0, 65535]], dtype=np.int32))
    assert picture.mode == "I"
    assert pixels(picture)[0, :, 0].tolist() == [0, 255]
    with pytest.raises(JRMError, match=r"-1\.\.70000: 32-bit grey must lie in 0\.\.65535"):
        load_image(Image.fromarray(np.array([[-1, 70000]], dtype=np.int32)))


def test_float_picture():
    assert pixels(Image.fromarray(np.array([[0.0, 1.0]], dtype=np.float32)))[0, :, 0].tolist() == [0, 255]
    with pytest.raises(JRMError, match=r"PIL image \(F, 2x1\).*floats must lie in"):
        load_image(Image.fromarray(np.array([[0.0, 200.0]], dtype=np.float32)))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind):
    picture = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    content = encode(picture, kind)
    assert Image.open(io.BytesIO(content)).mode == "CMYK"
    red, green, blue = pixels(content)[4, 4]
    assert red > 245 and green < 10 and blue < 10


@pytest.mark.parametrize("mode", ["YCbCr", "HSV"])
def test_other_colour_spaces(mode):
    picture = Image.new("RGB", (3, 2), "blue").convert(mode)
    np.testing.assert_allclose(pixels(picture)[0, 0], [0, 0, 255], atol=2)


def test_lab_is_refused_with_a_way_out():
    with pytest.raises(JRMError, match="LAB colours: convert it to RGB"):
        load_image(Image.new("LAB", (3, 2)))


@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"]), st.data())
def test_loading_twice_changes_nothing(width, height, mode, data):
    content = data.draw(st.binary(min_size=width * height * 4, max_size=width * height * 4))
    once = load_image(Image.frombytes("RGBA", (width, height), content).convert("RGB").convert(mode))
    np.testing.assert_array_equal(pixels(once), np.asarray(once))
    np.testing.assert_array_equal(pixels(to_data_url(once)), np.asarray(once))


# --- EXIF orientation -------------------------------------------------------------------------------------------------

# What a viewer has to do with the stored array to show it upright (EXIF 2.3, tag 0x0112).
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: stored.transpose(1, 0, 2)[:, ::-1],
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: stored.transpose(1, 0, 2)[::-1],
}


def with_orientation(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(Image.fromarray(PIXELS), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", sorted(UPRIGHT))
def test_exif_orientation_is_applied_once(kind, orientation, tmp_path):
    content = with_orientation(kind, orientation)
    expected = UPRIGHT[orientation](PIXELS)
    np.testing.assert_array_equal(pixels(content), expected)
    path = tmp_path / "photo"
    path.write_bytes(content)
    np.testing.assert_array_equal(pixels(path), expected)
    np.testing.assert_array_equal(pixels(Image.open(path)), expected)  # opened, not decoded
    decoded = Image.open(path)
    decoded.load()
    np.testing.assert_array_equal(pixels(decoded), expected)
    np.testing.assert_array_equal(pixels(load_image(content)), expected)  # no orientation is left behind


@pytest.mark.parametrize("orientation", sorted(UPRIGHT))
def test_exif_orientation_of_jpeg(orientation):
    stored = pixels(encode(Image.fromarray(PIXELS), "JPEG"))
    np.testing.assert_array_equal(pixels(with_orientation("JPEG", orientation)), UPRIGHT[orientation](stored))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_means_nothing_is_none(orientation):
    np.testing.assert_array_equal(pixels(with_orientation("PNG", orientation)), PIXELS)


# --- the user's process -----------------------------------------------------------------------------------------------


def test_threads_may_share_one_image_that_is_not_decoded_yet():
    noise = RNG.integers(0, 256, (400, 400, 3), dtype=np.uint8)
    content = encode(Image.fromarray(noise))
    start = threading.Barrier(8)

    def load(shared):
        start.wait()
        return np.array_equal(np.asarray(load_image(shared)), noise)

    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):  # without a lock, one round in two fails
            assert all(pool.map(load, [Image.open(io.BytesIO(content))] * 8))


def test_the_size_is_read_without_decoding(monkeypatch):
    contents = [with_orientation(kind, 6) for kind in ("PNG", "JPEG", "TIFF", "WEBP")]
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    for content in contents:
        assert image_size(content) == (11, 17)


def test_a_file_s_size_is_read_once_and_anew_when_it_has_changed(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (3, 5)).save(path)
    with patch.object(Image, "open", side_effect=Image.open) as opened:
        assert [image_size(path), image_size(str(path))] == [(3, 5)] * 2
        assert opened.call_count == 1
        Image.new("RGB", (30, 50)).save(path)
        assert image_size(path) == (30, 50)
        path.unlink()
        with pytest.raises(JRMError, match="does not exist"):
            image_size(path)


def test_pillow_s_settings_stay_as_they_are():
    def settings():
        return Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)

    before = settings()
    load_image(PIXELS)
    with pytest.raises(JRMError):
        load_image(b"no image")
    assert settings() == before


# --- checked without decoding -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_check_finds_a_file_that_is_cut_off_anywhere(format):
    """And refuses nothing that can be loaded: what goes on behind its end is decoded."""
    content = encode(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8), format)
    for cut in {*range(1, len(content), 37), *range(len(content) - 20, len(content))}:
        assert is_refused(check_image, content[:cut]) == is_refused(load_image, content[:cut]), cut
    check_image(content)
    check_image(content + bytes(10))


def test_check_decodes_no_whole_png(monkeypatch):
    content = encode(PIXELS)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *_: pytest.fail("it was decoded"))
    check_image(content)
