"""How the weights of a run are divided over its processes, and what that rules out."""

import os

from transformers import TrainingArguments

from jrm_plugin.errors import JRMError

WHOLE = "none"
_GATHER = "zero_optimization.stage3_gather_16bit_weights_on_model_save"


def sharding_of(training: TrainingArguments) -> str:
    """As launcher and config ask for it: `DeepSpeed ZeRO-2` and the like, `FSDP`, or `none`, which DDP is too."""
    if training.deepspeed_plugin is not None:
        return f"DeepSpeed ZeRO-{training.deepspeed_plugin.zero_stage}"
    asks_for_fsdp = training.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return "FSDP" if asks_for_fsdp else WHOLE


def check_adapters_fit(training: TrainingArguments, *, load_in_4bit: bool = False) -> None:
    """Raises a [`JRMError`] where LoRA adapters cannot be made, or not over weights in 4 bits."""
    sharding = sharding_of(training)
    if sharding.endswith("3"):  # of peft, which picks the added tokens' rows of the embeddings
        raise JRMError("LoRA adapters cannot be made over weights that ZeRO-3 divides; use ZeRO-2, FSDP2 or DDP.")
    if load_in_4bit and sharding != WHOLE:
        raise JRMError(f"weights in 4 bits were not tried under {sharding}; train on one GPU, or with DDP.")


def check_sharding(trainer) -> None:
    """Raises a [`JRMError`] for what would be left out, saved without weights, or computed of a part alone."""
    training, state = trainer.args, trainer.accelerator.state
    sharding = sharding_of(training)
    if sharding == WHOLE:
        return
    if training.muon_learning_rate is not None:
        raise JRMError(f"muon_learning_rate needs whole matrices, which {sharding} divides; leave it out, or use DDP.")
    if sharding == "FSDP":
        if not trainer.is_fsdp_enabled:
            raise JRMError("FSDP is asked for, which accelerate has on GPUs only; use DDP here.")
        if state.fsdp_plugin.fsdp_version != 2:
            raise JRMError("FSDP 1 was not tried with this trainer; set fsdp_version: 2 in the accelerate config.")
        if "FULL" not in str(state.fsdp_plugin.state_dict_type):
            raise JRMError(
                "the model would be saved without its weights; set fsdp_state_dict_type: FULL_STATE_DICT in the "
                "accelerate config."
            )
    elif sharding.endswith("3") and not state.deepspeed_plugin.hf_ds_config.get_value(_GATHER):
        raise JRMError(
            "the model would be saved without its weights; set zero3_save_16bit_model: true in the accelerate config, "
            f"or {_GATHER} in DeepSpeed's own."
        )
