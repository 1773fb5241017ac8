"""The engine's scores are those of one sequence at a time, whatever shares a batch, a prefix, an image or a cache."""

import threading
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jrm_plugin.errors import JRMError
from jrm_plugin.records.samples import DIMENSIONS, Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.scoring import prefetch, sample_scorer, shared_prefix
from jrm_plugin.scoring.plain import PlainEngine
from jrm_plugin.scoring.scorer import RewardScorer
from jrm_plugin.scoring.shared_prefix import FeatureCache

TOLERANCE = 1e-5  # float32


def scores_of(scorer, samples):
    """`[S, 2 D]`: mu and log sigma."""
    return np.array(
        [[s.mu[d] for d in DIMENSIONS] + [np.log(s.sigma[d]) for d in DIMENSIONS] for s in scorer.score(samples)]
    )


def plain_scores(scorer, samples):
    """Every sequence alone, through the model's own forward pass: `[S, 2 D]`."""
    return scores_of(RewardScorer(scorer.model, scorer.processor, engine="plain"), samples)


@st.composite
def sample_lists(draw, images):
    """Samples that share sources, instructions and whole inputs at random, of several tasks, in any order."""
    image = st.sampled_from(images)
    words = st.sampled_from(["make it blue", "make it red and remove the square", "add a circle left of it"])
    one = st.one_of(
        st.builds(Sample.edit, image, words, image),
        st.builds(lambda a, b, text, c: Sample.edit([a, b], text, c), image, image, words, image),
        st.builds(Sample.generation, words, image),
        st.builds(lambda text: Sample.text_response(None, text, "blue"), words),
    )
    return draw(st.lists(one, min_size=1, max_size=10))


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in [(28, 28), (56, 28), (28, 84), (60, 60)]]


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_tree_of_samples_scores_as_one_by_one(scorer_of, images, family, order, sequences, data):
    scorer = scorer_of(family, order, sequences)
    samples = data.draw(sample_lists(images))
    expected = plain_scores(scorer, samples)
    assert np.abs(scores_of(scorer, samples) - expected).max() < TOLERANCE
    permutation = data.draw(st.permutations(range(len(samples))))
    permuted = scores_of(scorer, [samples[k] for k in permutation])
    assert np.abs(permuted - expected[list(permutation)]).max() < TOLERANCE
    subset = samples[: data.draw(st.integers(1, len(samples)))]
    assert np.abs(scores_of(scorer, subset) - expected[: len(subset)]).max() < TOLERANCE


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_group_under_any_budget(make_scorer, images, attention, order, sequences):
    scorer = make_scorer("qwen3_vl", order, sequences)
    scorer.model.set_attn_implementation(attention)
    group = [Sample.edit(images[0], "make it blue", image) for image in images * 2]
    expected = plain_scores(scorer, group)
    for budget in (1, 100_000, 2**30):
        tight = RewardScorer(scorer.model, scorer.processor, memory_budget=budget)
        assert np.abs(scores_of(tight, group) - expected).max() < TOLERANCE


def test_on_cpu_batches_are_small_and_score_the_same(make_scorer, images, monkeypatch):
    scorer = make_scorer("qwen3_vl", "rubric_first", "joint")
    batches = []
    layer = scorer.model.backbone.model.language_model.layers[0]
    layer.register_forward_hook(lambda module, inputs, output: batches.append(len(output)))
    rng = np.random.default_rng(0)
    candidates = rng.integers(0, 256, (48, 56, 56, 3), dtype=np.uint8)
    group = [Sample.edit(images[0], "make it blue", image) for image in candidates]
    expected = scores_of(scorer, group)
    assert batches == [1, 48]  # what they share, and the rest of each
    batches.clear()
    monkeypatch.setattr(shared_prefix, "CPU_BATCH_BYTES", 1)
    assert np.abs(scores_of(scorer, group) - expected).max() < TOLERANCE
    assert max(batches) < 48


def test_positions_one_after_another(make_scorer, images, order):
    """As some published reward models were trained: image tokens are counted like text."""
    scorer = make_scorer("qwen2_5_vl", order, config={"rope_positions": "1d"})
    group = [Sample.edit(images[3], "make it blue", image) for image in images]
    expected = plain_scores(scorer, group)
    assert np.abs(scores_of(scorer, group) - expected).max() < TOLERANCE
    scorer.model.config.rope_positions = "mrope"
    assert np.abs(plain_scores(scorer, group) - expected).max() > 1e-3
    with pytest.raises(JRMError, match="rope_positions in the model's config must be mrope or 1d, not 2d"):
        make_scorer("qwen2_5_vl", config={"rope_positions": "2d"})


def test_what_is_shared_is_computed_once(make_scorer, images):
    scorer = make_scorer("qwen3_vl", "rubric_first", "joint")
    calls = []
    layer = scorer.model.backbone.model.language_model.layers[0]
    layer.register_forward_hook(lambda module, inputs, output: calls.append(output.shape[0] * output.shape[1]))
    group = [Sample.edit(images[3], "make it blue", image) for image in images[:1] * 12]
    scorer.score(group)  # twelve times the same candidate
    once = sum(calls)
    (sequence,) = scorer.processor.encode(group[0])
    assert once == sequence.prompt.index(scorer.processor.reward_token_id) + 1
    calls.clear()
    scorer.score([*group, Sample.edit(images[3], "make it blue", images[1])])
    assert once < sum(calls) < 1.5 * once


def test_images_are_encoded_once_across_calls(make_scorer, images):
    scorer = make_scorer("qwen3_vl")
    cache = scorer.engine.features
    scorer.score([Sample.edit(images[0], "make it blue", image) for image in images])
    assert (cache.hits, cache.misses) == (0, 4)  # the source is also a candidate
    before = scorer.score([Sample.edit(images[0].copy(), "make it red", images[1])])
    assert (cache.hits, cache.misses, cache.hit_rate) == (2, 4, 1 / 3)
    uncached = RewardScorer(scorer.model, scorer.processor, cache_bytes=0)
    assert scores_of(uncached, [Sample.edit(images[0], "make it red", images[1])]) == pytest.approx(
        np.array([[*(before[0].mu[d] for d in DIMENSIONS), *(np.log(before[0].sigma[d]) for d in DIMENSIONS)]]),
        abs=TOLERANCE,
    )
    assert uncached.engine.features.bytes == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 40)), max_size=30), st.integers(0, 400))
def test_the_cache_keeps_the_last_used_within_its_bytes(requests, max_bytes):
    cache, sizes = FeatureCache(max_bytes), {}
    for name, size in requests:
        digest = bytes([name])
        size = sizes.setdefault(name, size)
        found = cache.get(digest)
        assert found is None or len(found) == size
        if found is None:
            cache.put(digest, torch.zeros(size, dtype=torch.float32))
        assert cache.bytes <= max_bytes
        assert (cache.get(digest) is not None) == (4 * size <= max_bytes)


def test_the_cache_counts_what_it_holds_when_one_image_comes_twice():
    cache = FeatureCache(1000)
    for size in (10, 10, 20):
        cache.put(b"a", torch.zeros(size))
    assert cache.bytes == 80


def test_out_of_memory_halves_the_budget_says_so_and_goes_on(make_scorer, images, monkeypatch, caplog):
    scorer = make_scorer("qwen3_vl")
    samples = [Sample.edit(images[0], "make it blue", image) for image in images]
    expected, budget = scores_of(scorer, samples), scorer.engine.memory_budget
    run, failures = scorer.engine._run, iter([True, True, False])

    def fails_twice(*args, **kwargs):
        if next(failures, False):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(*args, **kwargs)

    monkeypatch.setattr(scorer.engine, "_run", fails_twice)
    assert np.abs(scores_of(scorer, samples) - expected).max() < TOLERANCE
    assert scorer.engine.memory_budget == budget // 4
    assert [record.message for record in caplog.records] == [
        f"The GPU ran out of memory: the memory budget is halved to {gib} GiB, and the pass is repeated."
        for gib in ("1", "0.5")
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_that_is_full_halves_the_budget_and_gives_the_same_scores(caplog):
    random = np.random.default_rng(0)
    source, *edited = random.integers(0, 256, (257, 112, 112, 3), dtype=np.uint8)
    samples = [Sample.edit(source, "make it blue", image) for image in edited]
    expected = scores_of(RewardScorer.from_pretrained("jrm-tiny", device="cpu"), samples)
    scorer = RewardScorer.from_pretrained("jrm-tiny", dtype=torch.float32, cache_bytes=0, memory_budget=2**33)
    scorer.score(samples[:1])
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved() + 24 * 2**20
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(0).total_memory)
    try:
        scores = scores_of(scorer, samples)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert scorer.engine.memory_budget < 2**33 and "ran out of memory" in caplog.text
    assert np.abs(scores - expected).max() < 1e-3


def test_few_samples_are_held_at_once_and_a_broken_image_is_told_by_its_index(
    make_scorer, images, tmp_path, monkeypatch
):
    """Those of a pass and those that threads read ahead, however many there are to score."""
    monkeypatch.setattr(sample_scorer, "SAMPLES_AT_ONCE", 24)
    monkeypatch.setattr(prefetch, "SAMPLES_AHEAD", 8)
    scorer = make_scorer("qwen2_vl")
    encode, lock, held = scorer.processor.encode, threading.Lock(), Counter()

    def forget():
        with lock:
            held["now"] -= 1

    def encode_counted(sample, **options):
        sequences = encode(sample, **options)
        with lock:
            held["now"] += len(sequences)
            held["most"] = max(held["most"], held["now"])
        for sequence in sequences:
            weakref.finalize(sequence, forget)
        return sequences

    monkeypatch.setattr(scorer.processor, "encode", encode_counted)
    (tmp_path / "broken.png").write_text("no image")
    pixels = np.random.default_rng(0).integers(0, 256, (300, 28, 28, 3), dtype=np.uint8)
    samples = [Sample.edit(images[3], "make it blue", image) for image in pixels]
    samples[150] = Sample.edit(images[3], "make it blue", tmp_path / "broken.png")
    results = scorer.score(samples, on_error="return")
    assert [k for k, r in enumerate(results) if not isinstance(r, RewardScore)] == [150]
    assert held["now"] == 0
    assert 24 <= held["most"] <= 24 + 8 + 2  # and one in the loop's hand, one that is handed over


# --- text -------------------------------------------------------------------------------------------------------------


def test_greedy_text_is_the_backbones_own(scorer_of, make_samples, family, order, sequences):
    scorer = scorer_of(family, order, sequences)
    encoded = [sequence for sample in make_samples(6) for sequence in scorer.processor.encode(sample)]
    plain = PlainEngine(scorer.model, scorer.processor, batch=3)
    assert scorer.engine.generate(encoded, max_new_tokens=12) == plain.generate(encoded, max_new_tokens=12)


def test_sampled_critiques_vary_with_the_seed_only(scorer_of, make_samples):
    scorer, samples = scorer_of("qwen2_vl"), make_samples(3)
    options = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 0.9}
    first = scorer.critique(samples, seed=1, **options)
    assert scorer.critique(samples, seed=1, **options) == first != scorer.critique(samples, seed=2, **options)
    assert scorer.critique(samples, max_new_tokens=12, temperature=1e-4) == scorer.critique(samples, max_new_tokens=12)
    with pytest.raises(JRMError, match=r"temperature must be at least 0 and top_p in \(0, 1\], got -1 and 1.0"):
        scorer.critique(samples, temperature=-1)


# --- bfloat16 ---------------------------------------------------------------------------------------------------------


def test_in_bfloat16_the_engine_is_as_exact_as_one_by_one(scorer_of, make_scorer, images, order, sequences):
    """Both are off from float32 by bfloat16's rounding, which falls otherwise where the sums are made otherwise."""
    exact, rounded = scorer_of("qwen3_vl", order, sequences), make_scorer("qwen3_vl", order, sequences)
    rounded.model.bfloat16()
    rounded.model.reward_head.float()
    group = [Sample.edit(images[k % 4], "make it blue", image) for k in range(3) for image in images]
    truth = plain_scores(exact, group)
    noise, error = (np.abs(scores - truth) for scores in (plain_scores(rounded, group), scores_of(rounded, group)))
    assert noise.max() > 100 * TOLERANCE
    assert error.mean() < 1.5 * noise.mean() and error.max() < 2 * noise.max()
