"""What share of an iteration of `examples/image_editor` is the judge, in FLOPs and in seconds, with both engines.

    python -m benchmarks.editor_cost

One iteration of the table's runs: 96 pictures sampled in 10 steps, judged, and 64 of them trained on in 4 steps each.
FLOPs are torch's count, attention computed by matrix products, which is how they are counted. Seconds are the process's
own, over all threads, medians of several calls after one that is not timed.
"""

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import device_description, versions, write_csv
from examples.image_editor.data import draw_triples
from examples.image_editor.grpo import FlowGRPO, advantages, sample_groups, update
from examples.image_editor.pretrain import Pretraining, pretrained
from examples.image_editor.reward import judge_pictures, load_judge
from examples.image_editor.sampler import times
from jrm_plugin.scoring.scorer import RewardScorer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/image-editor"), help="with the pre-trained editor")
    parser.add_argument("--steps", type=int, default=Pretraining.steps, help="of its pre-training")
    parser.add_argument("--model", default="jrm-tiny", help="the judge (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls (default: %(default)s)")
    parser.add_argument("--csv", type=Path, default=Path(__file__).parent / "results" / "image-editor-cost.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    editor = pretrained(options.output, Pretraining(steps=options.steps))
    settings, t = FlowGRPO(), times(FlowGRPO.steps)
    base, policy = copy.deepcopy(editor).requires_grad_(False), copy.deepcopy(editor)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=settings.learning_rate)
    pool = draw_triples(50, 0, heldout=False, right=1.0, blurred=0.0, kinds=settings.kinds)
    rollouts = sample_groups(0, policy, base, pool, t, settings)
    prompts, pictures = rollouts.prompts, rollouts.pictures_BHWC

    def reward(engine: str) -> Callable[[], object]:
        def judge():  # anew, so that nothing is remembered from the call before
            scorer = RewardScorer.from_pretrained(options.model, device="cpu", engine=engine)
            loaded = load_judge(scorer)
            return lambda: judge_pictures(loaded, prompts.source_NHWC, prompts.instructions, pictures)

        return judge

    judged = reward("shared_prefix")()()
    advantages_PG = advantages(judged.rewards, settings.group)
    parts: dict[str, Callable[[], Callable[[], object]]] = {
        "editor, sampling": lambda: lambda: sample_groups(0, policy, base, pool, t, settings),
        "editor, training": lambda: lambda: update(policy, base, optimizer, rollouts, advantages_PG, t, settings),
        "reward, shared prefix": reward("shared_prefix"),
        "reward, plain": reward("plain"),
    }
    rows = [{"part": part} | measured(prepare, options.repeats) for part, prepare in parts.items()]
    editors = {name: sum(row[name] for row in rows[:2]) for name in ("gflops", "seconds")}
    for row in rows:
        is_reward = row["part"].startswith("reward")
        for name in ("gflops", "seconds"):  # of an iteration with this judge
            row[f"share_of_{name}"] = round(row[name] / (editors[name] + row[name]), 4) if is_reward else None
        print({name: value for name, value in row.items() if value is not None}, flush=True)
    made_by = {"device": device_description()} | versions()
    write_csv(options.csv, [row | made_by for row in rows])


def measured(prepare: Callable[[], Callable[[], object]], repeats: int) -> dict[str, float]:
    """GFLOPs and median seconds of what `prepare` gives; preparing is not measured."""
    call = prepare()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    prepare()()
    seconds = []
    for _ in range(repeats):
        call = prepare()
        started = time.process_time()
        call()
        seconds.append(time.process_time() - started)
    return {"gflops": round(counter.get_total_flops() / 1e9, 3), "seconds": round(float(np.median(seconds)), 4)}


if __name__ == "__main__":
    main()
