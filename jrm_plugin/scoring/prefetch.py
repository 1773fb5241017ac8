"""Samples decoded and tokenized by threads, ahead of what is computed."""

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

from jrm_plugin.errors import JRMError
from jrm_plugin.model.processing import EncodedImage, EncodedSequence, JRMProcessor
from jrm_plugin.records.samples import Sample

WORKERS, SAMPLES_AHEAD = 4, 32
REMEMBERED_IMAGES = 64  # a group's candidates name the same source image again and again


def encode_ahead(processor: JRMProcessor, samples: Sequence[Sample]) -> Iterator[list[EncodedSequence] | JRMError]:
    """The sequences of each sample, or its error, in order; threads work while the caller computes."""
    images = _RememberedImages(processor)

    def encode(sample: Sample) -> list[EncodedSequence] | JRMError:
        try:
            return processor.encode(sample, encode_image=images)
        except JRMError as error:
            return error

    pool = ThreadPoolExecutor(WORKERS)
    try:
        pending = deque()
        for sample in samples:
            pending.append(pool.submit(encode, sample))
            if len(pending) > SAMPLES_AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class _RememberedImages:
    """Encodes images, each of the last few once."""

    def __init__(self, processor: JRMProcessor):
        self._processor = processor
        self._images: OrderedDict[Hashable, tuple[Any, EncodedImage]] = OrderedDict()
        self._lock = Lock()

    def __call__(self, image: Any) -> EncodedImage:
        # Paths, URLs and bytes by what they are; images in memory by identity, and held, so that no other takes the id.
        key = image if isinstance(image, (str, bytes, Path)) else id(image)
        with self._lock:
            if key in self._images:
                self._images.move_to_end(key)
                return self._images[key][1]
        encoded = self._processor.encode_image(image)
        encoded.digest  # noqa: B018  computed here, in the worker's time
        with self._lock:
            self._images[key] = image, encoded
            if len(self._images) > REMEMBERED_IMAGES:
                self._images.popitem(last=False)
        return encoded
