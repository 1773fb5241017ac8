"""The editor pre-trained, then trained by Flow-GRPO with several rewards; the table, the curves and the page.

    python -m examples.image_editor --seed 0 1 2

Rewards: `jrm-tiny`, the two models of `jrm demo --compare` (alpha = 0.7 and the alpha = 0 baseline, of one recipe) and
an oracle as the ceiling. `--judge NAME=MODEL` names others: a folder, a hub name, the address of a reward server, or,
as `NAME=`, whatever the variables `JRM_MODEL`, `JRM_MODE` and so on say. Stopped at any point, the same command goes
on.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from examples.image_editor.editor import Editor
from examples.image_editor.grpo import Base, FlowGRPO, train, velocities
from examples.image_editor.measure import edit, heldout_prompts, measured
from examples.image_editor.page import Arm, write_page, write_results
from examples.image_editor.pretrain import Pretraining, pretrained
from examples.image_editor.reward import ORACLE, load_judge
from jrm_plugin.errors import JRMError
from jrm_plugin.extras import require
from jrm_plugin.files import check_writable
from jrm_plugin.runs import LOCK_FILE, locked


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/image-editor"), help="(default: %(default)s)")
    parser.add_argument("--demo", type=Path, default=Path("demo-output"), help="what `jrm demo --compare` wrote")
    parser.add_argument("--judge", nargs="+", metavar="NAME=MODEL", help="the rewards, in the table's order")
    parser.add_argument("--per-dimension", action="store_true", help="a reward for each dimension (GDPO)")
    parser.add_argument("--second-judge", help="a model that watches one of eight pictures and earns nothing")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="of the runs (default: 0)")
    parser.add_argument("--kinds", nargs="+", default=["recolour", "remove"], help="of edits (default: %(default)s)")
    parser.add_argument("--lora", type=int, metavar="RANK", help="train LoRA factors of this rank, not all weights")
    parser.add_argument("--learning-rate", type=float, default=FlowGRPO.learning_rate, help="(default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=FlowGRPO.iterations, help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=Pretraining.steps, help="of pre-training (default: %(default)s)")
    parser.add_argument("--heldout", type=int, default=200, help="held-out prompts (default: %(default)s)")
    parser.add_argument("--results", type=Path, help="folder for the tables as CSV (default: the output folder)")
    options = parser.parse_args(arguments)
    require("diffusers matplotlib", "The image editor", install="jrm-plugin[editor]")
    judges = _judges(options)
    check_writable(options.output)
    with locked(options.output / LOCK_FILE):
        base = pretrained(options.output, Pretraining(steps=options.steps))
        prompts = heldout_prompts(options.heldout, options.kinds)
        before = edit([base.velocity] * FlowGRPO.steps, prompts)
        arms = {name: Arm(name, before) for name in judges}
        for seed in options.seed:
            for name, model in judges.items():
                settings = FlowGRPO(
                    kinds=options.kinds,
                    iterations=options.iterations,
                    learning_rate=options.learning_rate,
                    lora=options.lora,
                    seed=seed,
                )
                run_arm(arms[name], model, base, settings, options, prompts)
                write_page(options.output, [*arms.values()], prompts)
        write_results(options.results or options.output, [*arms.values()])
    print(f"page.html and the tables are in {options.output}.")


def run_arm(
    arm: Arm, model: str | None, base: Editor, settings: FlowGRPO, options: argparse.Namespace, prompts: Any
) -> None:
    """One run of one reward, added to its arm."""
    judging: dict[str, Any] = {} if model == ORACLE else {"device": "cpu"}
    if options.per_dimension:
        judging["dimensions"] = "all"
    if options.second_judge:
        judging["second_judge"] = options.second_judge
    judge = load_judge(model, **judging)

    def measure(iteration: int, policy: Editor, base: Base) -> dict[str, Any]:
        return measured(judge, prompts, edit(velocities(policy, base, settings), prompts))

    file = options.output / f"{arm.name}-seed-{settings.seed}.pt"
    run = train(base, judge, file, settings, named=model or "JRM_MODEL", measure=measure)
    arm.runs[settings.seed] = run
    arm.pictures[settings.seed] = edit(velocities(run.editor, run.base, settings), prompts)
    start, end = (sum(run.measured[when]["success"]) / len(prompts) for when in (0, -1))
    print(f"seed {settings.seed}, {arm.name}: success {start:.3f} to {end:.3f}", flush=True)


def _judges(options: argparse.Namespace) -> dict[str, str | None]:
    """The rewards by name."""
    if options.judge:
        pairs = [judge.split("=", 1) for judge in options.judge]
        if wrong := next((pair[0] for pair in pairs if len(pair) < 2), None):
            raise JRMError(f"--judge takes NAME=MODEL, not {wrong!r}.")
        return {name: model or None for name, model in pairs}
    demo = {"alpha-0": options.demo / "baseline", "alpha-0.7": options.demo / "model"}
    for folder in demo.values():
        if not (folder / "config.json").exists():
            raise JRMError(
                f"{folder} is no model: make it with jrm demo --compare --output {options.demo}, or name the rewards "
                "with --judge, such as --judge jrm-tiny=jrm-tiny oracle=oracle."
            )
    models = {
        "jrm-tiny": "jrm-tiny",
        "alpha-0": str(demo["alpha-0"]),
        ORACLE: ORACLE,
        "alpha-0.7": str(demo["alpha-0.7"]),
    }
    return models


if __name__ == "__main__":
    torch.set_num_threads(1)  # so that figures do not depend on the number of cores
    torch.set_flush_denormal(True)  # tiny optimizer states slow a CPU down several times
    try:
        main()
    except JRMError as error:
        raise SystemExit(f"jrm: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("jrm: stopped; the same command goes on from what is in the output folder.") from None
