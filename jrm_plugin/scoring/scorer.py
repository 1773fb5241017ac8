"""Scoring: a checkpoint in, `RewardScore`s out; the same score alone, in any batch and under any padding.

Shape suffixes: B sequences, S samples, L length, H hidden, D dimensions.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, overload

import torch

from jrm_plugin.errors import JRMError
from jrm_plugin.model.backbone import BackboneParts, token_grid
from jrm_plugin.model.calibration_file import read_calibration
from jrm_plugin.model.checkpoint import named
from jrm_plugin.model.loading import check_belong_together, load, try_out
from jrm_plugin.model.modeling import JRMForRewardModeling
from jrm_plugin.model.processing import EncodedSequence, JRMProcessor
from jrm_plugin.records.critiques import Critique, UnparsedCritique
from jrm_plugin.records.samples import SampleLike, is_sample
from jrm_plugin.scoring.devices import check_device, default_device, default_dtype
from jrm_plugin.scoring.plain import PlainEngine
from jrm_plugin.scoring.sample_scorer import SampleScorer
from jrm_plugin.scoring.sampling import Sampling
from jrm_plugin.scoring.shared_prefix import GIB, SharedPrefixEngine
from jrm_plugin.scoring.surroundings import scoring_with

logger = logging.getLogger(__name__)

Critiques: TypeAlias = dict[str, Critique | UnparsedCritique]  # of one sample, by dimension


class RewardScorer(SampleScorer):
    """Scores samples with a JRM checkpoint.

    It may be used from several threads: they decode images side by side, and the device computes for one at a time.
    Scores do not depend on what is set around them (autocast, training mode, torch's defaults, switches of Pillow and
    of warnings), and leave that as it is.

    Args:
        model, processor: which belong together, as `jrm_plugin.model.loading.load` gives them.
        engine: `shared_prefix` computes what sequences have in common once; `plain` computes every sequence whole, with
            the same scores. By default the first where the backbone's structure is known.
        memory_budget, cache_bytes: as in `from_pretrained`; the plain engine keeps no features.

    Attributes:
        calibration: what `jrm calibrate` saved with the checkpoint, or None; scores do not change with it.

    Raises:
        JRMError: model and processor do not belong together, or an argument is wrong.

    Example:
        >>> scorer = RewardScorer.from_pretrained("jrm-tiny")
        >>> scorer.score([Sample.edit("cat.png", "make the cat blue", "blue-cat.png")])[0].mu["overall"]
    """

    def __init__(
        self,
        model: JRMForRewardModeling,
        processor: JRMProcessor,
        *,
        engine: Literal["shared_prefix", "plain"] | None = None,
        memory_budget: int | None = None,
        cache_bytes: int = GIB // 2,
    ):
        check_belong_together(model, processor)
        if memory_budget is None:
            on_gpu = model.device.type == "cuda"
            memory_budget = int(0.6 * torch.cuda.mem_get_info(model.device)[0]) if on_gpu else 2 * GIB
        if memory_budget < 1 or cache_bytes < 0:
            raise JRMError(
                f"memory_budget and cache_bytes are bytes, at least 1 and 0, got {memory_budget} and {cache_bytes}."
            )
        self.model = model.eval()
        super().__init__(processor, model.config, _engine(engine, model, processor, memory_budget, cache_bytes))
        self._loaded_by: dict[str, Any] | None = None
        logger.info("Scoring with %s.", self)

    def __repr__(self) -> str:
        return (
            f"RewardScorer({self.name}, dimensions={self.dimensions}, device={self.model.device}, dtype={self.dtype}, "
            f"engine={self.engine})"
        )

    @property
    def name(self) -> str:
        return self.model.name_or_path or "a model in memory"

    @property
    def dtype(self) -> str:
        return str(self.model.dtype).removeprefix("torch.")

    @classmethod
    def from_pretrained(
        cls,
        path_or_name: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        attn_implementation: str | None = None,
        device_map: Any = None,
        quantization_config: Any = None,
        revision: str | None = None,
        max_pixels: int | None = None,
        engine: Literal["shared_prefix", "plain"] | None = None,
        memory_budget: int | None = None,
        cache_bytes: int = GIB // 2,
    ) -> "RewardScorer":
        """Loads a JRM folder, a LoRA folder that `jrm train` wrote, a hub name, or the built-in `jrm-tiny`.

        Args:
            device: by default the GPU if there is one. Not together with `device_map`.
            dtype: of the backbone; by default bfloat16 on a GPU that has it and float32 elsewhere. The reward head is
                always float32.
            attn_implementation, device_map, quantization_config, revision: as in transformers.
            max_pixels: overrides the checkpoint's; scores change with it.
            engine: see [`RewardScorer`].
            memory_budget: bytes that scoring may take beside the weights; by default 60 % of a GPU's free memory, or
                2 GiB on CPU. Batches are formed to fit into it.
            cache_bytes: image features kept for later calls, so that a source image is encoded once in an RL epoch;
                `engine.features` counts hits and misses.

        Raises:
            JRMError: there is no such checkpoint, its weights do not fit, or the device cannot be used.
        """
        settings = dict(locals())  # all that another process needs to load the same
        del settings["cls"]
        if device is not None:
            check_device(device)
        elif device_map is None:
            device = default_device()
        if dtype is None:
            dtype = default_dtype(None if device_map is not None else device)
        options = {
            "dtype": dtype,
            "attn_implementation": attn_implementation,
            "device_map": device_map,
            "quantization_config": quantization_config,
        }
        options = {name: value for name, value in options.items() if value is not None}
        model, processor = load(path_or_name, revision=revision, max_pixels=max_pixels, **options)
        if device_map is None:
            model = model.to(device)
        try_out(model, processor, path_or_name)
        scorer = cls(model, processor, engine=engine, memory_budget=memory_budget, cache_bytes=cache_bytes)
        scorer.calibration = read_calibration(path_or_name, revision=revision)
        scorer._loaded_by = settings | {"path_or_name": named(path_or_name)}
        return scorer

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        """Pickled, it is the settings that it was loaded by; where it is read, it is loaded again."""
        if self._loaded_by is None:
            raise JRMError(
                "a scorer of a model in memory cannot be sent to another process; save the model and the processor, "
                "and load them with RewardScorer.from_pretrained."
            )
        return partial(type(self).from_pretrained, **self._loaded_by), ()

    # -- scores

    def _mu_and_sigma(self, sequences: Sequence[EncodedSequence]) -> list[tuple[list[float], list[float]]]:
        """mu and sigma by dimension of each sample in one pass.

        Where some are not finite, the others are computed again without them, and they one by one, so that each has the
        score that it has without what is wrong with another.
        """
        with scoring_with(self.model):
            hidden_BH = self.engine.hidden_states(sequences)
            mu_SD, log_sigma_SD = self.model.scores(hidden_BH, self._dimension_ids(sequences))
            mu_SD, sigma_SD = mu_SD.double(), log_sigma_SD.double().exp()
            finite_S = (mu_SD.isfinite() & sigma_SD.isfinite()).all(1).tolist()
            scores = list(zip(mu_SD.tolist(), sigma_SD.tolist(), strict=True))
        if all(finite_S) or len(finite_S) == 1:
            return scores
        per_sample = self.processor.sequences_per_sample
        finite = [k for k, is_finite in enumerate(finite_S) if is_finite]
        for group in [finite, *([k] for k, is_finite in enumerate(finite_S) if not is_finite)]:
            again = [sequence for k in group for sequence in sequences[k * per_sample : (k + 1) * per_sample]]
            for k, score in zip(group, self._mu_and_sigma(again) if again else (), strict=True):
                scores[k] = score
        return scores

    def hidden_states(self, samples: Iterable[SampleLike], *, progress: bool = False) -> torch.Tensor:
        """The reward token's hidden state of every sequence, the paper's representation h (eq. 1), float32 on CPU.

        `[S, H]` in the joint layout, `[S * D, H]` in `per_dimension`.

        Raises:
            JRMError: a sample cannot be read, or its hidden state is not finite; the message names its position.
        """
        parts = [torch.empty(0, self.model.config.get_text_config().hidden_size, dtype=torch.float32, device="cpu")]
        for positions, sequences in self._passes(samples, None, progress):
            with scoring_with(self.model):
                hidden_BH = self.engine.hidden_states(sequences).float().cpu()
            self._check_finite(hidden_BH, positions)
            parts.append(hidden_BH)
        with torch.inference_mode():
            return torch.cat(parts)

    def attention(
        self, samples: Iterable[SampleLike], *, progress: bool = False
    ) -> Iterator[tuple[int, list[torch.Tensor]]]:
        """How the reward token attends to the images of each sample (paper figure 3), one sample after another.

        Yields:
            The sample's position, and for each of its images, the prompt's before the response's, the share of the
            attention that each of its tokens gets, `[rows, columns]` float32 on CPU. Mean over layers and heads, and
            over the sequences in the layout `per_dimension`. What images do not get goes to the text.

        Raises:
            JRMError: the backbone's structure is unknown, or a sample cannot be read.
        """
        if not isinstance(self.engine, SharedPrefixEngine):
            raise JRMError("the engine plain shows no attention; leave engine out, where the backbone is a known one.")
        per_sample = self.processor.sequences_per_sample
        for positions, sequences in self._passes(samples, None, progress, "Attention"):
            for k, position in enumerate(positions):
                of_sample = sequences[k * per_sample : (k + 1) * per_sample]
                with scoring_with(self.model):
                    rows = self.engine.attention(of_sample)
                    maps = [self._on_images(s, row.mean((0, 1))) for s, row in zip(of_sample, rows, strict=True)]
                    attention = [torch.stack(of_image).mean(0) for of_image in zip(*maps, strict=True)]
                yield position, attention

    def _on_images(self, sequence: EncodedSequence, share_L: torch.Tensor) -> list[torch.Tensor]:
        is_image_L = torch.tensor(sequence.prompt[: len(share_L)]) == self.processor.image_token_id
        parts = share_L[is_image_L].split([image.tokens for image in sequence.images])
        grids = [token_grid(self.processor.image_processor, image.grid_thw) for image in sequence.images]
        return [part.view(grid) for part, grid in zip(parts, grids, strict=True)]

    def _check_finite(self, hidden_BH: torch.Tensor, positions: Sequence[int]) -> None:
        """Raises a `JRMError` that names the first sample whose hidden states are not finite."""
        finite_B = hidden_BH.isfinite().all(-1).tolist()
        if not all(finite_B):
            position = positions[finite_B.index(False) // self.processor.sequences_per_sample]
            raise JRMError(f"sample {position} cannot be read by the model: {self._not_finite('hidden state')}")

    def _dimension_ids(self, sequences: Sequence[EncodedSequence]) -> torch.Tensor | None:
        if sequences[0].dimension is None:
            return None
        return torch.tensor([sequence.dimension for sequence in sequences], device=self.model.device)

    # -- critiques

    @overload
    def critique(
        self, samples: SampleLike, dimension: str | None = None, *, on_error: Literal["raise"] = "raise", **options: Any
    ) -> Critiques: ...

    @overload
    def critique(
        self,
        samples: Iterable[SampleLike],
        dimension: str | None = None,
        *,
        on_error: Literal["raise"] = "raise",
        **options: Any,
    ) -> list[Critiques]: ...

    @overload
    def critique(
        self,
        samples: Iterable[SampleLike],
        dimension: str | None = None,
        *,
        on_error: Literal["return"],
        **options: Any,
    ) -> list[Critiques | JRMError]: ...

    def critique(
        self,
        samples: SampleLike | Iterable[SampleLike],
        dimension: str | None = None,
        *,
        on_error: Literal["raise", "return"] = "raise",
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        progress: bool = False,
    ) -> Critiques | list[Critiques] | list[Critiques | JRMError]:
        """What the language head says of each sample (paper section 3.3); it does not change the score.

        Args:
            samples: what to criticise, as in `score`.
            dimension: only this one; by default all.
            on_error: as in `score`.
            max_new_tokens: longest assistant turn.
            temperature: 0 writes the likeliest token each time; above 0 tokens are sampled.
            top_p: when sampling, only from the likeliest tokens that hold this share of the probability.
            seed: of the sampling.
            progress: show a progress bar.

        Returns:
            Per sample, by dimension, a [`Critique`]; a [`RepairedCritique`] where its JSON had to be repaired, or an
            [`UnparsedCritique`] with the raw text where it is beyond that.

        Raises:
            JRMError: the checkpoint writes no critiques or has no such dimension, or (with `on_error="raise"`) a sample
                cannot be read.
        """
        if not self.model.config.writes_critiques:
            raise JRMError(
                f"{self.model.name_or_path or 'this model'} writes no critiques: it is converted from a reward model "
                "that was trained to score alone; score with it, or train it on critiques first."
            )
        if dimension is not None:
            self._check_dimension(dimension)
        if temperature < 0 or not 0 < top_p <= 1:
            raise JRMError(f"temperature must be at least 0 and top_p in (0, 1], got {temperature} and {top_p}.")
        if on_error not in ("raise", "return"):
            raise JRMError(f"on_error must be 'raise' or 'return', got {on_error!r}.")
        options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
        if is_sample(samples):
            return self.critique([samples], dimension, **options)[0]
        wanted = self.dimensions if dimension is None else [dimension]
        sampling = None
        if temperature > 0:
            sampling = Sampling(temperature=temperature, top_p=top_p, seed=seed, device=self.model.device)
        results: dict[int, Any] = {}
        errors = results if on_error == "return" else None
        for positions, sequences in self._passes(samples, errors, progress, "Writing critiques"):
            written = self._written(sequences, max_new_tokens, sampling)
            for position, turns in zip(positions, written, strict=True):
                if turns is None:
                    error = JRMError(self._not_finite("critique"))
                    if on_error == "raise":
                        raise JRMError(f"sample {position} cannot be criticised: {error}") from error
                    results[position] = error
                else:
                    results[position] = self._critiques_in(turns, wanted)
        return [results[position] for position in range(len(results))]

    def _written(
        self, sequences: Sequence[EncodedSequence], max_new_tokens: int, sampling: Sampling | None
    ) -> list[list[str] | None]:
        """The assistant turns of each sample in one pass; None where their logits are not finite.

        As in `_mu_and_sigma`, the others are then written again without those.
        """
        per_sample = self.processor.sequences_per_sample
        with scoring_with(self.model):
            tokens = self.engine.generate(sequences, max_new_tokens=max_new_tokens, sampling=sampling)
        groups = [tokens[k : k + per_sample] for k in range(0, len(tokens), per_sample)]
        finite = [k for k, group in enumerate(groups) if None not in group]
        if 0 < len(finite) < len(groups):
            again = [sequence for k in finite for sequence in sequences[k * per_sample : (k + 1) * per_sample]]
            written = dict(zip(finite, self._written(again, max_new_tokens, sampling), strict=True))
            return [written.get(k) for k in range(len(groups))]
        decode = self.processor.tokenizer.batch_decode
        return [
            decode(group, skip_special_tokens=True, clean_up_tokenization_spaces=False) if k in finite else None
            for k, group in enumerate(groups)
        ]

    def _critiques_in(self, turns: Sequence[str], wanted: Sequence[str]) -> Critiques:
        """The critiques in one sample's assistant turns; where a dimension has none, all that was written."""
        texts = self.processor.split_critiques(turns)
        nowhere = "\n".join(turns)
        return {
            dimension: Critique.parse_leniently(texts[dimension])
            if dimension in texts
            else UnparsedCritique(nowhere, f"there is no line for {dimension}.")
            for dimension in wanted
        }


def _engine(
    name: str | None, model: JRMForRewardModeling, processor: JRMProcessor, memory_budget: int, cache_bytes: int
) -> SharedPrefixEngine | PlainEngine:
    known = BackboneParts.known(model.backbone)
    if name == "plain" or (name is None and not known):
        if name is None:
            logger.warning("This backbone's structure is unknown: every sequence is computed whole, which is slower.")
        return PlainEngine(model, processor, memory_budget=memory_budget)
    if name not in (None, "shared_prefix"):
        raise JRMError(f"engine must be shared_prefix or plain, not {name!r}.")
    if not known:
        raise JRMError("this backbone's structure is unknown to the engine shared_prefix; leave engine out.")
    return SharedPrefixEngine(model, processor, memory_budget=memory_budget, cache_bytes=cache_bytes)
