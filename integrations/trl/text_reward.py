"""A JRM where TRL expects a text classifier: `reward_model_name_or_path`, or a model as a reward function.

TRL renders the conversation in the chat format of the checkpoint's tokenizer and hands over token ids. A JRM has its
own layout, with a rubric and a reward token, so the question and the answer are read out of those ids and scored as a
[`Sample`] of the task `response`. Importing this module registers the class with transformers.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutput

from jrm_plugin.errors import JRMError
from jrm_plugin.model.chat_template import render
from jrm_plugin.model.configuration import JRMConfig
from jrm_plugin.model.loading import load
from jrm_plugin.model.modeling import JRMForRewardModeling
from jrm_plugin.model.processing import JRMProcessor
from jrm_plugin.records.samples import OVERALL, Sample
from jrm_plugin.scoring.scorer import RewardScorer


class JRMForTextReward(PreTrainedModel):
    """Scores conversations that end in an assistant's answer; `logits[:, 0]` is the overall mu.

    The question is the last user message and the answer all that the first assistant message and what follows it say,
    so prompts must hold no earlier assistant message. An empty answer is an error. For images, or a floor for empty
    answers, use [`JRMReward`].

    Example:
        >>> reward = AutoModelForSequenceClassification.from_pretrained("outputs/jrm", num_labels=1)
        >>> trainer = GRPOTrainer("Qwen/Qwen3-0.6B", reward, train_dataset=conversations)
    """

    config_class = JRMConfig
    _supports_sdpa = _supports_flash_attn = _supports_attention_backend = True

    def __init__(self, model: JRMForRewardModeling, processor: JRMProcessor):
        super().__init__(model.config)
        self.jrm, self.processor = model, processor

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> "JRMForTextReward":
        """Loads a JRM folder, also one of LoRA adapters; the arguments are those of `loading.load`.

        Raises:
            JRMError: it is no JRM checkpoint.
        """
        # Of a LoRA folder, `AutoModel…` gives the base model with its config, and names the folder in here.
        if adapters := kwargs.pop("adapter_kwargs", {}).get("_adapter_model_path"):
            folder = adapters
            kwargs.pop("config")
        return cls(*load(folder, **kwargs)).eval()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> SequenceClassifierOutput:
        """`logits` `[B, 1]`, float32, of token ids `[B, L]`.

        Raises:
            JRMError: a row is no conversation in the format of the checkpoint's tokenizer.
        """
        rows = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)]
        samples = []
        for number, row in enumerate(rows):
            try:
                samples.append(self._sample(row))
            except JRMError as error:
                raise JRMError(f"sample {number} cannot be scored: {error}") from error
        mu = [[score.mu[OVERALL]] for score in self._scorer.score(samples)]
        return SequenceClassifierOutput(logits=torch.tensor(mu, dtype=torch.float32, device=input_ids.device))

    @cached_property
    def _scorer(self) -> RewardScorer:
        return RewardScorer(self.jrm, self.processor)

    @cached_property
    def _format(self) -> "_ChatFormat":
        return _ChatFormat(self.processor.tokenizer)

    def _sample(self, ids: list[int]) -> Sample:
        text = self.processor.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return Sample.text_response(None, *self._format.question_and_answer(text))


class _ChatFormat:
    """What a tokenizer's chat template writes around the messages."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        def rendered(*roles: str) -> list[str]:
            messages = [{"role": role, "content": f"\ue000{role}\ue000"} for role in roles]
            text = render(tokenizer, messages)
            return [piece for k, piece in enumerate(text.split("\ue000")) if k % 2 == 0]

        self._before_question, self._before_answer, self._end = rendered("user", "assistant")
        self._after_system = rendered("system", "user")[1]

    def question_and_answer(self, text: str) -> tuple[str, str]:
        question, separator, answer = text.partition(self._before_answer)
        if self._after_system in question:
            question = question.rpartition(self._after_system)[2]
        elif question.startswith(self._before_question):
            question = question[len(self._before_question) :]
        else:
            separator = ""
        if not separator:
            raise JRMError(
                "a JRM scores conversations, a user's question and an assistant's answer, in the chat format of its "
                f"tokenizer, not {text[:60]!r}; give the data set conversational prompts."
            )
        return question, answer.removesuffix(self._end)


AutoModelForSequenceClassification.register(JRMConfig, JRMForTextReward)
