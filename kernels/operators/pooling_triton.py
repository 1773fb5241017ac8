"""Finding and gathering the reward tokens' hidden states in one Triton launch, and scattering their gradient.

One program for each sequence reads its token ids once, block by block, keeps the positions of the first K reward tokens
in registers and then copies their rows. Nothing is read back by the host. Offsets are 64-bit throughout.
"""

import torch
import triton
import triton.language as tl

from ._backend import device_guard


@triton.jit
def _gather_kernel(
    hidden_ptr,
    input_ids_ptr,
    cu_seqlens_ptr,
    pooled_ptr,
    row_ptr,
    count_ptr,
    reward_token_id,
    L,
    H,
    hidden_stride_b,
    hidden_stride_l,
    hidden_stride_h,
    ids_stride_b,
    ids_stride_l,
    K: tl.constexpr,
    K_PADDED: tl.constexpr,
    PACKED: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    hidden_stride_l = tl.cast(hidden_stride_l, tl.int64)
    hidden_stride_h = tl.cast(hidden_stride_h, tl.int64)
    ids_stride_l = tl.cast(ids_stride_l, tl.int64)
    first = b * L  # row of the sequence's first token among all tokens
    length = tl.cast(L, tl.int64)
    valid = True
    if PACKED:  # L is the number of all tokens
        first = tl.load(cu_seqlens_ptr + b).to(tl.int64)
        end = tl.load(cu_seqlens_ptr + b + 1).to(tl.int64)
        valid = (first >= 0) & (first <= end) & (end <= L)
        valid &= (b > 0) | (first == 0)
        valid &= (b < tl.num_programs(0) - 1) | (end == L)
        length = tl.where(valid, end - first, 0)  # nothing is read where the bounds are wrong
        hidden_ptr += first * hidden_stride_l
        input_ids_ptr += first * ids_stride_l
    else:
        hidden_ptr += b * hidden_stride_b
        input_ids_ptr += b * ids_stride_b

    k_K = tl.arange(0, K_PADDED)
    place_K = tl.full([K_PADDED], -1, tl.int64)
    found = tl.full([], 0, tl.int32)
    for start in range(0, length, BLOCK_L):
        place_L = start + tl.arange(0, BLOCK_L).to(tl.int64)
        inside = place_L < length
        is_reward = (tl.load(input_ids_ptr + place_L * ids_stride_l, inside, 0) == reward_token_id) & inside
        rank_L = found + tl.cumsum(is_reward.to(tl.int32), 0) - 1
        is_kth = is_reward[:, None] & (rank_L[:, None] == k_K[None, :])
        place_K += tl.sum(tl.where(is_kth, place_L[:, None] + 1, 0), 0)
        found += tl.sum(is_reward.to(tl.int32), 0)

    count = tl.where(valid, found, -1)
    readable = tl.where(count == K, H, 0)  # of a wrong sequence nothing is read, and NaN written
    tl.store(count_ptr + b, count)
    tl.store(row_ptr + b * K + k_K, tl.where(count == K, first + place_K, -1), k_K < K)
    for k in range(K):
        place = tl.sum(tl.where(k_K == k, place_K, 0), 0)
        for first_h in range(0, H, BLOCK_H):
            h = first_h + tl.arange(0, BLOCK_H).to(tl.int64)
            address = hidden_ptr + place * hidden_stride_l + h * hidden_stride_h
            value = tl.load(address, h < readable, float("nan"))
            tl.store(pooled_ptr + (b * K + k) * H + h, value, h < H)


@triton.jit
def _scatter_kernel(grad_pooled_ptr, row_ptr, grad_hidden_ptr, H, BLOCK_H: tl.constexpr):
    pooled_row = tl.program_id(0).to(tl.int64)
    row = tl.load(row_ptr + pooled_row)
    writable = tl.where(row >= 0, H, 0)
    h = tl.program_id(1).to(tl.int64) * BLOCK_H + tl.arange(0, BLOCK_H)
    gradient = tl.load(grad_pooled_ptr + pooled_row * H + h, h < H, 0.0)
    tl.store(grad_hidden_ptr + row * H + h, gradient, h < writable)


def gather(hidden, input_ids, cu_seqlens, reward_token_id, tokens_per_sequence):
    """As `pool_reward_tokens.gather_reward_tokens`."""
    packed = cu_seqlens is not None
    B, K, H = (len(cu_seqlens) - 1 if packed else len(hidden)), tokens_per_sequence, hidden.shape[-1]
    L = hidden.shape[-2]
    pooled_BKH = hidden.new_empty(B, K, H)
    row_BK = torch.empty(B, K, dtype=torch.int64, device=hidden.device)
    count_B = torch.empty(B, dtype=torch.int32, device=hidden.device)
    if B == 0:
        return pooled_BKH, row_BK, count_B
    with device_guard(hidden):
        _gather_kernel[(B,)](
            hidden,
            input_ids,
            cu_seqlens.contiguous() if packed else input_ids,
            pooled_BKH,
            row_BK,
            count_B,
            reward_token_id,
            L,
            H,
            0 if packed else hidden.stride(0),
            hidden.stride(-2),
            hidden.stride(-1),
            0 if packed else input_ids.stride(0),
            input_ids.stride(-1),
            K=K,
            K_PADDED=triton.next_power_of_2(K),
            PACKED=packed,
            BLOCK_L=min(2048, max(16, triton.next_power_of_2(L))),
            BLOCK_H=min(2048, max(16, triton.next_power_of_2(H))),
        )
    return pooled_BKH, row_BK, count_B


def scatter(grad_pooled_BKH, row_BK, rows):
    """As `pool_reward_tokens.scatter_reward_tokens`."""
    H = grad_pooled_BKH.shape[-1]
    grad_hidden = grad_pooled_BKH.new_zeros(rows, H)
    if grad_pooled_BKH.numel() == 0:
        return grad_hidden
    block = min(1024, max(16, triton.next_power_of_2(H)))
    with device_guard(grad_pooled_BKH):
        _scatter_kernel[(row_BK.numel(), triton.cdiv(H, block))](
            grad_pooled_BKH.contiguous(), row_BK, grad_hidden, H, BLOCK_H=block
        )
    return grad_hidden
