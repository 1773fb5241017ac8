"""The model card of a trainer's model, in the words of `jrm_plugin.evaluation.model_card`."""

import re
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

from trl import RewardTrainer

from jrm_plugin.evaluation.model_card import Accuracy, ModelCard
from jrm_plugin.files import read_json, write_text
from jrm_plugin.model.processing import JRMProcessor

SETTINGS_FILE = "jrm_train.json"  # of `jrm train`, which knows the names of the files
_ACCURACY = re.compile(r"eval_(?:(?P<data>.+)_)?accuracy/(?P<dimension>.+)")


def write_model_card(trainer: RewardTrainer, processor: JRMProcessor, folder: str | Path) -> None:
    """Writes `README.md` into a folder of the trainer's model."""
    write_text(Path(folder, "README.md"), str(_card(trainer, processor)))


def _card(trainer: RewardTrainer, processor: JRMProcessor) -> ModelCard:
    arguments = trainer.args
    model = trainer.accelerator.unwrap_model(trainer.model)
    start = model.name_or_path
    is_folder = Path(start).is_dir()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    adapters = getattr(model, "peft_config", {})
    batch = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    return ModelCard(
        name=trainer.hub_model_id or arguments.output_dir,
        base_model=start if start and not is_folder else None,
        tags=sorted(trainer._tag_names),
        model={
            "started from": f"the folder {Path(start).name}" if is_folder else start or "a model in memory",
            "backbone": model.config.backbone_config.model_type,
            "parameters": f"{parameters:,}, of which {trained:,} were trained",
            "dimensions": ", ".join(processor.dimensions),
            "layout": f"{processor.order}, {processor.sequences}",
            "hidden layers of the reward head": ", ".join(map(str, model.config.reward_head_widths)),
            **{
                f"adapters ({name})": f"LoRA, rank {lora.r}, alpha {lora.lora_alpha}" for name, lora in adapters.items()
            },
        },
        data=_data(trainer),
        recipe={
            "objective": f"(1 − α) · ranking loss + α · critique loss, α = {arguments.alpha:g}; {arguments.objective}",
            "steps": f"{trainer.state.global_step} of {trainer.state.max_steps}, {batch} examples each",
            "learning rate": f"{arguments.learning_rate:g}, {arguments.lr_scheduler_type.value}",
            "Muon": "no" if arguments.muon_learning_rate is None else f"at {arguments.muon_learning_rate:g}",
            "weight decay": f"{arguments.weight_decay:g}",
            "precision": next((name for name in ("bf16", "fp16") if getattr(arguments, name)), "float32"),
            "longest sequence": arguments.max_length,
            "seed": arguments.seed,
        },
        versions={"python": python_version()}
        | {name: version(name) for name in ("jrm-plugin", "torch", "transformers", "trl", "datasets")},
        **_metrics(trainer),
    )


def _data(trainer: RewardTrainer) -> dict[str, Any]:
    """The names of the sets and how much is in each."""
    settings_file = Path(trainer.args.output_dir, SETTINGS_FILE)
    settings = read_json(settings_file) if settings_file.exists() else {}
    sets = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {"evaluation": trainer.eval_dataset}
    # By their names alone: where they lie is the concern of the machine that trained.
    files = dict(item.split("=", 1) for item in settings.get("eval_data") or [])
    train_data = settings.get("train_data")
    if isinstance(train_data, list):
        train_data = " and ".join(Path(item["path"]).name for item in train_data)
    elif isinstance(train_data, dict):
        train_data = " and ".join(Path(path).name for path in train_data)
    rows = {"training": (train_data, trainer.train_dataset)}
    rows |= {name: (files.get(name), examples) for name, examples in sets.items() if examples is not None}
    return {
        name: f"{_count(examples)}{f' of {Path(file).name}' if file else ''}" for name, (file, examples) in rows.items()
    }


def _count(examples: Any) -> str:
    return f"{len(examples):,} examples" if hasattr(examples, "__len__") else "a stream"


def _metrics(trainer: RewardTrainer) -> dict[str, Any]:
    """The accuracies of the last evaluation, or of the best one where its weights were loaded at the end."""
    state = trainer.state
    rows = [row for row in state.log_history if any(_ACCURACY.fullmatch(name) for name in row)]
    step = max((row["step"] for row in rows), default=None)
    if trainer.args.load_best_model_at_end and state.best_global_step and state.global_step >= state.max_steps:
        step = state.best_global_step
    accuracies = []
    for row in (row for row in rows if row["step"] == step):
        for name, value in row.items():
            if match := _ACCURACY.fullmatch(name):
                pairs = row[name.replace("accuracy/", "pairs/")]
                accuracies.append(
                    Accuracy(match["data"] or "evaluation", match["dimension"], round(value * pairs), pairs)
                )
    return {"accuracies": accuracies, "measured_at": step}
