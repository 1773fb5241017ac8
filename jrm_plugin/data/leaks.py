"""Images of a training set that stand in an evaluation set too: a model that has seen them is judged too well.

Two images are the same where their pixels are, whatever their files are called and however they are compressed without
loss. They are nearly the same where thumbnails of 8 x 8 differ by at most 8 of 255 levels in every cell and colour: a
copy that was scaled or compressed again, but hardly an edited one. An image without structure is compared by its pixels
alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from jrm_plugin.records.images import digest, is_data_url, load_image
from jrm_plugin.records.preferences import Example, samples_of_example
from jrm_plugin.records.samples import StoredImage

THUMBNAIL, TOLERANCE = 8, 8
_AT_ONCE = 128  # images that are decoded side by side


@dataclass(frozen=True)
class Leak:
    """An image of an example of the training set, and the first of an evaluation set that is the same.

    Attributes:
        position: of the training example in its set.
        example, image: where it was read from.
        eval_set, eval_example, eval_image: likewise, of the evaluation set.
        same: `pixels` or `nearly`.
    """

    position: int
    example: str
    image: str
    eval_set: str
    eval_example: str
    eval_image: str
    same: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Print:
    pixels: bytes
    thumbnail: np.ndarray


def find_leaks(
    train: Sequence[Example], evaluated: Mapping[str, Sequence[Example]], *, progress: bool = False
) -> list[Leak]:
    """Where images of `train` are those of an evaluation set: one leak an image and evaluation set, the first one.

    Every image of all sets is decoded once.

    Raises:
        JRMError: an image cannot be read any more.
    """
    prints: dict[bytes, _Print] = {}
    of_train = _places(train, prints, "train set", progress)
    leaks = []
    for name, examples in evaluated.items():
        of_eval = _places(examples, prints, name, progress)
        first = {}
        for key, places in of_eval.items():
            first.setdefault(prints[key].pixels, places[0])
        near = _near(of_train, of_eval, prints)
        for key, places in of_train.items():
            where, same = first.get(prints[key].pixels), "pixels"
            if where is None and key in near:
                where, same = of_eval[near[key]][0], "nearly"
            if where is not None:
                _, eval_example, eval_image = where
                leaks += [Leak(*place, name, eval_example, eval_image, same) for place in places]
    return sorted(leaks, key=lambda leak: leak.position)


_Places = dict[bytes, list[tuple[int, str, str]]]


def _places(examples: Sequence[Example], prints: dict[bytes, _Print], name: str, progress: bool) -> _Places:
    """By the digest of an image: the examples that have it. Looks at the images that are in no set before."""
    places: _Places = {}
    bar = tqdm(examples, desc=f"comparing images, {name}", unit=" examples", disable=None if progress else True)
    images = _new_images(bar, places, prints)
    with ThreadPoolExecutor() as threads:
        while batch := dict(islice(images, _AT_ONCE)):
            prints |= zip(batch, threads.map(_print, batch.values()), strict=True)
    return places


def _new_images(examples: Any, places: _Places, prints: dict[bytes, _Print]) -> Iterator[tuple[bytes, StoredImage]]:
    for position, example in enumerate(examples):
        info = example.info
        where = f"{info['file']}, row {info['row']}" if {"file", "row"} <= info.keys() else f"example {position + 1}"
        for sample in samples_of_example(example):
            for image in (*sample.prompt_images, *sample.response_images):
                key = digest(image)
                place = (position, where, image if isinstance(image, str) and not is_data_url(image) else "in memory")
                if place not in places.setdefault(key, []):
                    places[key].append(place)
                if len(places[key]) == 1 and key not in prints:
                    yield key, image


def _print(image: StoredImage) -> _Print:
    rgb = load_image(image)
    pixels = sha256(f"{rgb.size}".encode() + rgb.tobytes()).digest()
    thumbnail = np.asarray(rgb.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), dtype=np.int16)
    return _Print(pixels, thumbnail.reshape(-1))


def _near(of_train: _Places, of_eval: _Places, prints: Mapping[bytes, _Print]) -> dict[bytes, bytes]:
    """Of each image of the training set that is nearly one of the other set: which one."""
    keys = [*of_train]
    if not keys:
        return {}
    thumbnail_NK = np.stack([prints[key].thumbnail for key in keys])
    mean_N = thumbnail_NK.mean(1)
    order_N = np.argsort(mean_N)  # images that are nearly the same have nearly the same mean
    near: dict[bytes, bytes] = {}
    for key in of_eval:
        thumbnail_K = prints[key].thumbnail
        if np.ptp(thumbnail_K) <= TOLERANCE:
            continue
        low, high = np.searchsorted(mean_N[order_N], thumbnail_K.mean() + np.array([-TOLERANCE, TOLERANCE + 1e-6]))
        rows = order_N[low:high]
        for row in rows[(np.abs(thumbnail_NK[rows] - thumbnail_K) <= TOLERANCE).all(1)]:
            near.setdefault(keys[row], key)
    return near
