"""A JRM that vLLM computes, behind the face of every scorer; vLLM itself knows JRM by its entry point.

vLLM keeps the keys and values of prompts and the images that it has seen, so that what samples share is computed
once, whoever asks. Its engine is a process of its own, which nothing that is set in this one reaches.
"""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from jrm_plugin.errors import JRMError, reason
from jrm_plugin.extras import check_tried, require
from jrm_plugin.model.calibration_file import read_calibration
from jrm_plugin.model.checkpoint import built_in_folder, load_config, named
from jrm_plugin.model.processing import EncodedSequence, JRMProcessor
from jrm_plugin.scoring.sample_scorer import SampleScorer
from jrm_plugin.scoring.surroundings import usual_process

logger = logging.getLogger(__name__)

INSTALL = "jrm-plugin[vllm]"
CPU_CACHE_BYTES = 2 * 2**30  # of a CPU's memory, of which vLLM would take nine tenths
CPU_BLOCK = 32  # tokens that are shared at once, or not; vLLM's 128 on CPU shares nothing of a short prompt
# Arguments of `vllm.LLM` that are not a user's.
OWN_OPTIONS = {"model", "runner", "worker_extension_cls", "dtype", "revision", "tokenizer", "hf_overrides"}
EXTENSION = "jrm_plugin.scoring.vllm_scorer.ClearableWorker"


class VLLMEngine:
    """vLLM's engine with a checkpoint in it.

    One thread makes and asks it, whoever wants scores: on a CPU, an engine in this process (which vLLM has where
    `VLLM_ENABLE_V1_MULTIPROCESSING` is 0) ends with an error when another thread asks.

    Attributes:
        llm: vLLM's own face of it.
        memory_budget: bytes for what waits to be computed; those for keys and values are vLLM's.
    """

    memory_budget = 2 * 2**30

    def __init__(self, folder: str | Path, processor: JRMProcessor, **options: Any):
        os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")  # the one that was tried
        from vllm import LLM

        self.processor, self._thread = processor, ThreadPoolExecutor(1)
        self.llm = self._thread.submit(
            LLM, str(folder), runner="pooling", worker_extension_cls=EXTENSION, **options
        ).result()

    def __repr__(self) -> str:
        return f"VLLMEngine(at most {self.positions} tokens)"

    @property
    def positions(self) -> int:
        """Tokens of a sequence at most: of the model, or as many as its memory holds."""
        return self.llm.model_config.max_model_len

    def sequence_bytes(self, sequences: Sequence[EncodedSequence]) -> int:
        return sum(image.pixel_values.nbytes for sequence in sequences for image in sequence.images)

    def mu_and_sigma(self, sequences: Sequence[EncodedSequence]) -> list[tuple[list[float], list[float]]]:
        """mu and sigma by dimension of each sample, from all of its sequences.

        Where some are not finite, these samples are computed again, one by one: vLLM puts keys and values where others
        were, and what is masked there still makes a sum of what it is multiplied with, which zeros leave and NaN does
        not.
        """

        def compute() -> list[tuple[list[float], list[float]]]:
            with usual_process():
                scores = self._asked(sequences)
                count = self.processor.sequences_per_sample
                if broken := [k for k, score in enumerate(scores) if not _is_finite(score)]:
                    for k in broken:
                        self._forget()
                        (scores[k],) = self._asked(sequences[k * count : (k + 1) * count])
                    self._forget()
                return scores

        return self._thread.submit(compute).result()

    def _asked(self, sequences: Sequence[EncodedSequence]) -> list[tuple[list[float], list[float]]]:
        from jrm_plugin.scoring.vllm_requests import encoded_prompt, mu_and_sigma, pooling_params

        prompts = [encoded_prompt(self.processor, sequence) for sequence in sequences]
        outputs = self.llm.encode(prompts, pooling_params(), pooling_task="classify", use_tqdm=False)
        count = self.processor.sequences_per_sample
        return [mu_and_sigma(self.processor, outputs[k : k + count]) for k in range(0, len(outputs), count)]

    def _forget(self) -> None:
        self.llm.reset_prefix_cache()
        self.llm.collective_rpc("clear_keys_and_values")


class ClearableWorker:
    """What vLLM adds to its workers, which hold the keys and values."""

    model_runner: Any

    def clear_keys_and_values(self) -> None:
        for cache in self.model_runner.kv_caches:
            cache.zero_()


def _is_finite(score: tuple[list[float], list[float]]) -> bool:
    return all(map(math.isfinite, [*score[0], *score[1]]))


class VLLMScorer(SampleScorer):
    """Scores samples with a JRM checkpoint in vLLM; the numbers are those of [`RewardScorer`], up to rounding.

    It may be used from several threads: they decode images side by side, and vLLM is asked by one at a time, whose
    samples it computes together. It writes no critiques.

    Example:
        >>> if __name__ == "__main__":  # vLLM starts a process, which imports this script
        >>>     scorer = load_scorer("my-jrm", engine="vllm")
        >>>     scorer.score([Sample.edit("cat.png", "make the cat blue", "blue-cat.png")])[0].mu["overall"]
    """

    engine: VLLMEngine

    def __init__(self, name: str, dtype: str, processor: JRMProcessor, config: Any, engine: VLLMEngine):
        super().__init__(processor, config, engine)
        self._name, self._dtype = name, dtype
        self._loaded_by: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"VLLMScorer({self.name}, dimensions={self.dimensions}, dtype={self.dtype}, engine={self.engine})"

    @property
    def name(self) -> str:
        return self._name

    @property
    def dtype(self) -> str:
        return self._dtype

    @property
    def positions(self) -> int:
        return self.engine.positions

    @property
    def writes_critiques(self) -> bool:
        return False

    @classmethod
    def from_pretrained(
        cls,
        path_or_name: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        max_pixels: int | None = None,
        memory_budget: int | None = None,
        vllm_options: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> "VLLMScorer":
        """Starts vLLM with a JRM folder, a LoRA folder that `jrm train` wrote, a hub name, or the built-in `jrm-tiny`.

        Args:
            device: `cuda` or `cpu`, which must be what this vLLM was built for; GPUs are chosen by
                `CUDA_VISIBLE_DEVICES`.
            dtype: of the backbone; by default bfloat16 on a GPU that has it and float32 elsewhere. The reward head is
                always float32.
            revision: of a hub name.
            max_pixels: overrides the checkpoint's; scores change with it.
            memory_budget: bytes for vLLM's keys and values, which limit how much is computed at once and how long it
                is remembered; by default vLLM's share of a GPU (`gpu_memory_utilization`), or 2 GiB on CPU.
            vllm_options: further arguments of `vllm.LLM`, such as `tensor_parallel_size` or `enable_prefix_caching`.
                Only eager computation was tried, and is the default.
            others: those of `RewardScorer.from_pretrained` that vLLM has no use for, which must be None.

        Raises:
            JRMError: there is no such checkpoint, no vLLM of a version that was tried, or it does not start.
        """
        settings = dict(locals())
        del settings["cls"], settings["others"]
        if given := [name for name, value in others.items() if value is not None]:
            raise JRMError(f"the engine vllm has no {given[0]}; leave it out, or give an option of vLLM's own.")
        check_tried("vllm", "the engine vllm", install=INSTALL)
        require("vllm", "the engine vllm", install=INSTALL)
        from vllm.platforms import current_platform

        folder, options = built_in_folder(path_or_name), dict(vllm_options or {})
        if clashing := options.keys() & OWN_OPTIONS:
            raise JRMError(f"vllm_options hold {min(clashing)}, which decides what is computed; leave it out.")
        here = current_platform.device_type
        if device is not None and str(device) != here:
            raise JRMError(
                f"the vLLM that is installed computes on {here}, not on {device}; leave device out, and choose GPUs by "
                "CUDA_VISIBLE_DEVICES."
            )
        if memory_budget is not None and memory_budget < 1:
            raise JRMError(f"memory_budget is bytes, at least 1, got {memory_budget}.")
        if dtype is None:
            dtype = (
                torch.bfloat16
                if here != "cpu" and torch.bfloat16 in current_platform.supported_dtypes
                else torch.float32
            )
        config = load_config(folder, revision=revision)
        processor = JRMProcessor.from_pretrained(folder, revision=revision, max_pixels=max_pixels)
        own = {
            "dtype": str(dtype).removeprefix("torch."),
            "revision": revision,
            "enforce_eager": True,
            "max_model_len": -1,
        }
        if here == "cpu":
            memory_budget = CPU_CACHE_BYTES if memory_budget is None else memory_budget
            own["block_size"] = CPU_BLOCK
        if memory_budget is not None:
            own["kv_cache_memory_bytes"] = memory_budget
        if max_pixels is not None:
            own["mm_processor_kwargs"] = {"max_pixels": max_pixels}
        try:
            engine = VLLMEngine(folder, processor, **own | options)
        except JRMError:  # of the checkpoint, where the engine is in this process
            raise
        except Exception as error:
            raise JRMError(
                f"vLLM does not start with {path_or_name} ({reason(error)}); what it printed before says why. A script "
                'that starts it needs if __name__ == "__main__": around what it does.'
            ) from error
        scorer = cls(named(path_or_name), own["dtype"], processor, config, engine)
        scorer.calibration = read_calibration(path_or_name, revision=revision)
        scorer._loaded_by = settings | {"path_or_name": named(path_or_name)}
        logger.info("Scoring with %s.", scorer)
        return scorer

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        """Pickled, it is the settings that it was loaded by; where it is read, vLLM is started again."""
        return partial(type(self).from_pretrained, **self._loaded_by), ()

    def _mu_and_sigma(self, sequences: Sequence[EncodedSequence]) -> list[tuple[list[float], list[float]]]:
        return self.engine.mu_and_sigma(sequences)

    def critique(self, *_: Any, **__: Any) -> None:
        """Raises a [`JRMError`]: vLLM reads the reward token and writes nothing."""
        raise JRMError(f"{self.name} is computed by vLLM, which writes no critiques here; leave the engine out.")
