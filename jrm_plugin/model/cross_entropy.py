"""The cross-entropy of tokens from hidden states, with and without the whole matrix of logits.

The matrix `[T, V]` of a Qwen's 151,936 tokens takes 0.6 MB a token in float32, and its gradient as much again. Fused,
it is made piece by piece, in the forward pass and again in the backward pass.

Shape suffixes: T tokens, H hidden, V vocabulary.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

CHUNK = 128  # tokens whose logits are there at once
HAS_LINEAR_CROSS_ENTROPY = hasattr(nn, "LinearCrossEntropyOptions")  # torch 2.11 has not


def token_losses(head: nn.Module, hidden_TH: torch.Tensor, target_T: torch.Tensor) -> torch.Tensor:
    """-log p of every target under the language head, `[T]` float32."""
    return cross_entropy(head(hidden_TH).float(), target_T, reduction="none")


def fused_token_losses(head: nn.Module, hidden_TH: torch.Tensor, target_T: torch.Tensor) -> torch.Tensor:
    """The same without a `[T, V]` tensor.

    On a GPU by torch's `linear_cross_entropy`, where the head is a plain matrix and this torch has it (2.13 does). Else
    in chunks of tokens through the head itself, which may then be adapted or spread over devices; on a CPU these are
    faster than torch's.
    """
    if hidden_TH.is_cuda and is_plain_matrix(head) and HAS_LINEAR_CROSS_ENTROPY:
        return torchs_token_losses(head, hidden_TH, target_T)
    chunks = zip(hidden_TH.split(CHUNK), target_T.split(CHUNK), strict=True)
    return torch.cat([checkpoint(token_losses, head, *chunk, use_reentrant=False) for chunk in chunks])


def is_plain_matrix(head: nn.Module) -> bool:
    """Whether the head is its weight and no more: no adapter, and not spread over devices as ZeRO-3 leaves it."""
    return type(head) is nn.Linear and head.bias is None and head.weight.dim() == 2


def torchs_token_losses(head: nn.Linear, hidden_TH: torch.Tensor, target_T: torch.Tensor) -> torch.Tensor:
    device = hidden_TH.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.weight.dtype
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK)
    loss_T = nn.functional.linear_cross_entropy(
        hidden_TH.to(dtype), head.weight.to(dtype), target_T, reduction="none", options=options
    )
    return loss_T.float()
