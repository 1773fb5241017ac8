"""Joint reward training on TRL's `RewardTrainer`: preferences and critiques at once (paper section 3.2).

Shape suffixes: N groups (a pair is one of two), G candidates of the largest, S samples, B sequences, L length, D
dimensions, C = D + 1 (the dimensions and the overall score).
"""

import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from safetensors import SafetensorError
from torch import nn
from tqdm.auto import tqdm
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from trl import RewardTrainer

from jrm_plugin.data.columns import Columns
from jrm_plugin.errors import JRMError, reason
from jrm_plugin.integrations.trl.benchmarks import Figures
from jrm_plugin.integrations.trl.checkpoints import (
    damage_of,
    last_checkpoint_in_words,
    last_whole_checkpoint,
    write_digests,
)
from jrm_plugin.integrations.trl.examples import (
    COLUMN,
    PASSED,
    Example,
    ExamplesLike,
    ExampleStream,
    checked_examples,
    has_critique,
    origin,
    to_example,
)
from jrm_plugin.integrations.trl.joint_reward_config import JointRewardConfig
from jrm_plugin.integrations.trl.model_card import write_model_card
from jrm_plugin.integrations.trl.ranking_metrics import ranking_metrics
from jrm_plugin.integrations.trl.sharding import check_adapters_fit, check_sharding
from jrm_plugin.kernels.plackett_luce_loss import ORDERS_MAX, count_orders
from jrm_plugin.model.backbone import BackboneParts, TokenCosts
from jrm_plugin.model.calibration_file import drop_calibration
from jrm_plugin.model.loading import start_from
from jrm_plugin.model.lora import check_adapters_train_all, complete_lora_config
from jrm_plugin.model.modeling import JRMForRewardModeling
from jrm_plugin.model.processing import JRMProcessor
from jrm_plugin.model.sharding import own_part
from jrm_plugin.model.trained_on import TrainedOn
from jrm_plugin.records.preferences import CritiqueExample
from jrm_plugin.records.samples import OVERALL
from jrm_plugin.training.groups import group_batch, in_groups
from jrm_plugin.training.losses import is_labelled, joint_loss, ranking_loss, ranking_loss_per_label, with_overall
from jrm_plugin.training.optimization import MuonWithAdamW, muon_groups

STAGING_DIR = ".saving"

logger = logging.getLogger(__name__)


@dataclass
class JointRewardCollator:
    """Makes a batch of rows: the samples of pairs and ranked groups with their critiques, and what orders them.

    See [`group_batch`]; its `sample_NG` and `rank_NGC` are absent in a batch of [`CritiqueExample`]s. Without
    `with_critiques`, the critiques of pairs and groups are left out. With `costs`, the model computes once what the
    sequences of a batch share ([`jrm_plugin.model.packing`]).

    An example that cannot be used, such as one whose image is not there any more, gives `{"error": sentence}` in place
    of its batch: raised in a data loader's worker, an error would reach the trainer as the text of a traceback.
    """

    processor: JRMProcessor
    with_critiques: bool = True
    costs: TokenCosts | None = None

    def __call__(self, rows: list[Example | dict[str, str]]) -> dict[str, Any]:
        if rows[0] == PASSED:
            return PASSED
        examples: list[Example] = []
        try:
            examples += map(to_example, rows)
            return self._batch(examples)
        except JRMError as error:
            return {"error": self._name_example(examples) or str(error)}

    def _name_example(self, examples: list[Example]) -> str | None:
        """The error of the first example that is the cause, with the file and row it was read from."""
        for example in examples:
            try:
                self._batch([example])
            except JRMError as error:
                return f"{origin(example)}: {error}" if origin(example) else str(error)
        return None

    def _batch(self, examples: list[Example]) -> dict[str, torch.Tensor]:
        if isinstance(examples[0], CritiqueExample):
            return self.processor([e.sample for e in examples], [e.text for e in examples], costs=self.costs)
        return group_batch(self.processor, examples, with_critiques=self.with_critiques, costs=self.costs)


class JointRewardTrainer(RewardTrainer):
    """Trains a [`JRMForRewardModeling`] on preference pairs, critiques, or both.

    Args:
        model: the reward model, a peft model around one, or the name of either, of a backbone, or of `jrm-tiny`.
        processing_class: its [`JRMProcessor`], saved with every checkpoint; by default that of the model's folder or
            name. It stays as it is; with `args.max_pixels` a copy is used.
        args: hyperparameters; by default the paper's.
        train_dataset: preferences, or texts to learn (language warm start, with `alpha=1`): a sequence of
            [`PreferencePair`]s and [`RankedGroup`]s, or of `CritiqueExample`s, a list of dicts, a `datasets.Dataset`
            (its images stay as they are until a batch is made of them), a stream of one, a path or a hub name.
        eval_dataset: likewise, or several sets by name.
        columns: what the columns of the data sets mean where they have other names than the usual ones; see
            [`jrm_plugin.data.preferences.read_preferences`].
        eval_figures: by the name of an evaluation set, what else is computed of it at every evaluation: a function of
            mu(chosen) - mu(rejected) of its pairs, in their order, by dimension and overall; it gives numbers by name.
        kwargs: further arguments of TRL's `RewardTrainer` (`callbacks`, ...). `peft_config` may be any `LoraConfig`:
            where it leaves out the reward head or the added tokens, they are trained and saved all the same.

    Logs, per dimension and overall, the accuracy on pairs that are no tie, mean sigma, the Brier score and expected
    calibration error of the predicted preference, both component losses, and the same for every evaluation set. A group
    counts with every two of its candidates; of groups of three and more, K-way accuracy and best-of-K accuracy besides
    (see [`group_accuracies`]).

    Raises:
        JRMError: a sequence is longer than `max_length`, or the examples do not fit `alpha`. From `train`: an example
            cannot be used any more, training diverged, or a checkpoint cannot be saved or is damaged.
    """

    _tag_names = ["trl", "joint-reward-trainer", "jrm"]
    _name = "Joint Reward"

    def __init__(
        self,
        model: JRMForRewardModeling | str | Path,
        processing_class: JRMProcessor | None = None,
        args: JointRewardConfig | None = None,
        *,
        train_dataset: ExamplesLike,
        eval_dataset: ExamplesLike | dict[str, ExamplesLike] | None = None,
        columns: Columns | None = None,
        eval_figures: Mapping[str, Figures] | None = None,
        **kwargs: Any,
    ):
        args = args or JointRewardConfig("jrm-joint-reward")
        if isinstance(model, (str, Path)):
            torch.manual_seed(args.seed)  # of a new head
            model, processor = start_from(model, max_pixels=args.max_pixels)
            processor = processing_class or processor
        else:
            processor = processing_class or JRMProcessor.from_pretrained(model.name_or_path)
        if not isinstance(processor, JRMProcessor):
            raise JRMError(f"processing_class must be a JRMProcessor, not a {type(processor).__name__}.")
        if args.max_pixels is not None:
            processor = processor.with_max_pixels(args.max_pixels)
        self.processor = processor
        if kwargs.get("peft_config") is not None:
            kwargs["peft_config"] = complete_lora_config(kwargs["peft_config"], processor)
        check_adapters_train_all(model, processor)
        if kwargs.get("peft_config") is not None or hasattr(model, "peft_config"):
            check_adapters_fit(args)
            args.use_adapters()
        positions = model.config.get_text_config().max_position_embeddings
        self._longest = min(positions, args.max_length or positions)
        self._longest_is = "max_length" if self._longest == args.max_length else "the model's max_position_embeddings"
        # Sums over what was seen since the last log, by mode; see `_record`.
        self._outcomes: dict[str, defaultdict[str, list]] = {m: defaultdict(list) for m in ("train", "eval")}
        self._staging = False
        self._trained_on = TrainedOn()
        self._overall_rule = model.config.overall_rule
        # `self.args` is not there yet when the examples are checked
        self._alpha, self._listwise = args.alpha, args.ranking_loss == "plackett_luce"
        self._columns = columns
        self._eval_figures = eval_figures or {}
        # TRL takes its own two types alone; `_prepare_dataset` makes examples of what was given.
        self._given = train_dataset
        self._stands_for_it = Dataset.from_dict({})
        if isinstance(train_dataset, IterableDataset) and args.max_steps <= 0:
            raise JRMError("a stream has no end that is known before; say how long to train with max_steps.")
        if isinstance(train_dataset, IterableDataset) and args.dataloader_num_workers > 1:
            raise JRMError("a stream is read by one worker in each process; give dataloader_num_workers: 1.")
        args.accelerator_config.dispatch_batches = False  # of a stream, each process makes its own batches
        super().__init__(
            model=model,
            args=args,
            processing_class=processor.tokenizer,
            data_collator=JointRewardCollator(
                processor, with_critiques=args.alpha > 0, costs=_costs(model, args) if args.share_prefixes else None
            ),
            train_dataset=train_dataset if isinstance(train_dataset, IterableDataset) else self._stands_for_it,
            eval_dataset=eval_dataset,
            **kwargs,
        )
        check_sharding(self)
        if self._alpha > 0 and isinstance(train_dataset, IterableDataset):  # nobody knows yet what it holds
            self._trained_on.critiques = True
        self._trained_on.record(model.config)

    # -- data

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name: str):
        """Checks every example before training starts: its kind, its images' headers, and its length in tokens.

        The examples of a stream are checked as they come.
        """
        is_train = dataset is self._stands_for_it
        dataset = self._given if is_train else dataset
        what = f"{dataset_name} set"
        if isinstance(dataset, IterableDataset):
            endless = dataset_name == "train"
            return ExampleStream(dataset, self._columns, what, self._check_in_stream, endless=endless)
        # On a terminal only: what is said next, about an example, would stand behind the bar.
        bar = tqdm(desc=f"Checking {dataset_name}", unit="example", disable=args.disable_tqdm or None, leave=False)
        too_long, kinds, seen, critiques = [], set(), 0, 0

        def check(example: Example) -> None:
            nonlocal seen, critiques
            number, seen = seen, seen + 1
            bar.update()
            kinds.add(isinstance(example, CritiqueExample))
            self._check_kind(example, f"example {number} of the {what}", kinds)
            try:
                length = self._length(example)
            except JRMError as error:
                raise JRMError(f"{origin(example) or f'example {number} of the {what}'}: {error}") from error
            if dataset_name == "train" and not isinstance(example, CritiqueExample):
                self._trained_on.add(*example.candidates)
            if length > self._longest:
                too_long.append((number, length))
            critiques += has_critique(example)
            if dataset_name == "train" and self._alpha > 0 and has_critique(example):
                self._trained_on.critiques = True

        with bar:
            examples = checked_examples(dataset, self._columns, what, check)
        if too_long:
            number, length = too_long[0]
            raise JRMError(
                f"{len(too_long)} of {len(examples)} examples of the {what} are longer than "
                f"{self._longest_is}={self._longest} tokens, the first is example {number} with {length}; "
                "raise max_length, lower max_pixels, or leave those examples out."
            )
        if dataset_name == "train" and not critiques and self._alpha > 0 and args.process_index == 0:
            logger.warning(
                "The train set has no critiques, so alpha=%g weighs nothing: the loss is %g times the ranking loss. "
                "Say alpha: 0 to train on preferences alone.",
                self._alpha,
                1 - self._alpha,
            )
        return examples

    def _check_in_stream(self, example: Example, number: int) -> None:
        name = origin(example) or f"example {number}"
        self._check_kind(example, name, set())
        if (length := self._length(example)) > self._longest:
            raise JRMError(
                f"it has {length} tokens, more than {self._longest_is}={self._longest}; raise max_length, or lower "
                "max_pixels."
            )

    def _check_kind(self, example: Example, name: str, kinds: set[bool]) -> None:
        if len(kinds) > 1:
            raise JRMError(f"{name} is of another kind than those before; give preferences or texts, not both.")
        if isinstance(example, CritiqueExample):
            if self._alpha < 1:
                raise JRMError(f"{name} has no preference; training on texts needs alpha: 1.")
        elif unknown := sorted(example.ranks.keys() - {*self.processor.dimensions, OVERALL}):
            raise JRMError(
                f"{name} is labelled in {', '.join(unknown)}; this model scores "
                f"{', '.join(self.processor.dimensions)}; train a model with those dimensions."
            )
        elif unknown := sorted({*chain(*example.critiques)}.difference(self.processor.dimensions)):
            raise JRMError(
                f"{name} has critiques of {', '.join(unknown)}; this model writes of "
                f"{', '.join(self.processor.dimensions)}; rename the dimension, or train a model with it."
            )
        elif self._listwise and any(count_orders(ranks) > ORDERS_MAX for ranks in example.ranks.values()):
            raise JRMError(
                f"{name} has more ties than ranking_loss: plackett_luce can break ({ORDERS_MAX} orders at most); use "
                "pairwise."
            )

    def _length(self, example: Example) -> int:
        if isinstance(example, CritiqueExample):
            return self.processor.sequence_length(example.sample, 0, example.text)
        sides = zip(example.candidates, example.critiques, strict=True)
        return max(
            self.processor.sequence_length(sample, sequence, critiques if self._alpha > 0 else {})
            for sample, critiques in sides
            for sequence in range(self.processor.sequences_per_sample)
        )

    def _set_signature_columns_if_needed(self):
        self._signature_columns = [COLUMN, "error", *PASSED]  # of rows that are dicts

    # -- the loss

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device):
        """Also counts the pairs and the critique tokens of the whole update, over accumulation steps and ranks."""
        batches, _ = super().get_batch_samples(map(_checked, epoch_iterator), num_batches, device)
        counts_K2 = torch.stack([*map(_groups_and_critique_tokens, batches), torch.zeros(2, dtype=torch.long)])
        return batches, self.accelerator.gather(counts_K2.sum(0, keepdim=True).to(device)).sum(0)

    def _prepare_inputs(self, inputs):
        return super()._prepare_inputs(_checked(inputs))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        mode = "train" if self.model.training else "eval"
        # Of the update.
        groups, critique_tokens = (None, None) if num_items_in_batch is None else num_items_in_batch
        sample_NG, rank_NGC = inputs.pop("sample_NG", None), inputs.pop("rank_NGC", None)
        outputs = model(**inputs, fused_cross_entropy=self.args.fused_cross_entropy)

        if rank_NGC is not None:
            mu_NGD, log_sigma_NGD = (in_groups(x, sample_NG) for x in (outputs.mu_SD, outputs.log_sigma_SD))
            loss_NC = ranking_loss_per_label(
                mu_NGD,
                log_sigma_NGD,
                rank_NGC,
                overall_rule=self._overall_rule,
                kind=self.args.ranking_loss,
                tie_threshold=self.args.tie_threshold,
                objective=self.args.objective,
            )
            rank_loss = ranking_loss(loss_NC, rank_NGC) * self._weight(len(rank_NGC), groups)
            self._record(mode, mu_NGD, log_sigma_NGD, sample_NG, rank_NGC, loss_NC)
            outputs.check()
        # Where there is no critique token, this is a zero that still reaches the language head; the scores' is made so.
        # DDP expects a gradient for every parameter.
        critique_loss = self._mean_critique_loss(outputs.critique_loss_T, mode, critique_tokens)
        if self.args.alpha == 1:
            rank_loss = 0 * (outputs.mu_SD + outputs.log_sigma_SD).sum()
        loss = joint_loss(rank_loss, critique_loss, self.args.alpha)
        if mode == "train":
            self._check_finite(loss.detach(), "the loss is", self.state.global_step + 1)
        return (loss, outputs) if return_outputs else loss

    def _mean_critique_loss(self, loss_T: torch.Tensor, mode: str, total: torch.Tensor | None) -> torch.Tensor:
        outcomes = self._outcomes[mode]
        sums = torch.stack([loss_T.detach().sum(), loss_T.new_tensor(float(len(loss_T)))]).unsqueeze(0)
        outcomes["critique_sum_and_count"].append(self.accelerator.gather(sums).sum(0).cpu())
        return loss_T.sum() / max(len(loss_T), 1) * self._weight(len(loss_T), total)

    def _weight(self, count: int, total: torch.Tensor | None) -> torch.Tensor | float:
        """By which the mean over what is counted in a batch enters the mean over the whole update.

        Trainer divides by the accumulation steps, and what gathers gradients by the ranks.
        """
        if total is None:  # in evaluation, where a batch stands alone
            return 1.0
        return count * self.current_gradient_accumulation_steps * self.accelerator.num_processes / total.clamp(min=1)

    def _check_finite(self, values: torch.Tensor, what: str, step: int) -> None:
        """Ends training, in all processes at once, where one of them has a number that is none.

        The next update would spread it over all weights, and `Trainer` leaves such losses out of what it logs.
        """
        if bool(self.accelerator.gather(values.reshape(-1)).isfinite().all()):
            return
        half = next((name for name in ("fp16", "bf16") if getattr(self.args, name)), None)
        raise JRMError(
            f"training diverged: {what} not finite in step {step}; {last_checkpoint_in_words(self.args.output_dir)}; "
            f"start again in another output_dir with a lower learning_rate (it is {self.args.learning_rate:g}) or a "
            f"longer warm-up{f', or without {half}' if half else ''}."
        )

    # -- what is logged

    @torch.no_grad()
    def _record(self, mode: str, mu_NGD, log_sigma_NGD, sample_NG, rank_NGC, loss_NC: torch.Tensor) -> None:
        """Keeps each group's outcome, so that what is logged is a mean over groups and not over batches."""
        scores = torch.stack([*with_overall(mu_NGD, log_sigma_NGD, self._overall_rule)], -1)
        scores = scores.masked_fill((sample_NG < 0)[..., None, None], float("nan"))
        loss_NGC = loss_NC.masked_fill(~is_labelled(rank_NGC), float("nan")).unsqueeze(1).expand(rank_NGC.shape)
        outcome_NGCK = torch.cat([rank_NGC.unsqueeze(-1), scores, loss_NGC.unsqueeze(-1)], dim=-1)
        # In evaluation without what fills up the last batch; in training that would cut whole batches, because those of
        # an update are fetched ahead.
        gather = self.accelerator.gather if mode == "train" else self.accelerator.gather_for_metrics
        # The largest group of another process may have another size.
        outcome_NGCK = self.accelerator.pad_across_processes(outcome_NGCK, dim=1, pad_index=float("nan"))
        self._outcomes[mode]["groups_NGCK"].append(gather(outcome_NGCK).float().cpu())

    def _metrics_since_last_log(self, mode: str) -> dict[str, float]:
        outcomes, metrics = self._outcomes[mode], {}
        if outcomes["critique_sum_and_count"]:
            total, count = torch.stack(outcomes["critique_sum_and_count"]).sum(0).tolist()
            if count:
                metrics["critique_loss"] = total / count
        if outcomes["groups_NGCK"]:
            names = [*self.processor.dimensions, OVERALL]
            metrics |= ranking_metrics(outcomes["groups_NGCK"], names, counts=mode == "eval")
        outcomes.clear()
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training:
            logs.update(self._metrics_since_last_log("train"))
        super().log(logs, start_time)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any):
        self._outcomes["eval"].clear()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        groups = self._outcomes["eval"]["groups_NGCK"]
        metrics = self._metrics_since_last_log("eval")
        if figures := self._eval_figures.get(metric_key_prefix.removeprefix("eval_")):
            margin_NC = torch.cat(
                [mu_NGC[:, 0] - mu_NGC[:, 1] for mu_NGC in (group[..., 1] for group in groups)]
            ).numpy()
            metrics |= figures(dict(zip([*self.processor.dimensions, OVERALL], margin_NC.T, strict=True)))
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    # -- the optimizer

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.args.muon_learning_rate is not None:
            model = self.model if model is None else model
            self.optimizer = MuonWithAdamW(
                muon_groups(
                    model,
                    set(self.get_decay_parameter_names(model)),
                    muon_lr=self.args.muon_learning_rate,
                    weight_decay=self.args.weight_decay,
                ),
                lr=self.args.learning_rate,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
                weight_decay=self.args.weight_decay,
            )
        return super().create_optimizer(model)

    # -- checkpoints

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any):
        """As `Trainer.train`; with `True` from the last whole checkpoint, from a named one if it is whole."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise JRMError(f"{self.args.output_dir} holds no checkpoint to go on from; train without resuming.")
        elif resume_from_checkpoint and (damage := damage_of(resume_from_checkpoint)):
            raise JRMError(f"{resume_from_checkpoint} cannot be gone on from: {damage}.")
        if isinstance(self.train_dataset, ExampleStream):
            self.train_dataset.passed = self._examples_before(resume_from_checkpoint)
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        except (RuntimeError, ConnectionError, EOFError) as error:  # the last two: its pipe is closed while we read
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            if not self.args.dataloader_num_workers:
                raise
            raise JRMError(
                f"a worker of the data loader was ended from outside ({reason(error)}); if memory ran out, lower "
                "dataloader_num_workers. The same command goes on."
            ) from error

    def _examples_before(self, checkpoint: str | None) -> int:
        """How many examples the steps before a checkpoint took, in all processes."""
        if not checkpoint:
            return 0
        steps = TrainerState.load_from_json(os.path.join(checkpoint, TRAINER_STATE_NAME)).global_step
        return steps * self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        finite = all(own_part(parameter).isfinite().all() for parameter in self.model.parameters())
        # As a number, which processes can gather.
        flag = torch.tensor(0.0 if finite else float("nan"), device=self.args.device)
        self._check_finite(flag, "weights are", self.state.global_step)
        with self._saving(output_dir or self.args.output_dir):
            super().save_model(output_dir, _internal_call)

    def save_state(self) -> None:
        with self._saving(self.args.output_dir):
            super().save_state()

    @contextmanager
    def _saving(self, folder: str | Path) -> Iterator[None]:
        """What goes wrong with the disk is one sentence."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            why = reason(error)
            if isinstance(error, RuntimeError):  # torch's writer of files has no error of its own
                if not any(writer in why for writer in ("inline_container", "PytorchStreamWriter")):
                    raise
                why = "a file could not be written whole"
            free = shutil.disk_usage(self.args.output_dir).free / 2**20
            raise JRMError(
                f"{folder} cannot be saved: {why} ({free:,.0f} MiB of space are left); "
                f"{last_checkpoint_in_words(self.args.output_dir)}, and the same command goes on when there is room."
            ) from error

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None):
        model = self.accelerator.unwrap_model(self.model)
        if state_dict is not None and isinstance(model, JRMForRewardModeling):
            # DeepSpeed and FSDP copy tied weights, and one of them is loaded.
            state_dict = {k: v for k, v in state_dict.items() if k not in model.all_tied_weights_keys}
        super()._save(output_dir, state_dict)
        if not self.args.should_save:  # newer versions of transformers come here in every process
            return
        folder = output_dir or self.args.output_dir
        self.processor.save_pretrained(folder)
        model.config.save_pretrained(folder)
        write_model_card(self, self.processor, folder)
        drop_calibration(folder)  # of an earlier model in this place

    def create_model_card(self, model_name: str | None = None, dataset_name: str | None = None, tags=None) -> None:
        """The README of the run's folder; TRL's own is for models of text."""
        if self.is_world_process_zero():
            write_model_card(self, self.processor, self.args.output_dir)

    def _get_output_dir(self, trial) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, STAGING_DIR) if self._staging else folder

    def _save_checkpoint(self, model, trial):
        """Writes the checkpoint beside its place and then renames it, so that a half-written one is never found."""
        run_folder = Path(super()._get_output_dir(trial))
        staging = run_folder / STAGING_DIR
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._staging = True
        try:
            with self._saving(name):
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    self._finish_checkpoint(run_folder, name)
        except JRMError:
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)  # it takes room that may be what is missing
            raise
        finally:
            self._staging = False
        self.accelerator.wait_for_everyone()

    def _finish_checkpoint(self, run_folder: Path, name: str) -> None:
        staging = run_folder / STAGING_DIR
        best = f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        if best == name or (run_folder / best).is_dir():
            self.state.best_model_checkpoint = str(run_folder / best)
            self.state.save_to_json(str(staging / name / "trainer_state.json"))
        write_digests(staging / name)
        shutil.rmtree(run_folder / name, ignore_errors=True)
        os.replace(staging / name, run_folder / name)
        shutil.rmtree(staging, ignore_errors=True)
        rotate_checkpoints(
            str(run_folder), self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True
        )


# --- small things -----------------------------------------------------------------------------------------------------


def _costs(model: nn.Module, args: JointRewardConfig) -> TokenCosts | None:
    """What plans of packed batches need to know of the model; None where it cannot compute them.

    With `flex_attention`, FlexAttention computes them from here on.
    """
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    if not BackboneParts.known(base.backbone):
        return None
    parts = BackboneParts(base.backbone)
    if args.flex_attention:
        parts.use_flex_attention()
    if not parts.takes_trees:
        logger.warning(
            "attn_implementation=%s takes no mask of a tree: sequences are computed one by one.",
            parts.attention_implementation,
        )
        return None
    return parts.costs()


def _checked(batch: dict[str, Any]) -> dict[str, Any]:
    """The collator's batch; what it says of a batch that could not be made is raised."""
    if "error" in batch:
        raise JRMError(batch["error"])
    return batch


def _groups_and_critique_tokens(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.tensor([len(batch.get("rank_NGC", ())), (batch["labels"][:, 1:] != -100).sum()])
