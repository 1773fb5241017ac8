"""vLLM's engine in this process, with models of every kind, and requests to it.

These tests run in an environment of their own (`make test-vllm`); in others, where there is no vLLM, they skip.
"""

import os

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine in this process, where it starts in seconds
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"

from collections.abc import Callable
from typing import Any

import pytest

from jrm_plugin.model.checkpoint import built_in_folder
from jrm_plugin.records.samples import Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.scoring.scorer import RewardScorer

# Of blocks of 32 tokens, as CPUs want multiples of it; the default, 128, shares nothing of a short prompt.
OPTIONS = {"dtype": "float32", "enforce_eager": True, "block_size": 32, "kv_cache_memory_bytes": 2**26}


@pytest.fixture(scope="session")
def start() -> Callable[..., Any]:
    """`start(folder, **options)`: vLLM's face of an engine with the checkpoint in it."""
    from vllm import LLM

    def start(folder: Any, **options: Any) -> Any:
        return LLM(str(folder), runner="pooling", **OPTIONS | options)

    return start


@pytest.fixture(scope="session")
def tiny_llm(start) -> Any:
    """The built-in model in vLLM, with the plug-in for input and output."""
    return start(built_in_folder("jrm-tiny"), io_processor_plugin="jrm")


class InVLLM:
    """Samples scored by an engine; `cached` are the tokens of each prompt that it had computed before."""

    def __init__(self, llm: Any, scorer: RewardScorer):
        self.llm, self.scorer, self.processor = llm, scorer, scorer.processor
        self.cached: list[int] = []

    def encode(self, samples: list[Sample], **options: Any) -> list[Any]:
        from jrm_plugin.scoring.vllm_requests import encoded_prompt, pooling_params

        sequences = [sequence for sample in samples for sequence in self.processor.encode(sample)]
        prompts = [encoded_prompt(self.processor, sequence) for sequence in sequences]
        return self.llm.encode(
            prompts, pooling_params(), pooling_task="classify", use_tqdm=False, tokenization_kwargs=options
        )

    def score(self, samples: list[Sample], **options: Any) -> list[RewardScore]:
        from jrm_plugin.scoring.vllm_requests import reward_score

        outputs, each = self.encode(samples, **options), self.processor.sequences_per_sample
        self.cached = [output.num_cached_tokens for output in outputs]
        rule = self.scorer.model.config.overall_rule
        return [reward_score(self.processor, outputs[k : k + each], rule) for k in range(0, len(outputs), each)]


@pytest.fixture(scope="session")
def in_vllm() -> type[InVLLM]:
    return InVLLM
