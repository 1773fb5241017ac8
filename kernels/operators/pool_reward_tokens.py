"""Gathers the hidden states of the reward tokens.

    pooled[b, k] = hidden[b, position of the k-th reward token of sequence b]

Its gradient scatters: grad_hidden is grad_pooled at those positions and zero elsewhere. Everything the reward head
computes is computed on K tokens of a sequence, not on its L.

Shapes: B sequences, L length, T tokens of a packed batch, H hidden, K reward tokens per sequence.
"""

import torch


def pool_reward_tokens(hidden_BLH, input_ids_BL, reward_token_id, *, cu_seqlens=None, tokens_per_sequence=1):
    """Hidden states of the reward tokens, in the order in which they stand in their sequence.

    Args:
        hidden_BLH: [B, L, H], or [T, H] for sequences packed one after another; any floating-point dtype and strides.
        input_ids_BL: token ids, [B, L] or [T].
        reward_token_id: id of the reward token.
        cu_seqlens: for the packed form, integers [B + 1]: sequence b is the tokens cu_seqlens[b] to
            cu_seqlens[b + 1] - 1, so that it starts with 0 and ends with T.
        tokens_per_sequence: K, the number of reward tokens that every sequence must hold.

    Returns:
        [B, K, H], differentiable with respect to `hidden_BLH`.

    Raises:
        ValueError: shapes do not fit, or a sequence holds another number of reward tokens than K (the first such
            sequence is named). The check reads the counts, so on an accelerator it waits for the device.
    """
    packed = cu_seqlens is not None
    layout = ("[T, H]", "[T]") if packed else ("[B, L, H]", "[B, L]")
    if hidden_BLH.dim() != (2 if packed else 3) or input_ids_BL.shape != hidden_BLH.shape[:-1]:
        shapes = f"{tuple(hidden_BLH.shape)} and {tuple(input_ids_BL.shape)}"
        raise ValueError(f"hidden and input_ids must be {layout[0]} and {layout[1]} of the same tokens, got {shapes}.")
    if tokens_per_sequence < 1:
        raise ValueError(f"tokens_per_sequence must be at least 1, got {tokens_per_sequence}.")

    is_reward = input_ids_BL == reward_token_id
    if packed:
        _check_cu_seqlens(cu_seqlens, hidden_BLH.shape[0])
        before = torch.nn.functional.pad(is_reward.cumsum(0), (1, 0))[cu_seqlens.long()]
        count_B = before[1:] - before[:-1]
    else:
        count_B = is_reward.sum(1)
    _check_counts(count_B, tokens_per_sequence, reward_token_id)
    # nonzero goes row by row, so the positions come in the order of the sequences
    return hidden_BLH[is_reward.nonzero(as_tuple=True)].view(-1, tokens_per_sequence, hidden_BLH.shape[-1])


def _check_cu_seqlens(cu_seqlens, total):
    bounds = cu_seqlens.tolist() if cu_seqlens.dim() == 1 else []
    rising = all(start <= end for start, end in zip(bounds, bounds[1:], strict=False))
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != total or not rising:
        raise ValueError(f"cu_seqlens must rise from 0 to the number of tokens, {total}, got {cu_seqlens.tolist()}.")


def _check_counts(count_B, wanted, reward_token_id):
    wrong_B = (count_B != wanted).nonzero()
    if len(wrong_B):
        b = int(wrong_B[0])
        raise ValueError(
            f"sequence {b} of {len(count_B)} holds {int(count_B[b])} reward tokens (id {reward_token_id}) "
            f"instead of {wanted}: check its tokens and that it was not truncated."
        )
