"""How the tokens of sampled critiques are drawn, the same in every engine.

Shape suffixes: N sequences, L tokens written so far, V vocabulary.
"""

import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper


class Sampling:
    """Draws tokens from the likeliest ones, reproducibly and without touching torch's global generator.

    Args:
        temperature: above 0.
        top_p: draw only from the likeliest tokens that hold this share of the probability.
        seed: of the draws.
        device: of the logits.
    """

    def __init__(self, *, temperature: float, top_p: float, seed: int, device: torch.device):
        self._warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p)])
        self._generator = torch.Generator(device).manual_seed(seed)

    def draw(self, so_far_NL: torch.Tensor, logits_NV: torch.Tensor) -> torch.Tensor:
        """The next token of every sequence, `[N]`."""
        probability_NV = self._warpers(so_far_NL, logits_NV).softmax(-1)
        return torch.multinomial(probability_NV, 1, generator=self._generator).squeeze(1)


def until(tokens: list[int], end: int) -> list[int]:
    """What stands before the first `end`."""
    return tokens[: tokens.index(end)] if end in tokens else tokens
