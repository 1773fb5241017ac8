"""Scoring: a checkpoint in, `RewardScore`s out; the same score alone, in any batch and under any padding.

Shape suffixes: B sequences, S samples, L length, H hidden, D dimensions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from tqdm.auto import tqdm

from jrm_plugin.errors import JRMError
from jrm_plugin.lora import is_lora_folder, load_lora
from jrm_plugin.modeling import JRMForRewardModeling, JRMOutput, built_in_folder
from jrm_plugin.processing import EncodedSequence, JRMProcessor
from jrm_plugin.samples import OVERALL, Critique, RewardScore, Sample


class Ranked(NamedTuple):
    """A place in a ranking: which of the samples, and its score."""

    index: int
    score: RewardScore


@dataclass(frozen=True)
class UnparsedCritique:
    """What the language head wrote where it is no valid [`Critique`]: the raw text, and what is wrong with it."""

    text: str
    error: str


class RewardScorer:
    """Scores samples with a JRM checkpoint.

    Example:
        >>> scorer = RewardScorer.from_pretrained("jrm-tiny")
        >>> scorer.score([Sample.edit("cat.png", "make the cat blue", "blue-cat.png")])[0].mu["overall"]
    """

    def __init__(self, model: JRMForRewardModeling, processor: JRMProcessor, *, batch_size: int = 16):
        if model.config.dimensions != processor.dimensions:
            raise JRMError(
                f"the model scores {', '.join(model.config.dimensions)} but its processor is for "
                f"{', '.join(processor.dimensions)}; the checkpoint's files do not belong together."
            )
        self.model, self.processor, self.batch_size = model.eval(), processor, batch_size

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
        batch_size: int = 16,
    ) -> "RewardScorer":
        """Loads a JRM folder, a LoRA folder that `jrm train` wrote, a hub name, or the built-in `jrm-tiny`.

        Args:
            device: by default the GPU if there is one. Not together with `device_map`.
            dtype: of the backbone; by default bfloat16 on a GPU that has it and float32 elsewhere. The reward head is
                always float32.
            attn_implementation, device_map, quantization_config, revision: as in transformers.
            max_pixels: overrides the checkpoint's; scores change with it.
            batch_size: samples a batch.

        Raises:
            JRMError: there is no such checkpoint, or its weights do not fit.
        """
        folder = built_in_folder(path_or_name)
        if device is None and device_map is None:
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
        return cls(model, processor, batch_size=batch_size)

    @property
    def dimensions(self) -> list[str]:
        return self.processor.dimensions

    # -- scores

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
        for indices, output in self._forward(samples, results if on_error == "return" else None, progress):
            mu_SD, sigma_SD = output.mu_SD.double().tolist(), output.log_sigma_SD.double().exp().tolist()
            for index, mu_D, sigma_D in zip(indices, mu_SD, sigma_SD, strict=True):
                results[index] = RewardScore(
                    mu=dict(zip(self.dimensions, mu_D, strict=True)),
                    sigma=dict(zip(self.dimensions, sigma_D, strict=True)),
                )
        return results

    def rank(self, samples: Sequence[Sample]) -> list[Ranked]:
        """The samples by their overall score, best first; equal scores keep the order given."""
        ranked = [Ranked(index, score) for index, score in enumerate(self.score(samples))]
        return sorted(ranked, key=lambda place: -place.score.mu[OVERALL])

    def hidden_states(self, samples: Sequence[Sample], *, progress: bool = False) -> torch.Tensor:
        """The reward token's hidden state of every sequence, the paper's representation h (eq. 1), float32 on CPU.

        `[S, H]` in the joint layout, `[S * D, H]` in `per_dimension`.
        """
        parts = [output.hidden_BH.float().cpu() for _, output in self._forward(samples, None, progress)]
        return torch.cat(parts) if parts else torch.empty(0, self.model.config.get_text_config().hidden_size)

    @torch.inference_mode()
    def _forward(
        self, samples: Sequence[Sample], errors: list | None, progress: bool
    ) -> Iterator[tuple[list[int], JRMOutput]]:
        """Batches of sample positions and the model's output; a sample's error goes into `errors`, or is raised."""
        with tqdm(total=len(samples), desc="Scoring", unit="sample", disable=not progress) as bar:
            for start in range(0, len(samples), self.batch_size):
                indices, sequences = [], []
                for index in range(start, min(start + self.batch_size, len(samples))):
                    try:
                        sequences += self.processor.encode(samples[index])
                        indices.append(index)
                    except JRMError as error:
                        if errors is None:
                            raise JRMError(f"sample {index} cannot be scored: {error}") from error
                        errors[index] = error
                if indices:
                    yield indices, self.model(**self._batch(sequences))
                bar.update(min(self.batch_size, len(samples) - start))

    def _batch(self, sequences: Sequence[EncodedSequence], **options: Any) -> dict[str, torch.Tensor]:
        batch = self.processor.collate(sequences, **options)
        return {name: tensor.to(self.model.device) for name, tensor in batch.items()}

    # -- critiques

    def critique(
        self,
        samples: Sequence[Sample],
        dimension: str | None = None,
        *,
        max_new_tokens: int = 512,
        progress: bool = False,
    ) -> list[dict[str, Critique | UnparsedCritique]]:
        """What the language head says of each sample (paper section 3.3), greedily; it does not change the score.

        Args:
            samples: what to criticise.
            dimension: only this one; by default all.
            max_new_tokens: longest assistant turn.

        Returns:
            Per sample, by dimension, a [`Critique`], or an [`UnparsedCritique`] where the text is none.

        Raises:
            JRMError: the checkpoint has no such dimension, or a sample cannot be read.
        """
        if dimension is not None and dimension not in self.dimensions:
            raise JRMError(f"this checkpoint has no dimension {dimension!r}; it has {', '.join(self.dimensions)}.")
        wanted = self.dimensions if dimension is None else [dimension]
        results: list[dict[str, Critique | UnparsedCritique]] = []
        for start in tqdm(
            range(0, len(samples), self.batch_size), desc="Writing critiques", unit="batch", disable=not progress
        ):
            batch = samples[start : start + self.batch_size]
            texts = self._generate([s for sample in batch for s in self.processor.encode(sample)], max_new_tokens)
            per_sample = self.processor.sequences_per_sample
            for k in range(len(batch)):
                results.append(self._critiques_in(texts[k * per_sample : (k + 1) * per_sample], wanted))
        return results

    def _critiques_in(self, turns: Sequence[str], wanted: Sequence[str]) -> dict[str, Critique | UnparsedCritique]:
        """The critiques in one sample's assistant turns; where a dimension has none, all that was written."""
        texts = self.processor.split_critiques(turns)
        nowhere = "\n".join(turns)
        return {
            d: parse_critique(texts[d]) if d in texts else UnparsedCritique(nowhere, f"there is no line for {d}.")
            for d in wanted
        }

    def _generate(self, sequences: Sequence[EncodedSequence], max_new_tokens: int) -> list[str]:
        tokenizer = self.processor.tokenizer
        batch = self._batch(sequences, padding_side="left")
        batch.pop("dimension_ids", None)
        ids = self.model.generate(
            **batch,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        new = ids[:, batch["input_ids"].shape[1] :]
        return tokenizer.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def parse_critique(text: str) -> Critique | UnparsedCritique:
    """A [`Critique`], or the text and what is wrong with it."""
    try:
        return Critique.parse(text)
    except JRMError as error:
        return UnparsedCritique(text, str(error))
