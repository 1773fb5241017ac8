"""From samples to sequences: the layout, the rubrics, the tokenizer and the image processor.

A sequence is one user turn (images and texts, in the order of the layout) that the reward token closes, and, in
training, the assistant turn with the critiques. Every text is a template of the checkpoint, in whose slot stands what
comes from outside; template and filling are encoded as one string. Shape suffixes: B sequences, L length.
"""

import copy
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from jrm_plugin.errors import JRMError, shortened
from jrm_plugin.model import backbone, chat_template
from jrm_plugin.model.checkpoint import (
    built_in_folder,
    find_file,
    in_file,
    load_config,
    load_image_processor,
    load_tokenizer,
    read_object,
    reading,
)
from jrm_plugin.model.configuration import check_dimensions
from jrm_plugin.model.packing import pack
from jrm_plugin.model.rubrics import default_rubrics
from jrm_plugin.records.critiques import REGION_TAGS, Critique
from jrm_plugin.records.images import image_size, load_image
from jrm_plugin.records.samples import DIMENSIONS, TASKS, Sample

REWARD_TOKEN = "<|Reward|>"
SLOT = "{instruction}"  # the slot of a template
LAYOUT_FILE = "jrm_processor.json"
ORDERS = ("images_first", "rubric_first")
SEQUENCES = ("joint", "per_dimension")
MAX_PIXELS = 200_704  # of a model that is made from a backbone (paper appendix B.1)

# What the layout file holds: arguments and attributes of `JRMProcessor`.
_LAYOUT = ("image_token", "dimensions", "order", "sequences", "rubrics")

_REGION_TAG = re.compile("(" + "|".join(map(re.escape, REGION_TAGS)) + ")")
# Marks a slot in the rendered chat template; private-use characters, so that no template's own text contains it.
_MARKER = re.compile("\ue000([trR])\ue001")


@dataclass(frozen=True)
class Segment:
    """A piece of a user turn: an image, or a text that stands in the slot of a template.

    The text is read as plain text whatever it spells. Only in the template, which belongs to the checkpoint, region
    tags are the tokens that critiques use.
    """

    kind: Literal["image", "text"]
    content: Any
    template: str = SLOT


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image as the backbone takes it: its patches `[patches, C * T * P * P]`, their grid `[3]`, and its tokens.

    `pixels` is how many the image had before it was scaled.
    """

    pixel_values: torch.Tensor
    grid_thw: torch.Tensor
    tokens: int
    pixels: int

    @cached_property
    def digest(self) -> bytes:
        """Equal for equal patches of equal grids: images that look the same to the backbone."""
        content = hashlib.blake2b(self.pixel_values.numpy().tobytes(), digest_size=16)
        content.update(self.grid_thw.numpy().tobytes())
        return content.digest()


@dataclass(frozen=True)
class EncodedSequence:
    """One sequence before it is padded: token ids of both turns, its images, the dimension it scores, and its task.

    `dimension` is `None` where a sequence scores every dimension (or none: a text to learn). The first `source_images`
    of the images are the prompt's.
    """

    prompt: list[int]
    critique: list[int]
    images: list[EncodedImage]
    source_images: int
    dimension: int | None
    task: str


class JRMProcessor:
    """Turns [`Sample`]s into the model's inputs; saved with the checkpoint, rubrics included.

    Args:
        tokenizer: a fast tokenizer with a chat template, the reward token and the region tags.
        image_processor: of the backbone.
        image_token: the placeholder that stands for one merged patch.
        dimensions: ordered names of what is scored.
        order: `images_first` (images, rubric, instruction) or `rubric_first` (rubric, instruction, prompt images, and
            the response's image last).
        sequences: `joint` (one sequence scores every dimension) or `per_dimension` (one sequence and rubric each).
        rubrics: text by task and dimension; by default the package's full ones. `{instruction}` in one is the slot in
            which the instruction stands. Where no rubric of a sequence has a slot, each is a line, and the instruction
            comes behind them.
        max_pixels: images larger than this are scaled down; by default the image processor's own.

    Tokenizer and image processor stay the caller's: what is changed in them is changed in copies.

    Raises:
        JRMError: the parts do not fit each other, or an argument is none of what it can be.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: backbone.ImageProcessor,
        *,
        image_token: str,
        dimensions: Sequence[str] = DIMENSIONS,
        order: str = "rubric_first",
        sequences: str = "joint",
        rubrics: Mapping[str, Mapping[str, str]] | None = None,
        max_pixels: int | None = None,
    ):
        if order not in ORDERS or sequences not in SEQUENCES:
            raise JRMError(
                f"unknown layout order={shortened(order)}, sequences={shortened(sequences)}; "
                f"order is one of {', '.join(ORDERS)}, sequences one of {', '.join(SEQUENCES)}."
            )
        if not tokenizer.is_fast or not tokenizer.chat_template:
            raise JRMError("the backbone's tokenizer must be a fast one with a chat template.")
        if tokenizer.pad_token_id is None or tokenizer.eos_token_id is None:
            raise JRMError("the tokenizer must have a padding token and an end token (pad_token, eos_token).")
        if not isinstance(image_token, str) or image_token not in tokenizer.get_vocab():
            raise JRMError(f"image_token must be a token of the tokenizer, not {shortened(image_token)}.")
        self.dimensions = check_dimensions(dimensions)
        rubrics = default_rubrics("full", self.dimensions) if rubrics is None else rubrics
        self.rubrics = _check_rubrics(rubrics, self.dimensions)
        self.image_token, self.order, self.sequences = image_token, order, sequences
        if not {REWARD_TOKEN, *REGION_TAGS} <= tokenizer.get_added_vocab().keys():
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.add_special_tokens({"extra_special_tokens": [REWARD_TOKEN]}, replace_extra_special_tokens=False)
            tokenizer.add_tokens(list(REGION_TAGS))
        self.tokenizer, self.image_processor = tokenizer, copy.deepcopy(image_processor)
        self.reward_token_id = tokenizer.convert_tokens_to_ids(REWARD_TOKEN)
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        self.added_token_ids = sorted(tokenizer.convert_tokens_to_ids([REWARD_TOKEN, *REGION_TAGS]))
        self._all_added_ids = set(tokenizer.get_added_vocab().values())
        self._plain = _without_added_tokens(tokenizer)
        self._templates: dict[str, list[list[int] | str]] = {}  # by kinds of segments
        self._known_outlines: dict[int, list[tuple[list[int], list[int]]]] = {}  # by how many images
        if max_pixels is not None:
            self.max_pixels = max_pixels

    # -- construction, saving and loading

    @classmethod
    def from_backbone(
        cls, name_or_path: str | Path, *, max_pixels: int | None = None, revision: str | None = None, **layout: Any
    ) -> "JRMProcessor":
        """A processor for a pretrained backbone.

        Args:
            name_or_path: a hub name or folder.
            max_pixels: images larger than this are scaled down; by default the paper's 200,704 (appendix B.1).
            revision: of a hub name.
            layout: the keyword arguments of [`JRMProcessor`].
        """
        config = load_config(name_or_path, revision=revision)
        backbone.check_backbone_family(config.model_type)
        tokenizer = load_tokenizer(name_or_path, revision=revision)
        image_processor = load_image_processor(name_or_path, revision=revision)
        image_token = tokenizer.convert_ids_to_tokens(backbone.image_token_id(config))
        max_pixels = MAX_PIXELS if max_pixels is None else max_pixels
        return cls(tokenizer, image_processor, image_token=image_token, max_pixels=max_pixels, **layout)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, revision: str | None = None, max_pixels: int | None = None
    ) -> "JRMProcessor":
        """Loads what `save_pretrained` wrote, or a built-in model's by name.

        Raises:
            JRMError: a file is missing, or a value in one cannot be.
        """
        folder = built_in_folder(folder)
        tokenizer = load_tokenizer(folder, revision=revision)
        image_processor = load_image_processor(folder, revision=revision)
        path = find_file(folder, LAYOUT_FILE, revision=revision)
        if path is None:
            raise JRMError(
                f"{folder} has no {LAYOUT_FILE}, so it is no complete JRM checkpoint; "
                "save the processor with the model."
            )
        layout = read_object(path)
        # All of them: a default of this version in place of what the checkpoint was trained with would move its scores.
        if layout.keys() != set(_LAYOUT):
            raise JRMError(
                f"{path} must hold {', '.join(_LAYOUT)}, and holds {shortened(', '.join(layout) or 'nothing')}."
            )
        with in_file(path), reading(folder, "the processor"):
            return cls(tokenizer, image_processor, max_pixels=max_pixels, **layout)

    def with_max_pixels(self, max_pixels: int) -> "JRMProcessor":
        """A processor that differs in the size of images alone; this one stays as it is."""
        other = copy.copy(self)
        other.image_processor = copy.deepcopy(self.image_processor)
        other.max_pixels = max_pixels
        return other

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes tokenizer, image processor, layout and rubrics into `folder`, beside the model's weights."""
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)
        layout = {name: getattr(self, name) for name in _LAYOUT}
        text = json.dumps(layout, indent=2, ensure_ascii=False) + "\n"
        Path(folder, LAYOUT_FILE).write_text(text, encoding="utf-8")

    @property
    def max_pixels(self) -> int:
        """Images with more pixels than this are scaled down before they are cut into patches."""
        return backbone.max_pixels(self.image_processor)

    @max_pixels.setter
    def max_pixels(self, value: int) -> None:
        smallest = backbone.pixels_per_token(self.image_processor)
        if not isinstance(value, int) or isinstance(value, bool):
            raise JRMError(f"max_pixels must be a whole number, not {shortened(value)}.")
        if value < smallest:
            raise JRMError(f"max_pixels={value} is less than one image token's {smallest} pixels.")
        backbone.set_max_pixels(self.image_processor, value)

    @property
    def min_pixels(self) -> int:
        """Images with fewer pixels than this are scaled up."""
        return backbone.min_pixels(self.image_processor)

    def __repr__(self) -> str:
        return (
            f"JRMProcessor(order={self.order!r}, sequences={self.sequences!r}, dimensions={self.dimensions}, "
            f"tasks={list(self.rubrics)}, min_pixels={self.min_pixels}, max_pixels={self.max_pixels})"
        )

    # -- from a sample to its pieces

    def dimensions_of(self, sequence: int) -> list[str]:
        """The dimensions that the `sequence`-th sequence of a sample scores."""
        return self.dimensions if self.sequences == "joint" else [self.dimensions[sequence]]

    @property
    def sequences_per_sample(self) -> int:
        return 1 if self.sequences == "joint" else len(self.dimensions)

    def segments(self, sample: Sample, dimensions: Sequence[str]) -> list[Segment]:
        """The user turn's pieces, in the order of the layout; without dimensions there is no rubric."""
        texts = [Segment("text", sample.prompt_text, text) for text in self.templates(sample.task, dimensions)]
        answer = [Segment("text", sample.response_text, "\n" + SLOT)] if sample.response_text else []
        images = [Segment("image", image) for image in sample.prompt_images + sample.response_images]
        return self._in_order(images, texts, answer)

    def _in_order(self, images: list[Segment], texts: list[Segment], answer: list[Segment]) -> list[Segment]:
        return images + texts + answer if self.order == "images_first" else texts + images + answer

    def templates(self, task: str, dimensions: Sequence[str]) -> list[str]:
        """The texts of a user turn, with the slot in which the instruction stands, in their order."""
        rubrics = [self.rubric(task, dimension) for dimension in dimensions]
        texts = [text if SLOT in text else text + "\n" for text in rubrics]
        return texts if any(SLOT in text for text in rubrics) else [*texts, SLOT]

    def rubric(self, task: str, dimension: str) -> str:
        if task not in self.rubrics:
            raise JRMError(
                f"this checkpoint has no rubric for task {task!r} (it has {', '.join(self.rubrics)}); "
                "score samples of a task it was trained for."
            )
        return self.rubrics[task][dimension]

    def critique_text(self, critiques: Mapping[str, Critique], dimensions: Sequence[str]) -> str:
        """The assistant turn: in a joint sequence one line per dimension, in their order, headed by its name."""
        present = [(d, critiques[d].to_json()) for d in dimensions if d in critiques]
        if len(dimensions) == 1:
            return "".join(text for _, text in present)
        return "\n".join(f"{dimension}: {text}" for dimension, text in present)

    def split_critiques(self, texts: Sequence[str]) -> dict[str, str]:
        """The inverse of `critique_text`: each dimension's part of the assistant turns of one sample's sequences."""
        if len(self.dimensions) == 1 or self.sequences == "per_dimension":
            return dict(zip(self.dimensions, texts, strict=True))
        lines = [line.partition(": ") for line in texts[0].split("\n")]
        return {head: text for head, separator, text in lines if separator and head in self.dimensions}

    # -- from pieces to tokens

    def encode_text(self, text: str) -> list[int]:
        """Tokens of a text from outside: whatever it spells, no added token can arise from it."""
        ids = self._plain.encode(text, add_special_tokens=False).ids
        if not self._all_added_ids.isdisjoint(ids):
            raise JRMError(f"the tokenizer makes an added token out of plain text ({text[:60]!r}); it cannot be used.")
        return ids

    def encode_critique(self, text: str) -> list[int]:
        """Tokens of an assistant turn: region tags are tokens, all else is plain text; ends the turn."""
        return [*self._encode_with_tags(text), self.tokenizer.eos_token_id]

    def _encode_with_tags(self, text: str, filled: Callable[[str], str] = str) -> list[int]:
        """Tokens of a text, its region tags tokens; `filled` gives what is read of each piece between them."""
        ids: list[int] = []
        for k, piece in enumerate(_REGION_TAG.split(text)):
            if k % 2:
                ids.append(self.tokenizer.convert_tokens_to_ids(piece))
            elif piece:
                ids += self.encode_text(filled(piece))
        return ids

    def _encode_filled(self, text: Segment) -> list[int]:
        return self._encode_with_tags(text.template, lambda piece: piece.replace(SLOT, text.content))

    def encode_image(self, image: Any) -> EncodedImage:
        """Decodes an image, scales it and cuts it into patches.

        Raises:
            JRMError: it cannot be opened.
        """
        picture = load_image(image)
        return EncodedImage(*backbone.patches_of(self.image_processor, picture), picture.width * picture.height)

    def image_tokens(self, width: int, height: int) -> int:
        """How many tokens an image of this size takes."""
        return backbone.image_tokens(self.image_processor, width, height)

    def sequence_length(self, sample: Sample, sequence: int, critiques: Mapping[str, Critique] | str | None) -> int:
        """Tokens of a sequence in training, critiques included, without decoding an image."""
        dimensions = [] if isinstance(critiques, str) else self.dimensions_of(sequence)
        segments = self.segments(sample, dimensions)
        counts = [self.image_tokens(*image_size(s.content)) for s in segments if s.kind == "image"]
        return len(self._prompt_ids(segments, counts)) + len(self._critique_ids(critiques, dimensions))

    def _critique_ids(self, critiques: Mapping[str, Critique] | str | None, dimensions: Sequence[str]) -> list[int]:
        text = critiques if isinstance(critiques, str) else self.critique_text(critiques or {}, dimensions)
        return self.encode_critique(text) if text else []

    def _template(self, kinds: str) -> list[list[int] | str]:
        if kinds not in self._templates:
            self._templates[kinds] = self._render_template(kinds)
        return self._templates[kinds]

    def _render_template(self, kinds: str) -> list[list[int] | str]:
        """The chat template around a user turn of these kinds of segments (`i`, `t`): token ids and slots."""
        content = [
            {"type": "image"} if kind == "i" else {"type": "text", "text": f"\ue000{kind}\ue001"}
            for kind in kinds + "R"
        ]
        rendered = chat_template.render(
            self.tokenizer, [{"role": "user", "content": content}], add_generation_prompt=True
        )
        pieces: list[list[int] | str] = []
        for k, piece in enumerate(_MARKER.split(rendered)):
            if k % 2:
                pieces.append(piece)
                continue
            ids = self.tokenizer(piece, add_special_tokens=False)["input_ids"]
            start = 0
            for j, token in enumerate(ids):
                if token == self.image_token_id:
                    pieces += [ids[start:j], "i"]
                    start = j + 1
            pieces.append(ids[start:])
        slots = "".join(piece for piece in pieces if isinstance(piece, str))
        if slots != kinds + "R":
            raise JRMError(
                f"the backbone's chat template does not keep the order of images and text ({kinds!r} became "
                f"{slots[:-1]!r}); it cannot be used."
            )
        return pieces

    def _prompt_ids(self, segments: Sequence[Segment], image_tokens: Sequence[int]) -> list[int]:
        texts = iter([s for s in segments if s.kind == "text"])
        counts = iter(image_tokens)
        ids: list[int] = []
        for piece in self._template(_kinds(segments)):
            if piece == "i":
                ids += [self.image_token_id] * next(counts)
            elif piece == "t":
                ids += self._encode_filled(next(texts))
            elif piece == "R":
                ids.append(self.reward_token_id)
            else:
                ids += piece
        return ids

    # -- for inference engines, which place images themselves

    def compact_prompt(self, sequence: EncodedSequence) -> list[int]:
        """Token ids of a sequence up to the reward token, which is the last, with one placeholder for each image."""
        images = iter(sequence.images)
        ids: list[int] = []
        position = 0
        while not ids or ids[-1] != self.reward_token_id:
            ids.append(sequence.prompt[position])
            position += next(images).tokens if ids[-1] == self.image_token_id else 1
        return ids

    def is_prompt(self, ids: Sequence[int]) -> bool:
        """Whether token ids are a whole prompt up to the reward token, with any number of placeholders for each image.

        It begins and ends as the template does, and has the template's added tokens and no other: so none is a prompt
        that was cut off, or in which a text from outside became such a token.
        """
        ids = list(ids)
        marks = self._marks(ids)
        outlines = self._outlines(marks.count(self.image_token_id))
        return ids[-1:] == [self.reward_token_id] and any(
            ids[: len(head)] == head and marks == expected for head, expected in outlines
        )

    def _marks(self, ids: Sequence[int]) -> list[int]:
        """The added tokens of a prompt; placeholders that follow each other are one."""
        image = self.image_token_id
        return [b for a, b in pairwise([-1, *ids]) if b in self._all_added_ids and not a == b == image]

    def _outlines(self, images: int) -> list[tuple[list[int], list[int]]]:
        """How prompts with so many images begin, and their marks: by task, sequence, and whether a text answers."""
        if images not in self._known_outlines:
            outlines = []
            for task, k in product(self.rubrics, range(self.sequences_per_sample)):
                texts = [Segment("text", "", text) for text in self.templates(task, self.dimensions_of(k))]
                for answer in ([], [Segment("text", "")]):
                    segments = self._in_order([Segment("image", None)] * images, texts, answer)
                    ids = self._prompt_ids(segments, [1] * images)
                    marks = self._marks(ids[: ids.index(self.reward_token_id) + 1])
                    outline = (self._template(_kinds(segments))[0], marks)
                    if outline not in outlines:
                        outlines.append(outline)
            self._known_outlines[images] = outlines
        return self._known_outlines[images]

    # -- the batch

    def __call__(
        self,
        samples: Iterable[Sample],
        critiques: Iterable[Mapping[str, Critique] | str | None] | None = None,
        *,
        costs: backbone.TokenCosts | None = None,
    ) -> dict[str, Any]:
        """Makes the model's inputs: [`~JRMProcessor.encode`] for each sample, then [`~JRMProcessor.collate`]."""
        encoded: dict[str | bytes, EncodedImage] = {}

        def encode_image(image: Any) -> EncodedImage:
            """Each file once: both samples of a pair name one source."""
            if not isinstance(image, (str, bytes)):
                return self.encode_image(image)
            if image not in encoded:
                encoded[image] = self.encode_image(image)
            return encoded[image]

        encode = partial(self.encode, encode_image=encode_image)
        if critiques is None:
            return self.collate([sequence for sample in samples for sequence in encode(sample)], costs=costs)
        pairs = zip(samples, critiques, strict=True)
        sequences = [sequence for sample, critique in pairs for sequence in encode(sample, critique)]
        return self.collate(sequences, with_labels=True, costs=costs)

    def encode(
        self,
        sample: Sample,
        critiques: Mapping[str, Critique] | str | None = None,
        *,
        encode_image: Callable[[Any], EncodedImage] | None = None,
    ) -> list["EncodedSequence"]:
        """The sequences of one sample, its images decoded.

        Args:
            sample: what to score.
            critiques: nothing, critiques by dimension, or a text to learn (a [`CritiqueExample`]'s; such a sample is
                one sequence, without a rubric).
            encode_image: instead of `JRMProcessor.encode_image`, for callers who remember images.

        Raises:
            JRMError: an image cannot be opened, or the checkpoint has no rubric for the sample's task.
        """
        encode_image = encode_image or self.encode_image
        encoded = {id(image): encode_image(image) for image in sample.prompt_images + sample.response_images}
        sequences = []
        for k in range(1 if isinstance(critiques, str) else self.sequences_per_sample):
            dimensions = [] if isinstance(critiques, str) else self.dimensions_of(k)
            segments = self.segments(sample, dimensions)
            images = [encoded[id(s.content)] for s in segments if s.kind == "image"]
            sequences.append(
                EncodedSequence(
                    prompt=self._prompt_ids(segments, [image.tokens for image in images]),
                    critique=self._critique_ids(critiques, dimensions),
                    images=images,
                    source_images=len(sample.prompt_images),
                    dimension=k if len(dimensions) == 1 < len(self.dimensions) else None,
                    task=sample.task,
                )
            )
        return sequences

    def collate(
        self,
        sequences: Sequence["EncodedSequence"],
        *,
        with_labels: bool = False,
        padding_side: Literal["left", "right"] = "right",
        costs: backbone.TokenCosts | None = None,
    ) -> dict[str, Any]:
        """Pads sequences into one batch; `padding_side="left"` is for generation.

        Args:
            costs: `BackboneParts.costs` of the model that computes the batch, which then computes what sequences share
                once ([`packing`]); only with padding on the right.

        Returns:
            `input_ids`, `attention_mask` `[B, L]`; with images `pixel_values` and `image_grid_thw`; `labels` `[B, L]`
            if asked for, -100 but for the critiques; in the `per_dimension` layout `dimension_ids` `[B]`. With `costs`
            also the plan `packing`, and `pixel_values` of distinct images alone.
        """
        rows = [torch.tensor(sequence.prompt + sequence.critique) for sequence in sequences]
        masks = [torch.ones_like(row) for row in rows]
        pad = partial(pad_sequence, batch_first=True, padding_side=padding_side)
        batch: dict[str, Any] = {
            "input_ids": pad(rows, padding_value=self.tokenizer.pad_token_id),
            "attention_mask": pad(masks, padding_value=0),
        }
        if with_labels:
            labels = [row.clone() for row in rows]
            for label, sequence in zip(labels, sequences, strict=True):
                label[: len(sequence.prompt)] = -100
            batch["labels"] = pad(labels, padding_value=-100)
        images = [image for sequence in sequences for image in sequence.images]
        encoded = images
        if costs:
            ids = [sequence.prompt + sequence.critique for sequence in sequences]
            digests = [[(image.digest, image.tokens) for image in sequence.images] for sequence in sequences]
            batch["packing"] = pack(ids, digests, self.image_token_id, costs)
            encoded = [images[k] for k in batch["packing"]["image_I"].tolist()]
        if images:
            batch["pixel_values"] = torch.cat([image.pixel_values for image in encoded])
            batch["image_grid_thw"] = torch.stack([image.grid_thw for image in images])
        if any(sequence.dimension is not None for sequence in sequences):
            batch["dimension_ids"] = torch.tensor([sequence.dimension for sequence in sequences])
        return batch


def _kinds(segments: Sequence[Segment]) -> str:
    return "".join(segment.kind[0] for segment in segments)


def _check_rubrics(rubrics: Any, dimensions: Sequence[str]) -> dict[str, dict[str, str]]:
    if not isinstance(rubrics, Mapping) or not rubrics:
        raise JRMError(f"rubrics must be texts by task and dimension, not {shortened(rubrics)}.")
    for task, texts in rubrics.items():
        if task not in TASKS:
            raise JRMError(f"the rubrics are for an unknown task {shortened(task)}; tasks are {', '.join(TASKS)}.")
        if not isinstance(texts, Mapping) or not all(isinstance(text, str) for text in texts.values()):
            raise JRMError(f"the rubrics for task {task!r} must be texts by dimension, not {shortened(texts)}.")
        if missing := [d for d in dimensions if d not in texts]:
            raise JRMError(f"the rubrics for task {task!r} have no text for dimension {', '.join(missing)}.")
        if several := [d for d in dimensions if texts[d].count(SLOT) > 1]:
            raise JRMError(f"the rubric for task {task!r}, {several[0]}, has {SLOT} more than once; leave one.")
    return {task: dict(texts) for task, texts in rubrics.items()}


def _without_added_tokens(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The same tokenizer without its added tokens.

    `split_special_tokens` is not enough: it leaves added tokens that are not special whole.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state.update(added_tokens=[], truncation=None, padding=None)
    return Tokenizer.from_str(json.dumps(state))
