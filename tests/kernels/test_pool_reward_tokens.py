"""Pooling of reward tokens: against a plain loop, its gradient, and the errors that name a sequence."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jrm_plugin.kernels import pool_reward_tokens

REWARD = 7


@st.composite
def batches(draw):
    """(lengths, K, positions of the reward tokens by sequence), for sequences long enough to hold K of them."""
    K = draw(st.integers(1, 3))
    lengths = draw(st.lists(st.integers(K, 12), min_size=1, max_size=5))
    position = [sorted(draw(st.lists(st.integers(0, n - 1), min_size=K, max_size=K, unique=True))) for n in lengths]
    return lengths, K, position


def token_ids(length, positions):
    ids = torch.arange(length) % REWARD  # never the reward token
    ids[list(positions)] = REWARD
    return ids


@settings(max_examples=40)
@given(batches(), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), st.booleans())
def test_padded_batches_against_a_loop(batch, dtype, strided):
    lengths, K, position = batch
    B, L, H = len(lengths), max(lengths), 5
    input_ids_BL = torch.zeros(B, L, dtype=torch.int64)
    for b, n in enumerate(lengths):
        input_ids_BL[b, :n] = token_ids(n, position[b])
    hidden_BLH = torch.randn(B, L, H).to(dtype)
    if strided:
        hidden_BLH = torch.randn(H, L, 2 * B).to(dtype).permute(2, 1, 0)[::2]
    pooled_BKH = pool_reward_tokens(hidden_BLH, input_ids_BL, REWARD, tokens_per_sequence=K)
    assert pooled_BKH.shape == (B, K, H) and pooled_BKH.dtype == dtype
    for b, places in enumerate(position):
        for k, place in enumerate(places):
            assert torch.equal(pooled_BKH[b, k], hidden_BLH[b, place])


@settings(max_examples=40)
@given(batches())
def test_packed_sequences_give_what_padded_ones_give(batch):
    lengths, K, position = batch
    input_ids_T = torch.cat([token_ids(n, places) for n, places in zip(lengths, position, strict=True)])
    hidden_TH = torch.randn(sum(lengths), 3)
    cu_seqlens = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    pooled_BKH = pool_reward_tokens(hidden_TH, input_ids_T, REWARD, cu_seqlens=cu_seqlens, tokens_per_sequence=K)
    assert pooled_BKH.shape == (len(lengths), K, 3)
    for b, (hidden_LH, places) in enumerate(zip(hidden_TH.split(lengths), position, strict=True)):
        assert torch.equal(pooled_BKH[b], hidden_LH[places])


def test_the_gradient_is_scattered():
    input_ids_BL = torch.stack([token_ids(4, [1, 3]), token_ids(4, [0, 2])])
    hidden_BLH = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    upstream_BKH = torch.randn(2, 2, 3, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(
        pool_reward_tokens(hidden_BLH, input_ids_BL, REWARD, tokens_per_sequence=2), hidden_BLH, upstream_BKH
    )
    expected = torch.zeros_like(hidden_BLH)
    expected[0, [1, 3]], expected[1, [0, 2]] = upstream_BKH[0], upstream_BKH[1]
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize(("positions", "found"), [([], 0), ([1, 3], 2)], ids=["none", "too many"])
def test_the_sequence_with_a_wrong_number_of_reward_tokens_is_named(packed, positions, found):
    input_ids_BL = torch.stack([token_ids(4, [2]), token_ids(4, [0]), token_ids(4, positions)])
    hidden_BLH = torch.randn(3, 4, 2)
    arguments, options = (hidden_BLH, input_ids_BL), {}
    if packed:
        arguments = hidden_BLH.flatten(0, 1), input_ids_BL.flatten()
        options = {"cu_seqlens": torch.tensor([0, 4, 8, 12])}
    with pytest.raises(ValueError, match=rf"sequence 2 of 3 holds {found} reward tokens \(id 7\) instead of 1"):
        pool_reward_tokens(*arguments, REWARD, **options)


def test_counts_that_are_wrong_in_two_sequences_do_not_cancel():
    input_ids_BL = torch.stack([token_ids(4, []), token_ids(4, [0, 2])])
    with pytest.raises(ValueError, match="sequence 0 of 2 holds 0"):
        pool_reward_tokens(torch.randn(2, 4, 2), input_ids_BL, REWARD)


@pytest.mark.parametrize("bounds", [[0, 3, 5], [1, 3, 6], [0, 4, 2, 6], [0], [[0, 6]]])
def test_bounds_of_packed_sequences_are_checked(bounds):
    with pytest.raises(ValueError, match="cu_seqlens must rise from 0 to the number of tokens, 6"):
        pool_reward_tokens(torch.randn(6, 2), token_ids(6, [1, 4]), REWARD, cu_seqlens=torch.tensor(bounds))


@pytest.mark.parametrize(
    ("hidden", "ids", "options", "message"),
    [
        ((2, 3), (2, 3), {}, r"must be \[B, L, H\] and \[B, L\] of the same tokens, got \(2, 3\) and \(2, 3\)"),
        ((2, 3, 4), (2, 4), {}, r"got \(2, 3, 4\) and \(2, 4\)"),
        ((2, 3, 4), (2, 3), {"cu_seqlens": torch.tensor([0, 2])}, r"must be \[T, H\] and \[T\]"),
        ((2, 3, 4), (2, 3), {"tokens_per_sequence": 0}, "tokens_per_sequence must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_named(hidden, ids, options, message):
    with pytest.raises(ValueError, match=message):
        pool_reward_tokens(torch.zeros(hidden), torch.zeros(ids, dtype=torch.int64), REWARD, **options)
