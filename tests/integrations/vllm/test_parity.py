"""Scores from vLLM are `RewardScorer`'s: of every backbone family, layout and head, however vLLM computes them."""

import math
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from jrm_plugin.model.lora import is_lora_folder, lora_config
from jrm_plugin.records.samples import Sample
from jrm_plugin.scoring.scorer import RewardScorer

pytest.importorskip("vllm", reason="vLLM is not installed here; `make test-vllm` has it")


class Model(NamedTuple):
    layout: dict[str, Any]
    config: dict[str, Any]
    options: dict[str, Any]  # of vLLM


HEAD = {"reward_head_widths": [32, 24, 8], "log_sigma_bound": [0.5, 2.0]}
MODELS = {
    "qwen3_vl": Model({"order": "rubric_first"}, {}, {}),
    "qwen2_5_vl": Model(
        {"order": "rubric_first", "sequences": "per_dimension"},
        HEAD | {"overall_rule": "min"},
        {"enable_prefix_caching": False},
    ),
    "qwen2_vl": Model(
        {"order": "images_first"}, {"rope_positions": "1d", "overall_rule": "sum"}, {"max_num_batched_tokens": 64}
    ),
    "lora": Model({"order": "images_first", "sequences": "per_dimension"}, HEAD, {"mm_processor_cache_gb": 0}),
}


@pytest.fixture(scope="module")
def saved(make_scorer, make_samples, tmp_path_factory):
    """`saved(name)`: the folder of a model of `MODELS`."""

    def save(name: str):
        model, folder = MODELS[name], tmp_path_factory.mktemp(name)
        family = "qwen3_vl" if name == "lora" else name
        scorer = make_scorer(family, width=64, config=model.config, **model.layout)
        spread(scorer, make_samples(12))
        scorer.model.save_pretrained(folder)
        scorer.processor.save_pretrained(folder)
        return with_adapters(scorer, folder) if name == "lora" else folder

    return save


def spread(scorer: RewardScorer, samples: list[Sample]) -> None:
    """Moves the heads' last layers so that the scores of a dimension have a standard deviation of 0.3.

    That of a head as it is drawn is some 0.03; much more than ten times as much would bring float32's rounding, which
    differs between CPUs, near to the tolerance.
    """
    for dimension, head in zip(scorer.dimensions, scorer.model.reward_head.heads, strict=True):
        deviation = np.std([score.mu[dimension] for score in scorer.score(samples)])
        with torch.no_grad():
            head[-1].weight *= 0.3 / deviation


def moved(module: torch.nn.Module, scale: float) -> None:
    """Adds noise to what is trained."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def with_adapters(scorer: RewardScorer, base):
    from peft import get_peft_model

    folder = base.parent / "adapters"
    model = get_peft_model(scorer.model, lora_config(scorer.processor, r=4, lora_alpha=8))
    moved(model, 0.03)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder)
    scorer.model.config.save_pretrained(folder)
    scorer.processor.save_pretrained(folder)
    assert is_lora_folder(folder)
    return folder


@pytest.fixture(scope="module", params=MODELS)
def engine(request, saved, start, in_vllm):
    """A model in vLLM, and the same in a `RewardScorer`."""
    folder = saved(request.param)
    scorer = RewardScorer.from_pretrained(folder, device="cpu")
    return in_vllm(start(folder, **MODELS[request.param].options), scorer)


def assert_equal(ours, theirs):
    for score, other in zip(ours, theirs, strict=True):
        assert score.names == other.names
        for name in score.names:
            assert other.mu[name] == pytest.approx(score.mu[name], abs=1e-5, rel=1e-5)
            assert math.log(other.sigma[name]) == pytest.approx(math.log(score.sigma[name]), abs=1e-5)


def group(samples, size):
    """Candidates for the first sample's prompt, their pictures those of the others."""
    pictures = chain.from_iterable(sample.response_images for sample in samples[1:])
    return [Sample(samples[0].prompt, Sample.generation("-", next(pictures)).response) for _ in range(size)]


def test_mixed_samples_score_as_with_reward_scorer(engine, make_samples):
    samples = make_samples(24)
    expected = engine.scorer.score(samples)
    assert np.std([score.mu["overall"] for score in expected]) > 0.1
    assert_equal(expected, engine.score(samples))


def test_a_group_scores_the_same_again_and_one_by_one(engine, make_samples, request):
    candidates = group(make_samples(24, seed=1), 12)
    expected = engine.scorer.score(candidates)
    assert_equal(expected, engine.score(candidates))
    assert_equal(expected, engine.score(candidates))
    caches = engine.llm.llm_engine.vllm_config.cache_config.enable_prefix_caching
    assert (min(engine.cached) > 0) == caches
    assert_equal(expected[::5], [engine.score([candidate])[0] for candidate in candidates[::5]])


def test_scores_are_the_same_after_its_caches_were_dropped_and_its_weights_read_again(engine, make_samples):
    """As vLLM does it after it slept, which it does on GPUs alone."""
    samples = make_samples(6, seed=2)
    expected = engine.score(samples)
    engine.llm.reset_prefix_cache()
    assert_equal(expected, engine.score(samples))
    engine.llm.reset_prefix_cache()
    engine.llm.reset_mm_cache()
    engine.llm.llm_engine.reset_encoder_cache()
    engine.llm.collective_rpc("reload_weights")
    assert_equal(expected, engine.score(samples))


def test_a_prompt_of_one_dimension_has_no_score_of_all(engine, make_samples):
    """Which dimension it scores, only those know who made it; they say so with it (`pooling_params`)."""
    from jrm_plugin.scoring.vllm_requests import encoded_prompt

    (sample,) = make_samples(1)
    prompt = encoded_prompt(engine.processor, engine.processor.encode(sample)[0])
    outputs = engine.llm.encode([prompt], pooling_task="classify", use_tqdm=False)
    numbers = outputs[0].outputs.data
    assert numbers.isnan().all() if engine.processor.sequences == "per_dimension" else numbers.isfinite().all()
    if engine.processor.sequences == "joint":
        assert float(numbers[-1]) == pytest.approx(engine.scorer.score(sample).mu["overall"], abs=1e-5)
