"""A hole in the reward, seen and mended: rounds of reinforcement learning and of training the reward model anew.

    python -m examples.image_editor.hacking --rounds 2 --seed 0

With all four kinds of edits and nothing that holds the editor to its base, it finds what `jrm-tiny` has never seen and
pays for. A round does what a user would do:

1. The editor is trained from the same base with the round's judge. Guards watch; the oracle is never learned from.
2. Pictures of the last iterations are labelled. The oracle stands for the annotators.
3. `jrm train` goes on from the judge on pairs of these pictures, beside pairs of ShapeEdits so that nothing is
   forgotten: the judge of the next round.

The last round, "taught", is for one who knows the hole and can draw it: its judge goes on from `jrm-tiny` on ShapeEdits
in which candidates fail by `several_copies` too.

Stopped at any point, the same command goes on.
"""

import argparse
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from examples.image_editor.data import Triples
from examples.image_editor.editor import Editor
from examples.image_editor.grpo import Base, FlowGRPO, Run, train, velocities
from examples.image_editor.measure import Mean, edit, heldout_prompts, mean_over_prompts, measured, share, write_rows
from examples.image_editor.pretrain import Pretraining, pretrained
from examples.image_editor.reward import load_judge
from jrm_plugin import PreferencePair, RewardScorer, Sample
from jrm_plugin.data.editreward import read_edit_reward, write_edit_reward
from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation.calibration import ScoredPair, fit, report
from jrm_plugin.evaluation.pairs import evaluate_pairs, summarize
from jrm_plugin.extras import require
from jrm_plugin.files import check_writable, new_folder, read_json, replacing, write_image, write_json
from jrm_plugin.model.calibration_file import write_calibration
from jrm_plugin.model.checkpoint import CALIBRATION_FILE, built_in_folder
from jrm_plugin.records.samples import DIMENSIONS
from jrm_plugin.runs import LOCK_FILE, locked
from jrm_plugin.synthetic.preferences import FAILURE_SCORES, FAILURE_WEIGHTS
from jrm_plugin.synthetic.shape_edits import KINDS, SHAPE_EDITS
from jrm_plugin.synthetic.shape_reader import judge_generated

CONFIG = Path(__file__).with_name("mend.yaml")
COLLECTED = 10  # the last iterations, whose pictures are labelled
PAIRS = 4  # of each group, at most
TAUGHT = "taught"  # the last round
COPIES = FAILURE_WEIGHTS | {"several_copies": 0.36}  # as often as no failure
GUARDS = ("unedited", "overall/undecided_groups", "overall/sigma", "overall/sigma_above")
GUARDS += ("second_judge/mu", "second_judge/first_mu")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/image-editor"), help="with the pre-trained editor")
    parser.add_argument("--rounds", type=int, default=2, help="of mending (default: %(default)s)")
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--beta", type=float, default=0.0, help="of the KL (default: %(default)s)")
    parser.add_argument("--iterations", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=Pretraining.steps, help="of pre-training (default: %(default)s)")
    parser.add_argument("--heldout", type=int, default=200, help="held-out prompts (default: %(default)s)")
    parser.add_argument("--second-judge", help="a model that watches and earns nothing")
    parser.add_argument("--mending-steps", type=int, default=200, help="of `jrm train` (default: %(default)s)")
    parser.add_argument("--results", type=Path, help="folder for the tables as CSV (default: the output folder)")
    options = parser.parse_args(arguments)
    require("diffusers trl datasets matplotlib", "The rounds", install="jrm-plugin[editor]")
    check_writable(options.output)
    with locked(options.output / LOCK_FILE):
        base = pretrained(options.output, Pretraining(steps=options.steps))
        prompts = heldout_prompts(options.heldout, KINDS)
        shapes, copies = (options.output / name for name in ("shape-edits", "shape-edits-with-copies"))
        if not (shapes / "meta.json").exists():
            SHAPE_EDITS.write(shapes, train=1500, heldout=400, language=0, seed=7)
        if not (copies / "meta.json").exists():
            SHAPE_EDITS.write(copies, train=3000, heldout=0, language=0, seed=8, failures=COPIES)
        rounds: dict[tuple[int, str], Round] = {}
        for seed in options.seed:
            seeds_folder = options.output / f"hacking-seed-{seed}"
            judge = None
            for number in [*map(str, range(options.rounds + 1)), TAUGHT]:
                folder = seeds_folder / f"round-{number}"
                if judge is None:
                    before, sets = None, []
                elif number == TAUGHT:
                    before, sets = seeds_folder / "round-0" / "judge", [copies / "train.json"]
                else:
                    before, sets = judge, [labelled_pairs(judge.parent), shapes / "train.json"]
                judge = judge_of_round(folder, before, sets, shapes / "heldout.json", options.mending_steps)
                accuracy = read_json(folder / "accuracy.json")
                settings = FlowGRPO(
                    kinds=KINDS, beta=options.beta, frozen_late=False, iterations=options.iterations, seed=seed
                )
                run = run_round(folder, judge, base, prompts, settings, options.second_judge)
                rounds[seed, number] = Round(run, accuracy)
                rounds[seed, number].say(seed, number)
                write_rounds(options.results or options.output, rounds)
                draw_rounds(rounds, options.output / "hacking.png")
    print(f"hacking.png and the tables are in {options.output}.")


# --- 1. the editor learns what the judge likes ------------------------------------------------------------------------


@dataclass
class Round:
    """A round's run, and the accuracy of its judge on held-out pairs of ShapeEdits."""

    run: Run
    accuracy: dict[str, Any]

    def say(self, seed: int, number: str) -> None:
        for each in self.run.measured:
            means = ", ".join(f"{name} {np.mean(each[name]):.3f}" for name in ("reward", "sigma", "success"))
            where = f"seed {seed}, round {number}, iteration {each['iteration']}"
            print(f"{where}: {means}, {dict(Counter(each['failure']))}", flush=True)


def run_round(folder: Path, model: Path, base: Editor, prompts: Triples, settings: FlowGRPO, second: str | None) -> Run:
    judging = {"second_judge": second, "second_judge_every": 4} if second else {}
    judge = load_judge(str(model), device="cpu", **judging)

    def measure(iteration: int, policy: Editor, base: Base) -> dict[str, Any]:
        return measured(judge, prompts, edit(velocities(policy, base, settings), prompts))

    def collect(iteration: int, prompts: Triples, pictures: np.ndarray) -> None:
        if iteration >= settings.iterations - COLLECTED:
            path = folder / "collected" / f"{iteration:04d}.npz"
            path.parent.mkdir(exist_ok=True)
            with replacing(path) as staging:
                np.savez_compressed(
                    staging, sources=prompts.source_NHWC, instructions=prompts.instructions, pictures=pictures
                )

    return train(
        base,
        judge,
        folder / "run.pt",
        settings,
        named=f"judge of {folder.name}",
        measure=measure,
        measure_every=5,
        collect=collect,
    )


# --- 2. its pictures are labelled -------------------------------------------------------------------------------------


def labelled_pairs(folder: Path) -> Path:
    """Pairs of the collected pictures that the oracle tells apart, in EditReward's form; of a group the surest ones."""
    data = folder / "pairs"
    if (data / "train.json").exists():
        return data / "train.json"
    with new_folder(data) as staging:
        pairs = []
        for file in sorted((folder / "collected").glob("*.npz")):
            with np.load(file) as kept:
                groups: dict[tuple[bytes, str], list[int]] = {}
                for row, (source, instruction) in enumerate(zip(kept["sources"], kept["instructions"], strict=True)):
                    groups.setdefault((source.tobytes(), str(instruction)), []).append(row)
                sources, pictures = kept["sources"], kept["pictures"]
            for number, ((_, instruction), rows) in enumerate(groups.items()):
                name = f"{file.stem}-{number}"
                pairs += _pairs_of(staging, name, sources[rows[0]], instruction, pictures[rows])
        write_edit_reward(staging / "train.json", pairs)
    return data / "train.json"


def _pairs_of(
    folder: Path, name: str, source: np.ndarray, instruction: str, pictures: np.ndarray
) -> list[PreferencePair]:
    judged = [judge_generated(source, instruction, picture) for picture in pictures]
    worth = np.array([edit.instruction_following + edit.visual_quality for edit in judged])
    order = np.argsort(-worth, kind="stable")
    pairs = [(order[k], order[-1 - k]) for k in range(min(PAIRS, len(order) // 2))]

    def image(suffix: str, picture: np.ndarray) -> str:
        return str(write_image(folder / f"{name}-{suffix}.png", Image.fromarray(picture)))

    def scores(row: int) -> dict[str, int]:
        return dict(zip(DIMENSIONS, (judged[row].instruction_following, judged[row].visual_quality), strict=True))

    before = image("source", source)
    return [
        PreferencePair(
            Sample.edit(before, instruction, image(str(better), pictures[better])),
            Sample.edit(before, instruction, image(str(worse), pictures[worse])),
            labels={"overall": 1},
            chosen_scores=scores(better),
            rejected_scores=scores(worse),
        )
        for better, worse in pairs
        if worth[better] > worth[worse]
    ]


# --- 3. the judge learns what it did not know -------------------------------------------------------------------------


def judge_of_round(folder: Path, before: Path | None, sets: list[Path], heldout: Path, steps: int) -> Path:
    """The round's judge, calibrated: `jrm-tiny`, or the judge `before` trained on equal parts of some sets."""
    judge = folder / "judge"
    if (judge / CALIBRATION_FILE).exists():
        return judge
    folder.mkdir(parents=True, exist_ok=True)
    if before is None:
        shutil.copytree(built_in_folder("jrm-tiny"), judge, dirs_exist_ok=True)
    elif not (judge / "trainer_state.json").exists():
        _go_on_training(before, sets, judge, steps)
    pairs = read_edit_reward(heldout, progress=False).examples
    results = evaluate_pairs(RewardScorer.from_pretrained(judge, device="cpu"), pairs)
    scored = [
        ScoredPair(pair.chosen.prompt_key(), pair.labels, result.chosen, result.rejected)
        for pair, result in zip(pairs, results, strict=True)
    ]
    half = len(scored) // 2
    calibration = fit(scored[:half])
    write_json(folder / "accuracy.json", summarize(results)["accuracy"])
    write_calibration(judge, calibration, report(calibration, scored[half:], resamples=50))
    return judge


def _go_on_training(model: Path, sets: list[Path], output: Path, steps: int) -> None:
    from jrm_plugin.integrations.trl.training import parse
    from jrm_plugin.integrations.trl.training import train as jrm_train

    config = output.parent / "train.yaml"
    data = "train_data:\n" + "".join(f"  {path.resolve()}: 1\n" for path in sets)
    config.write_text(CONFIG.read_text() + f"model: {model}\noutput_dir: {output}\n" + data)
    if jrm_train(*parse(config, ["--max_steps", str(steps)])) is None:
        raise KeyboardInterrupt


# --- what came of it --------------------------------------------------------------------------------------------------


def write_rounds(folder: Path, rounds: dict[tuple[int, str], Round]) -> None:
    """`image-editor-rounds.csv`: held-out prompts; `image-editor-rounds-steps.csv`: every iteration and its guards.

    The first rows are of the last iterations over all seeds, by themselves and less those of round 0.
    """
    rows, steps = [], []

    def add(seed: Any, number: str, iteration: int | str, what: str, mean: Mean) -> None:
        values = {name: round(value, 4) for name, value in mean._asdict().items()}
        rows.append({"seed": seed, "round": number, "iteration": iteration, "what": what} | values)

    for number in dict.fromkeys(number for _, number in rounds):
        seeds = [seed for seed, of in rounds if of == number]
        last = [rounds[seed, number].run.measured[-1] for seed in seeds]
        first = [rounds[seed, "0"].run.measured[-1] for seed in seeds]
        for what, of in (
            ("success", lambda each: np.array(each["success"])),
            ("failure, several_copies", lambda each: np.array(each["failure"]) == "several_copies"),
        ):
            ends_SN, zeros_SN = (np.array([of(each) for each in ends], dtype=float) for ends in (last, first))
            where = " ".join(map(str, seeds)), number, last[0]["iteration"]
            add(*where, what, mean_over_prompts(ends_SN))
            add(*where, f"{what}, less round 0's", mean_over_prompts(np.subtract(ends_SN, zeros_SN)))
    for (seed, number), this in rounds.items():
        for name, accuracy in this.accuracy.items():
            mean = Mean(accuracy["value"], accuracy["low"], accuracy["high"])
            add(seed, number, "", f"the judge's accuracy on ShapeEdits, {name}", mean)
        for each in this.run.measured:
            failures, kinds, iteration = np.array(each["failure"]), np.array(each["kind"]), each["iteration"]
            for name in ("reward", "sigma", "instruction_following", "visual_quality"):
                add(seed, number, iteration, name, mean_over_prompts([each[name]]))
            add(seed, number, iteration, "success", share(each["success"]))
            for kind in sorted({*each["kind"]}):
                success_N = np.array(each["success"])[kinds == kind]
                add(seed, number, iteration, f"success, {kind}", share(success_N))
            for failure in FAILURE_SCORES:
                add(seed, number, iteration, f"failure, {failure}", share(failures == failure))
        for iteration, line in enumerate(this.run.iterations, 1):
            kept = {name: f"{line[name]:.5g}" if name in line else None for name in ("reward", "kl", *GUARDS)}
            steps.append({"seed": seed, "round": number, "iteration": iteration} | kept)
    write_rows(folder / "image-editor-rounds.csv", rows)
    write_rows(folder / "image-editor-rounds-steps.csv", steps)


def draw_rounds(rounds: dict[tuple[int, str], Round], path: Path) -> None:
    """Reward, oracle and sigma by round, one round beside the other; a line a seed."""
    from matplotlib.figure import Figure

    numbers = sorted({number for _, number in rounds}, key=lambda number: (number == TAUGHT, len(number), number))
    names = {
        "reward": ("reward of the round's judge", "#0072B2"),
        "success": ("success by the oracle", "#D55E00"),
        "several_copies": ("share with several copies", "#CC79A7"),
        "sigma": ("sigma of the round's judge", "#009E73"),
    }
    figure = Figure(figsize=(3 * len(numbers) + 1, 8), layout="constrained")
    axes = figure.subplots(len(names), len(numbers), sharex=True, sharey="row", squeeze=False)
    for (_, number), this in rounds.items():
        at = [measured["iteration"] for measured in this.run.measured]
        for line, (name, (title, colour)) in zip(axes, names.items(), strict=True):
            panel = line[numbers.index(number)]
            values = [m[name] if name in m else np.array(m["failure"]) == name for m in this.run.measured]
            panel.plot(at, [np.mean(value) for value in values], marker="o", markersize=3, color=colour)
            panel.grid(alpha=0.3)
            if panel is line[0]:
                panel.set_ylabel(title, fontsize=8)
    for panel, number in zip(axes[0], numbers, strict=True):
        titles = {"0": "jrm-tiny", TAUGHT: "jrm-tiny, taught copies"}
        panel.set_title(titles.get(number, f"after mending {number}"), fontsize=10)
    for panel in axes[-1]:
        panel.set_xlabel("iteration")
    with replacing(path) as staging:
        figure.savefig(staging, dpi=100)


if __name__ == "__main__":
    torch.set_num_threads(1)  # so that figures do not depend on the number of cores
    torch.set_flush_denormal(True)  # tiny optimizer states slow a CPU down several times
    try:
        main()
    except JRMError as error:
        raise SystemExit(f"jrm: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("jrm: stopped; the same command goes on from what is in the output folder.") from None
