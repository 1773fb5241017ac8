"""verl's way from a parquet file to a policy gradient, on a CPU, with JRM as the reward.

verl's trainer wants GPUs and a rollout server. What lies between the data and the gradient runs without, and here it is
verl's own code: the config `ppo_trainer` with `reward=jrm`, `RLHFDataset` and its `collate_fn`, `AgentLoopWorker` with
the single-turn agent loop and `_compute_score`, the reward workers under Ray, GRPO's advantages and the policy loss.

Two things are stand-ins. Instead of the rollout server an object answers, with commands written beforehand: for each
instruction ("make the red circle blue") some that do it, some with another colour, and some that are no commands. And
the policy that takes the step is a small language model of random weights, which reads text only.

The reward workers carry out each command in the prompt's image (`draw` in shape_render.py), and `jrm-tiny` scores it.

    python examples/verl/reward_path_on_cpu.py --groups 6 --candidates 12
"""

import argparse
import asyncio
import io
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import ray
import torch
import transformers
from datasets import Dataset, disable_progress_bars
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from PIL import Image
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM, Qwen2VLImageProcessorPil
from verl import DataProto
from verl.experimental.agent_loop import AgentLoopWorker
from verl.experimental.reward_loop import RewardLoopManager
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, get_policy_loss_fn
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn
from verl.utils.torch_functional import logprobs_from_logits
from verl.workers.rollout.replica import TokenOutput

from jrm_plugin.integrations.ray import ScorerPool, shared_pool
from jrm_plugin.integrations.verl.settings import settings_of
from jrm_plugin.model.checkpoint import built_in_folder
from jrm_plugin.model.tiny import tiny_tokenizer
from jrm_plugin.synthetic.shape_edits import COLOURS, draw_edit

KINDS = ("right", "wrong", "unparsable")  # of commands; the candidates of a group take turns
FLOOR = -5.0  # reward of what is no command; jrm-tiny gives an edit that was ignored about -1.5
LEASE = 5.0  # seconds after which a scorer that nobody uses ends itself; the default of 60 would be waited for here


# --- prompts, and what the policy is made to answer -------------------------------------------------------------------


def write_prompts(path: Path, count: int, rng: np.random.Generator) -> list[str]:
    """A parquet file in the form that verl reads; returns the instructions."""
    rows = []
    while len(rows) < count:
        edit = draw_edit(rng, heldout=True, outcomes=[("none", "clean")])
        if edit.kind != "recolour":
            continue
        file = io.BytesIO()
        Image.fromarray(edit.source).save(file, "PNG")
        rows.append(
            {
                "data_source": "shape_edits",
                "prompt": [{"role": "user", "content": f"<image>please {edit.instruction}:"}],
                "images": [{"bytes": file.getvalue()}],
                "extra_info": {"index": len(rows), "instruction": edit.instruction},
            }
        )
    Dataset.from_list(rows).to_parquet(path)
    return [row["extra_info"]["instruction"] for row in rows]


def write_command(kind: str, instruction: str, rng: np.random.Generator) -> str:
    """A command of a kind of `KINDS` for an instruction such as "make the red circle blue"."""
    _, _, old, shape, new = instruction.split()
    if kind == "right":
        return f"recolour {shape} {new}"
    if kind == "wrong":
        return f"recolour {shape} {rng.choice([colour for colour in COLOURS if colour not in (old, new)])}"
    return f"{shape} {new} please"


class WrittenAnswers:
    """Stands where verl's client of the rollout server would, and answers rollout k with `texts[k]`."""

    def __init__(self, texts: list[str], tokenizer: PreTrainedTokenizerBase):
        self.ids = [tokenizer.encode(text) + [tokenizer.eos_token_id] for text in texts]

    async def generate(self, *, priority: int, **request) -> TokenOutput:
        return TokenOutput(token_ids=self.ids[priority])


def write_policy(folder: Path, texts: list[str]) -> PreTrainedTokenizerBase:
    """A language model of random weights; returns its tokenizer, which knows the words of `texts`."""
    tokenizer = tiny_tokenizer(texts, vocab_size=512)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


# --- verl -------------------------------------------------------------------------------------------------------------


def make_config(policy: Path, prompts: Path, options: argparse.Namespace) -> DictConfig:
    """As verl's command line would compose it."""
    overrides = [
        "reward=jrm",
        "reward.jrm.model_path=jrm-tiny",
        "reward.jrm.device=cpu",
        "reward.jrm.render=shape_render.draw",
        f"reward.jrm.floor={FLOOR}",
        f"reward.jrm.lease={LEASE}",
        f"reward.jrm.replicas={options.replicas}",
        f"reward.num_workers={options.workers}",
        f"data.train_files={prompts}",
        "data.max_prompt_length=64",
        "data.max_response_length=16",
        f"actor_rollout_ref.model.path={policy}",
        "actor_rollout_ref.rollout.name=vllm",
        f"actor_rollout_ref.rollout.n={options.candidates}",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
        "algorithm.adv_estimator=grpo",
    ]
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides)


def read_batch(config: DictConfig, tokenizer: PreTrainedTokenizerBase) -> DataProto:
    """Every prompt of the file, as often as it has candidates; `priority` numbers them as verl's trainer does."""
    # Without a processor the dataset reads no images; the policy takes none, so that the scorer's will do.
    processor = Qwen2VLImageProcessorPil.from_pretrained(built_in_folder("jrm-tiny"))
    dataset = RLHFDataset(config.data.train_files, tokenizer, config.data, processor)
    batch = DataProto.from_single_dict(collate_fn([dataset[k] for k in range(len(dataset))]))
    batch.non_tensor_batch["uid"] = batch.non_tensor_batch["index"]
    batch = batch.repeat(config.actor_rollout_ref.rollout.n, interleave=True)
    batch.non_tensor_batch["priority"] = np.arange(len(batch))
    return batch


def log_probs(policy: Qwen2ForCausalLM, batch: DataProto) -> torch.Tensor:
    """Of each token of the responses, `[B, T]`."""
    inputs = {name: batch.batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
    width = batch.batch["responses"].shape[1]
    return logprobs_from_logits(policy(**inputs).logits[:, -width - 1 : -1], batch.batch["responses"])


def take_step(
    policy: Qwen2ForCausalLM, batch: DataProto, advantages_BT: torch.Tensor, config: DictConfig
) -> tuple[list[float], np.ndarray]:
    """One step on verl's policy loss: the loss before and after, and what each response's log-probability gained."""
    mask_BT = batch.batch["response_mask"]
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)

    def policy_loss(log_probs_BT: torch.Tensor) -> torch.Tensor:
        return get_policy_loss_fn("vanilla")(old_BT, log_probs_BT, advantages_BT, mask_BT, config=actor)[0]

    log_probs_BT = log_probs(policy, batch)
    old_BT = log_probs_BT.detach()
    before = policy_loss(log_probs_BT)
    before.backward()
    optimizer.step()
    with torch.no_grad():
        new_BT = log_probs(policy, batch)
        return [before.item(), policy_loss(new_BT).item()], ((new_BT - old_BT) * mask_BT).sum(1).numpy()


# --- the run ----------------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace, folder: Path, console: Console) -> None:
    rng = np.random.default_rng(options.seed)
    torch.manual_seed(options.seed)
    instructions = write_prompts(folder / "prompts.parquet", options.groups, rng)
    kinds = np.array([KINDS[k % len(KINDS)] for k in range(options.candidates)] * options.groups)
    groups = np.repeat(np.arange(options.groups), options.candidates)
    commands = [write_command(kind, instructions[group], rng) for kind, group in zip(kinds, groups, strict=True)]
    tokenizer = write_policy(folder / "policy", [f"please {instruction}:" for instruction in instructions] + commands)
    config = make_config(folder / "policy", folder / "prompts.parquet", options)

    started = time.monotonic()
    reward_loop = RewardLoopManager(config)
    worker = AgentLoopWorker(
        config,
        llm_client=WrittenAnswers(commands, tokenizer),
        reward_loop_worker_handles=reward_loop.reward_loop_worker_handles,
    )
    batch = asyncio.run(worker.generate_sequences(read_batch(config, tokenizer)))
    seconds = time.monotonic() - started

    rewards = batch.batch["rm_scores"].sum(1).numpy()
    advantages_BT, _ = compute_grpo_outcome_advantage(batch.batch["rm_scores"], batch.batch["response_mask"], groups)
    policy = Qwen2ForCausalLM.from_pretrained(folder / "policy")
    losses, gained = take_step(policy, batch, advantages_BT, config)
    pool = shared_pool(settings_of(config.reward.jrm).scorers())

    console.print(table(instructions, groups, kinds, rewards, advantages_BT[:, 0].numpy()))
    floors = batch.non_tensor_batch["jrm_render_error"]
    means = {kind: rewards[kinds == kind].mean() for kind in KINDS}
    console.print(f"mean reward: {in_words(means)}")
    console.print(f"got the floor: {int(floors.sum())} of {len(floors)}")
    console.print(f"policy loss: {losses[0]:.4f}, after one step {losses[1]:.4f}")
    console.print(f"log-probability gained: {in_words({kind: gained[kinds == kind].mean() for kind in KINDS})}")
    for number, did in enumerate(asyncio.run(pool.statistics())):
        console.print(
            f"scorer {number}: {did.samples} samples in {did.batches} batches; "
            f"features of images: {did.image_hits} reused, {did.image_misses} computed"
        )
    console.print(f"from the start of the workers to the last score: {seconds:.0f} s")
    console.print(f"Ray actors left: {', '.join(close(reward_loop, pool)) or 'none'}")
    if not means["right"] > means["wrong"] > means["unparsable"]:
        raise SystemExit("The reward does not tell right commands from wrong ones.")


def in_words(means: dict[str, float]) -> str:
    return ", ".join(f"{kind} {mean:.2f}" for kind, mean in means.items())


def table(instructions: list[str], groups: np.ndarray, kinds: np.ndarray, rewards, advantages) -> Table:
    shown = Table("instruction", title="mean reward (mean advantage) by kind of command", box=SIMPLE, pad_edge=False)
    for kind in KINDS:
        shown.add_column(kind, justify="right")
    for group, instruction in enumerate(instructions):
        chosen = [(groups == group) & (kinds == kind) for kind in KINDS]
        shown.add_row(instruction, *(f"{rewards[k].mean():.2f} ({advantages[k].mean():+.2f})" for k in chosen))
    return shown


def close(reward_loop: RewardLoopManager, pool: ScorerPool) -> list[str]:
    """Ends verl's reward workers, and waits until the scorers have ended themselves; returns the actors left."""
    for worker in reward_loop.reward_loop_workers:
        worker.__ray_terminate__.remote()
    pool.close()
    deadline = time.monotonic() + 6 * LEASE
    while (left := ray.util.list_named_actors(all_namespaces=True)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return [actor["name"] for actor in left]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=6, help="instructions (default: %(default)s)")
    parser.add_argument(
        "--candidates", type=int, default=12, help="commands for each, at least 3 (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=2, help="verl's reward workers (default: %(default)s)")
    parser.add_argument("--replicas", type=int, default=1, help="JRM's scorers (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of scenes, commands and weights (default: %(default)s)")
    options = parser.parse_args()
    if options.candidates < len(KINDS):
        parser.error(f"a group needs a candidate of each kind: at least {len(KINDS)}")
    disable_progress_bars()
    transformers.logging.disable_progress_bar()
    # Ray counts CPUs as seats: each worker and scorer needs one, on a machine with fewer cores too.
    seats = options.workers + options.replicas + 1
    try:
        with tempfile.TemporaryDirectory() as folder:
            ray.init(num_cpus=seats, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
            run(options, Path(folder), Console())
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
