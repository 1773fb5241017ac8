"""The plug-in `jrm` for vLLM's input and output: `vllm serve MODEL --runner pooling --io-processor-plugin jrm`.

`POST /pooling` then takes `{"data": DATA}` and answers `{"data": {"scores": [SCORE, …]}}`, a SCORE for each candidate
as `RewardScore.to_dict` gives it. DATA is a prompt and its candidates, or any samples, as `records.wire` has them:

    {"source": IMAGE, "instruction": "make the cat blue", "candidates": [IMAGE, …]}
    {"samples": [{"prompt": […], "response": […]}, …]}

IMAGE is the base64 of an image file, or a `data:` URL; `source` may be a list. Whatever is wrong with a request is its
own error, of status 400, before vLLM has seen any of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vllm.config import VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.inputs import TokensPrompt
from vllm.outputs import PoolingRequestOutput
from vllm.plugins.io_processors.interface import IOProcessor
from vllm.pooling_params import PoolingParams

from jrm_plugin.errors import JRMError
from jrm_plugin.integrations.vllm.processing import processor_of, refused
from jrm_plugin.model.processing import EncodedSequence
from jrm_plugin.records.checks import check_keys, kind_of
from jrm_plugin.records.samples import Sample
from jrm_plugin.records.wire import ranking_from_json, sample_from_json
from jrm_plugin.scoring.prefetch import DecodingBudget, encode_ahead
from jrm_plugin.scoring.vllm_requests import encoded_prompt, pooling_params, reward_score

DECODING_BYTES = 2**30  # for images that are decoded at once


class JRMIOProcessor(IOProcessor[list[Sample], dict[str, Any]]):
    """From requests to prompts of token ids, and from the engine's numbers to scores by name."""

    def __init__(self, vllm_config: VllmConfig, renderer: Any):
        super().__init__(vllm_config, renderer)
        self._processor = processor_of(vllm_config.model_config)
        self._overall_rule = vllm_config.model_config.hf_config.overall_rule
        self._positions = vllm_config.model_config.max_model_len
        self._decoding = DecodingBudget(DECODING_BYTES)

    def parse_data(self, data: object) -> list[Sample]:
        with refused():
            if not isinstance(data, Mapping):
                raise JRMError(f"data must be an object with samples, or a prompt and candidates, not {kind_of(data)}.")
            if "samples" not in data:
                if "dimension" in data:
                    raise JRMError("scores have all dimensions; leave dimension out.")
                samples, _ = ranking_from_json(data)
            else:
                check_keys(data, "data", required={"samples"})
                if not isinstance(data["samples"], list) or not data["samples"]:
                    raise JRMError("samples must be a list with at least one sample.")
                samples = [_parsed(record) for record in data["samples"]]
        for position, sample in enumerate(samples):
            if isinstance(sample, JRMError):
                raise VLLMValidationError(f"sample {position} cannot be scored: {sample}") from sample
        return samples

    def merge_pooling_params(self, params: PoolingParams | None = None) -> PoolingParams:
        return pooling_params()

    def pre_process(self, prompt: list[Sample], request_id: str | None = None, **kwargs: Any) -> list[TokensPrompt]:
        """All samples are read here: had vLLM taken some before another fails, its two caches would differ."""
        prompts = []
        for position, sequences in enumerate(encode_ahead(self._processor, prompt, self._decoding)):
            with refused(f"sample {position} cannot be scored: "):
                if isinstance(sequences, JRMError):
                    raise sequences
                self._check_length(sequences)
                prompts += [encoded_prompt(self._processor, sequence) for sequence in sequences]
        return prompts

    def _check_length(self, sequences: list[EncodedSequence]) -> None:
        longest = max(len(sequence.prompt) for sequence in sequences)
        if longest > self._positions:
            raise JRMError(
                f"its sequence has {longest} tokens and vLLM takes {self._positions}; shorten its text, give fewer or "
                "smaller images, or start vLLM with a larger --max-model-len."
            )

    def post_process(
        self, model_output: Sequence[PoolingRequestOutput], request_id: str | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        each = self._processor.sequences_per_sample
        of_samples = [model_output[k : k + each] for k in range(0, len(model_output), each)]
        with refused():
            scores = [reward_score(self._processor, outputs, self._overall_rule) for outputs in of_samples]
        return {"scores": [score.to_dict() for score in scores]}


def _parsed(record: object) -> Sample | JRMError:
    try:
        return sample_from_json(record)
    except JRMError as error:
        return error
