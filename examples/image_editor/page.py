"""What came of the runs: the table, the curves, the strips of pictures, one page of them, and CSV files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from examples.image_editor.data import Triples
from examples.image_editor.grpo import Run
from examples.image_editor.measure import Mean, mean_over_prompts, share, write_rows
from jrm_plugin.files import replacing, write_text

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SHOWN = 8  # prompts in the strips
MEASURES = ("success", "as_asked", "instruction_following", "visual_quality")  # columns of the table


@dataclass
class Arm:
    """The runs of one reward, and their pictures of the held-out prompts, by seed; `before` are the base's."""

    name: str
    before: np.ndarray
    runs: dict[int, Run] = field(default_factory=dict)
    pictures: dict[int, np.ndarray] = field(default_factory=dict)

    def values(self, what: str, when: int = -1, seeds: Sequence[int] | None = None) -> np.ndarray:
        """`[S, N]`: of each run and prompt, at the end (`when` -1) or before the first iteration (0)."""
        runs = self.runs.values() if seeds is None else [self.runs[seed] for seed in seeds]
        return np.array([_values(run.measured[when], what) for run in runs], dtype=float)


def _values(measured: dict[str, Any], what: str) -> list[float]:
    if what == "as_asked":
        return [float(score == 4) for score in measured["instruction_following"]]
    return measured[what]


# --- the table --------------------------------------------------------------------------------------------------------


def table(arms: Sequence[Arm]) -> list[dict[str, Any]]:
    """Rows of the table: the base, then each reward; gains are paired over prompts, means over seeds."""
    base = arms[0].values  # the runs of all rewards begin with one editor
    rows = [{"reward": "none", "seeds": ""} | {what: mean_over_prompts(base(what, 0)[:1]) for what in MEASURES}]
    baseline = next((arm for arm in arms if arm.name == "alpha-0"), None)
    for arm in arms:
        row: dict[str, Any] = {"reward": arm.name, "seeds": " ".join(map(str, arm.runs))}
        row |= {what: mean_over_prompts(arm.values(what)) for what in MEASURES}
        row["gain"] = mean_over_prompts(arm.values("success") - arm.values("success", 0))
        common = [seed for seed in arm.runs if baseline and seed in baseline.runs]
        if common and arm is not baseline:
            ends = (each.values("success", seeds=common) for each in (arm, baseline))
            row["over alpha-0"] = mean_over_prompts(np.subtract(*ends))
        rows.append(row)
    return rows


def write_results(folder: Path, arms: Sequence[Arm]) -> None:
    """`image-editor.csv`: all seeds together and each by itself; `image-editor-steps.csv`: every iteration."""
    rows = []
    kinds = sorted({*arms[0].runs[next(iter(arms[0].runs))].measured[0]["kind"]})

    def add(reward: str, seed: Any, what: str, mean: Mean, prompts: int) -> None:
        rows.append({"reward": reward, "seed": seed, "what": what, **_rounded(mean), "prompts": prompts})

    for row in table(arms):
        for what in (*MEASURES, "gain", "over alpha-0"):
            if what in row:
                add(row["reward"], row["seeds"], what, row[what], arms[0].values("success").shape[1])
    for arm in arms:
        for seed, run in arm.runs.items():
            for when, end in enumerate(("start", "end")):
                measured = run.measured[-when]
                kind_N = np.array(measured["kind"])
                for kind in ("", *kinds):
                    success_N = np.array(measured["success"])[(kind_N == kind) | (kind == "")]
                    add(arm.name, seed, f"success {kind}".strip() + f", {end}", share(success_N), len(success_N))
                add(arm.name, seed, f"reward, {end}", mean_over_prompts([measured["reward"]]), len(kind_N))
            for failure in sorted({*arm.runs[seed].measured[-1]["failure"]}):
                failed_N = np.array([name == failure for name in run.measured[-1]["failure"]])
                add(arm.name, seed, f"failure {failure}, end", share(failed_N), len(failed_N))
    write_rows(folder / "image-editor.csv", rows)
    steps = [
        {"reward": arm.name, "seed": seed, "iteration": number} | {name: f"{value:.5g}" for name, value in line.items()}
        for arm in arms
        for seed, run in arm.runs.items()
        for number, line in enumerate(run.iterations, 1)
    ]
    names = list(dict.fromkeys(name for step in steps for name in step))
    write_rows(folder / "image-editor-steps.csv", [{name: step.get(name) for name in names} for step in steps])


def _rounded(mean: Mean) -> dict[str, float]:
    return {name: round(value, 4) for name, value in mean._asdict().items()}


# --- pictures ---------------------------------------------------------------------------------------------------------


def draw_curves(arms: Sequence[Arm], path: Path) -> None:
    """Reward and oracle side by side: each run's own judge on its pictures, and what they are worth.

    Above, over the iterations; below, on the held-out prompts. A line a run, a colour a reward.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    for arm, colour in zip(arms, COLOURS, strict=False):
        for k, run in enumerate(arm.runs.values()):
            label = arm.name if k == 0 else None
            for row, column, name in ((0, 0, "reward"), (0, 1, "kl")):
                values = np.array([line[name] for line in run.iterations])
                window = min(5, len(values))
                means = np.convolve(values, np.ones(window) / window, mode="valid")
                axes[row, column].plot(np.arange(window, len(values) + 1), means, color=colour, label=label)
            at = [measured["iteration"] for measured in run.measured]
            for column, name in ((0, "reward"), (1, "success")):
                means = [np.mean(measured[name]) for measured in run.measured]
                axes[1, column].plot(at, means, marker="o", markersize=3, color=colour, label=label)
    titles = ("reward of training, mean of 5 iterations", "KL to the base, a number and step")
    titles += ("reward, held-out prompts", "success by the oracle, held-out prompts")
    for panel, title in zip(axes.flat, titles, strict=True):
        panel.set_title(title, fontsize=10)
        panel.grid(alpha=0.3)
    for panel in axes[1]:
        panel.set_xlabel("iteration")
    axes[0, 0].legend(fontsize=8)
    with replacing(path) as staging:
        figure.savefig(staging, dpi=100)


def draw_strips(arms: Sequence[Arm], prompts: Triples, path: Path) -> None:
    """Of some held-out prompts: the source, and what each editor makes of it, with what the oracle says."""
    from matplotlib.figure import Figure

    seed, first = next(iter(arms[0].runs.items()))
    before, after = first.measured[0], {arm.name: arm.runs[seed].measured[-1] for arm in arms if seed in arm.runs}
    # Prompts on which the editors differ come first, so that there is something to see.
    success = np.array([before["success"], *(measured["success"] for measured in after.values())])
    order = np.argsort(-success.std(axis=0), kind="stable")[:SHOWN]
    columns: list[tuple[str, np.ndarray, list[str]]] = [("source", prompts.source_NHWC, [""] * len(prompts))]
    columns.append(("before", arms[0].before, before["failure"]))
    columns += [(arm.name, arm.pictures[seed], after[arm.name]["failure"]) for arm in arms if seed in arm.runs]
    figure = Figure(figsize=(1.5 * len(columns), 1.75 * len(order)), layout="constrained")
    axes = figure.subplots(len(order), len(columns), squeeze=False)
    for line, row in zip(axes, order, strict=True):
        for place, (panel, (name, pictures, failures)) in enumerate(zip(line, columns, strict=True)):
            panel.imshow(pictures[row])
            panel.axis("off")
            says = (
                prompts.instructions[row] if place == 0 else failures[row].replace("_", " ").replace("none", "as asked")
            )
            panel.set_title(f"{name}\n{says}", fontsize=6)
    with replacing(path) as staging:
        figure.savefig(staging, dpi=100)


# --- the page ---------------------------------------------------------------------------------------------------------

STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:64em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse}td,th{padding:.25em .8em;border-bottom:1px solid #ccc;text-align:left}
img{max-width:100%}"""
HEADS = {
    "success": "success (oracle)",
    "as_asked": "as asked",
    "instruction_following": "instruction following, 1 to 4",
    "visual_quality": "visual quality, 1 to 4",
    "gain": "gain in success",
    "over alpha-0": "over alpha-0",
}


def write_page(folder: Path, arms: Sequence[Arm], prompts: Triples) -> None:
    """`page.html` with its pictures beside it; arms without a run are left out."""
    arms = [arm for arm in arms if arm.runs]
    draw_curves(arms, folder / "curves.png")
    draw_strips(arms, prompts, folder / "strips.png")
    heads = "".join(f"<th>{escape(head)}</th>" for head in ("reward of the RL run", "seeds", *HEADS.values()))
    lines = []
    for row in table(arms):
        cells = [row["reward"], row["seeds"], *(_cell(row.get(what)) for what in HEADS)]
        lines.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    write_text(
        folder / "page.html",
        f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>An image editor under Flow-GRPO</title>
<style>{STYLE}</style>
<h1>An image editor under Flow-GRPO</h1>
<p>{len(prompts)} held-out prompts ({escape(", ".join(sorted({*prompts.kinds})))}), the same noise for all editors.
Success: exactly what was asked and nothing else, in a flawless picture, by the oracle, which no reward but its own
learns from. 95 % intervals over prompts; a prompt counts with its mean over the seeds, and gains are paired.</p>
<table><tr>{heads}</tr>{"".join(lines)}</table>
<h2>Reward and oracle</h2><img src="curves.png" alt="curves of reward, KL and success">
<h2>Source, before, after</h2><img src="strips.png" alt="pictures of each editor">
</html>
""",
    )


def _cell(mean: Mean | None) -> str:
    return "" if mean is None else f"{mean.value:.3f} ({mean.low:.3f} to {mean.high:.3f})"
