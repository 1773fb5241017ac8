"""Pooling of reward tokens: against a plain loop, its gradient, and the errors that name a sequence.

Held against torch and against the Triton kernel, on the GPU if there is one and in Triton's interpreter otherwise.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.kernel_accuracy import implementations
from jrm_plugin.kernels import check_reward_token_counts, pool_reward_tokens

REWARD = 7
places = sorted({(found.backend, found.device) for found in implementations()})
implementation_given = pytest.mark.parametrize(("backend", "device"), places, ids=map("-".join, places))


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


@implementation_given
@settings(max_examples=40, deadline=None)
@given(batch=batches(), dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), strided=st.booleans())
def test_padded_batches_against_a_loop(backend, device, batch, dtype, strided):
    lengths, K, position = batch
    B, L, H = len(lengths), max(lengths), 5
    input_ids_BL = torch.zeros(B, L, dtype=torch.int64)
    for b, n in enumerate(lengths):
        input_ids_BL[b, :n] = token_ids(n, position[b])
    hidden_BLH = torch.randn(B, L, H).to(dtype)
    if strided:
        hidden_BLH = torch.randn(H, L, 2 * B).to(dtype).permute(2, 1, 0)[::2]
        input_ids_BL = input_ids_BL.t().contiguous().t()
    pooled_BKH = pool_reward_tokens(
        hidden_BLH.to(device), input_ids_BL.to(device), REWARD, tokens_per_sequence=K, backend=backend
    ).cpu()
    assert pooled_BKH.shape == (B, K, H) and pooled_BKH.dtype == dtype
    for b, places in enumerate(position):
        for k, place in enumerate(places):
            assert torch.equal(pooled_BKH[b, k], hidden_BLH[b, place])


@implementation_given
@settings(max_examples=40, deadline=None)
@given(batch=batches())
def test_packed_sequences_give_what_padded_ones_give(backend, device, batch):
    lengths, K, position = batch
    input_ids_T = torch.cat([token_ids(n, places) for n, places in zip(lengths, position, strict=True)])
    hidden_TH = torch.randn(sum(lengths), 3)
    cu_seqlens = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    pooled_BKH = pool_reward_tokens(
        hidden_TH.to(device),
        input_ids_T.to(device),
        REWARD,
        cu_seqlens=cu_seqlens.to(device),
        tokens_per_sequence=K,
        backend=backend,
    ).cpu()
    assert pooled_BKH.shape == (len(lengths), K, 3)
    for b, (hidden_LH, places) in enumerate(zip(hidden_TH.split(lengths), position, strict=True)):
        assert torch.equal(pooled_BKH[b], hidden_LH[places])


@implementation_given
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_the_gradient_is_scattered(backend, device, packed):
    input_ids_BL = torch.stack([token_ids(4, [1, 3]), token_ids(4, [0, 2])]).to(device)
    hidden_BLH = torch.randn(2, 4, 3, dtype=torch.float64, device=device, requires_grad=True)
    upstream_BKH = torch.randn(2, 2, 3, dtype=torch.float64, device=device)
    arguments, options = (hidden_BLH, input_ids_BL), {}
    if packed:
        arguments = hidden_BLH.flatten(0, 1), input_ids_BL.flatten()
        options = {"cu_seqlens": torch.tensor([0, 4, 8], device=device)}
    pooled_BKH = pool_reward_tokens(*arguments, REWARD, tokens_per_sequence=2, backend=backend, **options)
    (gradient,) = torch.autograd.grad(pooled_BKH, hidden_BLH, upstream_BKH)
    expected = torch.zeros_like(hidden_BLH)
    expected[0, [1, 3]], expected[1, [0, 2]] = upstream_BKH[0], upstream_BKH[1]
    assert torch.equal(gradient, expected)


@implementation_given
def test_long_sequences_and_wide_hidden_states(backend, device):
    """More than one block of each, and neither a power of two."""
    L, H, places = 5000, 2500, [[0, 4999], [2047, 2048], [2500, 4100]]
    input_ids_BL = torch.stack([token_ids(L, place) for place in places]).to(device)
    hidden_BLH = torch.randn(3, L, H, device=device)
    pooled_BKH = pool_reward_tokens(hidden_BLH, input_ids_BL, REWARD, tokens_per_sequence=2, backend=backend)
    for b, place in enumerate(places):
        assert torch.equal(pooled_BKH[b], hidden_BLH[b, place])


@implementation_given
def test_offsets_beyond_32_bits(backend, device):
    """Token 1 lies 2^31 elements behind token 0; of the memory between them nothing is touched."""
    storage = torch.empty(2**31 + 8, dtype=torch.bfloat16, device=device)
    storage[-8:] = 3
    hidden_BLH = storage.as_strided((1, 2, 8), (0, 2**31, 1))
    pooled_BKH = pool_reward_tokens(hidden_BLH, torch.tensor([[0, REWARD]], device=device), REWARD, backend=backend)
    assert (pooled_BKH == 3).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device with 16 GiB of free memory")
def test_more_than_two_to_the_31_elements():
    B, L, H = 3, 131_072, 8192
    hidden_BLH = torch.zeros(B, L, H, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    with torch.no_grad():
        hidden_BLH[-1, -1] = 3
    input_ids_BL = torch.stack([token_ids(L, [L - 1]) for _ in range(B)]).cuda()
    pooled_BKH = pool_reward_tokens(hidden_BLH, input_ids_BL, REWARD)
    assert (pooled_BKH[-1] == 3).all() and not pooled_BKH[:-1].any()
    (gradient,) = torch.autograd.grad(pooled_BKH.sum(), hidden_BLH)
    assert (gradient[:, -1] == 1).all() and not gradient[:, :-1].any()


@implementation_given
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_the_operators_are_registered_as_torch_expects(backend, device, packed):
    input_ids = torch.stack([token_ids(4, [1]), token_ids(4, [2])]).to(device)
    hidden = torch.randn(2, 4, 3, device=device, requires_grad=True)
    cu_seqlens = None
    if packed:
        hidden, input_ids = hidden.detach().flatten(0, 1).requires_grad_(), input_ids.flatten()
        cu_seqlens = torch.tensor([0, 4, 8], device=device)
    operators = torch.ops.jrm_plugin
    torch.library.opcheck(operators.gather_reward_tokens.default, (hidden, input_ids, cu_seqlens, REWARD, 1, backend))
    row_BK = torch.tensor([[1], [6]], device=device)
    gradient_BKH = torch.randn(2, 1, 3, device=device)
    torch.library.opcheck(operators.scatter_reward_tokens.default, (gradient_BKH, row_BK, 8, backend))


@implementation_given
def test_compiles_without_a_graph_break(backend, device):
    def loss(hidden_BLH, input_ids_BL):
        return pool_reward_tokens(hidden_BLH, input_ids_BL, REWARD, return_counts=True, backend=backend)[0].sum()

    hidden_BLH = torch.randn(2, 4, 3, device=device, requires_grad=True)
    input_ids_BL = torch.stack([token_ids(4, [1]), token_ids(4, [2])]).to(device)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got, want = (torch.autograd.grad(f(hidden_BLH, input_ids_BL), hidden_BLH)[0] for f in (compiled, loss))
    assert torch.equal(got, want)


@implementation_given
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_without_a_check_a_wrong_sequence_is_not_a_number_and_gets_no_gradient(backend, device, packed):
    input_ids_BL = torch.stack([token_ids(4, [2]), token_ids(4, []), token_ids(4, [1, 3])]).to(device)
    hidden_BLH = torch.randn(3, 4, 2, device=device, requires_grad=True)
    arguments, options = (hidden_BLH, input_ids_BL), {"return_counts": True, "backend": backend}
    if packed:
        arguments = hidden_BLH.flatten(0, 1), input_ids_BL.flatten()
        options["cu_seqlens"] = torch.tensor([0, 4, 8, 12], device=device)
    pooled_BKH, count_B = pool_reward_tokens(*arguments, REWARD, **options)
    assert count_B.tolist() == [1, 0, 2]
    assert torch.equal(pooled_BKH[0, 0], hidden_BLH[0, 2]) and pooled_BKH[1:].isnan().all()
    (gradient,) = torch.autograd.grad(pooled_BKH.sum(), hidden_BLH)
    assert (gradient[0, 2] == 1).all() and gradient.sum() == 2
    with pytest.raises(ValueError, match="sequence 1 of 3 holds 0 reward tokens"):
        check_reward_token_counts(count_B)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: it is about waiting for one")
def test_the_fast_path_does_not_wait_for_the_device():
    hidden_BLH = torch.randn(2, 4, 3, device="cuda", requires_grad=True)
    input_ids_BL = torch.stack([token_ids(4, [1]), token_ids(4, [2])]).cuda()
    pool_reward_tokens(hidden_BLH, input_ids_BL, REWARD)  # compiles the kernel
    torch.cuda.set_sync_debug_mode("error")
    try:
        pooled_BKH, _ = pool_reward_tokens(hidden_BLH, input_ids_BL, REWARD, return_counts=True)
        pooled_BKH.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@implementation_given
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize(("positions", "found"), [([], 0), ([1, 3], 2)], ids=["none", "too many"])
def test_the_sequence_with_a_wrong_number_of_reward_tokens_is_named(backend, device, packed, positions, found):
    input_ids_BL = torch.stack([token_ids(4, [2]), token_ids(4, [0]), token_ids(4, positions)]).to(device)
    hidden_BLH = torch.randn(3, 4, 2, device=device)
    arguments, options = (hidden_BLH, input_ids_BL), {"backend": backend}
    if packed:
        arguments = hidden_BLH.flatten(0, 1), input_ids_BL.flatten()
        options["cu_seqlens"] = torch.tensor([0, 4, 8, 12], device=device)
    with pytest.raises(ValueError, match=f"sequence 2 of 3 holds {found} reward tokens instead of 1"):
        pool_reward_tokens(*arguments, REWARD, **options)


def test_counts_that_are_wrong_in_two_sequences_do_not_cancel():
    input_ids_BL = torch.stack([token_ids(4, []), token_ids(4, [0, 2])])
    with pytest.raises(ValueError, match="sequence 0 of 2 holds 0"):
        pool_reward_tokens(torch.randn(2, 4, 2), input_ids_BL, REWARD)


@implementation_given
@pytest.mark.parametrize(
    ("bounds", "sequence"),
    [([0, 3, 5], 1), ([1, 3, 6], 0), ([0, 4, 2, 6], 1), ([-5, 3, 6], 0), ([0, 3, 10**9], 1), ([0, 10**9, 6], 0)],
)
def test_bounds_of_packed_sequences_are_checked(backend, device, bounds, sequence):
    arguments = torch.randn(6, 2).to(device), token_ids(6, [1, 4]).to(device), REWARD
    with pytest.raises(ValueError, match=f"cu_seqlens is wrong at sequence {sequence} of"):
        pool_reward_tokens(*arguments, cu_seqlens=torch.tensor(bounds).to(device), backend=backend)


@pytest.mark.parametrize(
    ("hidden", "ids", "options", "message"),
    [
        ((2, 3), (2, 3), {}, r"must be \[B, L, H\] and \[B, L\] of the same tokens, got \(2, 3\) and \(2, 3\)"),
        ((2, 3, 4), (2, 4), {}, r"got \(2, 3, 4\) and \(2, 4\)"),
        ((2, 3, 4), (2, 3), {"cu_seqlens": torch.tensor([0, 2])}, r"must be \[T, H\] and \[T\]"),
        ((6, 4), (6,), {"cu_seqlens": torch.tensor([0])}, r"cu_seqlens must be integers \[B \+ 1\], got .* \(1,\)"),
        ((6, 4), (6,), {"cu_seqlens": torch.tensor([[0, 6]])}, r"got torch.int64 \(1, 2\)"),
        ((2, 3, 4), (2, 3), {"backend": "cuda"}, "backend must be one of 'auto', 'triton', 'torch', got 'cuda'"),
        ((2, 3, 4), (2, 3), {"tokens_per_sequence": 0}, "tokens_per_sequence must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_named(hidden, ids, options, message):
    with pytest.raises(ValueError, match=message):
        pool_reward_tokens(torch.zeros(hidden), torch.zeros(ids, dtype=torch.int64), REWARD, **options)
