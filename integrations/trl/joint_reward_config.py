"""Hyperparameters of joint reward training; the defaults are the paper's (appendix B.1)."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments
from trl import RewardConfig

# Inherited options that this loss, or a processor with a layout of its own, has no use for.
_WITHOUT_EFFECT = ("center_rewards_coefficient", "label_smoothing_factor", "model_init_kwargs", "dataset_num_proc")
_WITHOUT_EFFECT += ("chat_template_path", "eos_token", "pad_token", "pad_to_multiple_of")


LEARNING_RATE = 2e-6  # the paper's, of all weights
ADAPTERS_LEARNING_RATE = 1e-4  # TRL's, of LoRA adapters: small matrices that begin at zero


def fit_to_device(arguments: TrainingArguments) -> None:
    """Sets what depends on the device: `bf16` if it is not given, and pinned memory, of which torch warns on a CPU."""
    has_cuda = torch.cuda.is_available() and not arguments.use_cpu
    if arguments.bf16 is None:
        arguments.bf16 = not arguments.fp16 and has_cuda and torch.cuda.is_bf16_supported()
    arguments.dataloader_pin_memory = arguments.dataloader_pin_memory and has_cuda


@dataclass
class JointRewardConfig(RewardConfig):
    r"""Configuration of [`JointRewardTrainer`]: TRL's `RewardConfig` with the paper's defaults and the joint loss.

    The paper's global batch of 64 pairs is 2 a device, 4 accumulation steps and 8 devices.

    Parameters:
        alpha (`float`, defaults to `0.7`):
            Weight of the language loss in `(1 - alpha) * L_rank + alpha * L_LM` (eq. 7). 1 trains on critiques alone,
            0 on preferences alone.
        ranking_loss (`str`, defaults to `"pairwise"`):
            How a group of more than two is ranked. `pairwise`: every two candidates by the loss of a pair, the mean
            over them; `plackett_luce`: its whole order at once, by the model of Plackett and Luce. For a pair both are
            the same.
        objective (`str`, defaults to `"marginal"`):
            `marginal`: -log E[sigmoid] as eq. (4)-(5) say; `expected`: E[-log sigmoid], as HPSv3's and EditReward's
            code computes.
        tie_threshold (`float`, defaults to `0.0`):
            Threshold of the Rao-Kupper model of ties; with 0 a tie is half a win each way. Of `pairwise` alone.
        max_length (`int`, defaults to `8192`):
            Longest sequence in tokens, images and critiques included. A longer pair is an error, never cut.
        max_pixels (`int`, *optional*):
            Larger images are scaled down to this many pixels; by default as the processor has it, which is the paper's
            200,704 where a model is made from a backbone.
        learning_rate (`float`, *optional*):
            Peak learning rate of AdamW: by default the paper's 2e-6, and 1e-4 where LoRA adapters are trained.
        muon_learning_rate (`float`, *optional*):
            If given, the matrices inside the transformer blocks are updated by Muon at this rate, all else by AdamW
            at `learning_rate`. For small models that are trained from scratch.
        share_prefixes (`bool`, defaults to `True`):
            Compute once what the sequences of a batch share at their beginnings, wherever that costs less, and encode
            each distinct image once. Losses and gradients are the same up to rounding.
        flex_attention (`bool`, defaults to `False`):
            Compute what shares a beginning by FlexAttention, on a GPU: it skips what no token sees, where SDPA's mask
            is a matrix. It was not measured on a GPU yet.
        fused_cross_entropy (`bool`, defaults to `False`):
            Make the logits of critique tokens piece by piece: less memory, and each of them computed twice.
    """

    alpha: float = field(default=0.7, metadata={"help": "Weight of the language loss, 0 to 1 (eq. 7)."})
    ranking_loss: str = field(default="pairwise", metadata={"help": "`pairwise` or `plackett_luce`."})
    objective: str = field(default="marginal", metadata={"help": "`marginal` or `expected`."})
    tie_threshold: float = field(default=0.0, metadata={"help": "Rao-Kupper threshold of ties, >= 0."})
    max_length: int | None = field(default=8192, metadata={"help": "Longest sequence; a longer pair is an error."})
    max_pixels: int | None = field(default=None, metadata={"help": "Larger images are scaled down to so many pixels."})
    muon_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of Muon for the matrices inside the transformer blocks."}
    )
    share_prefixes: bool = field(
        default=True, metadata={"help": "Compute once what the sequences of a batch share, where that costs less."}
    )
    flex_attention: bool = field(
        default=False, metadata={"help": "Compute what shares a beginning by FlexAttention, on a GPU."}
    )
    fused_cross_entropy: bool = field(
        default=False, metadata={"help": "Make the logits of critique tokens piece by piece, which takes less memory."}
    )

    # The paper's hyperparameters, appendix B.1.
    learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of AdamW: 2e-6; of LoRA adapters 1e-4."}
    )
    adam_beta1: float = field(default=0.9, metadata={"help": "AdamW's beta 1."})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's beta 2."})
    weight_decay: float = field(default=0.1, metadata={"help": "AdamW's weight decay."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate schedule."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Warm-up: steps, or a share of them if below 1."})
    num_train_epochs: float = field(default=10, metadata={"help": "Epochs."})
    per_device_train_batch_size: int = field(default=2, metadata={"help": "Pairs or groups a device and step."})
    gradient_accumulation_steps: int = field(default=4, metadata={"help": "Steps accumulated for one update."})
    gradient_checkpointing_kwargs: dict | str | None = field(
        default_factory=lambda: {"use_reentrant": False}, metadata={"help": "Non-reentrant checkpointing."}
    )
    # TRL switches dropout off; the reward head's is part of the method.
    disable_dropout: bool = field(default=False, metadata={"help": "Whether to switch off all dropout."})
    # transformers switches the bar off with its warnings.
    disable_tqdm: bool | None = field(default=False, metadata={"help": "Whether to show no progress bars."})

    def __post_init__(self):
        self._learning_rate_is_default = self.learning_rate is None
        if self.learning_rate is None:
            self.learning_rate = LEARNING_RATE
        fit_to_device(self)
        # TRL's defaults stand under names that newer versions of transformers replace and warn of.
        for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
            new = old.replace("gradient", "activation")
            if getattr(self, new, old) is None:
                setattr(self, new, getattr(self, old))
        super().__post_init__()
        if self.device.type == "cpu":  # accelerate numbers CPUs, and then torch finds no place for an optimizer's state
            self.__dict__["_setup_devices"] = torch.device("cpu")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be between 0 and 1, got {self.alpha}.")
        if self.objective not in ("marginal", "expected"):
            raise ValueError(f"objective must be 'marginal' or 'expected', got {self.objective!r}.")
        if self.ranking_loss not in ("pairwise", "plackett_luce"):
            raise ValueError(f"ranking_loss must be 'pairwise' or 'plackett_luce', got {self.ranking_loss!r}.")
        if self.tie_threshold and self.ranking_loss != "pairwise":
            raise ValueError("tie_threshold belongs to ranking_loss: pairwise; leave one of the two out.")
        if self.tie_threshold < 0:
            raise ValueError(f"tie_threshold must not be negative, got {self.tie_threshold}.")
        if self.flex_attention and (self.device.type == "cpu" or not self.share_prefixes):
            raise ValueError("flex_attention needs a GPU and share_prefixes: true; leave it out.")
        for name in _WITHOUT_EFFECT:
            if getattr(self, name):
                raise ValueError(f"{name} has no effect on joint reward training; leave it out.")
        if self.save_only_model:
            raise ValueError("save_only_model leaves out the optimizer, without which no run goes on; leave it out.")

    def use_adapters(self) -> None:
        """Where no learning rate was given, that of LoRA adapters."""
        if self._learning_rate_is_default:
            self.learning_rate = ADAPTERS_LEARNING_RATE
