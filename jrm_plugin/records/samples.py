"""What is scored: a prompt and a response, as any reader, command and integration writes them.

Images inside are paths (`str`), `data:` URLs (`str`), `bytes` or `PIL.Image`s; `jrm_plugin.records.images.load_image`
opens them when they are needed.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeGuard, get_args

import numpy as np
from PIL import Image

from jrm_plugin.errors import JRMError
from jrm_plugin.records.checks import checked_text, kind_of
from jrm_plugin.records.images import ImageLike, digest, is_data_url, load_image, plain_image

DIMENSIONS = ("instruction_following", "visual_quality")  # the default, in order; a model's config may hold others
CONSISTENCY = "consistency"  # of an edit: that what must not change did not
KNOWN_DIMENSIONS = (*DIMENSIONS, CONSISTENCY)  # those that have rubrics, prompts and columns here
OVERALL = "overall"
Task: TypeAlias = Literal["edit", "generation", "response"]
TASKS = get_args(Task)
StoredImage: TypeAlias = str | bytes | Image.Image  # what a sample keeps of an image: it can be compared and pickled
SHOWN_CHARACTERS = 60  # of a text or a path in `repr(sample)`


@dataclass(frozen=True, eq=False, repr=False)
class Sample:
    """What is scored: a prompt and a response, each a sequence of content blocks in the Hugging Face chat form.

    A block is `{"type": "image", "image": image}` or `{"type": "text", "text": str}`. Lists are accepted and stored as
    tuples; a `Path` is stored as `str`, a numpy array as the `PIL.Image` that `load_image` makes of it. The prompt must
    hold text (the instruction or the question), the response at least one block.

    Samples with equal blocks are equal and hashable; which images are equal says `jrm_plugin.records.images.digest`.

    Example:
        >>> sample = Sample.edit("cat.png", "make the cat blue", "blue-cat.png")
        >>> sample.task
        'edit'
        >>> sample
        Sample(edit, prompt=[<image 'cat.png'>, 'make the cat blue'], response=[<image 'blue-cat.png'>])
    """

    prompt: Sequence[Mapping[str, Any]]
    response: Sequence[Mapping[str, Any]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", _blocks(self.prompt, "prompt"))
        object.__setattr__(self, "response", _blocks(self.response, "response"))
        if not self.prompt_text:
            raise JRMError("a sample's prompt has no text: give the instruction or the question.")
        if not self.response:
            raise JRMError("a sample has no response: give the image or the text to be scored.")

    @classmethod
    def edit(cls, source: ImageLike | Sequence[ImageLike] | None, instruction: str, edited: ImageLike) -> "Sample":
        """An edited image, to be judged by how well it does what was asked of the source.

        Args:
            source: the image before the edit, a list of several, or `None` (then it is a generation). An image is a
                path, the bytes of a file, a `data:` URL, a `PIL.Image`, a numpy array, or the dict of `bytes` and
                `path` that `datasets` makes of one; files are opened when the sample is scored.
            instruction: what was asked for.
            edited: the image that came out, as `source`.

        Raises:
            JRMError: the instruction is empty, or something is no image.

        Example:
            >>> Sample.edit("cat.png", "make the cat blue", "blue-cat.png").task
            'edit'
        """
        return cls(_prompt(source, _text_block(instruction, "instruction")), (image_block(edited),))

    @classmethod
    def generation(cls, instruction: str, image: ImageLike) -> "Sample":
        """An image made from text alone.

        Args:
            instruction: what was asked for.
            image: what came out, as in `edit`.

        Raises:
            JRMError: the instruction is empty, or `image` is none.

        Example:
            >>> Sample.generation("a blue cat", "cat.png").task
            'generation'
        """
        return cls.edit(None, instruction, image)

    @classmethod
    def text_response(cls, images: ImageLike | Sequence[ImageLike] | None, question: str, text: str) -> "Sample":
        """A text answer to a question about images, or to a question alone.

        Args:
            images: one image, a list of several, or `None`, as `source` in `edit`.
            question: what was asked.
            text: the answer.

        Raises:
            JRMError: the question or the answer is empty, or something is no image.

        Example:
            >>> Sample.text_response(["a.png", "b.png"], "what differs?", "the hat").task
            'response'
        """
        return cls(_prompt(images, _text_block(question, "question")), (_text_block(text, "response text"),))

    @property
    def task(self) -> Task:
        """`edit` (an image made from images), `generation` (an image made from text) or `response` (a text)."""
        if not self.response_images:
            return "response"
        return "edit" if self.prompt_images else "generation"

    @property
    def prompt_images(self) -> tuple[StoredImage, ...]:
        """The source images, as they are stored: a `Path` as `str`, an array as `PIL.Image`."""
        return tuple(block["image"] for block in self.prompt if block["type"] == "image")

    @property
    def response_images(self) -> tuple[StoredImage, ...]:
        """The images to be scored, as they are stored; none in the task `response`."""
        return tuple(block["image"] for block in self.response if block["type"] == "image")

    @property
    def prompt_text(self) -> str:
        """The instruction or the question; the texts of several blocks are lines of it."""
        return "\n".join(block["text"] for block in self.prompt if block["type"] == "text")

    @property
    def response_text(self) -> str:
        """The answer, likewise; empty where the response is an image alone."""
        return "\n".join(block["text"] for block in self.response if block["type"] == "text")

    def prompt_key(self) -> str:
        """A hexadecimal digest, equal for samples with one prompt: the same texts and images in the same order.

        Images are the same where `jrm_plugin.records.images.digest` says so.

        Raises:
            JRMError: an image in memory is none that `load_image` reads.
        """
        return _key(self.prompt)

    def key(self) -> str:
        """As `prompt_key`, of prompt and response: equal for equal samples."""
        return self.prompt_key() + _key(self.response)

    def __eq__(self, other: object) -> bool:
        return self.key() == other.key() if isinstance(other, Sample) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.key())

    def __repr__(self) -> str:
        prompt, response = (", ".join(map(_in_short, blocks)) for blocks in (self.prompt, self.response))
        return f"Sample({self.task}, prompt=[{prompt}], response=[{response}])"


# What a scorer takes for a sample: one, or the arguments of `Sample.edit`: (source, instruction, edited).
PlainSample: TypeAlias = tuple[ImageLike | Sequence[ImageLike] | None, str, ImageLike]
SampleLike: TypeAlias = Sample | PlainSample


def is_sample(value: object) -> TypeGuard[SampleLike]:
    """Whether this is one sample, and not several: a tuple of three is, if an instruction is in the middle."""
    return isinstance(value, Sample) or (isinstance(value, tuple) and len(value) == 3 and isinstance(value[1], str))


def to_sample(sample: SampleLike) -> Sample:
    """The sample that is meant.

    Raises:
        JRMError: it is neither a sample nor such a tuple, or what `Sample.edit` raises.
    """
    if isinstance(sample, Sample):
        return sample
    if isinstance(sample, tuple) and len(sample) == 3:
        return Sample.edit(*sample)
    raise JRMError(f"a sample must be a Sample or a tuple (source, instruction, edited), not {kind_of(sample)}.")


def _in_short(block: Mapping[str, Any]) -> str:
    if block["type"] == "text":
        text = block["text"]
        return repr(text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…")
    image = block["image"]
    if isinstance(image, bytes):
        what = f"of {len(image)} bytes"
    elif isinstance(image, Image.Image):
        what = f"{image.mode} {image.width}x{image.height}"
    elif is_data_url(image):
        what = f"in a data: URL of {len(image)} characters"
    else:
        what = repr(image if len(image) <= SHOWN_CHARACTERS else "…" + image[1 - SHOWN_CHARACTERS :])
    return f"<image {what}>"


def _key(blocks: Sequence[Mapping[str, Any]]) -> str:
    whole = hashlib.sha256()
    for block in blocks:
        is_image = block["type"] == "image"
        content = digest(block["image"]) if is_image else hashlib.sha256(block["text"].encode()).digest()
        whole.update(block["type"].encode() + content)
    return whole.hexdigest()


def _prompt(images: Any, text_block: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """The images first, then the text; `images` is one image, a list or `None`."""
    images = [] if images is None else images if isinstance(images, (list, tuple)) else [images]
    return (*map(image_block, images), text_block)


def image_block(image: ImageLike) -> dict[str, Any]:
    return {"type": "image", "image": image}


def _text_block(text: object, what: str) -> dict[str, Any]:
    return {"type": "text", "text": checked_text(text, what)}


def _blocks(blocks: object, side: str) -> tuple[dict[str, Any], ...]:
    if not isinstance(blocks, (list, tuple)):
        raise JRMError(f"a sample's {side} must be a list of content blocks, not {kind_of(blocks)}.")
    return tuple(_block(block, f"{side} block {position}") for position, block in enumerate(blocks))


def _block(block: object, where: str) -> dict[str, Any]:
    if not isinstance(block, Mapping) or block.get("type") not in ("image", "text"):
        raise JRMError(f'{where} must be a dict with "type" "image" or "text", not {str(block)[:80]}.')
    kind = block["type"]
    if set(block) != {"type", kind}:
        raise JRMError(f'{where} must have the keys "type" and "{kind}" and no other, not {sorted(map(str, block))}.')
    if kind == "text":
        return _text_block(block["text"], f"text of {where}")
    return image_block(_image(block["image"], where))


def _image(image: Any, where: str) -> StoredImage:
    """The image in a form that can be compared and pickled; files are not opened here."""
    image = plain_image(image)
    if isinstance(image, np.ndarray):
        return load_image(image, name=where)
    if isinstance(image, os.PathLike):
        image = os.fspath(image)
    if not isinstance(image, (str, bytes, Image.Image)):
        raise JRMError(f"image of {where} must be a PIL image, path, bytes, data: URL or array, not {kind_of(image)}.")
    if isinstance(image, (str, bytes)) and not image:
        raise JRMError(f"image of {where} is empty: give a path, a data: URL or the bytes of a file.")
    return image
