"""A whole training run: from data files and a backbone to a folder that scores; stopped, the same run goes on.

What `jrm train` does. Its YAML holds the fields of [`TrainArguments`] and of `JointRewardConfig` side by side.
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PrinterCallback, ProgressCallback, TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks
from transformers.utils import logging

from jrm_plugin.configs import read_config
from jrm_plugin.errors import JRMError, reason
from jrm_plugin.evaluation import charts
from jrm_plugin.extras import require
from jrm_plugin.files import check_writable, content_digest, read_json, replacing, write_json
from jrm_plugin.integrations.trl.benchmarks import BenchmarkExamples
from jrm_plugin.integrations.trl.callbacks import EvaluationTables, ProgressWithLosses, StopOnSignal
from jrm_plugin.integrations.trl.checkpoints import last_whole_checkpoint
from jrm_plugin.integrations.trl.config_files import parse_config
from jrm_plugin.integrations.trl.joint_reward_config import JointRewardConfig
from jrm_plugin.integrations.trl.joint_reward_trainer import JointRewardTrainer
from jrm_plugin.integrations.trl.model_card import SETTINGS_FILE
from jrm_plugin.integrations.trl.processes import lost_process_in_words
from jrm_plugin.integrations.trl.sharding import check_adapters_fit, sharding_of
from jrm_plugin.integrations.trl.train_arguments import TrainArguments
from jrm_plugin.integrations.trl.training_data import read_training_data
from jrm_plugin.model.configuration import CHOSEN_FIELDS
from jrm_plugin.model.loading import start_from
from jrm_plugin.model.lora import lora_config
from jrm_plugin.model.modeling import JRMForRewardModeling
from jrm_plugin.model.processing import JRMProcessor
from jrm_plugin.model.rubrics import default_rubrics
from jrm_plugin.model.trained_on import read_trained_pairs, write_trained_pairs
from jrm_plugin.records.samples import DIMENSIONS
from jrm_plugin.runs import check_settings, locked
from jrm_plugin.switches import Switch

LOCK_FILE = ".jrm_train.lock"
CURVES_FILE = "curves.png"
# A model with fewer parameters than this computes for microseconds between two points at which threads wait for each
# other. A further thread hardly pays there, and on a machine that is not idle it makes training ten times slower
# (benchmarks/threads.py).
SMALL = 10_000_000
_THREADS = Switch(torch.get_num_threads, torch.set_num_threads)
# What a run leaves, beside its checkpoints.
_RESULTS = ("config.json", "adapter_config.json", "model.safetensors")

# What a resumed run may change, by the beginnings of names: where it is, where and how often it logs and saves, and how
# it loads data. All else changes the result; evaluation does, because its data loader draws from the same generator.
_FREE = ("output_dir", "logging", "report", "disable_tqdm", "save", "run_name", "hub", "push_to_hub")
_FREE += ("dataloader_num_workers", "dataloader_pin", "dataloader_persistent", "dataloader_prefetch")
# How the pairs of an update are spread over processes and steps; the update is of the same pairs.
_FREE += ("per_device_train_batch_size", "gradient_accumulation_steps")


def parse(config: Path, overrides: Sequence[str] = ()) -> tuple[TrainArguments, JointRewardConfig]:
    """The arguments of a run, from a YAML file and flags such as `["--learning_rate", "1e-6"]`.

    Raises:
        JRMError: there is an unknown key, a missing file or a wrong value.
    """
    content = read_config(config)
    eval_data = content.get("eval_data")
    if isinstance(eval_data, dict):  # the natural way to write it in YAML
        if wrong := [name for name, path in eval_data.items() if "=" in name or not isinstance(path, str)]:
            raise JRMError(
                f"the config {config} cannot be used: eval_data must give {wrong[0]} one path, as name: path."
            )
        content["eval_data"] = [f"{name}={path}" for name, path in eval_data.items()]
    return next(parse_config(config, content, overrides, (TrainArguments, JointRewardConfig)))


def train(
    arguments: TrainArguments, training: JointRewardConfig, callbacks: Sequence[TrainerCallback] = ()
) -> JointRewardTrainer | None:
    """One run, from its last whole checkpoint if there is one; leaves a folder that `RewardScorer` loads.

    With `strict=False`, the records that are left out are listed on stderr.

    Args:
        arguments: what is trained, and on what.
        training: how; its `output_dir` is the folder to write, or to go on in.
        callbacks: further ones of transformers.

    Returns:
        The trainer, or `None` if the run was stopped by SIGINT or SIGTERM, after saving a checkpoint.

    Raises:
        JRMError: bad data or arguments, or `output_dir` holds a run with other settings.
    """
    _check_packages(arguments, training)
    if arguments.lora_r is not None:
        check_adapters_fit(training, load_in_4bit=arguments.load_in_4bit)
        training.use_adapters()
    check_writable(training.output_dir)
    is_main = training.process_index == 0
    with locked(Path(training.output_dir, LOCK_FILE)) if is_main else nullcontext():
        try:
            with lost_process_in_words(training.output_dir):
                return _train(arguments, training, callbacks)
        except ImportError as error:  # of an optimizer or another part that transformers imports when it is used
            raise JRMError(f"a package that this run needs cannot be used: {reason(error)}") from error


def _train(
    arguments: TrainArguments, training: JointRewardConfig, callbacks: Sequence[TrainerCallback]
) -> JointRewardTrainer | None:
    output, is_main = Path(training.output_dir), training.process_index == 0
    if arguments.rubrics is not None:  # what is wrong with them is said before the data are read
        _rubrics(arguments.rubrics, arguments.dimensions or DIMENSIONS)
    checkpoint = last_whole_checkpoint(output)
    data = read_training_data(arguments, training)
    identities: dict[str, Any] = {}
    if is_main:
        settings, settings_file = settings_of(arguments, training), output / SETTINGS_FILE
        identities = data.identities()
        settings |= identities
        if arguments.corrections is not None:
            settings["content of corrections"] = content_digest(arguments.corrections).hex()
        if checkpoint is not None or any((output / name).exists() for name in _RESULTS):
            _refuse_more_steps(settings_file, settings)
            check_settings(settings_file, settings, results=True)
    data.look_for_leaks(arguments, training, identities)
    train_set = data.train_set(arguments, training)
    torch.manual_seed(training.seed)
    model, processor = _model(arguments, training)
    of_benchmarks = {name: BenchmarkExamples(b, processor.dimensions) for name, b in data.benchmarks.items()}
    eval_sets = data.eval_sets | of_benchmarks
    trainer = JointRewardTrainer(
        model,
        processor,
        training,
        train_dataset=train_set,
        eval_dataset=eval_sets or None,
        eval_figures={name: examples.figures for name, examples in of_benchmarks.items()},
        callbacks=[stop := StopOnSignal(), EvaluationTables(), *callbacks],
        peft_config=None
        if arguments.lora_r is None
        else lora_config(processor, r=arguments.lora_r, lora_alpha=arguments.lora_alpha),
    )
    logging.disable_progress_bar()  # of files that are saved; `Trainer` has switched them on
    progress = ProgressWithLosses()
    if not training.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(progress)
    else:
        trainer.remove_callback(PrinterCallback)
    with stop.listening(), closing(progress):  # an error stands on a line of its own
        trainer.accelerator.wait_for_everyone()  # from here on a signal to any process stops them all in order
        if is_main:
            write_json(settings_file, settings)
            write_trained_pairs(output, data.pairs() | read_trained_pairs(arguments.model))
        with _THREADS.held(threads_that_pay(trainer.model)):
            trainer.train(resume_from_checkpoint=checkpoint)
    if is_main:
        _draw_curves(trainer)
    if stop.signalled and trainer.state.global_step < trainer.state.max_steps:
        return None
    trainer.save_model(training.output_dir)
    trainer.save_state()
    return trainer


def threads_that_pay(model: nn.Module) -> int:
    """With how many of torch's threads a model is trained: with one if it is small and on a CPU, else with those set.

    What is in `OMP_NUM_THREADS` stays.
    """
    is_small = sum(parameter.numel() for parameter in model.parameters()) < SMALL
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    return 1 if is_small and on_cpu and "OMP_NUM_THREADS" not in os.environ else torch.get_num_threads()


def _check_packages(arguments: TrainArguments, training: JointRewardConfig) -> None:
    """Asked before any work: a run may need more than the extra `trl` brings."""
    if arguments.lora_r is not None:
        require("peft", "lora_r", install="jrm-plugin[trl]")
    if arguments.load_in_4bit:
        require("bitsandbytes", "load_in_4bit", install="jrm-plugin[qlora]")
    try:
        for callback in get_reporting_integration_callbacks(training.report_to):
            callback()  # which asks for its package
    except (RuntimeError, ValueError, ImportError) as error:
        raise JRMError(f"report_to: {', '.join(training.report_to)} cannot be used: {reason(error)}") from error


def _model(arguments: TrainArguments, training: JointRewardConfig) -> tuple[JRMForRewardModeling, JRMProcessor]:
    layout = _given(arguments, ("dimensions", "order", "sequences", "rubrics"))
    if "rubrics" in layout:
        layout["rubrics"] = _rubrics(layout["rubrics"], layout.get("dimensions", DIMENSIONS))
    head = _given(arguments, CHOSEN_FIELDS)
    weights = {"quantization_config": in_4bit(training)} if arguments.load_in_4bit else {}
    model, processor = start_from(arguments.model, max_pixels=training.max_pixels, layout=layout, head=head, **weights)
    if arguments.load_in_4bit:  # the adapters are saved, for the weights as they were published
        for config in (model.config, model.config.backbone_config):
            config.__dict__.pop("quantization_config", None)
    return model, processor


def in_4bit(training: JointRewardConfig) -> BitsAndBytesConfig:
    """The form of QLoRA's paper (Dettmers et al. 2023): NF4, whose scales are quantized once more."""
    dtype = torch.bfloat16 if training.bf16 else torch.float32
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _given(arguments: TrainArguments, names: Sequence[str]) -> dict:
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def _rubrics(kind: str, dimensions: Sequence[str]) -> dict:
    if kind in ("full", "short"):
        return default_rubrics(kind, dimensions)
    try:
        return read_json(kind)
    except JRMError as error:
        raise JRMError(f"rubrics must be full, short or a JSON file: {error}") from error


def _draw_curves(trainer: JointRewardTrainer) -> None:
    """Leaves what was logged as a picture, where it is a curve and matplotlib is there."""
    log = trainer.state.log_history
    if not charts.has_curve(log) or find_spec("matplotlib") is None:
        return
    with replacing(Path(trainer.args.output_dir, CURVES_FILE)) as staging:
        staging.write_bytes(charts.png(charts.training_curves(charts.LIGHT, log)))


# --- stopping and going on --------------------------------------------------------------------------------------------


def settings_of(arguments: TrainArguments, training: JointRewardConfig) -> dict[str, Any]:
    """All that changes the result of a run, as plain JSON."""
    settings = asdict(arguments) | training.to_dict() | {"sharding": sharding_of(training)}
    settings["pairs an update"] = (
        training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size
    )
    if settings["sharding"].startswith("DeepSpeed"):  # which keeps the optimizer's state in as many parts
        settings["number of processes"] = training.world_size
    settings = {name: value for name, value in settings.items() if not name.startswith(_FREE)}
    return json.loads(json.dumps(settings, default=str))


def _refuse_more_steps(settings_file: Path, settings: Mapping[str, Any]) -> None:
    """A run that ended cannot be made longer: its learning rate has fallen to the end of what was planned."""
    output = settings_file.parent
    earlier = read_json(settings_file) if settings_file.exists() else None
    if not isinstance(earlier, dict) or not any((output / name).exists() for name in _RESULTS):
        return
    names = {name for name in settings.keys() | earlier.keys() if settings.get(name) != earlier.get(name)}
    if names and names <= {"max_steps", "num_train_epochs"}:
        raise JRMError(
            f"{output} holds a run with another {', '.join(sorted(names))}, which is finished: its learning rate was "
            f"planned for that length; to train on, give model: {output} and another output_dir, without layout and "
            "reward head, or train from the start in another output_dir."
        )
