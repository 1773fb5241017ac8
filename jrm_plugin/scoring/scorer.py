"""Scoring: a checkpoint in, `RewardScore`s out; the same score alone, in any batch and under any padding.

Shape suffixes: B sequences, S samples, L length, H hidden, D dimensions.
"""

import logging
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import torch
from tqdm.auto import tqdm
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from jrm_plugin.errors import JRMError
from jrm_plugin.model.loading import built_in_folder
from jrm_plugin.model.lora import is_lora_folder, load_lora
from jrm_plugin.model.modeling import JRMForRewardModeling
from jrm_plugin.model.processing import EncodedImage, EncodedSequence, JRMProcessor
from jrm_plugin.records.critiques import Critique, UnparsedCritique
from jrm_plugin.records.images import ImageLike, digest
from jrm_plugin.records.samples import OVERALL, Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.scoring.protocol import Ranked
from jrm_plugin.scoring.shared_prefix import GIB, ScoringEngine

logger = logging.getLogger(__name__)

# Samples are decoded and tokenized by threads while others are computed, so many ahead.
WORKERS, SAMPLES_AHEAD = 4, 32
# Samples of one pass at most, so that progress is seen; the memory budget may allow fewer.
SAMPLES_AT_ONCE = 256
# Where the engine cannot plan by memory.
PLAIN_SAMPLES = 8


class RewardScorer:
    """Scores samples with a JRM checkpoint.

    Example:
        >>> scorer = RewardScorer.from_pretrained("jrm-tiny")
        >>> scorer.score([Sample.edit("cat.png", "make the cat blue", "blue-cat.png")])[0].mu["overall"]
    """

    def __init__(
        self,
        model: JRMForRewardModeling,
        processor: JRMProcessor,
        *,
        memory_budget: int | None = None,
        cache_bytes: int = GIB // 2,
    ):
        if model.config.dimensions != processor.dimensions:
            raise JRMError(
                f"the model scores {', '.join(model.config.dimensions)} but its processor is for "
                f"{', '.join(processor.dimensions)}; the checkpoint's files do not belong together."
            )
        if memory_budget is None:
            on_gpu = model.device.type == "cuda"
            memory_budget = int(0.6 * torch.cuda.mem_get_info(model.device)[0]) if on_gpu else 2 * GIB
        if memory_budget < 1 or cache_bytes < 0:
            raise JRMError(
                f"memory_budget and cache_bytes are bytes, at least 1 and 0, got {memory_budget} and {cache_bytes}."
            )
        self.model, self.processor = model.eval(), processor
        self.engine = ScoringEngine(model, memory_budget=memory_budget, cache_bytes=cache_bytes)
        self._shares_prefixes = ScoringEngine.supports(model)
        if not self._shares_prefixes:
            logger.warning("This backbone's structure is unknown: every sequence is computed whole, which is slower.")

    @classmethod
    def from_pretrained(
        cls,
        path_or_name: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        attn_implementation: str | None = None,
        device_map: Any = None,
        quantization_config: Any = None,
        revision: str | None = None,
        max_pixels: int | None = None,
        memory_budget: int | None = None,
        cache_bytes: int = GIB // 2,
    ) -> "RewardScorer":
        """Loads a JRM folder, a LoRA folder that `jrm train` wrote, a hub name, or the built-in `jrm-tiny`.

        Args:
            device: by default the GPU if there is one. Not together with `device_map`.
            dtype: of the backbone; by default bfloat16 on a GPU that has it and float32 elsewhere. The reward head is
                always float32.
            attn_implementation, device_map, quantization_config, revision: as in transformers.
            max_pixels: overrides the checkpoint's; scores change with it.
            memory_budget: bytes that scoring may take beside the weights; by default 60 % of a GPU's free memory, or
                2 GiB on CPU. Batches are formed to fit into it.
            cache_bytes: image features kept for later calls, so that a source image is encoded once in an RL epoch;
                `engine.features` counts hits and misses.

        Raises:
            JRMError: there is no such checkpoint, its weights do not fit, or the device cannot be used.
        """
        folder = built_in_folder(path_or_name)
        if device is not None:
            _check_device(device)
        elif device_map is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype is None:
            on_gpu = torch.cuda.is_available() and (device_map is not None or torch.device(device).type == "cuda")
            dtype = torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported() else torch.float32
        options = {
            "dtype": dtype,
            "attn_implementation": attn_implementation,
            "device_map": device_map,
            "quantization_config": quantization_config,
            "revision": revision,
        }
        options = {name: value for name, value in options.items() if value is not None}
        load = load_lora if is_lora_folder(folder) else JRMForRewardModeling.from_pretrained
        model = load(folder, **options)
        if device is not None and device_map is None:
            model = model.to(device)
        processor = JRMProcessor.from_pretrained(folder, revision=revision, max_pixels=max_pixels)
        return cls(model, processor, memory_budget=memory_budget, cache_bytes=cache_bytes)

    @property
    def dimensions(self) -> list[str]:
        return self.processor.dimensions

    # -- scores

    @torch.inference_mode()
    def score(
        self, samples: Sequence[Sample], *, on_error: Literal["raise", "return"] = "raise", progress: bool = False
    ) -> list[RewardScore | JRMError]:
        """The score of each sample, in their order.

        Args:
            samples: what to score.
            on_error: `raise`: the first sample that cannot be read raises and names its position; `return`: its error
                stands in its place and the others are scored.
            progress: show a progress bar.

        Raises:
            JRMError: a sample cannot be read (with `on_error="raise"`).
        """
        if on_error not in ("raise", "return"):
            raise JRMError(f"on_error must be 'raise' or 'return', got {on_error!r}.")
        results: list[RewardScore | JRMError | None] = [None] * len(samples)
        for indices, sequences in self._encoded(samples, results if on_error == "return" else None, progress):
            mu_SD, log_sigma_SD = self.model.scores(self._hidden(sequences), self._dimension_ids(sequences))
            mu_SD, sigma_SD = mu_SD.double().tolist(), log_sigma_SD.double().exp().tolist()
            for index, mu_D, sigma_D in zip(indices, mu_SD, sigma_SD, strict=True):
                results[index] = RewardScore(
                    mu=dict(zip(self.dimensions, mu_D, strict=True)),
                    sigma=dict(zip(self.dimensions, sigma_D, strict=True)),
                )
        return results

    def rank(self, samples: Sequence[Sample]) -> list[Ranked]:
        """The samples by their overall score, best first; equal scores keep the order given."""
        ranked = [Ranked(position, score) for position, score in enumerate(self.score(samples))]
        return sorted(ranked, key=lambda place: -place.score.mu[OVERALL])

    @torch.inference_mode()
    def hidden_states(self, samples: Sequence[Sample], *, progress: bool = False) -> torch.Tensor:
        """The reward token's hidden state of every sequence, the paper's representation h (eq. 1), float32 on CPU.

        `[S, H]` in the joint layout, `[S * D, H]` in `per_dimension`.
        """
        parts = [self._hidden(sequences).float().cpu() for _, sequences in self._encoded(samples, None, progress)]
        return torch.cat(parts) if parts else torch.empty(0, self.model.config.get_text_config().hidden_size)

    def _hidden(self, sequences: Sequence[EncodedSequence]) -> torch.Tensor:
        """The reward token's final hidden state of every sequence, `[B, H]`."""
        if self._shares_prefixes:
            return self.engine.hidden_states(sequences)
        parts = []
        for batch in self._plain_batches(sequences):
            output = self.model(**self._batch(batch))
            output.check()
            parts.append(output.hidden_BH)
        return torch.cat(parts)

    def _plain_batches(self, sequences: Sequence[EncodedSequence]) -> Iterator[Sequence[EncodedSequence]]:
        """A few whole samples' sequences at a time, for a backbone whose structure the engine does not know."""
        size = PLAIN_SAMPLES * self.processor.sequences_per_sample
        return (sequences[start : start + size] for start in range(0, len(sequences), size))

    def _dimension_ids(self, sequences: Sequence[EncodedSequence]) -> torch.Tensor | None:
        if sequences[0].dimension is None:
            return None
        return torch.tensor([sequence.dimension for sequence in sequences], device=self.model.device)

    def _encoded(
        self, samples: Sequence[Sample], errors: list | None, progress: bool, description: str = "Scoring"
    ) -> Iterator[tuple[list[int], list[EncodedSequence]]]:
        """Positions of samples and their sequences, as many at once as the memory budget allows.

        The error of a sample that cannot be read goes into `errors` at its position, or is raised.
        """
        indices: list[int] = []
        sequences: list[EncodedSequence] = []
        taken = 0
        with tqdm(total=len(samples), desc=description, unit="sample", disable=not progress) as bar:
            for index, encoded in enumerate(self._encode_ahead(samples)):
                if isinstance(encoded, JRMError):
                    if errors is None:
                        raise JRMError(f"sample {index} cannot be scored: {encoded}") from encoded
                    errors[index] = encoded
                    bar.update()
                    continue
                size = self.engine.sequence_bytes(encoded)
                if indices and (taken + size > self.engine.memory_budget // 2 or len(indices) == SAMPLES_AT_ONCE):
                    yield indices, sequences
                    bar.update(len(indices))
                    sequences.clear()  # the caller's too, who is done with them: they hold the pixels
                    indices, taken = [], 0
                indices.append(index)
                sequences += encoded
                taken += size
            if indices:
                yield indices, sequences
                bar.update(len(indices))

    def _encode_ahead(self, samples: Sequence[Sample]) -> Iterator[list[EncodedSequence] | JRMError]:
        """The sequences of each sample, or its error, in order; threads work while the caller computes."""
        images = _RememberedImages(self.processor)

        def encode(sample: Sample) -> list[EncodedSequence] | JRMError:
            try:
                return self.processor.encode(sample, encode_image=images)
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

    def _batch(self, sequences: Sequence[EncodedSequence], **options: Any) -> dict[str, torch.Tensor]:
        batch = self.processor.collate(sequences, **options)
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}

    # -- critiques

    @torch.inference_mode()
    def critique(
        self,
        samples: Sequence[Sample],
        dimension: str | None = None,
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        progress: bool = False,
    ) -> list[dict[str, Critique | UnparsedCritique]]:
        """What the language head says of each sample (paper section 3.3); it does not change the score.

        Args:
            samples: what to criticise.
            dimension: only this one; by default all.
            max_new_tokens: longest assistant turn.
            temperature: 0 writes the likeliest token each time; above 0 tokens are sampled.
            top_p: when sampling, only from the likeliest tokens that hold this share of the probability.
            seed: of the sampling.

        Returns:
            Per sample, by dimension, a [`Critique`]; a [`RepairedCritique`] where its JSON had to be repaired, or an
            [`UnparsedCritique`] with the raw text where it is beyond that.

        Raises:
            JRMError: the checkpoint has no such dimension, or a sample cannot be read.
        """
        if dimension is not None and dimension not in self.dimensions:
            raise JRMError(f"this checkpoint has no dimension {dimension!r}; it has {', '.join(self.dimensions)}.")
        if temperature < 0 or not 0 < top_p <= 1:
            raise JRMError(f"temperature must be at least 0 and top_p in (0, 1], got {temperature} and {top_p}.")
        if temperature > 0 and not self._shares_prefixes:
            raise JRMError(
                "this backbone's structure is unknown, so its critiques cannot be sampled; use temperature 0."
            )
        wanted = self.dimensions if dimension is None else [dimension]
        sampling = None
        if temperature > 0:
            sampling = LogitsProcessorList([TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p)])
        generator = torch.Generator(self.model.device).manual_seed(seed)
        results: list[dict[str, Critique | UnparsedCritique]] = []
        for indices, sequences in self._encoded(samples, None, progress, "Writing critiques"):
            texts = self._generate(sequences, max_new_tokens, sampling, generator)
            per_sample = self.processor.sequences_per_sample
            for k in range(len(indices)):
                results.append(self._critiques_in(texts[k * per_sample : (k + 1) * per_sample], wanted))
        return results

    def _critiques_in(self, turns: Sequence[str], wanted: Sequence[str]) -> dict[str, Critique | UnparsedCritique]:
        """The critiques in one sample's assistant turns; where a dimension has none, all that was written."""
        texts = self.processor.split_critiques(turns)
        nowhere = "\n".join(turns)
        return {
            dimension: Critique.parse_leniently(texts[dimension])
            if dimension in texts
            else UnparsedCritique(nowhere, f"there is no line for {dimension}.")
            for dimension in wanted
        }

    def _generate(
        self,
        sequences: Sequence[EncodedSequence],
        max_new_tokens: int,
        sampling: LogitsProcessorList | None = None,
        generator: torch.Generator | None = None,
    ) -> list[str]:
        """The assistant turns that follow the sequences."""
        if self._shares_prefixes:
            new = self.engine.generate(
                sequences,
                max_new_tokens=max_new_tokens,
                eos_token_id=self.processor.tokenizer.eos_token_id,
                warpers=sampling,
                generator=generator,
            )
        else:
            new = [
                row for batch in self._plain_batches(sequences) for row in self._generate_plainly(batch, max_new_tokens)
            ]
        return self.processor.tokenizer.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _generate_plainly(self, sequences: Sequence[EncodedSequence], max_new_tokens: int) -> torch.Tensor:
        batch = self._batch(sequences, padding_side="left")
        batch.pop("dimension_ids", None)
        ids = self.model.generate(
            **batch,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=self.processor.tokenizer.pad_token_id,
            eos_token_id=self.processor.tokenizer.eos_token_id,
        )
        return ids[:, batch["input_ids"].shape[1] :]


def _check_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # no such device, not on this machine, or not in this torch
        reason = str(error).split("\n")[0].rstrip(".")
        raise JRMError(f"the device {device} cannot be used here ({reason}); use cpu, or leave it out.") from error


class _RememberedImages:
    """Encodes images, each of the last few once: a group's candidates name the same source image again and again."""

    def __init__(self, processor: JRMProcessor, count: int = 64):
        self._processor, self._count = processor, count
        self._images: OrderedDict[bytes, EncodedImage] = OrderedDict()
        self._lock = Lock()

    def __call__(self, image: ImageLike) -> EncodedImage:
        key = digest(image)
        with self._lock:
            if key in self._images:
                self._images.move_to_end(key)
                return self._images[key]
        encoded = self._processor.encode_image(image)
        encoded.digest  # noqa: B018  computed here, in the worker's time
        with self._lock:
            self._images[key] = encoded
            if len(self._images) > self._count:
                self._images.popitem(last=False)
        return encoded
