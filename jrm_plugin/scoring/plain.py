"""The reference engine: every sequence whole, through its backbone's own forward pass and generation.

It serves backbones whose structure is unknown, and is what tests and benchmarks compare the other engine with.

Shape suffixes: B sequences, L length, V vocabulary, H hidden.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from jrm_plugin.kernels import check_reward_token_counts
from jrm_plugin.model.modeling import JRMForRewardModeling
from jrm_plugin.model.processing import EncodedSequence, JRMProcessor
from jrm_plugin.scoring.sampling import Sampling, until


class PlainEngine:
    """Computes the reward tokens' hidden states of sequences, and continues them.

    Args:
        model, processor: which belong together.
        memory_budget: bytes; half of it is for the pixels of sequences that wait.
        batch: sequences computed at once; by default one on CPU, where more only cost padding, and 8 elsewhere.
    """

    def __init__(
        self,
        model: JRMForRewardModeling,
        processor: JRMProcessor,
        *,
        memory_budget: int = 2**31,
        batch: int | None = None,
    ):
        self.model, self.processor, self.memory_budget = model, processor, memory_budget
        self.batch = batch or (1 if model.device.type == "cpu" else 8)

    def __repr__(self) -> str:
        return f"PlainEngine(batch={self.batch})"

    def sequence_bytes(self, sequences: Sequence[EncodedSequence]) -> int:
        """What sequences hold in memory while others are computed: their pixels."""
        images = {id(image): image for sequence in sequences for image in sequence.images}
        return sum(image.pixel_values.nbytes for image in images.values())

    def hidden_states(self, sequences: Sequence[EncodedSequence]) -> torch.Tensor:
        """The reward token's final hidden state of every sequence, `[B, H]`.

        Raises:
            ValueError: a sequence has not exactly one reward token.
        """
        parts = []
        for inputs in self._batches(sequences):
            _, hidden_BH, count_B = self.model.hidden_states(**inputs)
            check_reward_token_counts(count_B)
            parts.append(hidden_BH)
        return torch.cat(parts)

    def generate(
        self, sequences: Sequence[EncodedSequence], *, max_new_tokens: int, sampling: Sampling | None = None
    ) -> list[list[int] | None]:
        """New token ids of each sequence, without the one that ends it: the likeliest, or as `sampling` draws them.

        None where its logits are not finite.
        """
        tokenizer = self.processor.tokenizer
        written: list[list[int] | None] = []
        for inputs in self._batches(sequences, padding_side="left"):
            length = inputs["input_ids"].shape[1]
            finite = _Finite()
            drawn = [] if sampling is None else [_Drawn(sampling, length)]
            ids_BL = self.model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                logits_processor=LogitsProcessorList([finite, *drawn]),
            )
            rows = zip(ids_BL[:, length:].tolist(), finite.rows_B.tolist(), strict=True)
            written += [until(row, tokenizer.eos_token_id) if is_finite else None for row, is_finite in rows]
        return written

    def _batches(self, sequences: Sequence[EncodedSequence], **options: Any) -> Iterator[dict[str, torch.Tensor]]:
        for start in range(0, len(sequences), self.batch):
            inputs = self.processor.collate(sequences[start : start + self.batch], **options)
            inputs.pop("dimension_ids", None)  # hidden states are the same for all dimensions
            yield {name: tensor.to(self.model.device) for name, tensor in inputs.items()}


class _Finite(LogitsProcessor):
    """Remembers which rows have had finite logits only, `rows_B`; of the others, nothing can be drawn."""

    rows_B: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        finite_B = scores.isfinite().all(-1)
        self.rows_B = finite_B if self.rows_B is None else self.rows_B & finite_B
        return scores.masked_fill(~self.rows_B.unsqueeze(1), 0.0)


class _Drawn(LogitsProcessor):
    """Lets generation that takes the likeliest token take the one that `sampling` draws."""

    def __init__(self, sampling: Sampling, prompt_length: int):
        self._sampling, self._prompt_length = sampling, prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        token_B = self._sampling.draw(input_ids[:, self._prompt_length :], scores.float())
        return torch.full_like(scores, -torch.inf).scatter(1, token_B.unsqueeze(1), 0.0)
