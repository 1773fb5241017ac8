"""What a run does beside training: it stops at a signal, and shows its losses and evaluations."""

import re
import signal
import sys
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm
from transformers import TrainerCallback

from jrm_plugin.integrations.trl.benchmarks import FIGURES


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
