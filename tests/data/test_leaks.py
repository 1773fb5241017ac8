"""Images that training and evaluation share: the same pixels in another file, and copies that were compressed again."""

import numpy as np
import pytest
from PIL import Image

from jrm_plugin import PreferencePair, RankedGroup, Sample
from jrm_plugin.data.editreward import read_edit_reward
from jrm_plugin.data.leaks import find_leaks
from jrm_plugin.errors import JRMError
from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS


def photo(seed: int) -> Image.Image:
    """Something like a photograph: smooth, with noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    noise = rng.integers(-6, 7, (96, 96, 3))
    return Image.fromarray((np.asarray(coarse.resize((96, 96))) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """`files(name, image)`: saves an image once and gives its path."""
    folder = tmp_path_factory.mktemp("images")

    def save(name: str, image: Image.Image, **options) -> str:
        image.save(folder / name, **options)
        return str(folder / name)

    return save


def pair(source, one, other, **info) -> PreferencePair:
    return PreferencePair(*(Sample.edit(source, "x", image) for image in (one, other)), {"overall": 1}, info=info)


def test_the_same_pixels_and_copies_of_them_are_found_and_edits_are_not(files):
    edited = photo(3)
    edited.paste((200, 0, 0), (10, 10, 60, 60))
    heldout = [
        pair(files("a.png", photo(1)), files("b.png", photo(2)), files("c.png", photo(3)), file="held.json", row=7),
        pair(photo(4), photo(5), Image.new("RGB", (9, 9))),
    ]
    train = [
        pair(files("other.webp", photo(1), lossless=True), photo(11), photo(12), file="train.json", row=1),
        pair(photo(13), files("small.jpg", photo(2).resize((64, 64)), quality=70), photo(14)),
        pair(photo(15), edited, Image.new("RGB", (64, 64))),  # an edited copy, and another black image
        RankedGroup([Sample.edit(photo(16), "x", photo(k)) for k in (17, 5, 18)], {"overall": [1, 2, 3]}),
    ]
    leaks = find_leaks(train, {"empty": [], "held": heldout})
    assert [(leak.position, leak.eval_set, leak.same) for leak in leaks] == [
        (0, "held", "pixels"),
        (1, "held", "nearly"),
        (3, "held", "pixels"),
    ]
    first, second, third = leaks
    assert first.example == "train.json, row 1" and first.image.endswith("other.webp")
    assert first.eval_example == "held.json, row 7" and first.eval_image.endswith("a.png")
    assert (second.example, second.eval_image.endswith("b.png")) == ("example 2", True)
    assert (third.image, third.eval_example, third.eval_image) == ("in memory", "example 2", "in memory")


def test_generated_sets_do_not_leak_into_each_other(tmp_path):
    folder = SHAPE_EDITS.write(tmp_path, train=60, heldout=30, language=1, progress=False)
    train, heldout = (
        read_edit_reward(folder / f"{name}.json", progress=False).examples for name in ("train", "heldout")
    )
    assert find_leaks(train, {"heldout": heldout}) == []
    assert {leak.position for leak in find_leaks(train, {"itself": train[10:12]})} >= {10, 11}


def test_an_image_that_is_gone_is_named(files):
    train = [pair(photo(1), photo(2), "nowhere.png")]
    with pytest.raises(JRMError, match="nowhere.png. does not exist"):
        find_leaks(train, {"held": train})
