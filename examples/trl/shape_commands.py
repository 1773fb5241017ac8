"""GRPO on a CPU from nothing: a tiny policy learns to write edit commands, rewarded by `jrm-tiny`.

A prompt is an instruction of ShapeEdits ("make the red circle blue"); the policy answers with a command ("recolour
circle blue"), which is carried out in the scene and drawn, and the reward model scores the picture. The policy, a
language model of a quarter of a million parameters, is first warmed up on commands that are well formed and mostly
wrong: the right one in `RIGHT` of the cases, else one with random arguments. Then TRL's `GRPOTrainer` trains it on the
reward.

An oracle knows whether a command does what was asked for. It has weight 0: it is measured and never learned from.

    python examples/trl/shape_commands.py --seed 0 --output outputs/trl

With `--per-dimension` each dimension of the reward model is a reward of its own, and TRL normalises each within the
group before it adds them up (GDPO).
"""

import argparse
import json
import re
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from transformers import PreTrainedTokenizerFast, PrinterCallback, Qwen2Config, Qwen2ForCausalLM, TrainerCallback
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer

from jrm_plugin import load_scorer
from jrm_plugin.evaluation.metrics import Z95, proportion
from jrm_plugin.integrations.trl import InvalidAnswer, JRMReward, jrm_rewards
from jrm_plugin.model.tiny import tiny_tokenizer
from jrm_plugin.synthetic.preferences import GRID, PLACES
from jrm_plugin.synthetic.shape_edits import COLOURS, SHAPES, as_asked, draw_edit, render
from jrm_plugin.synthetic.shape_reader import Scene, read_instruction, read_scene
from jrm_plugin.training.optimization import MuonWithAdamW, muon_groups

RIGHT = 0.2  # share of the warm-up's commands that are what the instruction asks for
FLOOR = -5.0  # reward of what is no command; jrm-tiny gives an edit that was ignored about -1.5
SHAPE, COLOUR, PLACE = (f"({'|'.join(words)})" for words in (SHAPES, COLOURS, PLACES))
# Commands by the kind of edit: the form, and the words of each argument. ShapeEdits also adds objects; these are left
# out, because `jrm-tiny` hardly tells the shape of an added object and so cannot teach it.
GRAMMAR = {
    "recolour": (f"recolour {SHAPE} {COLOUR}", SHAPES, tuple(COLOURS)),
    "remove": (f"remove {SHAPE}", SHAPES),
    "move": (f"move {SHAPE} {PLACE}", SHAPES, PLACES),
}


# --- commands ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _scene(pixels: bytes) -> Scene:
    return read_scene(np.frombuffer(pixels, np.uint8).reshape(48, 48, 3))


def carry_out(command: str, source: Image.Image) -> Scene:
    """The scene after a command.

    Raises:
        InvalidAnswer: it is no command, or is about a shape that the source does not show.
    """
    scene = _scene(source.tobytes())
    kind, *_ = command.split() or [""]
    found = re.fullmatch(GRAMMAR[kind][0], command.strip()) if kind in GRAMMAR else None
    if found is None:
        raise InvalidAnswer(f"{command!r} is no command")
    items = dict(scene.items)
    item = next((item for item in items.values() if item.shape == found[1]), None)
    if item is None:
        raise InvalidAnswer(f"there is no {found[1]}")
    del items[item.place]
    if kind == "recolour":
        items[item.place] = item._replace(colour=found[2])
    elif kind == "move":
        place = PLACES.index(found[2])
        items[place] = item._replace(place=place)
    return scene._replace(items=items)


def draw(command: str, row: dict) -> Image.Image:
    """The picture that a command makes of its row's source image: the `render` of the reward."""
    scene = carry_out(command, row["source_image"])
    shifts = [scene.shifts.get(place, (0, 0)) for place in range(GRID * GRID)]
    return Image.fromarray(render(list(scene.items.values()), scene.background, shifts))


def oracle(completions, source_image, instruction, **_) -> list[float]:
    """1 where a command does exactly what was asked for, else 0; in TRL's form of a reward, with weight 0."""
    return [float(is_right(*each)) for each in zip(completions, source_image, instruction, strict=True)]


def is_right(command: str, source: Image.Image, instruction: str) -> bool:
    scene = _scene(source.tobytes())
    wanted = as_asked(list(scene.items.values()), read_instruction(instruction, scene)).items
    try:
        return sorted(carry_out(command, source).items.values()) == sorted(wanted)
    except InvalidAnswer:
        return False


def right_command(kind: str, instruction: str) -> str:
    """What the instruction asks for, as a command."""
    shape, last = instruction.split()[3], instruction.split()[-1]  # "make the red circle blue", "remove the red circle"
    return f"remove {shape}" if kind == "remove" else f"{kind} {shape} {last}"


# --- data -------------------------------------------------------------------------------------------------------------


def draw_rows(count: int, seed: int, *, heldout: bool) -> list[dict]:
    rng = np.random.default_rng([seed, int(heldout)])
    rows = []
    while len(rows) < count:
        edit = draw_edit(rng, heldout=heldout, outcomes=[("none", "clean")])
        if edit.kind not in GRAMMAR:
            continue
        row = {"prompt": f"please {edit.instruction}:", "instruction": edit.instruction, "kind": edit.kind}
        rows.append(row | {"source_image": Image.fromarray(edit.source)})
    return rows


def warm_up_command(row: dict, rng: np.random.Generator) -> str:
    if rng.random() < RIGHT:
        return right_command(row["kind"], row["instruction"])
    return " ".join([row["kind"], *(str(rng.choice(words)) for words in GRAMMAR[row["kind"]][1:])])


# --- the policy -------------------------------------------------------------------------------------------------------


def make_policy(rows: list[dict], seed: int) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast]:
    texts = [f"{row['prompt']} {right_command(row['kind'], row['instruction'])}" for row in rows]
    tokenizer = tiny_tokenizer(texts, vocab_size=512)
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        initializer_range=0.1,  # at the usual 0.02 so small a model takes many times the steps to learn to copy
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config), tokenizer


def warm_up(policy, tokenizer, rows: list[dict], *, steps: int, seed: int, batch: int = 64) -> None:
    """Ordinary supervised learning of the commands; the loss is on the commands' tokens only."""
    rng = np.random.default_rng([seed, 2])
    decay = {name for name, parameter in policy.named_parameters() if parameter.ndim > 1}
    optimizer = MuonWithAdamW(muon_groups(policy, decay, muon_lr=0.02, weight_decay=0.01), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    policy.train()
    for step in range(steps):
        chosen = [rows[k] for k in rng.integers(len(rows), size=batch)]
        prompts = tokenizer([row["prompt"] for row in chosen])["input_ids"]
        commands = tokenizer([f" {warm_up_command(row, rng)}{tokenizer.eos_token}" for row in chosen])["input_ids"]
        width = max(len(p) + len(c) for p, c in zip(prompts, commands, strict=True))
        ids = torch.full((batch, width), tokenizer.pad_token_id)
        labels = torch.full((batch, width), -100)
        for k, (p, c) in enumerate(zip(prompts, commands, strict=True)):
            ids[k, : len(p) + len(c)] = torch.tensor(p + c)
            labels[k, len(p) : len(p) + len(c)] = torch.tensor(c)
        loss = policy(input_ids=ids, labels=labels).loss  # pads are on the right, so causal attention never sees them
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 25 == 0 or step == steps - 1:
            print(f"warm-up step {step}: loss {loss.item():.3f}", flush=True)


@torch.no_grad()
def measure(policy, tokenizer, reward: JRMReward, rows: list[dict], seed: int) -> dict:
    """Mean reward and oracle success of one sampled command per row, with 95 % intervals."""
    policy.eval()
    torch.manual_seed(seed)
    batch = tokenizer([row["prompt"] for row in rows], return_tensors="pt", padding=True, padding_side="left")
    ids = policy.generate(**batch, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=12)
    commands = tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    rewards = np.array(reward(columns.pop("prompt"), commands, **columns))
    right = np.array(oracle(commands, **columns))
    half = Z95 * rewards.std(ddof=1) / len(rewards) ** 0.5
    mean = float(rewards.mean())
    kinds = np.array(columns["kind"])
    return {
        "reward": {"value": mean, "low": mean - half, "high": mean + half, "n": len(rewards)},
        "oracle_success": proportion(int(right.sum()), len(right)),
        "oracle_success_by_kind": {
            kind: proportion(int(right[kinds == kind].sum()), int((kinds == kind).sum())) for kind in GRAMMAR
        },
        "examples": [[row["instruction"], c.strip()] for row, c in zip(rows[:8], commands, strict=False)],
    }


class Progress(TrainerCallback):
    """A line every 20 steps, instead of all that TRL logs."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "rewards/oracle/mean" in (logs or {}) and state.global_step % 20 == 0:
            means = (f"{name[8:-5]} {logs[name]:.2f}" for name in logs if name[:8] + name[-5:] == "rewards//mean")
            print(f"GRPO step {state.global_step}: {', '.join(means)}", flush=True)


def grpo(
    policy,
    tokenizer,
    rewards: list[JRMReward],
    rows: list[dict],
    output: Path,
    *,
    steps: int,
    seed: int,
    aggregation: str = "sum_then_normalize",
) -> list[dict]:
    """Trains the policy on the rewards, with the oracle beside them; what TRL logged of each step."""
    trainer = GRPOTrainer(
        policy,
        [*rewards, oracle],
        GRPOConfig(
            output_dir=str(output),
            reward_weights=[1.0] * len(rewards) + [0.0],
            multi_objective_aggregation=aggregation,
            per_device_train_batch_size=64,
            num_generations=8,
            max_completion_length=12,
            max_steps=steps,
            learning_rate=1e-3,
            lr_scheduler_type="linear",
            beta=0.0,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            log_level="error",
            seed=seed,
        ),
        train_dataset=Dataset.from_list([{n: v for n, v in row.items() if n != "kind"} for row in rows]),
        processing_class=tokenizer,
        callbacks=[Progress()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [entry for entry in trainer.state.log_history if "rewards/oracle/mean" in entry]


# --- the run ----------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of scenes, weights and sampling (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("outputs/trl"), help="folder (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=120, help="GRPO steps (default: %(default)s)")
    parser.add_argument("--warm-up-steps", type=int, default=250, help="supervised steps (default: %(default)s)")
    parser.add_argument("--per-dimension", action="store_true", help="a reward for each dimension (GDPO)")
    parser.add_argument("--heldout", type=int, default=500, help="held-out scenes (default: %(default)s)")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    logging.set_verbosity_error()
    started = time.monotonic()

    train, heldout = (draw_rows(n, options.seed, heldout=h) for n, h in ((2000, False), (options.heldout, True)))
    policy, tokenizer = make_policy(train, options.seed)
    print(f"the policy has {policy.num_parameters():,} parameters")
    warm_up(policy, tokenizer, train, steps=options.warm_up_steps, seed=options.seed)
    scorer = load_scorer("jrm-tiny", device="cpu")
    reward = JRMReward(scorer, render=draw, floor=FLOOR)
    rewards = jrm_rewards(scorer, render=draw, floor=FLOOR) if options.per_dimension else [reward]
    start = measure(policy, tokenizer, reward, heldout, options.seed)
    print(f"after the warm-up: {in_words(start)} ({time.monotonic() - started:.0f} s)", flush=True)

    rewarded = "normalize_then_sum" if options.per_dimension else "sum_then_normalize"
    log = grpo(
        policy, tokenizer, rewards, train, options.output, steps=options.steps, seed=options.seed, aggregation=rewarded
    )
    end = measure(policy, tokenizer, reward, heldout, options.seed)
    print(f"after GRPO: {in_words(end)} ({time.monotonic() - started:.0f} s)")

    history = [
        {
            "step": entry["step"],
            "reward": float(np.mean([entry[f"rewards/{each.__name__}/mean"] for each in rewards])),
            "rewards": {each.__name__: entry[f"rewards/{each.__name__}/mean"] for each in rewards},
            "oracle_success": entry["rewards/oracle/mean"],
            "invalid_answers": entry["jrm_reward/invalid_answers"],
        }
        for entry in log
    ]
    summary = {
        "seed": options.seed,
        "steps": options.steps,
        "parameters": policy.num_parameters(),
        "seconds": round(time.monotonic() - started),
        "start": start,
        "end": end,
        "training": history,
    }
    (options.output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    plot(history, start, end, options.output / "curves.png")
    print(f"curves.png and summary.json are in {options.output}")


def in_words(measured: dict) -> str:
    reward, success = measured["reward"], measured["oracle_success"]
    return (
        f"reward {reward['value']:.2f} ({reward['low']:.2f} to {reward['high']:.2f}), "
        f"oracle success {success['value']:.3f} ({success['low']:.3f} to {success['high']:.3f})"
    )


def plot(history: list[dict], start: dict, end: dict, path: Path) -> None:
    """What was rewarded above, what the oracle knows below; the points are held-out scenes with 95 % intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    last = history[-1]["step"]
    for axes, name, label, colour in zip(
        figure.subplots(2, 1, sharex=True),
        ("reward", "oracle_success"),
        ("reward by jrm-tiny", "oracle success (not learned from)"),
        ("#0072B2", "#D55E00"),
        strict=True,
    ):
        values = np.array([entry[name] for entry in history])
        window = min(10, len(values))
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot([entry["step"] for entry in history], values, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(range(window, len(values) + 1), smooth, color=colour, label=f"training, mean of {window} steps")
        for step, measured in ((0, start[name]), (last, end[name])):
            error = [[measured["value"] - measured["low"]], [measured["high"] - measured["value"]]]
            axes.errorbar([step], [measured["value"]], yerr=error, fmt="o", color="black", capsize=4)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
    figure.axes[1].set_xlabel("GRPO step")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
