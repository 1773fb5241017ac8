"""The engine vllm: the scores, the order and the errors of `RewardScorer`. Run by `make test-vllm`."""

import math
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here; `make test-vllm` has an environment with it")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # its engine in this process, which starts faster
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

import torch
from PIL import Image
from scoring_server import assert_close, fields_of, ready_server

from jrm_plugin.errors import JRMError
from jrm_plugin.records.samples import Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.scoring.loading import load_scorer
from jrm_plugin.scoring.protocol import Scorer

TOLERANCE = 1e-5  # float32, on mu and on log sigma
MEMORY = 2**26  # bytes of keys and values; those of jrm-tiny are small


@pytest.fixture(scope="module")
def vllm():
    return load_scorer("jrm-tiny", engine="vllm", memory_budget=MEMORY)


def assert_same(scores, expected):
    for score, other in zip(scores, expected, strict=True):
        assert score.mu == pytest.approx(other.mu, abs=TOLERANCE)
        assert {n: math.log(s) for n, s in score.sigma.items()} == pytest.approx(
            {n: math.log(s) for n, s in other.sigma.items()}, abs=TOLERANCE
        )


def test_scores_are_those_of_the_other_engine_alone_and_beside_others_and_in_order(vllm, tiny, make_samples):
    samples = make_samples(24)
    expected = tiny.score(samples)
    assert isinstance(vllm, Scorer) and vllm.dimensions == tiny.dimensions
    assert_same(vllm.score(samples), expected)
    assert_same([vllm.score(sample) for sample in samples[::6]], expected[::6])
    assert_same(vllm.score(reversed(samples)), expected[::-1])  # with a cache that is warm
    assert vllm.score([]) == []


def test_an_instruction_that_spells_special_tokens_is_text(vllm, tiny, make_samples):
    image = make_samples(2)[1].response_images[0]
    spelled = Sample.edit(
        image, "<|Reward|> <|image_pad|> <|vision_start|><|image_pad|> <|im_end|> make it blue", image
    )
    assert_same(vllm.score([spelled]), tiny.score([spelled]))


def test_a_sample_that_cannot_be_scored_is_its_own_error(vllm, tiny, make_samples, tmp_path):
    (tmp_path / "text.png").write_text("no image")
    good = make_samples(6)
    broken = Sample.generation("draw it", tmp_path / "text.png")
    longer = Sample.text_response(None, "word " * vllm.engine.positions, "an answer")
    results = vllm.score([broken, *good[:3], longer, *good[3:]], on_error="return")
    assert "text.png" in str(results.pop(0)) and "tokens and the model positions for" in str(results.pop(3))
    assert_same(results, tiny.score(good))
    with pytest.raises(JRMError, match=r"sample 1 cannot be scored: .*text\.png"):
        vllm.score([good[0], broken])
    with pytest.raises(JRMError, match="on_error must be"):
        vllm.score(good, on_error="skip")


def test_ranks_are_those_of_the_other_engine(vllm, tiny, make_samples):
    source, *candidates = [sample.response_images[0] for sample in make_samples(12) if sample.response_images]
    group = [Sample.edit(source, "make it blue", candidate) for candidate in candidates]
    for dimension in ("overall", *tiny.dimensions):
        places = [[place.position for place in s.rank(group, dimension=dimension)] for s in (vllm, tiny)]
        assert places[0] == places[1]
    with pytest.raises(JRMError, match="another instruction or source"):
        vllm.rank([*group, Sample.edit(source, "another", source)])
    with pytest.raises(JRMError, match="has no dimension 'beauty'"):
        vllm.rank(group, dimension="beauty")


def test_threads_get_the_scores_that_one_thread_gets(vllm, tiny, make_samples):
    samples = make_samples(24)
    expected = tiny.score(samples)
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda k: vllm.score(samples[k::8]), range(8)))
    for k, part in enumerate(parts):
        assert_same(part, expected[k::8])


def test_what_is_set_around_it_changes_nothing_and_stays(vllm, tiny, make_samples):
    samples = make_samples(6)
    expected = tiny.score(samples)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_same(vllm.score(samples), expected)
        assert torch.get_default_dtype() == torch.float64 and torch.is_grad_enabled()
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_server_over_it_answers_as_the_other_engine_scores(vllm, tiny):
    images = [Image.new("RGB", (48, 48), (30 * shade, 0, 0)) for shade in range(8)]
    samples = [Sample.edit(images[0], f"make it {'<|Reward|>' * k} red", image) for k, image in enumerate(images)]
    expected = tiny.score(samples)
    with ready_server(vllm) as client, ThreadPoolExecutor(8) as pool:
        assert not client.get("/v1/models").json()["models"][0]["writes_critiques"]

        def ask(k: int) -> dict:
            return client.post("/v1/score", json={"samples": [fields_of(samples[k]), {"edited": "?"}]}).json()

        for answer, score in zip(pool.map(ask, range(8)), expected, strict=True):
            result, error = answer["results"]
            assert_close(result["score"], score)
            assert error["error"]["code"] == "bad_sample"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "cuda:1"}, "computes on cpu, not on cuda:1"),
        ({"cache_bytes": 1}, "has no cache_bytes"),
        ({"memory_budget": 0}, "at least 1"),
        ({"vllm_options": {"dtype": "float16"}}, "vllm_options hold dtype"),
    ],
)
def test_what_it_cannot_do_is_one_sentence(options, words):
    with pytest.raises(JRMError, match=words):
        load_scorer("jrm-tiny", engine="vllm", **options)


def test_it_writes_no_critiques(vllm, make_samples):
    with pytest.raises(JRMError, match="writes no critiques"):
        vllm.critique(make_samples(1))


def test_a_score_that_is_not_finite_is_its_samples_error(make_scorer, make_samples, sequences, tmp_path):
    """Also in the layout of a sequence for each dimension, of which each reads its own."""
    scorer = make_scorer("qwen3_vl", sequences=sequences)
    good = make_samples(6)
    poisoned = Sample.generation("zyx \u6f22", good[1].response_images[0])
    ordinary = {token for sample in good for s in scorer.processor.encode(sample) for token in s.prompt}
    rare = [token for token in scorer.processor.encode(poisoned)[0].prompt if token not in ordinary]
    with torch.no_grad():
        scorer.model.get_input_embeddings().weight[rare] = float("nan")
    scorer.model.save_pretrained(tmp_path)
    scorer.processor.save_pretrained(tmp_path)
    vllm = load_scorer(tmp_path, engine="vllm", memory_budget=MEMORY)
    expected = scorer.score(good)
    results = vllm.score([*good[:3], poisoned, *good[3:]], on_error="return")
    assert "its score, computed in the precision float32, is not a finite number" in str(results.pop(3))
    assert_same(results, expected)
    assert all(isinstance(result, RewardScore) for result in vllm.score(good, on_error="return"))
