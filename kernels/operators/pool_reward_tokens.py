"""Gathers the hidden states of the reward tokens.

    pooled[b, k] = hidden[b, position of the k-th reward token of sequence b]

Its gradient scatters: grad_hidden is grad_pooled at those positions and zero elsewhere. Everything the reward head
computes is computed on K tokens of a sequence, not on its L.

Shapes: B sequences, L length, T tokens of a packed batch, H hidden, K reward tokens per sequence.
"""

from typing import Literal, overload

import torch

from ._backend import BACKENDS, Backend, use_triton


@torch.library.custom_op("jrm_plugin::gather_reward_tokens", mutates_args=())
def gather_reward_tokens(
    hidden: torch.Tensor,
    input_ids: torch.Tensor,
    cu_seqlens: torch.Tensor | None,
    reward_token_id: int,
    tokens_per_sequence: int,
    backend: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(pooled_BKH, row_BK, count_B): the hidden states, their rows among all tokens, and the reward tokens found.

    A sequence with another number of reward tokens has NaN for hidden states and -1 for rows; one whose bounds are
    wrong also -1 for its count.
    """
    if use_triton(backend, hidden.device):
        from .pooling_triton import gather

        return gather(hidden, input_ids, cu_seqlens, reward_token_id, tokens_per_sequence)
    return _gather(hidden, input_ids, cu_seqlens, reward_token_id, tokens_per_sequence)


def _gather(
    hidden: torch.Tensor, input_ids: torch.Tensor, cu_seqlens: torch.Tensor | None, reward_token_id: int, K: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The torch path, without waiting for the device."""
    total = input_ids.numel()
    if cu_seqlens is None:
        B, L = input_ids.shape
        bound_B1 = torch.arange(B + 1, device=hidden.device) * L
        valid_B = torch.ones(B, dtype=torch.bool, device=hidden.device)
    else:
        bound_B1 = cu_seqlens.long()
        valid_B = (bound_B1[:-1] >= 0) & (bound_B1[:-1] <= bound_B1[1:]) & (bound_B1[1:] <= total)
        valid_B[0] &= bound_B1[0] == 0
        valid_B[-1] &= bound_B1[-1] == total
        bound_B1 = bound_B1.clamp(0, total)
    # reward tokens before each token; the n-th stands where that number goes from n to n + 1
    before_T1 = torch.nn.functional.pad((input_ids.reshape(-1) == reward_token_id).cumsum(0), (1, 0))
    before_B1 = before_T1[bound_B1]
    count_B = before_B1[1:] - before_B1[:-1]
    wanted_BK = before_B1[:-1].unsqueeze(1) + torch.arange(1, K + 1, device=hidden.device)
    right_B1 = (valid_B & (count_B == K)).unsqueeze(1)
    row_BK = (torch.searchsorted(before_T1, wanted_BK) - 1).masked_fill(~right_B1, -1)
    # two indices instead of a flat one, because a strided hidden cannot be viewed as [T, H]
    row = row_BK.clamp(min=0)
    pooled_BKH = hidden[row] if cu_seqlens is not None else hidden[row // max(L, 1), row % max(L, 1)]
    pooled_BKH = pooled_BKH.masked_fill(~right_B1.unsqueeze(-1), torch.nan)
    return pooled_BKH, row_BK, count_B.masked_fill(~valid_B, -1).int()


@gather_reward_tokens.register_fake
def _(hidden, input_ids, cu_seqlens, reward_token_id, tokens_per_sequence, backend):
    B, K = (hidden.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1), tokens_per_sequence
    row_BK = input_ids.new_empty((B, K), dtype=torch.int64)
    return hidden.new_empty(B, K, hidden.shape[-1]), row_BK, input_ids.new_empty((B,), dtype=torch.int32)


@torch.library.custom_op("jrm_plugin::scatter_reward_tokens", mutates_args=())
def scatter_reward_tokens(grad_pooled_BKH: torch.Tensor, row_BK: torch.Tensor, rows: int, backend: str) -> torch.Tensor:
    """[rows, H]: grad_pooled_BKH at its rows, zero elsewhere; a row of -1 goes nowhere."""
    if use_triton(backend, grad_pooled_BKH.device):
        from .pooling_triton import scatter

        return scatter(grad_pooled_BKH, row_BK, rows)
    row_N, grad_NH = row_BK.flatten(), grad_pooled_BKH.flatten(0, 1)
    grad_NH = grad_NH.masked_fill(row_N.unsqueeze(1) < 0, 0)
    return grad_NH.new_zeros(rows, grad_NH.shape[1]).index_add_(0, row_N.clamp(min=0), grad_NH)


@scatter_reward_tokens.register_fake
def _(grad_pooled_BKH, row_BK, rows, backend):
    return grad_pooled_BKH.new_empty(rows, grad_pooled_BKH.shape[-1])


def _keep_rows(ctx, inputs, output):
    hidden, *_, backend = inputs
    _, row_BK, count_B = output
    ctx.mark_non_differentiable(row_BK, count_B)
    ctx.save_for_backward(row_BK)
    ctx.hidden_shape, ctx.backend = hidden.shape, backend


def _scatter_gradient(ctx, grad_pooled_BKH, *_):
    (row_BK,) = ctx.saved_tensors
    *tokens, H = ctx.hidden_shape
    rows = tokens[0] if len(tokens) == 1 else tokens[0] * tokens[1]
    grad_hidden = scatter_reward_tokens(grad_pooled_BKH, row_BK, rows, ctx.backend)
    return grad_hidden.reshape(*tokens, H), None, None, None, None, None


gather_reward_tokens.register_autograd(_scatter_gradient, setup_context=_keep_rows)


@overload
def pool_reward_tokens(
    hidden_BLH: torch.Tensor,
    input_ids_BL: torch.Tensor,
    reward_token_id: int,
    *,
    cu_seqlens: torch.Tensor | None = None,
    tokens_per_sequence: int = 1,
    return_counts: Literal[False] = False,
    backend: Backend = "auto",
) -> torch.Tensor: ...


@overload
def pool_reward_tokens(
    hidden_BLH: torch.Tensor,
    input_ids_BL: torch.Tensor,
    reward_token_id: int,
    *,
    cu_seqlens: torch.Tensor | None = None,
    tokens_per_sequence: int = 1,
    return_counts: Literal[True],
    backend: Backend = "auto",
) -> tuple[torch.Tensor, torch.Tensor]: ...


def pool_reward_tokens(
    hidden_BLH: torch.Tensor,
    input_ids_BL: torch.Tensor,
    reward_token_id: int,
    *,
    cu_seqlens: torch.Tensor | None = None,
    tokens_per_sequence: int = 1,
    return_counts: bool = False,
    backend: Backend = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Hidden states of the reward tokens, in the order in which they stand in their sequence.

    On a GPU this is one launch. Only the check of the counts waits for the device, and it can be had for nothing: with
    `return_counts=True` nothing is checked here; pass the counts to `check_reward_token_counts` at a place that waits
    anyway, such as where the loss or the scores are read. Until then a wrong sequence shows as NaN.

    Args:
        hidden_BLH: [B, L, H], or [T, H] for sequences packed one after another; any floating-point dtype and strides.
        input_ids_BL: token ids, [B, L] or [T].
        reward_token_id: id of the reward token.
        cu_seqlens: for the packed form, integers [B + 1]: sequence b is the tokens cu_seqlens[b] to
            cu_seqlens[b + 1] - 1, so that it starts with 0 and ends with T.
        tokens_per_sequence: K, the number of reward tokens that every sequence must hold.
        return_counts: return the counts instead of checking them.
        backend: as in `uncertainty_ranking_loss`; here Triton serves every dtype.

    Returns:
        [B, K, H], differentiable with respect to `hidden_BLH`; with `return_counts` a pair of it and of the reward
        tokens found in each sequence, [B] int32 on the same device.

    Raises:
        ValueError: shapes do not fit, or a sequence holds another number of reward tokens than K (the first such
            sequence is named).

    Example:
        >>> hidden_BLH = torch.arange(6.0).reshape(1, 3, 2)
        >>> pool_reward_tokens(hidden_BLH, torch.tensor([[5, 9, 7]]), reward_token_id=9)
        tensor([[[2., 3.]]])
    """
    packed = cu_seqlens is not None
    layout = ("[T, H]", "[T]") if packed else ("[B, L, H]", "[B, L]")
    if hidden_BLH.dim() != (2 if packed else 3) or input_ids_BL.shape != hidden_BLH.shape[:-1]:
        shapes = f"{tuple(hidden_BLH.shape)} and {tuple(input_ids_BL.shape)}"
        raise ValueError(f"hidden and input_ids must be {layout[0]} and {layout[1]} of the same tokens, got {shapes}.")
    if cu_seqlens is not None and (cu_seqlens.dim() != 1 or len(cu_seqlens) < 2 or cu_seqlens.is_floating_point()):
        raise ValueError(f"cu_seqlens must be integers [B + 1], got {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}.")
    if tokens_per_sequence < 1:
        raise ValueError(f"tokens_per_sequence must be at least 1, got {tokens_per_sequence}.")
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}.")
    pooled_BKH, _, count_B = gather_reward_tokens(
        hidden_BLH, input_ids_BL, cu_seqlens, reward_token_id, tokens_per_sequence, backend
    )
    if return_counts:
        return pooled_BKH, count_B
    check_reward_token_counts(count_B, tokens_per_sequence)
    return pooled_BKH


def check_reward_token_counts(count_B: torch.Tensor, tokens_per_sequence: int = 1) -> None:
    """Checks what `pool_reward_tokens` gives with `return_counts=True`; waits for the device.

    Args:
        count_B: the reward tokens found in each sequence, `[B]`; -1 where `cu_seqlens` is wrong.
        tokens_per_sequence: K, the number that every sequence must hold.

    Raises:
        ValueError: names the first sequence whose count is not K.
    """
    for b, count in enumerate(count_B.tolist()):
        if count == -1:
            raise ValueError(
                f"cu_seqlens is wrong at sequence {b} of {len(count_B)}: it must rise from 0 to the number of tokens."
            )
        if count != tokens_per_sequence:
            raise ValueError(
                f"sequence {b} of {len(count_B)} holds {count} reward tokens instead of {tokens_per_sequence}: "
                "check its tokens and that it was not truncated."
            )
