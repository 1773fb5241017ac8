"""PickScore: a CLIP that was trained on people's choices between images (arXiv 2305.01569); a judge that is no JRM.

It knows one image and a text: it compares images with the instruction, sees no source, and gives no sigma.
"""

import logging
from collections.abc import Iterable, Sized
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm.auto import tqdm
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from jrm_plugin.errors import JRMError
from jrm_plugin.model.checkpoint import CONFIG_FILE, find_file, load_checked, named, read_object, reading
from jrm_plugin.records.images import load_image
from jrm_plugin.records.samples import OVERALL, Sample, SampleLike, is_sample, to_sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.scoring.devices import check_device, default_device, default_dtype
from jrm_plugin.scoring.protocol import Ranked, check_one_prompt, ranked

logger = logging.getLogger(__name__)

DIMENSION = "human_preference"
PREPROCESSOR_FILE = "preprocessor_config.json"


class PickScorer:
    """Scores images by how well people would like them for an instruction.

    mu is exp(logit scale) times the cosine of the features of image and text, so that the sigmoid of a difference is
    the probability that people choose the one image; sigma is 0. Scores are of `edit` and `generation` samples.

    Args:
        model, tokenizer, image_processor: of a CLIP, as `from_pretrained` loads them.
    """

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer, image_processor: CLIPImageProcessorPil):
        self.model, self.tokenizer, self.image_processor = model.eval(), tokenizer, image_processor
        self._longest = model.config.text_config.max_position_embeddings
        self._said: set[str] = set()
        self._say("it gives no sigma, which is 0 everywhere.")

    def __repr__(self) -> str:
        return f"PickScorer({self.model.name_or_path or 'a model in memory'}, device={self.model.device})"

    @classmethod
    def from_pretrained(
        cls, path_or_name: str | Path, *, device: str | torch.device | None = None, **options: Any
    ) -> "PickScorer":
        """Loads a folder or a hub name, such as `yuvalkirstain/PickScore_v1`.

        Args:
            device: by default the GPU if there is one.
            options: `dtype` and `revision`, as in `RewardScorer.from_pretrained`; its others must be None.

        Raises:
            JRMError: there is no such model, its weights do not fit, the device cannot be used, or an option is given
                that it has no use for.
        """
        dtype, revision = options.pop("dtype", None), options.pop("revision", None)
        if given := [name for name, value in options.items() if value is not None]:
            raise JRMError(f"{path_or_name} is a PickScore, which has no {', '.join(given)}; leave that out.")
        if device is not None:
            check_device(device)
        device = default_device() if device is None else device
        hub = {} if revision is None else {"revision": revision}
        files = {name: find_file(path_or_name, name, **hub) for name in (CONFIG_FILE, PREPROCESSOR_FILE)}
        if missing := [name for name, file in files.items() if file is None]:
            raise JRMError(f"{path_or_name} has no {missing[0]}; a PickScore needs the one that it was trained with.")
        with reading(path_or_name, "the config"):
            config = CLIPConfig.from_dict(read_object(files[CONFIG_FILE]))
            image_processor = CLIPImageProcessorPil.from_dict(read_object(files[PREPROCESSOR_FILE]))
        with reading(path_or_name, "the tokenizer"):
            tokenizer = CLIPTokenizer.from_pretrained(path_or_name, **hub)
        dtype = default_dtype(device) if dtype is None else dtype
        model, _ = load_checked(CLIPModel.from_pretrained, path_or_name, config=config, dtype=dtype, **hub)
        model.name_or_path = named(path_or_name)
        return cls(model.to(device), tokenizer, image_processor)

    @property
    def dimensions(self) -> list[str]:
        return [DIMENSION]

    def score(
        self,
        samples: SampleLike | Iterable[SampleLike],
        *,
        on_error: Literal["raise", "return"] = "raise",
        progress: bool = False,
    ) -> Any:
        """The score of each sample, in their order, as `RewardScorer.score` takes and gives them.

        Raises:
            JRMError: a sample cannot be scored (with `on_error="raise"`).
        """
        if on_error not in ("raise", "return"):
            raise JRMError(f"on_error must be 'raise' or 'return', got {on_error!r}.")
        if is_sample(samples):
            return self.score([samples], on_error=on_error)[0]
        results: list[RewardScore | JRMError] = []
        texts: dict[str, torch.Tensor] = {}
        total = len(samples) if isinstance(samples, Sized) else None
        for position, given in enumerate(tqdm(samples, "Scoring", total, unit="sample", disable=not progress)):
            try:
                results.append(self._score(to_sample(given), texts))
            except JRMError as error:
                if on_error == "raise":
                    raise JRMError(f"sample {position} cannot be scored: {error}") from error
                results.append(error)
        return results

    def rank(
        self, samples: Iterable[SampleLike], *, dimension: str = OVERALL, different_prompts: bool = False
    ) -> list[Ranked]:
        """The candidates of one prompt, best first, as `RewardScorer.rank`."""
        if dimension not in (OVERALL, DIMENSION):
            raise JRMError(f"this model has no dimension {dimension!r}; it has {DIMENSION}.")
        candidates = [to_sample(sample) for sample in samples]
        if not different_prompts:
            check_one_prompt(candidates)
        return ranked(self.score(candidates), dimension)

    def critique(self, *_: Any, **__: Any) -> None:
        """Raises a [`JRMError`]: it writes none."""
        raise JRMError(
            f"{self.model.name_or_path or 'this model'} is a PickScore, which writes no critiques; take a JRM."
        )

    @torch.inference_mode()
    def _score(self, sample: Sample, texts: dict[str, torch.Tensor]) -> RewardScore:
        """One at a time: the last digits of a score would depend on what stands beside it in a batch."""
        if len(sample.response_images) != 1:
            raise JRMError("it is no image that was edited or generated, and PickScore scores nothing else.")
        if sample.prompt_images:
            self._say("it compares an edited image with the instruction alone; source images are ignored.")
        text = sample.prompt_text
        if text not in texts:
            texts[text] = self._text_features(text)
        pixels = self.image_processor(load_image(sample.response_images[0]), return_tensors="pt")["pixel_values"]
        features = self.model.get_image_features(pixels.to(self.model.device, self.model.dtype)).pooler_output
        mu = self.model.logit_scale.float().exp() * (_unit(features) * texts[text]).sum()
        return RewardScore({DIMENSION: mu.item()}, {DIMENSION: 0.0})

    def _text_features(self, text: str) -> torch.Tensor:
        ids = self.tokenizer(text, truncation=False, return_tensors="pt")["input_ids"]
        if ids.shape[1] > self._longest:
            self._say(
                f"it reads {self._longest} tokens of an instruction; what comes behind them in a longer one is cut."
            )
            ids = self.tokenizer(text, truncation=True, max_length=self._longest, return_tensors="pt")["input_ids"]
        return _unit(self.model.get_text_features(ids.to(self.model.device)).pooler_output)

    def _say(self, sentence: str) -> None:
        """What a user must know of it, once."""
        if sentence not in self._said:
            self._said.add(sentence)
            logger.warning("%s is a PickScore: %s", self.model.name_or_path or "the model in memory", sentence)


def _unit(features: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(features.float(), dim=-1)
