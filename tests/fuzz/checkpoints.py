"""Tampered checkpoints: each loads and scores, or is refused in one sentence; no memory taken, no code run.

    python tests/fuzz/checkpoints.py --count 1000 --seed 1

copies the built-in checkpoint and a LoRA checkpoint over it, changes their files at random, and tries to score with
them. It prints what should not be, and how often what was refused. `tests/model/test_tampered_checkpoints.py` runs the
same for a few seconds.
"""

import argparse
import builtins
import json
import os
import pickle
import random
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import get_peft_model
from PIL import Image

from jrm_plugin import JRMForRewardModeling, JRMProcessor, RewardScorer, Sample
from jrm_plugin.errors import JRMError
from jrm_plugin.model.checkpoint import built_in_folder
from jrm_plugin.model.lora import lora_config

GIB = 2**30
SECONDS = 60  # that one checkpoint may take
MARK = "code-was-run"
SHOWN = 20

VALUES = [None, True, False, 0, 1, -1, 2, 7, 3.5, -0.0, 2**31, 2**40, 10**30, 1e308, float("nan"), float("inf")]
VALUES += ["", "x", "float32", "float7", "silu", "jrm", "bert", "qwen2_vl", "x" * 10_000, "../../x", "/etc/passwd"]
VALUES += ["evil.Evil", "kernels-community/flash-attn", "flash_attention_2", "\ud800", "<|Reward|>", "<|image_pad|>"]
VALUES += [[], [0], [1, 2, 3], ["x"], [None], [[[]]], list(range(2000)), {}, {"x": 1}, {"": {}}, [[]] * 50]
KEYS = ["auto_map", "attn_implementation", "_attn_implementation", "quantization_config", "num_labels", "torch_dtype"]
KEYS += ["transformers_weights", "configuration_files", "to_dict", "__class__", "validate", "id2label", "return_dict"]
KEYS += ["rope_scaling", "layer_types", "sliding_window", "use_sliding_window", "tokenizer_class", "vocab_file", "x"]
KEYS += ["chat_template", "model_max_length", "min_pixels", "max_pixels", "crop_size", "do_pad", "preprocess", "size"]
KEYS += ["custom_generate", "trust_remote_code", "adapter_kwargs", "experts_implementation", "gguf_file", "use_kernels"]
KEYS += ["added_tokens_decoder", "extra_special_tokens", "pad_token", "eos_token", "padding_side", "dtype"]
KEYS += ["layers_to_transform", "megatron_config", "loftq_config", "layer_replication", "exclude_modules", "revision"]
REMOTE = {name: "evil.Evil" for name in ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoImageProcessor")}
TEMPLATES = [
    "{% for a in range(99999) %}",
    "{% endfor %}",
    "{{ 'x' * 9999999999 }}",
    "{{ 10 ** 10 ** 10 }}",
    "{% if %}",
]
TEMPLATES += ["{% set ns.x = ns.x ~ ns.x %}", "{% set ns = namespace(x='xx') %}", "{{ ''.__class__ }}", "{{ 1 / 0 }}"]
TEMPLATES += ["{% macro m(x) %}{{ m(x) }}{{ m(x) }}{% endmacro %}{{ m(1) }}", "{{ messages[7].x.y }}", "<|Reward|>"]
TEMPLATES += [
    "{{ raise_exception('no') }}",
    "{% include 'x' %}",
    "{{ '%999999999d' % 1 }}",
    "{{ nothing() }}",
    "\ue000t",
]
TEMPLATES += [
    "{{ '{:999999999}'.format(1) }}",
    "{% set x = [x, x] %}",
    "{{ messages }}",
    "<|image_pad|>",
    "{",
    "{{",
    "x",
]


# --- what is tampered with --------------------------------------------------------------------------------------------


def write_originals(folder: Path) -> list[Path]:
    """A whole checkpoint, a LoRA checkpoint over it, and one whose weights are in two files, to copy and change."""
    whole, lora, sharded = folder / "whole", folder / "lora", folder / "sharded"
    shutil.copytree(built_in_folder("jrm-tiny"), whole)
    model, processor = JRMForRewardModeling.from_pretrained(whole), JRMProcessor.from_pretrained(whole)
    model.save_pretrained(sharded, max_shard_size="2MB")
    processor.save_pretrained(sharded)
    adapted = get_peft_model(model, lora_config(processor, r=2, lora_alpha=2))
    adapted.save_pretrained(lora)
    model.config.save_pretrained(lora)
    processor.save_pretrained(lora)
    for checkpoint in (whole, lora, sharded):
        (checkpoint / "evil.py").write_text(f"open({str(folder / MARK)!r}, 'w')\nclass Evil: pass\n")
    return [whole, whole, lora, sharded]


def pickled(mark: Path) -> bytes:
    """What makes the file `mark` when it is unpickled."""
    return pickle.dumps(_Pickled(mark))


class _Pickled:
    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


def tamper(folder: Path, mark: Path, rng: random.Random) -> str:
    """Changes one to three things in the files of a checkpoint; says what."""
    changes = [change_json] * 10 + [change_text, change_template, change_header, change_weights]
    return "; ".join(rng.choice(changes)(folder, mark, rng) for _ in range(rng.choice((1, 1, 1, 2, 3))))


def change_json(folder: Path, mark: Path, rng: random.Random) -> str:
    path = rng.choice(sorted(p for p in folder.glob("*.json") if p.name not in ("summary.json", "vocab.json")))
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError):
        return f"{path.name} was changed before"
    at, steps = content, []
    while isinstance(at, (dict, list)) and at:
        key = rng.choice(sorted(at)) if isinstance(at, dict) else rng.randrange(len(at))
        steps.append(key)
        if not isinstance(at[key], (dict, list)) or not at[key] or rng.random() < 0.4:
            break
        at = at[key]
    place, value = f"{path.name} {'.'.join(map(str, steps))[:80]}", rng.choice([*VALUES, REMOTE])
    kind = rng.randrange(10)
    if kind == 0 or not steps:
        content, place = value, path.name
    elif kind <= 5:
        at[steps[-1]] = value
    elif kind == 6:
        del at[steps[-1]]
        value = "nothing"
    elif kind == 7 and isinstance(at[steps[-1]], (int, float)):
        at[steps[-1]] = value = at[steps[-1]] * rng.choice((-1, 2, 3, 10, 1000, 10**6, 10**12))
    elif kind == 8:
        for _ in range(rng.choice((3, 2000))):
            at[steps[-1]] = [at[steps[-1]]]
        value = "lists in lists"
    elif isinstance(at, dict):
        at[key := rng.choice(KEYS)] = value
        place += f" and {key}"
    try:
        text = json.dumps(content)
    except RecursionError:
        text = "[" * 100_000
    path.write_text(text)
    return f"{place} = {str(value)[:60]}"


def change_text(folder: Path, mark: Path, rng: random.Random) -> str:
    path = rng.choice(sorted(p for p in folder.glob("*.json*") if p.name != "summary.json"))
    data = bytearray(path.read_bytes() or b" ")
    at = rng.randrange(len(data))
    if rng.random() < 0.3:
        del data[at:]
    elif rng.random() < 0.5:
        data[at] = rng.randrange(256)
    else:
        data[at:at] = rng.choice((b"\xff", b"[" * 50_000, b'"', b"{}", b"\0", b"9" * 5000))
    path.write_bytes(data)
    return f"{path.name} at byte {at}"


def change_template(folder: Path, mark: Path, rng: random.Random) -> str:
    path = folder / "chat_template.jinja"
    text = path.read_text() if path.exists() else ""
    for _ in range(rng.randrange(1, 5)):
        at = rng.choice((0, len(text), rng.randrange(len(text) + 1)))
        text = text[:at] + rng.choice(TEMPLATES) + text[at + rng.choice((0, 0, 1, 40)) :]
    path.write_text(text)
    return f"chat_template.jinja = {text[:100]!r}"


def change_header(folder: Path, mark: Path, rng: random.Random) -> str:
    path = rng.choice(sorted(folder.glob("*.safetensors")) or [folder / "model.safetensors"])
    data = bytearray(path.read_bytes() if path.exists() else b"") or bytearray(16)  # an earlier change may empty it
    length = int.from_bytes(data[:8], "little")
    kind = rng.randrange(4)
    if kind == 0:
        del data[rng.randrange(min(len(data), length + 16)) :]
    elif kind == 1:
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(min(len(data), length + 8))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        data[:8] = rng.choice((0, 1, length + 1, 2**31, 2**40, 2**63)).to_bytes(8, "little")
    else:
        try:
            header = json.loads(data[8 : 8 + length])
            key = rng.choice(sorted(header))
            field = rng.choice(sorted(header[key]))
            header[key][field] = rng.choice([*VALUES, "F64", "BF16", "I8", [0, 8], [2**40, 2**40], [4, 4]])
            text = json.dumps(header).encode()
        except (ValueError, IndexError, TypeError):
            text = b"{}"
        data = bytearray(len(text).to_bytes(8, "little") + text + data[8 + length :])
    path.write_bytes(data)
    return f"{path.name}, header, kind {kind}"


def change_weights(folder: Path, mark: Path, rng: random.Random) -> str:
    """Files that are missing, empty, or pickled."""
    path = rng.choice(sorted(folder.glob("*.safetensors")) or [folder / "model.safetensors"])
    path.unlink(missing_ok=True)
    kind = rng.choice(("missing", "empty", "pickled", "index"))
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "index":
        index = {"weight_map": {"x": rng.choice(("../whole/model.safetensors", "/etc/passwd", "y", "evil.py"))}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif kind == "pickled":
        for name in ("pytorch_model.bin", "adapter_model.bin", "pytorch_model.bin.index.json"):
            (folder / name).write_bytes(pickled(mark))
    return f"{path.name} {kind}"


# --- what must not happen ---------------------------------------------------------------------------------------------


@contextmanager
def nothing_from_outside() -> Iterator[None]:
    """No question on the terminal and no connection; and whatever takes too long is stopped."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("it asks a question or opens a connection")

    def stop(*_: Any) -> None:
        raise AssertionError(f"it takes more than {SECONDS} seconds")

    ask, connect, alarm = builtins.input, socket.socket.connect, signal.signal(signal.SIGALRM, stop)
    builtins.input = socket.socket.connect = refuse
    try:
        yield
    finally:
        builtins.input, socket.socket.connect = ask, connect
        signal.alarm(0)
        signal.signal(signal.SIGALRM, alarm)


def outcome(folder: Path, sample: Sample) -> str:
    """`scored`, or `refused` in one sentence; anything else is a fault and raised."""
    signal.alarm(SECONDS)
    try:
        RewardScorer.from_pretrained(folder, device="cpu").score([sample])
    except JRMError as error:
        if "\n" in str(error).strip() or len(str(error)) > 4000:
            raise AssertionError(f"the message is no sentence: {error}") from error
        return "refused"
    finally:
        signal.alarm(0)
    return "scored"


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(
    folder: Path, *, seed: int, count: int | None = None, seconds: float | None = None,
    report: Callable[[str], None] = print,
) -> tuple[Counter, list[str]]:  # fmt: skip
    """Tries tampered checkpoints, so many or for so long: how they ended, and what should not be."""
    originals, mark, rng = write_originals(folder), folder / MARK, random.Random(seed)
    sample = Sample.edit(Image.new("RGB", (48, 48), "white"), "make it blue", Image.new("RGB", (40, 56), "blue"))
    for original in originals:
        assert outcome(original, sample) == "scored"
    ended, faults, start, peak = Counter(), [], time.monotonic(), peak_memory()
    with nothing_from_outside():
        while count is None or ended.total() < count:
            if seconds is not None and time.monotonic() - start > seconds:
                break
            tampered = folder / "tampered"
            shutil.rmtree(tampered, ignore_errors=True)
            shutil.copytree(rng.choice(originals), tampered)
            what = tamper(tampered, mark, rng)
            try:
                ending = outcome(tampered, sample)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                ending = type(error).__name__
                faults.append(f"{what}: {ending}: {' '.join(str(error).split())[:200]}")
            ended[ending] += 1
            if mark.exists():
                faults.append(f"{what}: code was run")
                mark.unlink()
            if peak_memory() - peak > GIB:
                faults.append(f"{what}: {(peak_memory() - peak) / GIB:.1f} GiB")
                peak = peak_memory()
            if faults and len(faults) <= SHOWN and report and faults[-1].startswith(what):
                report(faults[-1])
    return ended, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        ended, faults = run(Path(folder), seed=options.seed, count=options.count)
    print(f"{ended.total()} tampered checkpoints: {dict(ended)}; {len(faults)} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
