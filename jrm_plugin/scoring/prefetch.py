"""Samples decoded and tokenized by threads, ahead of what is computed."""

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from jrm_plugin.errors import JRMError, as_jrm_error
from jrm_plugin.model.processing import EncodedImage, EncodedSequence, JRMProcessor
from jrm_plugin.records.images import ImageLike, digest, image_size
from jrm_plugin.records.samples import SampleLike, to_sample
from jrm_plugin.scoring.surroundings import usual_process

WORKERS, SAMPLES_AHEAD = 4, 32
REMEMBERED_IMAGES = 64  # a group's candidates name the same source image again and again
# While an image is decoded, scaled and cut into patches it stands in memory up to four times, with three or four bytes
# a pixel. (JPEG's draft mode would take less, and gives other pixels, so that it is not used.)
DECODING_BYTES = 16


class DecodingBudget:
    """Memory for images that are being decoded, in all threads together; who comes first is served first.

    An image that is larger than all of it is decoded alone.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes, self._free = max_bytes, max_bytes
        # One thread decodes all large images: C libraries keep what a thread has freed for this thread.
        self.large = ThreadPoolExecutor(1)
        self._turn, self._changed = threading.Lock(), threading.Condition()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Waits until `size` bytes are free, and has them inside."""
        size = min(size, self.max_bytes)
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify()


def encode_ahead(
    processor: JRMProcessor, samples: Iterable[SampleLike], budget: DecodingBudget
) -> Iterator[list[EncodedSequence] | JRMError]:
    """The sequences of each sample, or its error whatever was raised, in order; threads work while the caller computes.

    `budget` bounds the images that are decoded at once.
    """
    images = _RememberedImages(processor, budget)

    def encode(sample: SampleLike) -> list[EncodedSequence] | JRMError:
        try:
            with usual_process(), as_jrm_error("it cannot be read"):
                return processor.encode(to_sample(sample), encode_image=images)
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
    """Encodes images, each of the last few once, whichever threads ask for it at the same time."""

    def __init__(self, processor: JRMProcessor, budget: DecodingBudget):
        self._processor, self._budget = processor, budget
        self._images: OrderedDict[bytes, Future[EncodedImage]] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, image: ImageLike) -> EncodedImage:
        key = digest(image)
        with self._lock:
            is_first = key not in self._images
            encoded = self._images.setdefault(key, Future())
            self._images.move_to_end(key)
            if len(self._images) > REMEMBERED_IMAGES:
                self._images.popitem(last=False)
        if is_first:
            try:
                encoded.set_result(self._encoded(image))
            except BaseException as error:
                encoded.set_exception(error)
        return encoded.result()

    def _encoded(self, image: ImageLike) -> EncodedImage:
        width, height = image_size(image)
        size = width * height * DECODING_BYTES
        with self._budget.taken(size):
            if size > self._budget.max_bytes // 8:
                return self._budget.large.submit(self._with_digest, image).result()
            return self._with_digest(image)

    def _with_digest(self, image: ImageLike) -> EncodedImage:
        encoded = self._processor.encode_image(image)
        encoded.digest  # noqa: B018  computed here, in the worker's time
        return encoded
