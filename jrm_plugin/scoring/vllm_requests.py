"""Samples as prompts of vLLM, and its answers as scores: for `LLM.encode` in this process, and for servers.

prompts = [encoded_prompt(processor, sequence) for sequence in processor.encode(sample)]
outputs = llm.encode(prompts, pooling_params(), pooling_task="classify")
score = reward_score(processor, outputs)
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jrm_plugin.errors import JRMError
from jrm_plugin.model.processing import EncodedSequence, JRMProcessor
from jrm_plugin.records.scores import OverallRule, RewardScore

if TYPE_CHECKING:
    from vllm import PoolingParams, PoolingRequestOutput
    from vllm.inputs import TokensPrompt

# In `extra_kwargs` of a request, that its sender reads of each sequence the dimension that it scores, and no other.
READS_OWN_DIMENSION = "jrm_reads_own_dimension"


def encoded_prompt(processor: JRMProcessor, sequence: EncodedSequence) -> "TokensPrompt":
    """What vLLM takes for a sequence: token ids, which no text can spell, and images that are cut into patches."""
    from vllm.inputs import TokensPrompt

    data = {"multi_modal_data": {"image": sequence.images}} if sequence.images else {}
    return TokensPrompt(prompt_token_ids=processor.compact_prompt(sequence), **data)


def pooling_params() -> "PoolingParams":
    """With which each prompt is to be sent: what `reward_score` reads, from the prefix cache where that has it."""
    from vllm import PoolingParams

    return PoolingParams(task="classify", skip_reading_prefix_cache=False, extra_kwargs={READS_OWN_DIMENSION: True})


def reward_score(
    processor: JRMProcessor, outputs: "Sequence[PoolingRequestOutput]", overall_rule: OverallRule = "mean"
) -> RewardScore:
    """The score of one sample from the answers to its prompts, in their order.

    Args:
        processor: which made the prompts.
        outputs: of `LLM.encode` or of the engine.
        overall_rule: of the model's config.

    Raises:
        JRMError: a number is not finite, or vLLM was told to cut prompts off.
    """
    mu_D, sigma_D = mu_and_sigma(processor, outputs)
    if not all(map(math.isfinite, [*mu_D, *sigma_D])):
        raise JRMError(
            "its score is not a finite number: numbers overflow in the dtype that vLLM computes in, or those of the "
            "model's weights are not finite; check both."
        )
    mu, sigma = (dict(zip(processor.dimensions, numbers, strict=True)) for numbers in (mu_D, sigma_D))
    return RewardScore(mu=mu, sigma=sigma, overall_rule=overall_rule)


def mu_and_sigma(processor: JRMProcessor, outputs: "Sequence[PoolingRequestOutput]") -> tuple[list[float], list[float]]:
    """mu and sigma by dimension, finite or not, from the answers to one sample's prompts.

    Raises:
        JRMError: vLLM was told to cut prompts off.
    """
    if not all(processor.is_prompt(output.prompt_token_ids) for output in outputs):
        raise JRMError("vLLM was told to cut the prompt off; leave truncate_prompt_tokens out.")
    rows = [output.outputs.data.tolist() for output in outputs]
    count = len(processor.dimensions)
    if processor.sequences == "joint":
        rows *= count
    return [row[k] for k, row in enumerate(rows)], [row[count + k] for k, row in enumerate(rows)]
