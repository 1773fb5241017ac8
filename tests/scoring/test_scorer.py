"""Scores: the same alone, in any batch and with a critique behind; ranks, errors and critiques."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from jrm_plugin.errors import JRMError, reason
from jrm_plugin.records.critiques import UnparsedCritique
from jrm_plugin.records.samples import DIMENSIONS, OVERALL, Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.scoring.scorer import RewardScorer

TOLERANCE = 1e-5  # float32, on mu and on log sigma


def table(scores):
    """`[S, 2 * (D + 1)]`: mu and log sigma of every dimension and overall."""
    names = [*DIMENSIONS, OVERALL]
    return np.array([[s.mu[n] for n in names] + [np.log(s.sigma[n]) for n in names] for s in scores])


def check_invariance(scorer, samples, critiques):
    """The scores of all samples at once equal those one by one, in shuffled batches and with critiques behind."""
    scorer = RewardScorer(scorer.model, scorer.processor)
    at_once = table(scorer.score(samples))
    assert at_once[:, : len(DIMENSIONS)].std(0).min() > 100 * TOLERANCE  # the samples do differ

    one_by_one = table([scorer.score([sample])[0] for sample in samples])
    assert np.abs(at_once - one_by_one).max() < TOLERANCE

    order = np.random.default_rng(0).permutation(len(samples))
    sevens = [order[start : start + 7] for start in range(0, len(samples), 7)]
    shuffled = np.concatenate([table(scorer.score([samples[i] for i in some])) for some in sevens])
    assert np.abs(at_once[order] - shuffled).max() < TOLERANCE

    with torch.inference_mode():
        for some in sevens:
            # Of different lengths, and none behind every third.
            written = [
                {} if i % 3 == 0 else critiques if i % 3 == 1 else {DIMENSIONS[1]: critiques[DIMENSIONS[1]]}
                for i in some
            ]
            output = scorer.model(**scorer.processor([samples[i] for i in some], written))
            mu_log_sigma = torch.cat([output.mu_SD, output.log_sigma_SD], 1).numpy()
            columns = [0, 1, 3, 4]  # without the overall score
            assert np.abs(at_once[some][:, columns] - mu_log_sigma).max() < TOLERANCE


def test_64_samples_score_the_same_in_any_batch(scorer_of, make_samples, critiques, order, sequences):
    check_invariance(scorer_of("qwen3_vl", order, sequences), make_samples(64), critiques)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl"])
def test_other_backbones_score_the_same_in_any_batch(scorer_of, make_samples, critiques, family):
    check_invariance(scorer_of(family), make_samples(21), critiques)


def test_jrm_tiny_scores_the_same_in_any_batch(tiny, make_samples, critiques):
    check_invariance(tiny, make_samples(64), critiques)


def test_jrm_tiny_scores_by_default_and_by_hand():
    scorer = RewardScorer.from_pretrained("jrm-tiny")
    assert scorer.dimensions == list(DIMENSIONS)
    assert (scorer.processor.order, scorer.processor.sequences) == ("images_first", "joint")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_scores_of_a_cpu(make_scorer, make_samples, family, order, sequences):
    scorer, samples = make_scorer(family, order, sequences), make_samples(13)
    expected = table(scorer.score(samples))
    on_gpu = RewardScorer(scorer.model.cuda(), scorer.processor)
    assert np.abs(table(on_gpu.score(samples)) - expected).max() < 1e-4  # another device adds in another order
    assert np.abs(table([on_gpu.score([sample])[0] for sample in samples]) - expected).max() < 1e-4
    rounded = RewardScorer(scorer.model.bfloat16(), scorer.processor)
    assert np.abs(table(rounded.score(samples)) - expected).max() < 0.1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_chosen_and_its_memory_kept_to_the_budget(make_samples):
    samples, budget = make_samples(64), 64 * 2**20
    scorer = RewardScorer.from_pretrained("jrm-tiny", dtype=torch.float32, memory_budget=budget)
    assert scorer.model.device.type == "cuda"
    assert RewardScorer.from_pretrained("jrm-tiny").model.dtype == torch.bfloat16
    scorer.score(samples[:1])
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    scores = table(scorer.score(samples))
    assert torch.cuda.max_memory_allocated() - held < budget
    on_cpu = RewardScorer.from_pretrained("jrm-tiny", device="cpu")
    assert np.abs(scores - table(on_cpu.score(samples))).max() < 1e-3
    assert scorer.critique(samples[:4]) == on_cpu.critique(samples[:4])


def test_scores_are_what_the_model_says(scorer_of, make_samples, sequences):
    scorer = scorer_of("qwen2_vl", sequences=sequences)
    samples = make_samples(5)
    with torch.inference_mode():
        output = scorer.model(**scorer.processor(samples))
    for k, score in enumerate(scorer.score(samples)):
        assert isinstance(score, RewardScore)
        assert [score.mu[name] for name in DIMENSIONS] == pytest.approx(output.mu_SD[k].tolist(), abs=TOLERANCE)
        assert [score.sigma[name] for name in DIMENSIONS] == pytest.approx(output.log_sigma_SD[k].exp().tolist())
        assert score.mu[OVERALL] == pytest.approx(np.mean([score.mu[name] for name in DIMENSIONS]))


def test_scoring_is_deterministic_and_switches_dropout_off(make_scorer, make_samples):
    scorer = make_scorer("qwen2_vl", config={"reward_head_dropout": 0.5})
    before = scorer.score(make_samples(6))
    scorer.model.train()
    scorer = RewardScorer(scorer.model, scorer.processor)
    assert scorer.score(make_samples(6)) == scorer.score(make_samples(6)) == before


def test_scoring_leaves_no_graph_and_no_gradient(make_scorer, make_samples):
    scorer = make_scorer("qwen2_vl")
    scorer.score(make_samples(2))
    assert all(parameter.grad is None for parameter in scorer.model.parameters())
    assert not scorer.hidden_states(make_samples(2)).requires_grad


def test_nothing_in_nothing_out(scorer_of):
    scorer = scorer_of("qwen2_vl")
    assert scorer.score([]) == scorer.rank([]) == scorer.critique([]) == []
    assert scorer.hidden_states([]).shape == (0, 32)


def test_samples_are_taken_as_people_write_them(scorer_of, tmp_path):
    scorer, paths = scorer_of("qwen2_vl"), [tmp_path / f"{k}.png" for k in range(3)]
    for shade, path in enumerate(paths):
        Image.new("RGB", (32, 32), (80 * shade, 0, 0)).save(path)
    plain = [(paths[0], "make it blue", paths[1]), ([*paths[:2]], "join them", paths[2]), (None, "a cat", paths[0])]
    expected = scorer.score([Sample.edit(*sample) for sample in plain])
    assert scorer.score(plain) == scorer.score(sample for sample in plain) == scorer.score(tuple(plain)) == expected
    assert scorer.score(plain[0]) == scorer.score(Sample.edit(*plain[0])) == scorer.score(plain[:1])[0]
    assert len(scorer.hidden_states(iter(plain))) == scorer.processor.sequences_per_sample * 3
    assert [*scorer.critique(iter(plain), max_new_tokens=1)[0]] == scorer.dimensions


def test_what_is_no_sample_is_an_error_of_its_own(scorer_of, make_samples):
    good = make_samples(1)[0]
    first, *others = scorer_of("qwen2_vl").score([good, "a.png", (None, "", good), (1, 2)], on_error="return")
    assert not isinstance(first, JRMError)
    assert [str(error) for error in others] == [
        "a sample must be a Sample or a tuple (source, instruction, edited), not a str.",
        "the instruction is empty.",
        "a sample must be a Sample or a tuple (source, instruction, edited), not a tuple.",
    ]


def test_hidden_states_are_one_a_sequence(scorer_of, make_samples, sequences):
    scorer = scorer_of("qwen2_vl", sequences=sequences)
    scorer = RewardScorer(scorer.model, scorer.processor, memory_budget=20_000)
    hidden = scorer.hidden_states(make_samples(5))
    assert hidden.shape == (5 if sequences == "joint" else 10, 32)
    alone = scorer.hidden_states(make_samples(5)[4:])
    torch.testing.assert_close(hidden[-len(alone) :], alone, atol=TOLERANCE, rtol=0)


# --- broken samples ---------------------------------------------------------------------------------------------------


def test_a_broken_sample_raises_with_its_position(scorer_of, make_samples, tmp_path):
    samples = make_samples(5)
    samples.insert(3, Sample.generation("draw it", tmp_path / "missing.png"))
    with pytest.raises(JRMError, match=r"sample 3 cannot be scored: .*missing\.png"):
        scorer_of("qwen2_vl").score(samples)


def test_broken_samples_can_be_returned_in_their_places(scorer_of, make_samples, tmp_path, sequences):
    scorer = scorer_of("qwen2_vl", sequences=sequences)
    scorer = RewardScorer(scorer.model, scorer.processor, memory_budget=20_000)
    (tmp_path / "text.png").write_text("no image")
    broken = Sample.generation("draw it", tmp_path / "text.png")
    good = make_samples(6)
    # A whole batch of broken ones, a mixed one, and one at the end.
    mixed = [broken, broken, broken, good[0], broken, good[1], *good[2:], broken]
    results = scorer.score(mixed, on_error="return")
    kinds = [type(result) for result in results]
    assert kinds == [JRMError if sample is broken else RewardScore for sample in mixed]
    assert all("text.png" in str(result) for result in results if isinstance(result, JRMError))
    scores = [result for result in results if isinstance(result, RewardScore)]
    assert np.abs(table(scores) - table(scorer.score(good))).max() < TOLERANCE


@pytest.mark.parametrize("engine", ["shared_prefix", "plain"])
def test_a_score_that_is_not_finite_is_its_samples_error(make_scorer, make_samples, sequences, engine):
    made = make_scorer("qwen2_vl", sequences=sequences)
    scorer = RewardScorer(made.model, made.processor, engine=engine)
    good = make_samples(6)
    image = good[1].response_images[0]
    poisoned = Sample.generation("zyx \u6f22", image)
    ordinary = {token for sample in good for s in scorer.processor.encode(sample) for token in s.prompt}
    rare = [token for token in scorer.processor.encode(poisoned)[0].prompt if token not in ordinary]
    head = scorer.model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())  # what is not finite comes in by the prompt alone
    with torch.no_grad():
        scorer.model.get_input_embeddings().weight[rare] = float("nan")
    results = scorer.score([*good[:3], poisoned, *good[3:]], on_error="return")
    assert "its score, computed in the precision float32, is not a finite number" in str(results.pop(3))
    assert results == scorer.score(good)
    with pytest.raises(JRMError, match="sample 1 cannot be scored: its score"):
        scorer.score([good[0], poisoned])
    with pytest.raises(JRMError, match="sample 1 cannot be read by the model: its hidden state"):
        scorer.hidden_states([good[0], poisoned])
    for sampling in ({}, {"temperature": 1.0}):
        options = {"max_new_tokens": 1, **sampling}  # a second would follow what may be a poisoned one
        *critiques, critique = scorer.critique([*good[:2], poisoned], on_error="return", **options)
        assert "its critique, computed in the precision float32, is not a finite number" in str(critique)
        assert critiques == scorer.critique(good[:2], **options) or sampling
        with pytest.raises(JRMError, match="sample 1 cannot be criticised: its critique"):
            scorer.critique([good[0], poisoned], **options)
    assert scorer.critique(good[0], max_new_tokens=1) == scorer.critique(good[:1], max_new_tokens=1)[0]


def test_an_overflow_of_float16_names_the_precision(make_scorer, make_samples):
    scorer = make_scorer("qwen2_vl")
    scorer.model.half()
    scorer.model.reward_head.float()
    with torch.no_grad():
        scorer.model.get_input_embeddings().weight[:] = 65504
        scorer.model.backbone.model.language_model.norm.weight[:] = 65504
    with pytest.raises(JRMError, match="precision float16.* load the model in bfloat16 or float32"):
        scorer.score(make_samples(2))


@pytest.mark.parametrize("error", [KeyError("x"), RecursionError("deep"), OSError(5, "EIO")])
def test_whatever_one_sample_raises_is_its_error(scorer_of, make_samples, monkeypatch, error):
    scorer, samples = scorer_of("qwen2_vl"), make_samples(3)
    encode = scorer.processor.encode

    def fails(sample, **options):
        if sample is samples[1]:
            raise error
        return encode(sample, **options)

    expected = scorer.score([samples[0], samples[2]])
    monkeypatch.setattr(scorer.processor, "encode", fails)
    first, second, third = scorer.score(samples, on_error="return")
    assert np.abs(table([first, third]) - table(expected)).max() < TOLERANCE
    assert str(second) == f"it cannot be read: {reason(error)}."
    with pytest.raises(JRMError, match="sample 1 cannot be scored"):
        scorer.score(samples)


def test_no_memory_left_is_no_samples_error(scorer_of, make_samples, monkeypatch):
    scorer = scorer_of("qwen2_vl")
    for error in (MemoryError, torch.OutOfMemoryError):

        def fails(sample, error=error, **options):
            raise error

        monkeypatch.setattr(scorer.processor, "encode", fails)
        with pytest.raises(error):
            scorer.score(make_samples(1), on_error="return")


def test_an_unknown_way_with_errors(scorer_of):
    with pytest.raises(JRMError, match="on_error must be"):
        scorer_of("qwen2_vl").score([], on_error="skip")


# --- ranks ------------------------------------------------------------------------------------------------------------


def test_rank_is_best_first(scorer_of, make_samples):
    scorer, samples = scorer_of("qwen2_vl"), make_samples(8)
    ranked, scores = scorer.rank(samples, different_prompts=True), scorer.score(samples)
    places = [place.position for place in ranked]
    assert sorted(places) == list(range(8)) != places
    assert all(place.score == scores[place.position] for place in ranked)
    overall = [place.score.mu[OVERALL] for place in ranked]
    assert overall == sorted(overall, reverse=True)


def test_rank_keeps_the_order_of_equals(make_scorer, make_samples):
    scorer = make_scorer("qwen2_vl")
    with torch.no_grad():
        for head in scorer.model.reward_head.heads:
            head[-1].weight.zero_()
    assert [place.position for place in scorer.rank(make_samples(8), different_prompts=True)] == list(range(8))


def test_rank_compares_candidates_of_one_prompt(scorer_of):
    scorer, images = scorer_of("qwen2_vl"), [Image.new("RGB", (32, 32), (80 * shade, 0, 0)) for shade in range(4)]
    same = [(images[0], "make it blue", candidate) for candidate in images]
    for other in ((images[0], "make it red", images[1]), (images[1], "make it blue", images[1])):
        with pytest.raises(JRMError, match="sample 4 has another instruction or source than sample 0"):
            scorer.rank([*same, other])
    for dimension in scorer.dimensions:
        mus = [place.score.mu[dimension] for place in scorer.rank(iter(same), dimension=dimension)]
        assert mus == sorted(mus, reverse=True)
    with pytest.raises(JRMError, match="has no dimension 'beauty'"):
        scorer.rank(same, dimension="beauty")


# --- critiques --------------------------------------------------------------------------------------------------------


def test_critique_writes_alike_alone_and_in_a_left_padded_batch(scorer_of, make_samples, family, sequences):
    scorer = scorer_of(family, sequences=sequences)
    encoded = [sequence for sample in make_samples(6) for sequence in scorer.processor.encode(sample)]
    together = scorer.engine.generate(encoded, max_new_tokens=16)
    assert together == [scorer.engine.generate([sequence], max_new_tokens=16)[0] for sequence in encoded]
    assert len(set(map(tuple, together))) > 1  # what is written depends on what is seen


def test_critique_does_not_change_the_score(scorer_of, make_samples, family):
    scorer, samples = scorer_of(family), make_samples(4)
    before = scorer.score(samples)
    critiques = scorer.critique(samples, max_new_tokens=8)
    assert scorer.score(samples) == before
    assert scorer.critique(samples, max_new_tokens=8) == critiques
    assert [list(by_dimension) for by_dimension in critiques] == [list(DIMENSIONS)] * 4


def test_critique_of_one_dimension(scorer_of, make_samples, sequences):
    scorer = scorer_of("qwen2_vl", sequences=sequences)
    every = scorer.critique(make_samples(2), max_new_tokens=8)
    one = scorer.critique(make_samples(2), "visual_quality", max_new_tokens=8)
    assert one == [{"visual_quality": by_dimension["visual_quality"]} for by_dimension in every]
    with pytest.raises(JRMError, match="no dimension 'beauty'"):
        scorer.critique(make_samples(2), "beauty")


def test_what_is_no_critique_is_kept_as_it_was_written(scorer_of, make_samples):
    scorer = scorer_of("qwen2_vl")
    encoded = [sequence for sample in make_samples(3) for sequence in scorer.processor.encode(sample)]
    new = scorer.engine.generate(encoded, max_new_tokens=8)
    written = scorer.processor.tokenizer.batch_decode(new, skip_special_tokens=True)
    assert all(written)
    for text, by_dimension in zip(written, scorer.critique(make_samples(3), max_new_tokens=8), strict=True):
        for dimension in DIMENSIONS:  # random weights write no line that begins with a dimension's name
            assert by_dimension[dimension] == UnparsedCritique(text, f"there is no line for {dimension}.")


def test_a_model_that_learned_its_critiques_writes_them(make_scorer, make_samples, critiques, sequences):
    # One answer by heart: enough to see that what is learned behind the reward token is what is written there.
    scorer = make_scorer("qwen2_vl", sequences=sequences)
    sample = make_samples(1)
    optimizer = torch.optim.AdamW(scorer.model.parameters(), lr=1e-2)
    batch = scorer.processor(sample, [critiques])
    for _ in range(120):
        optimizer.zero_grad()
        scorer.model(**batch).critique_loss_T.mean().backward()
        optimizer.step()
    assert scorer.critique(sample) == [critiques]


# --- what is refused --------------------------------------------------------------------------------------------------


def test_model_and_processor_must_score_the_same(scorer_of, backbone_folder, make_scorer):
    rubrics = {"edit": {"beauty": "judge beauty"}}
    other = make_scorer("qwen2_vl", dimensions=["beauty"], rubrics=rubrics)
    with pytest.raises(JRMError, match="do not belong together"):
        RewardScorer(scorer_of("qwen2_vl").model, other.processor)


def test_one_dimension_of_ones_own(make_scorer, make_samples, sequences):
    rubrics = {"edit": {"beauty": "judge beauty"}}
    scorer = make_scorer("qwen2_vl", dimensions=["beauty"], rubrics=rubrics, sequences=sequences)
    (score,) = scorer.score(make_samples(1))
    assert set(score.mu) == {"beauty", OVERALL}
    assert score.mu["beauty"] == score.mu[OVERALL]


def test_the_overall_score_follows_the_checkpoints_rule(make_scorer, make_samples):
    for rule in ("mean", "sum", "min"):
        scorer = make_scorer("qwen2_vl", config={"overall_rule": rule})
        for score in scorer.score(make_samples(2)):
            mus = [score.mu[name] for name in scorer.dimensions]
            assert score.overall_rule == rule
            assert score.mu[OVERALL] == pytest.approx({"mean": sum(mus) / 2, "sum": sum(mus), "min": min(mus)}[rule])


def test_max_pixels_overrides_the_checkpoint(scorer_of, tmp_path):
    scorer = scorer_of("qwen2_vl")
    scorer.model.save_pretrained(tmp_path)
    scorer.processor.save_pretrained(tmp_path)
    assert RewardScorer.from_pretrained(tmp_path, device="cpu").processor.max_pixels == 64 * 64
    assert RewardScorer.from_pretrained(tmp_path, device="cpu", max_pixels=28 * 28).processor.max_pixels == 28 * 28


# --- several threads, and what a scorer says of itself ----------------------------------------------------------------


def test_threads_get_the_scores_that_one_thread_gets(make_scorer, make_samples):
    scorer, samples = make_scorer("qwen3_vl"), make_samples(24)
    expected = table(scorer.score(samples))
    scorer = RewardScorer(scorer.model, scorer.processor, cache_bytes=4096)  # which all threads fill and empty
    parts = [samples[k % 8 :: 8] for k in range(24)]
    with ThreadPoolExecutor(8) as pool:
        scores = list(pool.map(scorer.score, parts))
    for k, part in enumerate(scores):
        assert np.abs(table(part) - expected[k % 8 :: 8]).max() < TOLERANCE
    assert scorer.engine.features.bytes == sum(f.nbytes for f in scorer.engine.features._features.values()) <= 4096


def test_an_image_of_many_candidates_is_encoded_once_whichever_threads_want_it(scorer_of, monkeypatch):
    scorer = scorer_of("qwen3_vl")
    encode, encoded = scorer.processor.encode_image, []

    def slow(image):
        encoded.append(image)
        time.sleep(0.02)
        return encode(image)

    monkeypatch.setattr(scorer.processor, "encode_image", slow)
    source, *candidates = (Image.new("RGB", (64, 64), (shade, 0, 0)) for shade in range(7))
    scorer.score([Sample.edit(source, "make it red", candidate) for candidate in candidates])
    assert len(encoded) == 7


def test_a_scorer_tells_model_device_dtype_and_engine(caplog):
    with caplog.at_level(logging.INFO, logger="jrm_plugin"):
        scorer = RewardScorer.from_pretrained("jrm-tiny", device="cpu", memory_budget=2**30, cache_bytes=2**29)
    assert repr(scorer).endswith(
        "jrm-tiny, dimensions=['instruction_following', 'visual_quality'], device=cpu, dtype=float32, "
        "engine=SharedPrefixEngine(memory_budget=1 GiB, image features kept=0 of 0.5 GiB))"
    )
    assert caplog.messages[-1] == f"Scoring with {scorer}."
    assert repr(RewardScorer(scorer.model, scorer.processor, engine="plain").engine) == "PlainEngine(batch=1)"
    assert repr(scorer.processor) == (
        "JRMProcessor(order='images_first', sequences='joint', dimensions=['instruction_following', "
        "'visual_quality'], tasks=['edit', 'generation', 'response'], min_pixels=2304, max_pixels=2304)"
    )
