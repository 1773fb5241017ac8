"""YAML configs with mistakes: each is taken, or refused in one sentence; no traceback, no memory taken, no code run.

    python tests/fuzz/yaml_mistakes.py --count 1000 --seed 1

changes valid configs of `jrm train`, `jrm grpo` and `jrm self-correct` at random, in their values or in their text, and
reads them as the commands do, up to where something would be loaded. It prints what should not be, and how often what
was refused. `tests/cli/test_yaml_mistakes.py` runs the same for some seconds.
"""

import argparse
import copy
import os
import random
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import yaml

from jrm_plugin.cli import grpo, self_correct
from jrm_plugin.errors import JRMError
from jrm_plugin.integrations.trl import training

GIB = 2**30
SHOWN = 20

TRAIN = {
    **{"model": "backbone", "train_data": "train.json", "eval_data": {"heldout": "heldout.json"}, "use_cpu": True},
    **{"eval_strategy": "steps", "eval_steps": 5, "rubrics": "short", "reward_head_widths": [16], "output_dir": "run"},
    **{"log_sigma_bound": [0.0, 2.0], "dimensions": ["visual_quality"], "learning_rate": "1e-3", "alpha": 0.5},
    **{"report_to": "none", "lora_r": 8, "max_pixels": 2304, "optim": "adamw_torch", "lr_scheduler_type": "cosine"},
}
GRPO = {
    **{"reward_model": "jrm", "reward_render": "json.dumps", "reward_floor": -5.0, "reward_mode": "mean"},
    **{"model_name_or_path": "policy", "dataset_name": "data", "output_dir": "policy", "use_cpu": True},
    **{"reward_funcs": ["my_rewards.length"], "reward_weights": [1.0, 0.5], "num_generations": 4, "bf16": False},
    **{"per_device_train_batch_size": 4, "env": {"JRM_DEVICE": "cpu"}, "scale_rewards": False, "report_to": "none"},
    **{"lora_target_modules": "all-linear", "model_init_kwargs": {"use_cache": False}, "save_strategy": "no"},
}
SELF_CORRECT = {
    **{"data": {"shape_edits": {"count": 6, "seed": 0}}, "editor": {"diffusers": {"pipeline": "x"}}, "output": "run"},
    **{"model": "jrm-tiny", "rounds": 1, "thresholds": {"quantiles": [0.5, 0.25]}, "control": True, "seed": 5},
}
COMMANDS: dict[str, tuple[dict, Callable[[Path], object]]] = {
    "train": (TRAIN, training.parse),
    "grpo": (GRPO, grpo.parse),
    "self-correct": (SELF_CORRECT, self_correct.parse),
}
VALUES = [None, True, False, 0, 1, -1, 3.5, 2**40, 2**70, 10**400, 1e308, float("nan"), float("-inf"), "", "x", "no"]
VALUES += ["1e-3", "8", "50_176", "nan", "1e999", "0x10", "true", "null", "a=b", "--alpha", "\ud800", "a\0b", "é" * 300]
VALUES += [[], [1, "2"], ["1e0"], [None], [[1]], [{}], [float("nan")], ["x"] * 500, {}, {"x": 1}, {1: 2}, {"": None}]
VALUES += [date(2026, 1, 1), b"bytes", {"a", "b"}, {"path": "x", "columns": 3}, [{"path": "x", "split": None}, {}]]
# Fields that the configs above leave out.
KEYS = ["alhpa", "", "config", "help", "env", "deepspeed", "fsdp", "fsdp_config", "accelerator_config", "datasets"]
KEYS += ["parallelism_config", "resume_from_checkpoint", "warmup_steps", "max_grad_norm", "seed", "lr_scheduler_kwargs"]
KEYS += ["label_names", "debug", "include_for_metrics", "num_train_epochs", "logging_steps", "peft", "torch_compile"]
KEYS += ["gradient_checkpointing_kwargs", "liger_kernel_config", "model_revision", "local_rank", "ddp_timeout", "data"]
TEXTS = ["!!python/object/apply:os.system ['touch code-was-run']", "!!python/name:os.system", "!!int x", "!!bool x"]
TEXTS += ["!!timestamp x", "!!int ''", "!!set {a, b}", "!!binary x", "!!omap [a: 1]", "2026-13-45", "1:30", "&a [*a]"]
TEXTS += [
    "*nowhere",
    "[" * 5000,
    "{" * 3000,
    "- " * 2000 + "x",
    "'",
    '"\\ud800"',
    '"\\0"',
    "|\n  x\n y",
    "\tx",
    "? [a]: b",
]
TEXTS += [
    "{<<: [*a, *a]}",
    "{[a]: 1}",
    "=",
    "<<",
    "%TAG",
    "@x",
    "`x`",
    "key: value: value",
    "9" * 5000,
    "\x07",
    "1 # x",
]
TEXTS += ["&a {x: 1}\n<<: *a", "---\n...\n---", "0b", "0o9", ".inf", "~", "yes", "{x: 1, x: 2}", "[1, 2", "!x y"]


def bomb(rng: random.Random) -> str:
    width = rng.choice([2, 10, 1000])
    lines = ["x0: &x0 [x, x]"]
    lines += [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * width)}]" for n in range(1, rng.choice([3, 9, 30]))]
    if rng.random() < 0.3:
        lines = [line.replace("[", "{<<: [").replace("]", "]}") for line in lines]
    return "\n".join(lines) + "\n"


def change_values(content: dict, rng: random.Random) -> Any:
    """Changes one to three keys, or items of lists and mappings under them."""
    content = yaml.safe_load(yaml.safe_dump(content))
    for _ in range(rng.randint(1, 3)):
        place: Any = content
        key: Any = rng.choice([*content, *KEYS])
        while key in place and isinstance(place[key], (dict, list)) and place[key] and rng.random() < 0.6:
            place = place[key]
            key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
            if isinstance(place, list):
                break
        if isinstance(place, dict) and key in place and rng.random() < 0.15:
            del place[key]
        else:
            place[key] = copy.deepcopy(rng.choice(VALUES))
    return content


def change_text(text: str, rng: random.Random) -> bytes:
    """Changes the text, as slips of the keyboard, of editors and of hostile people do."""
    lines = text.splitlines(keepends=True)
    line = rng.randrange(len(lines))
    kind = rng.choice(["value", "value", "value", "twice", "tab", "letter", "cut", "bomb", "encoding", "other"])
    if kind == "value":
        lines[line] = f"{lines[line].split(':')[0]}: {rng.choice(TEXTS)}\n"
    elif kind == "twice":
        lines.append(lines[line])
    elif kind == "tab":
        lines[line] = "\t" + lines[line]
    elif kind == "letter":
        place = rng.randrange(len(text))
        return (text[:place] + rng.choice("\t:-{}[]&*!|>'\"%@`#,?\n \x00é") + text[place + 1 :]).encode()
    elif kind == "cut":
        return text[: rng.randrange(len(text))].encode()
    elif kind == "bomb":
        return (bomb(rng) + text).encode()
    elif kind == "encoding":
        return ("# é\n" + text).encode(rng.choice(["latin-1", "utf-16", "utf-8-sig", "utf-32", "utf-16-le", "utf-7"]))
    else:
        return rng.choice([b"", b"\n", b"- 1\n", b"x", b"null", b"#", b"--- a\n--- b\n", bytes(50), b"a: 1\n" * 60_000])
    return "".join(lines).encode()


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(
    folder: Path, *, seed: int, count: int | None = None, seconds: float | None = None
) -> tuple[Counter[str], list[str]]:
    """Reads `count` configs, or as many as fit into `seconds`.

    Returns:
        How often what happened, and the faults. The environment is as it was.
    """
    rng, ended, faults = random.Random(seed), Counter(), []
    path, start, peak, environment = folder / "config.yaml", time.monotonic(), peak_memory(), dict(os.environ)
    while count is None or ended.total() < count:
        if seconds is not None and time.monotonic() - start > seconds:
            break
        name = rng.choice(list(COMMANDS))
        content, parse = COMMANDS[name]
        if rng.random() < 0.6:
            text = yaml.dump(change_values(content, rng), allow_unicode=True).encode("utf-8", "surrogatepass")
        else:
            text = change_text(yaml.safe_dump(content), rng)
        path.write_bytes(text)
        began = time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                parse(path)
            ending = "taken"
        except JRMError as error:
            ending = "refused"
            if "\n" in str(error) or str(path) not in str(error) or len(str(error)) > 2000:
                ending = f"said badly: {str(error)[:300]!r}"
        except Exception as error:
            ending = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if Path("code-was-run").exists():
            ending = "code was run"
        if peak_memory() - peak > GIB / 4:
            ending, peak = f"{(peak_memory() - peak) / GIB:.1f} GiB", peak_memory()
        if time.monotonic() - began > 20:
            ending = f"{time.monotonic() - began:.0f} s"
        if ending not in ("taken", "refused"):
            faults.append(f"{name}: {ending}; {text[:2000]!r}")
            ending = "fault"
        ended[ending] += 1
        os.environ.clear()
        os.environ.update(environment)
    return ended, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        ended, faults = run(Path(folder), seed=options.seed, count=options.count)
    for fault in faults[:SHOWN]:
        print(fault)
    print(f"{ended.total()} configs: {dict(ended)}; {len(faults)} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
