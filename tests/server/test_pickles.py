"""What a pickle from the network may hold, and that nothing else in it comes to be."""

import collections
import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hostile_pickles import BOMBS, gadgets
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jrm_plugin.errors import JRMError
from jrm_plugin.server.pickles import MAX_DEPTH, read_pickle

PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats(allow_nan=False) | st.binary() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text() | st.integers(-(2**30), 2**30), inner, max_size=5)
        | st.tuples(inner, inner)
    ),
    max_leaves=20,
)


@settings(max_examples=30)
@given(plain, st.sampled_from(PROTOCOLS))
def test_plain_values_come_back_as_they_are(value, protocol):
    assert read_pickle(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_trainers_send_comes_back_as_it_is(protocol):
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(0, 255, (2, 3, 4), dtype=np.uint8),
        rng.random((3, 2)).astype(np.float32).T,
        np.arange(4, dtype=">i4"),
        np.zeros((0, 3)),
        np.array(["a cat", "é"]),
    ]
    modes = ("RGB", "L", "1", "RGBA", "P", "CMYK", "LA", "I;16", "F", "I", "YCbCr", "HSV", "PA")
    pictures = [Image.new(mode, (9, 4)) for mode in modes]
    for format_name in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (4, 9, 3), dtype=np.uint8)).save(file, format_name)
        pictures.append(Image.open(io.BytesIO(file.getvalue())))
    sent = {
        "arrays": arrays,
        "numbers": [np.float32(2.5), np.int64(-3), np.bool_(True), np.str_("é")],
        "images": pictures + pictures[:2],
        "sets": [{1, 2}, frozenset("ab"), bytearray(b"ab"), collections.OrderedDict(b=1, a=2)],
    }
    got = read_pickle(pickle.dumps(sent, protocol))
    for array, other in zip(sent["arrays"], got["arrays"], strict=True):
        assert array.dtype == other.dtype and np.array_equal(array, other)
    assert got["numbers"] == [2.5, -3, True, "é"] and {*map(type, got["numbers"])} == {float, int, bool, str}
    for picture, other in zip(sent["images"], got["images"], strict=True):
        assert (picture.mode, picture.size) == (other.mode, other.size)
        assert picture.convert("RGB").tobytes() == other.convert("RGB").tobytes()
    assert got["sets"] == [{1, 2}, {"a", "b"}, b"ab", {"b": 1, "a": 2}]


def test_a_palette_and_what_is_seen_through_come_along():
    picture = Image.new("RGBA", (8, 8), (255, 0, 0, 255))
    picture.paste((0, 255, 0, 0), (0, 0, 4, 8))
    file = io.BytesIO()
    picture.quantize(4).save(file, "PNG")
    opened = Image.open(io.BytesIO(file.getvalue()))
    got = read_pickle(pickle.dumps(opened))
    assert opened.mode == got.mode == "P"
    assert got.convert("RGBA").tobytes() == opened.convert("RGBA").tobytes()


def test_no_gadget_runs_and_each_is_refused(tmp_path):
    witness = tmp_path / "run"
    loaded = {*sys.modules}
    for name, content in gadgets(witness).items():
        with pytest.raises(JRMError, match="the pickle ") as raised:
            read_pickle(content)
        assert "near byte" in str(raised.value), name
    assert not witness.exists() and not {*sys.modules} - loaded


def test_no_bomb_takes_memory_or_depth(tmp_path):
    """In a process of its own with half a gigabyte to spare, which a bomb would ask for more than once."""
    (tmp_path / "bombs").write_bytes(pickle.dumps(BOMBS))
    code = f"""
import pickle, resource
from jrm_plugin.errors import JRMError
from jrm_plugin.server.pickles import read_pickle
bombs = pickle.loads(open({str(tmp_path / "bombs")!r}, "rb").read())
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 2**29, now + 2**29))
for name, content in bombs.items():
    try:
        print(name, "was read as", str(read_pickle(content))[:50])
    except JRMError as error:
        assert str(error).startswith("the pickle ") and len(str(error)) < 400, error
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (finished.returncode, finished.stdout) == (0, ""), finished.stderr[-2000:]


def test_values_as_deep_and_as_large_as_allowed_are_read():
    deep: object = 1
    for _ in range(MAX_DEPTH - 1):
        deep = [deep]
    assert read_pickle(pickle.dumps(deep)) == deep
    with pytest.raises(JRMError, match="nested more than"):
        read_pickle(pickle.dumps([[deep]]))
    shared = [0] * 1000
    assert read_pickle(pickle.dumps([shared] * 100)) == [shared] * 100
    with pytest.raises(JRMError, match="unfolds to more than"):
        read_pickle(pickle.dumps([shared] * 1000))


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content):
    try:
        read_pickle(content)
    except JRMError as error:
        assert str(error).startswith("the pickle ")
