"""PhotoEdits: held-out photographs are never trained on, and every effect is the one its word says."""

import importlib.util

import numpy as np
import pytest

from jrm_plugin.data.editreward import read_edit_reward
from jrm_plugin.errors import JRMError
from jrm_plugin.synthetic import photo_edits
from jrm_plugin.synthetic.photo_edits import HELDOUT_PHOTOS, PHOTO_EDITS, TRAIN_PHOTOS, Step


@pytest.fixture(scope="module")
def sources():
    rng = np.random.default_rng(0)
    return [photo_edits._draw_crop(rng, TRAIN_PHOTOS | HELDOUT_PHOTOS)[2] for _ in range(40)]


def test_six_photographs_or_more_and_three_held_out():
    assert len(TRAIN_PHOTOS) + len(HELDOUT_PHOTOS) >= 6
    assert len(HELDOUT_PHOTOS) == 3
    assert not set(TRAIN_PHOTOS.values()) & set(HELDOUT_PHOTOS.values())


def test_every_photograph_is_carried_by_its_wheel_and_shows_something_else():
    pixels = [photo_edits._photo(name).resize((8, 8)).tobytes() for name in TRAIN_PHOTOS | HELDOUT_PHOTOS]
    assert len(set(pixels)) == len(pixels)


def test_the_splits_share_no_photograph(tmp_path):
    folder = PHOTO_EDITS.write(tmp_path, train=60, heldout=40, language=0, progress=False)
    names = [
        {pair.info["scene"].split()[0] for pair in read_edit_reward(folder / f"{split}.json").examples}
        for split in ("train", "heldout")
    ]
    assert names == [set(TRAIN_PHOTOS), set(HELDOUT_PHOTOS)]


@pytest.mark.parametrize(
    ("what", "true"),
    [
        ("grey", lambda before, after: np.ptp(after, axis=2).max() == 0),
        ("purple", lambda before, after: (after[..., 2] >= after[..., 1]).all() and np.ptp(after, axis=2).mean() > 20),
        ("brighter", lambda before, after: after.mean() > before.mean() + 20 and (after >= before).all()),
        ("darker", lambda before, after: after.mean() < before.mean() - 15 and (after <= before).all()),
        ("warmer", lambda before, after: redness(after) > redness(before) + 20),
        ("cooler", lambda before, after: redness(after) < redness(before) - 20),
        ("mirrored", lambda before, after: np.array_equal(after[:, ::-1], before)),
        ("upside down", lambda before, after: np.array_equal(after[::-1], before)),
        ("background blurred", lambda before, after: blurred_parts(before, after) == (False, True)),
        ("middle blurred", lambda before, after: blurred_parts(before, after) == (True, False)),
    ],
)
def test_effects(what, true, sources):
    for source in sources:
        whole = photo_edits._apply(source, [Step(what)])
        assert true(source.astype(int), whole.astype(int))
        half = photo_edits._apply(source, [Step(what, half=True)])
        assert np.array_equal(half[:, :48], whole[:, :48]) and np.array_equal(half[:, 48:], source[:, 48:])


def redness(image):
    return (image[..., 0] - image[..., 2]).mean()


def blurred_parts(before, after):
    """Whether the middle and whether the border changed."""
    middle, border = np.s_[36:60, 36:60], np.s_[:12]
    return tuple(not np.array_equal(before[part], after[part]) for part in (middle, border))


def test_a_box_lies_in_its_place_whatever_else_was_done(sources):
    for step in (Step("box", colour="red", place=2), Step("circle", colour="red", place=2)):
        image = photo_edits._apply(sources[0], [Step("mirrored"), step])
        changed = (image != sources[0][:, ::-1]).any(axis=2)
        rows, columns = np.nonzero(changed)
        assert rows.max() < 32 and columns.min() >= 64
        assert (image[changed] == photo_edits.BOX_COLOURS["red"]).all()
        half = photo_edits._apply(sources[0], [step._replace(half=True)])
        covered = (half == photo_edits.BOX_COLOURS["red"]).all(axis=2)[:32, 64:]
        assert covered[:, :16].sum() > 100 and not covered[:, 16:].all(axis=0).any()


def test_a_missing_package_is_named_with_the_extra(tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else real(name))
    photo_edits._photo.cache_clear()
    with pytest.raises(JRMError, match=r"sklearn.*jrm-plugin\[photos\]"):
        PHOTO_EDITS.write(tmp_path / "set", train=1, heldout=0, language=0, progress=False)
    assert not (tmp_path / "set").exists()
