"""A whole training run: from data files and a backbone to a folder that scores; stopped, the same run goes on.

What `jrm train` does. Its YAML holds the fields of [`TrainArguments`] and of `JointRewardConfig` side by side.
"""

import hashlib
import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from tqdm.auto import tqdm
from transformers import BitsAndBytesConfig, PrinterCallback, ProgressCallback, TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks
from transformers.utils import logging

from jrm_plugin.configs import read_config
from jrm_plugin.data.corrections import CorrectedExamples, PairNames, read_corrections
from jrm_plugin.data.leaks import find_leaks
from jrm_plugin.data.preferences import read_preferences
from jrm_plugin.data.samples import SampleDigests
from jrm_plugin.errors import JRMError, reason
from jrm_plugin.evaluation import charts
from jrm_plugin.evaluation.benchmarks.loading import known_benchmark, load_benchmark
from jrm_plugin.extras import require
from jrm_plugin.files import check_writable, content_digest, read_json, replacing, write_json
from jrm_plugin.integrations.trl.benchmarks import FIGURES, BenchmarkExamples
from jrm_plugin.integrations.trl.checkpoints import last_whole_checkpoint
from jrm_plugin.integrations.trl.config_files import parse_config
from jrm_plugin.integrations.trl.examples import origin
from jrm_plugin.integrations.trl.joint_reward_config import JointRewardConfig
from jrm_plugin.integrations.trl.joint_reward_trainer import JointRewardTrainer
from jrm_plugin.integrations.trl.model_card import SETTINGS_FILE
from jrm_plugin.integrations.trl.processes import lost_process_in_words
from jrm_plugin.integrations.trl.sharding import check_adapters_fit, sharding_of
from jrm_plugin.integrations.trl.train_sets import (
    TrainSet,
    identity_of_stream,
    mixed,
    stream_of,
    train_sets,
    without,
)
from jrm_plugin.model.configuration import CHOSEN_FIELDS
from jrm_plugin.model.loading import start_from
from jrm_plugin.model.lora import lora_config
from jrm_plugin.model.modeling import JRMForRewardModeling
from jrm_plugin.model.processing import JRMProcessor
from jrm_plugin.model.rubrics import default_rubrics
from jrm_plugin.model.trained_on import read_trained_pairs, write_trained_pairs
from jrm_plugin.records.images import is_data_url
from jrm_plugin.records.preferences import (
    CritiqueExample,
    Example,
    example_to_record,
    in_dimensions,
    samples_of_example,
)
from jrm_plugin.records.samples import DIMENSIONS, OVERALL
from jrm_plugin.runs import check_settings, locked
from jrm_plugin.switches import Switch

LOCK_FILE = ".jrm_train.lock"
CURVES_FILE = "curves.png"
LEAKS_FILE = "leaks.json"
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


@dataclass
class TrainArguments:
    """What is trained, and on what.

    Parameters:
        model: a pretrained backbone (hub name or folder), or a JRM checkpoint to go on from.
        train_data: preferences, or texts to learn (with `alpha: 1`), in anything that
            [`jrm_plugin.data.preferences.read_preferences`] reads; of several sets a mapping of paths to weights, or a
            list of mappings with `path`, `weight` and, of a set's own, `columns` and `images_root`.
        streaming: read `train_data` row by row while training, where it is larger than memory.
        shuffle_buffer: of how many rows of a stream the next one is drawn.
        eval_data: the same by name, as a mapping or `name=path` items. Instead of a path it may be a benchmark of
            `jrm eval`, or `benchmark:path` with the place of its data; the numbers of its table are logged too.
        leaks: what to do about images that training and evaluation share: `report` them, `leave_out` the training
            examples that have one, or `ignore` them and do not look.
        corrections: pairs of `train_data` that are left out, turned around or called a tie: a file that `jrm audit`
            proposed.
        columns: what the columns of these data mean, where they have other names than the usual ones.
        images_root: folder that image paths are relative to; by default that of each file.
        strict: whether a bad record stops the run before it starts; otherwise it is left out and listed.
        decode_images: whether every image is decoded before the run; otherwise the header and the end of its file are
            read, which finds all but damage in its middle. Without `strict` every image is decoded in any case.
        dimensions: what is scored; with it, labels and critiques of the data in other dimensions are left out.
        order, sequences: the layout (see docs/architecture.md); these and `dimensions` by default as `JRMProcessor` has
            them.
        rubrics: `full` (the default), `short`, or a JSON file of texts by task and dimension.
        reward_head_widths, reward_head_dropout, reward_head_activation, log_sigma_bound, rope_positions, overall_rule:
            see `JRMConfig`. These and the layout belong to a JRM checkpoint and cannot be given when one is gone on
            from; its dimensions may be repeated.
        lora_r, lora_alpha: train LoRA adapters of this rank and scale instead of all weights.
        load_in_4bit: hold the weights that the adapters adapt in 4 bits, by bitsandbytes (QLoRA); goes with `lora_r`.
    """

    model: str = field(metadata={"help": "Backbone or JRM checkpoint to start from."})
    # `str` for the parser of flags; in a config it may be a mapping or a list.
    train_data: str = field(
        metadata={"help": "Preferences or texts: a file, a datasets folder, a hub name, or several."}
    )
    streaming: bool = field(default=False, metadata={"help": "Read train_data row by row while training."})
    shuffle_buffer: int = field(default=256, metadata={"help": "Rows of a stream that are shuffled."})
    eval_data: list[str] = field(default_factory=list, metadata={"help": "Evaluation sets, as name=path items."})
    leaks: str = field(default="report", metadata={"help": "Images shared with eval_data: report, leave_out, ignore."})
    corrections: str | None = field(default=None, metadata={"help": "Corrections of train_data, as jrm audit writes."})
    columns: dict | None = field(default=None, metadata={"help": "What the columns mean, as {field: column}."})
    images_root: str | None = field(default=None, metadata={"help": "Folder that image paths are relative to."})
    strict: bool = field(default=True, metadata={"help": "Stop at a bad record."})
    decode_images: bool = field(default=False, metadata={"help": "Decode every image before the run."})
    dimensions: list[str] | None = field(default=None, metadata={"help": "What is scored."})
    order: str | None = field(default=None, metadata={"help": "images_first or rubric_first."})
    sequences: str | None = field(default=None, metadata={"help": "joint or per_dimension."})
    rubrics: str | None = field(default=None, metadata={"help": "full, short, or a JSON file."})
    reward_head_widths: list[int] | None = field(default=None, metadata={"help": "Hidden layers of the head."})
    reward_head_dropout: float | None = field(default=None, metadata={"help": "Dropout of the head."})
    reward_head_activation: str | None = field(default=None, metadata={"help": "Activation of the head."})
    log_sigma_bound: list[float] | None = field(default=None, metadata={"help": "Centre and half range of log sigma."})
    rope_positions: str | None = field(default=None, metadata={"help": "mrope or 1d."})
    overall_rule: str | None = field(default=None, metadata={"help": "mean, sum or min of the dimensions' scores."})
    lora_r: int | None = field(default=None, metadata={"help": "Rank of LoRA adapters."})
    lora_alpha: int = field(default=64, metadata={"help": "Scale of LoRA adapters."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Hold what the adapters adapt in 4 bits (QLoRA)."})

    def __post_init__(self):
        for name in ("lora_r", "lora_alpha", "shuffle_buffer"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}.")
        if self.leaks not in ("report", "leave_out", "ignore"):
            raise ValueError(f"leaks must be report, leave_out or ignore, got {self.leaks!r}.")
        if self.streaming and self.leaks == "leave_out":
            raise ValueError("leaks: leave_out needs all examples before the run; give it without streaming.")
        if self.corrections is not None and (self.streaming or not isinstance(self.train_data, str)):
            raise ValueError("corrections are of one set in memory; give one path as train_data, without streaming.")
        if self.load_in_4bit and self.lora_r is None:
            raise ValueError("load_in_4bit needs lora_r: weights in 4 bits are not trained, adapters beside them are.")


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
    checkpoint = last_whole_checkpoint(output)
    sets = train_sets(arguments.train_data, arguments.columns, arguments.images_root)
    train_examples: list[Sequence[Example]] = []
    if not arguments.streaming:
        train_examples = [_read(arguments, data, is_main, corrections=arguments.corrections) for data in sets]
    eval_sets, benchmarks = {}, {}
    for item in arguments.eval_data:
        name, separator, path = item.partition("=")
        if not separator or name in eval_sets:
            raise JRMError(f"eval_data must name each set once, as name=path; got {item!r}.")
        if (named := known_benchmark(path)) and not os.path.exists(path):
            with training.main_process_first(desc="reading a benchmark"):
                benchmarks[name] = load_benchmark(*named, folder=output / "benchmarks", progress=is_main)
            eval_sets[name] = benchmarks[name].pairs
        else:
            eval_sets[name] = _read(arguments, TrainSet(path, 1.0, arguments.columns, arguments.images_root), is_main)
    if (training.eval_strategy != "no") != bool(eval_sets):
        raise JRMError("eval_data and eval_strategy (steps or epoch) belong together; give both or neither.")
    identities: dict[str, Any] = identity_of_stream(sets) if arguments.streaming else {}
    if is_main:
        settings, settings_file = settings_of(arguments, training), output / SETTINGS_FILE
        digests = SampleDigests()
        for train_set, examples in zip(sets, train_examples, strict=False):
            identities |= _identity(
                "train_data" if len(sets) == 1 else f"train_data {train_set.path}", examples, digests
            )
        for name, examples in eval_sets.items():
            identities |= _identity(f"eval_data {name}", examples, digests)
        settings |= identities
        if arguments.corrections is not None:
            settings["content of corrections"] = content_digest(arguments.corrections).hex()
        if checkpoint is not None or any((output / name).exists() for name in _RESULTS):
            _refuse_more_steps(settings_file, settings)
            check_settings(settings_file, settings, results=True)
    if train_examples and eval_sets and arguments.leaks != "ignore":
        with training.main_process_first(desc="comparing images"):
            train_examples = _look_for_leaks(arguments, training, sets, train_examples, eval_sets, identities)
    if arguments.streaming:
        if eval_sets and arguments.leaks == "report" and is_main:
            print("jrm: images that evaluation has too are not looked for in a stream.", file=sys.stderr)
        train_set = stream_of(sets, seed=training.seed, buffer=arguments.shuffle_buffer)
    elif len(sets) == 1:
        (train_set,) = train_examples
    else:
        train_set, drawn = mixed(train_examples, sets, training.seed)
        if is_main:
            print(f"jrm: {drawn}", file=sys.stderr)
    torch.manual_seed(training.seed)
    model, processor = _model(arguments, training)
    of_benchmarks = {name: BenchmarkExamples(b, processor.dimensions) for name, b in benchmarks.items()}
    eval_sets |= of_benchmarks
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
            names = PairNames(digests)
            examples = (example for of_set in train_examples for example in of_set)
            pairs = {
                names.of_samples(pair)
                for example in examples
                if not isinstance(example, CritiqueExample)
                for pair in example.pairs()
            }
            write_trained_pairs(output, pairs | read_trained_pairs(arguments.model))
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


def _look_for_leaks(
    arguments: TrainArguments,
    training: JointRewardConfig,
    sets: Sequence[TrainSet],
    train_examples: list[Sequence[Example]],
    eval_sets: Mapping[str, Sequence[Example]],
    identities: Mapping[str, Any],
) -> list[Sequence[Example]]:
    """The train sets, without what they share with the evaluation sets if that is to be left out; says what it is.

    The first process looks and leaves a file, which the others read, and which is right as long as the data stay.
    """
    file, is_main = Path(training.output_dir, LEAKS_FILE), training.process_index == 0
    report = read_json(file) if is_main and file.exists() else None
    if is_main and not (isinstance(report, dict) and report.get("of") == identities):
        found = [
            [leak.to_dict() for leak in find_leaks(examples, eval_sets, progress=not training.disable_tqdm)]
            for examples in train_examples
        ]
        write_json(file, {"of": identities, "leaks": dict(zip([s.path for s in sets], found, strict=True))})
    report, kept = read_json(file), []
    for train_set, examples in zip(sets, train_examples, strict=True):
        leaks = report["leaks"][train_set.path]
        positions = {leak["position"] for leak in leaks}
        if leaks and is_main:
            first, left_out = leaks[0], arguments.leaks == "leave_out"
            same = "is" if first["same"] == "pixels" else "is nearly"
            print(
                f"jrm: {len(positions)} of {len(examples)} examples of {train_set.path} share an image with an "
                f"evaluation set and are {'left out' if left_out else 'trained on'}: {first['image']} of "
                f"{first['example']} {same} {first['eval_image']} of {first['eval_set']}, {first['eval_example']}; "
                f"all of them are in {file}.",
                file=sys.stderr,
            )
        if arguments.leaks == "leave_out" and positions:
            if len(positions) == len(examples):
                raise JRMError(
                    f"every example of {train_set.path} shares an image with an evaluation set; give other data, or "
                    "leaks: report."
                )
            examples = without(examples, positions)
        kept.append(examples)
    return kept


def _read(
    arguments: TrainArguments, data: TrainSet, is_main: bool, *, corrections: str | None = None
) -> Sequence[Example]:
    path = data.path
    records = read_preferences(
        path,
        columns=data.columns,
        images_root=data.images_root,
        groups=True,
        strict=arguments.strict,
        decode=arguments.decode_images,
    )
    if records.understood and is_main:
        print(f"jrm: {records.understood}", file=sys.stderr)
    for bad in records.bad if is_main else ():
        print(f"jrm: left out: {bad.file}, row {bad.row}: {bad.reason}", file=sys.stderr)
    if records.bad and is_main:
        print(
            f"jrm: {len(records.bad)} records of {path} were left out, {len(records.examples)} kept.", file=sys.stderr
        )
    if not records.examples:
        raise JRMError(f"{path} holds no usable record.")
    examples = records.examples
    if corrections is not None:  # of pairs with all their labels
        examples = _corrected(examples, corrections, path, is_main)
    if arguments.dimensions is None:
        return examples
    return _in_dimensions(examples, arguments.dimensions, path, is_main)


class OfDimensions(Sequence):
    """Examples of which pairs say what they say in some dimensions alone."""

    def __init__(self, examples: Sequence[Example], dimensions: Sequence[str]):
        self._examples, self._dimensions = examples, dimensions

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            return [self[k] for k in range(*position.indices(len(self)))]
        example = self._examples[position]
        return example if isinstance(example, CritiqueExample) else in_dimensions(example, self._dimensions)


def _in_dimensions(
    examples: Sequence[Example], dimensions: Sequence[str], path: str, is_main: bool
) -> Sequence[Example]:
    """The examples in the dimensions that are trained; says what of them is left out."""
    others: Counter[str] = Counter()
    for number, example in enumerate(examples):
        if isinstance(example, CritiqueExample):
            continue
        others.update({*example.ranks, *chain(*example.critiques)} - {*dimensions, OVERALL})
        try:
            in_dimensions(example, dimensions)
        except JRMError as error:
            raise JRMError(f"{origin(example) or f'{path}, example {number}'}: {error}") from error
    if others and is_main:
        counts = ", ".join(f"{name} ({count} examples)" for name, count in others.items())
        print(f"jrm: {path}: left out, because dimensions does not name it: {counts}.", file=sys.stderr)
    return OfDimensions(examples, dimensions) if others else examples


def _corrected(examples: Sequence[Example], corrections: str, path: str, is_main: bool) -> Sequence[Example]:
    corrected = CorrectedExamples(examples, read_corrections(corrections), path=corrections)
    if is_main:
        counts = ", ".join(f"{action} {count}" for action, count in sorted(corrected.counts.items())) or "none"
        print(f"jrm: corrections of {corrections}: {counts}.", file=sys.stderr)
    if not corrected:
        raise JRMError(f"{corrections} leaves no pair of {path} to train on.")
    return corrected


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


def _identity(name: str, examples: Sequence[Example], digests: SampleDigests) -> dict[str, str]:
    """What a run learned from, as two settings: digests of the examples, and of the content of their images."""
    records, paths = hashlib.sha256(), set()
    for example in examples:
        records.update(json.dumps(example_to_record(example)).encode())
        images = [
            image
            for sample in samples_of_example(example)
            for image in (*sample.prompt_images, *sample.response_images)
        ]
        # A data: URL and what is in memory are part of the record.
        paths.update(image for image in images if isinstance(image, str) and not is_data_url(image))
    contents = hashlib.sha256()
    for path in sorted(paths):
        contents.update(os.fsencode(path) + digests.of_image(path))
    return {f"records of {name}": records.hexdigest(), f"images of {name}": contents.hexdigest()}


class StopOnSignal(TrainerCallback):
    """Ends training after the current step with a checkpoint when SIGINT or SIGTERM arrives; a second one kills."""

    def __init__(self):
        self.signalled = False

    @contextmanager
    def listening(self):
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def stop(number, frame):
            self.signalled = True
            signal.signal(number, before[number])

        try:
            for number in before:
                signal.signal(number, stop)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_step_end(self, args, state, control, **kwargs):
        if args.world_size > 1:  # processes hear of it at different steps, and must stop at the same one
            signalled = torch.tensor(float(self.signalled), device=args.device)
            torch.distributed.all_reduce(signalled, torch.distributed.ReduceOp.MAX)
            self.signalled = bool(signalled)
        if self.signalled:
            control.should_save = control.should_training_stop = True


_ALWAYS = ("accuracy", "sigma", "brier", "calibration_error")
_SHOWN = (*_ALWAYS, "k_way", "best_of_k")  # the last two where there are groups


class EvaluationTables(TrainerCallback):
    """Prints each evaluation as it is computed: a table for each set."""

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        rows: dict[str, dict[str, float]] = {}
        losses, figures, sets = {}, [], set()
        for name, value in (metrics or {}).items():
            if match := re.fullmatch(r"eval_(?:(.+)_)?(rank_loss|critique_loss)", name):
                losses[match[2].replace("_", " ")] = value
                sets.add(match[1] or "evaluation")
            elif match := re.fullmatch(rf"eval_(?:.+_)?({'|'.join(_SHOWN)})/(.+)", name):
                rows.setdefault(match[2], {})[match[1]] = value
            elif match := re.fullmatch(rf"eval_(?:.+_)?{FIGURES}(.+)", name):
                figures.append(f"{match[1]} {value:.3f}")
        if not rows or not state.is_world_process_zero:
            return
        in_words = ", ".join(f"{name} {value:.3f}" for name, value in sorted(losses.items(), reverse=True))
        title = f"Step {state.global_step}, {', '.join(sorted(sets))}: {in_words}"
        columns = [name for name in _SHOWN if name in _ALWAYS or any(name in values for values in rows.values())]
        table = Table("", *(name.replace("_", " ") for name in columns), title=title, title_justify="left")
        for dimension, values in rows.items():
            cells = (f"{values[name]:.3f}" if name in values else "" for name in columns)
            table.add_row(dimension.replace("_", " "), *cells)
        with tqdm.external_write_mode(file=sys.stdout):
            console = Console(markup=False, emoji=False, highlight=False)
            console.print(table)
            if figures:
                console.print(f"As its table has it: {'; '.join(figures)}.")


def _draw_curves(trainer: JointRewardTrainer) -> None:
    """Leaves what was logged as a picture, where it is a curve and matplotlib is there."""
    log = trainer.state.log_history
    if not charts.has_curve(log) or find_spec("matplotlib") is None:
        return
    with replacing(Path(trainer.args.output_dir, CURVES_FILE)) as staging:
        staging.write_bytes(charts.png(charts.training_curves(charts.LIGHT, log)))


class ProgressWithLosses(TrainerCallback):
    """One progress bar for the run, with both losses beside it."""

    def __init__(self):
        self.bar = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="Training", unit="step")

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        shown = {name: f"{logs[name]:.3f}" for name in ("rank_loss", "critique_loss") if name in (logs or {})}
        if self.bar is not None and shown:
            self.bar.set_postfix(shown)

    def on_train_end(self, args, state, control, **kwargs):
        self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
