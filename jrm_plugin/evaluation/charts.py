"""The charts of a report. Each function draws one figure in the colours of a theme; matplotlib is loaded on first use.

Colours are Okabe & Ito's, told apart by colour-blind readers; `overall` has the colour of the text.
"""

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation.drawing import enlarged
from jrm_plugin.records.samples import OVERALL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches, 100 CSS pixels each: two or three charts fill a report's width, one a phone's.
WIDE, NARROW = 4.4, 3.7


@dataclass(frozen=True)
class Theme:
    """Colours of paper and ink; `series` are those of the dimensions, in order, and of compared models."""

    paper: str
    ink: str
    muted: str
    grid: str
    series: tuple[str, ...]


LIGHT = Theme("#ffffff", "#1d2329", "#5f6871", "#e3e6e9", ("#0072B2", "#D55E00", "#009E73", "#CC79A7"))
DARK = Theme("#1b1f24", "#e8eaed", "#a3abb3", "#343a41", ("#56B4E9", "#F08A4B", "#2BC59A", "#E29BC4"))


def words(name: str) -> str:
    """A name of the code as words: `visual_quality` becomes `visual quality`."""
    return name.replace("_", " ")


def signed(value: float) -> str:
    """Two digits, with a true minus sign."""
    return f"{value:.2f}".replace("-", "−")


def dimension_colour(theme: Theme, dimensions: list[str], name: str) -> str:
    if name == OVERALL:
        return theme.ink
    return theme.series[[other for other in dimensions if other != OVERALL].index(name) % len(theme.series)]


def png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, facecolor=figure.get_facecolor())
    return buffer.getvalue()


# --- training ---------------------------------------------------------------------------------------------------------


def series_of(log: list[dict], key: str) -> dict[str, list[tuple[float, float]]]:
    """The points (step, value) of `key` in a trainer's log history: `"training"` and one series per evaluation set."""
    pattern = re.compile(rf"eval_(?:(.+)_)?{re.escape(key)}")
    series: dict[str, list[tuple[float, float]]] = {}
    for row in log:
        for name, value in row.items():
            match = pattern.fullmatch(name)
            if name == key or match:
                label = "training" if name == key else words(match[1] or "evaluation")
                series.setdefault(label, []).append((row["step"], value))
    return series


def training_curve(
    theme: Theme, stages: list[dict], key: str, label: str, coin: float | None = None, arms: list[dict] = ()
) -> "Figure":
    """One quantity over the steps of the stages that log it, set one after another.

    Args:
        stages: dicts with `name` and `log`, a trainer's log history.
        key: of the log, for example `rank_loss`; accuracies are shown in percent.
        label: of the axis.
        coin: what a coin would reach, drawn as a dashed line.
        arms: `name` and `log` of the models compared in the last stage: the first is the one in `stages`, the second is
            drawn beside it in another colour.
    """
    figure, axes = _figure(theme, 3.5, width=NARROW)
    scale = 100 if key.startswith("accuracy/") else 1
    stages = [stage for stage in stages if series_of(stage["log"], key)]
    start = last_start = 0
    for stage in stages:
        _draw_series(axes, series_of(stage["log"], key), start, scale, theme.series[0], arms[0]["name"] if arms else "")
        last_start, start = start, start + max(row["step"] for row in stage["log"])
        if last_start:
            axes.axvline(last_start, color=theme.muted, linewidth=0.8, linestyle=(0, (1, 2)))
        above = dict(xycoords=("data", "axes fraction"), xytext=(0, 4), textcoords="offset points")
        middle = ((last_start + start) / 2, 1)
        axes.annotate(stage["name"], middle, **above, ha="center", color=theme.muted, fontsize=8)
    for arm in arms[1:]:
        _draw_series(axes, series_of(arm["log"], key), last_start, scale, theme.series[1], arm["name"])
    if coin is not None:
        axes.axhline(scale * coin, color=theme.muted, linewidth=0.9, linestyle=(0, (4, 3)), label="a coin")
    axes.set_xlim(0, start)
    axes.set_ylim(*((None, 100) if scale == 100 else (0, None)))
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(label)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8, labelcolor=theme.ink)
    return figure


def has_curve(log: list[dict]) -> bool:
    """Whether a trainer's log history has a quantity at two steps at least."""
    return any(len(points) > 1 for key in _curves_in(log) for points in series_of(log, key).values())


def _curves_in(log: list[dict]) -> list[str]:
    """The losses, and the accuracies, that of all dimensions first."""
    logged = dict.fromkeys(re.sub(r"^eval_(.+_)?(?=accuracy/)", "", name) for row in log for name in row)
    accuracies = sorted((k for k in logged if k.startswith("accuracy/")), key=lambda k: (k != f"accuracy/{OVERALL}", k))
    return [key for key in ("rank_loss", "critique_loss", *accuracies) if series_of(log, key)]


def training_curves(theme: Theme, log: list[dict]) -> "Figure":
    """All that a training run logs of how well it learns, over its steps: a chart a quantity, a colour a data set.

    Args:
        log: a trainer's log history, in which `has_curve`.
    """
    keys = _curves_in(log)
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    size = {"rows": rows, "columns": columns, "width": NARROW * columns, "squeeze": False}
    figure, grid = _figure(theme, 0.3 + 2.6 * rows, **size)
    sets = list(dict.fromkeys(name for key in keys for name in series_of(log, key)))
    for axes, key in zip(grid.flat, keys, strict=False):
        scale = 100 if key.startswith("accuracy/") else 1
        for name, points in series_of(log, key).items():
            _draw_series(axes, {name: points}, 0, scale, theme.series[sets.index(name) % len(theme.series)], "")
        if scale == 100:
            axes.axhline(50, color=theme.muted, linewidth=0.9, linestyle=(0, (4, 3)), label="a coin")
            axes.set_ylim(0, 100)
        title = f"accuracy (%), {words(key.partition('/')[2])}" if scale == 100 else words(key)
        axes.set_title(title, loc="left", fontsize=9, color=theme.ink)
        axes.set_xlabel("optimizer step")
        axes.legend(frameon=False, fontsize=7.5, labelcolor=theme.ink)
    for axes in list(grid.flat)[len(keys) :]:
        axes.set_visible(False)
    return figure


def _draw_series(axes: "Axes", series: dict, start: float, scale: float, colour: str, prefix: str):
    for name, points in series.items():
        steps, values = [start + step for step, _ in points], [scale * value for _, value in points]
        label = f"{prefix}, {name}" if prefix else name
        if label in axes.get_legend_handles_labels()[1]:
            label = "_" + label  # the same series in a later stage
        if name == "training":
            axes.plot(steps, values, color=colour, linewidth=1.2, alpha=0.55, label=label)
        else:
            axes.plot(steps, values, color=colour, linewidth=1.6, marker="o", markersize=3.5, label=label)


# --- accuracy and calibration -----------------------------------------------------------------------------------------


def accuracy_bars(theme: Theme, dimensions: list[str], groups: dict[str, dict[str, dict]]) -> "Figure":
    """Accuracy with its interval and n: one block per group, one bar per dimension.

    `groups` maps a name to `dimension -> metrics.pairwise_accuracy`; bars without any pair are left out.
    """
    rows, ticks, position = [], [], 0.0
    for group, accuracy in groups.items():
        shown = [(name, accuracy[name]) for name in dimensions if name in accuracy and accuracy[name]["n"]]
        rows += [(position + k, name, share) for k, (name, share) in enumerate(shown)]
        ticks.append((position + (len(shown) - 1) / 2, words(group)))
        position += len(shown) + 0.7
    legend = len(rows) > len(groups)
    figure, axes = _figure(theme, 0.95 + 0.185 * position + 0.25 * legend)
    named: set[str] = set()
    for y, name, share in rows:
        colour = dimension_colour(theme, dimensions, name)
        label = words(name) if name not in named else None
        named.add(name)
        axes.barh(y, 100 * share["value"], height=0.72, color=colour, alpha=0.45, linewidth=0, label=label)
        axes.plot([100 * share["low"], 100 * share["high"]], [y, y], color=colour, linewidth=1.6)
        axes.plot(100 * share["value"], y, marker="o", markersize=3.2, color=colour, clip_on=False)
        axes.annotate(
            f"n = {share['n']}",
            (1, y),
            xycoords=("axes fraction", "data"),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            color=theme.muted,
        )
    axes.axvline(50, color=theme.muted, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set_xlim(0, 100)
    axes.set_ylim(position - 0.4, -0.8)
    axes.set_yticks([y for y, _ in ticks], [name for _, name in ticks])
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.set_xlabel("accuracy (%), with 95 % interval; dashed: a coin")
    if legend:
        figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8, labelcolor=theme.ink)
    return figure


def calibration_plot(theme: Theme, dimensions: list[str], name: str, calibration: dict) -> "Figure":
    """Predicted P of the favoured candidate against how often its label agrees, with the number of pairs below."""
    figure, (axes, counts) = _figure(theme, 3.9, width=NARROW, rows=2, height_ratios=(4, 1), sharex=True)
    colour = dimension_colour(theme, dimensions, name)
    axes.plot([50, 100], [50, 100], color=theme.muted, linewidth=0.9, linestyle=(0, (4, 3)))
    for bin in calibration["bins"]:
        if bin["n"]:
            x = 100 * bin["predicted"]
            axes.plot([x, x], [100 * bin["observed_low"], 100 * bin["observed_high"]], color=colour, linewidth=1.4)
            axes.plot(x, 100 * bin["observed"], marker="o", markersize=5, color=colour, clip_on=False)
    axes.set_ylim(-3, 103)
    axes.set_yticks([0, 25, 50, 75, 100])
    axes.set_ylabel("label agrees (%)")
    axes.set_title(words(name), loc="left", color=theme.ink, fontsize=10)
    for bin in calibration["bins"]:
        width = 100 * (bin["high"] - bin["low"])
        counts.bar(100 * bin["low"] + width / 2, bin["n"], width=0.86 * width, color=colour, alpha=0.45, linewidth=0)
    counts.set_ylabel("pairs")
    counts.set_xlim(50, 100.5)
    counts.set_xlabel("predicted P of the favourite (%)")
    figure.align_ylabels()
    return figure


def risk_coverage_plot(theme: Theme, title: str, curves: dict[str, dict]) -> "Figure":
    """The error among the share of pairs that a judge is surest of; dashed, what knowing nothing of it would give.

    `curves` maps the name of an uncertainty to `agreement.risk_coverage`.
    """
    figure, axes = _figure(theme, 3.1, width=NARROW)
    for k, (name, curve) in enumerate(curves.items()):
        coverage, risk = ([100 * value for value in curve[key]] for key in ("coverage", "risk"))
        label = f"by {words(name)}: area {100 * curve['area']:.1f}"
        axes.plot(coverage, risk, color=theme.series[k % len(theme.series)], linewidth=1.6, label=label)
    curve = next(iter(curves.values()))
    label = f"at random: {100 * curve['area_random']:.1f}"
    axes.axhline(100 * curve["area_random"], color=theme.muted, linewidth=0.9, linestyle=(0, (4, 3)), label=label)
    axes.set_xlim(0, 100)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("pairs kept, the surest first (%)")
    axes.set_ylabel("wrong among them (%)")
    axes.set_title(title, loc="left", fontsize=10, color=theme.ink)
    axes.legend(frameon=False, fontsize=8, labelcolor=theme.ink)
    return figure


# --- representation ---------------------------------------------------------------------------------------------------


def spectrum_plot(theme: Theme, ranks: dict[str, dict], kind: str) -> "Figure":
    """Singular values as shares of their sum, of one or more models; `kind` is `raw` or `centred`."""
    figure, axes = _figure(theme, 3.1)
    for k, (name, rank) in enumerate(ranks.items()):
        values = [value for value in rank[kind]["singular_values"] if value > 1e-9]  # others are rounding
        colour = theme.series[k % len(theme.series)]
        label = f"{name}: effective rank {rank[kind]['effective_rank']['value']:.1f}"
        axes.plot(range(1, len(values) + 1), values, color=colour, linewidth=1.8, label=label)
    axes.set_yscale("log")
    axes.set_xlim(left=1)
    axes.set_xlabel("singular value, by size")
    axes.set_ylabel("share of their sum")
    axes.set_title("mean subtracted" if kind == "centred" else "as they are", loc="left", fontsize=10, color=theme.ink)
    axes.legend(frameon=False, fontsize=8, labelcolor=theme.ink)
    return figure


def measures_plot(theme: Theme, models: dict[str, dict], kind: str, measures: list[str]) -> "Figure":
    """Measures of models' spectra as bars, each measure on a scale of its own, with 95 % intervals."""
    figure, all_axes = _figure(theme, 3.1, columns=len(measures), squeeze=False)
    for axes, measure in zip(all_axes[0], measures, strict=True):
        for k, (name, model) in enumerate(models.items()):
            found, colour = model[kind][measure], theme.series[k % len(theme.series)]
            axes.bar(k, found["value"], width=0.72, color=colour, alpha=0.45, linewidth=0, label=name)
            axes.plot([k, k], [found["low"], found["high"]], color=colour, linewidth=1.6)
            text = f"{found['value']:.3g}"
            above = dict(xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8, color=theme.ink)
            axes.annotate(text, (k, max(found["high"], found["value"])), **above)
        axes.set_title(words(measure), loc="left", fontsize=9, color=theme.ink)
        axes.set_xticks([])
        axes.grid(False, axis="x")
        axes.margins(y=0.12)
        axes.set_ylim(bottom=0)
    handles, labels = all_axes[0, 0].get_legend_handles_labels()
    below = dict(loc="outside lower center", ncols=2, frameon=False, fontsize=8, labelcolor=theme.ink)
    figure.legend(handles, labels, **below)
    return figure


def projection_plot(theme: Theme, models: dict[str, dict]) -> "Figure":
    """Hidden states along three principal components, of one or more models, turned onto the first one's."""
    figure, axes = _figure(theme, 3.6, subplot_kw={"projection": "3d"})
    for k, (name, model) in enumerate(models.items()):
        points = list(zip(*model["projection"]["points"], strict=True))
        colour = theme.series[k % len(theme.series)]
        axes.scatter(*points, s=7, color=colour, alpha=0.5, linewidth=0, depthshade=False, label=name)
    for axis, label in ((axes.xaxis, "1"), (axes.yaxis, "2"), (axes.zaxis, "3")):
        axis.set_pane_color(theme.paper)
        axis.line.set_color(theme.grid)
        axis.set_tick_params(colors=theme.muted, labelcolor=theme.ink, labelsize=7, pad=-2)
        axis.set_label_text(f"component {label}", color=theme.ink, fontsize=8)
        axis._axinfo["grid"].update(color=theme.grid, linewidth=0.6)
        axis.get_major_locator().set_params(nbins=5)
    axes.set_aspect("equal")
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8, labelcolor=theme.ink, markerscale=2.5)
    return figure


def cosines_plot(theme: Theme, models: dict[str, dict]) -> "Figure":
    """The cosine of the two losses' gradients: a dot a batch, and the mean with its interval, of one or more models."""
    figure, axes = _figure(theme, 1.1 + 0.5 * len(models))
    for k, gradients in enumerate(models.values()):
        mean, colour = gradients["cosine"], theme.series[k % len(theme.series)]
        axes.scatter(gradients["cosines"], [k] * len(gradients["cosines"]), s=14, color=colour, alpha=0.45, linewidth=0)
        if mean["low"] is not None:
            axes.plot([mean["low"], mean["high"]], [k + 0.3] * 2, color=colour, linewidth=2)
        axes.plot(mean["value"], k + 0.3, marker="o", markersize=5, color=colour)
    axes.axvline(0, color=theme.muted, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(models)), list(models))
    axes.set_ylim(len(models) - 0.4, -0.5)
    axes.grid(False, axis="y")
    axes.set_xlabel("cosine; dots are batches, below them the mean with 95 % interval")
    return figure


# --- sweeps -----------------------------------------------------------------------------------------------------------


def alpha_plot(theme: Theme, dimensions: list[str], accuracy: dict[str, dict[float, dict]]) -> "Figure":
    """Accuracy by alpha: the mean over seeds with its interval, and every seed as a dot.

    `accuracy` maps a dimension to alpha to `{"value", "low", "high", "seeds"}`, in [0, 1].
    """
    figure, axes = _figure(theme, 3.3)
    for k, (name, by_alpha) in enumerate(accuracy.items()):
        colour = dimension_colour(theme, dimensions, name)
        alphas = [alpha + 0.006 * (k - (len(accuracy) - 1) / 2) for alpha in by_alpha]  # so that none hides another
        means = [100 * found["value"] for found in by_alpha.values()]
        axes.plot(alphas, means, color=colour, linewidth=1.6, marker="o", markersize=4.5, label=words(name))
        for alpha, found in zip(alphas, by_alpha.values(), strict=True):
            if found["low"] is not None:
                axes.plot([alpha, alpha], [100 * found["low"], 100 * found["high"]], color=colour, linewidth=1.2)
            seeds = [100 * value for value in found["seeds"].values()]
            axes.scatter([alpha] * len(seeds), seeds, s=9, color=colour, alpha=0.5, linewidth=0)
    axes.axhline(50, color=theme.muted, linewidth=0.9, linestyle=(0, (4, 3)))
    shown = [100 * value for of in accuracy.values() for found in of.values() for value in found["seeds"].values()]
    axes.set_ylim(max(0, min(shown) - 12), min(102, max(shown) + 8))
    axes.set_xticks(sorted({alpha for by_alpha in accuracy.values() for alpha in by_alpha}))
    axes.set_xlabel("alpha, the weight of the critiques' loss")
    axes.set_ylabel("accuracy (%), mean of the seeds")
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8, labelcolor=theme.ink)
    return figure


def sweep_plot(theme: Theme, names: list[str], label: str, curves: dict[str, dict]) -> "Figure":
    """A logged quantity over the steps for each alpha: the mean over seeds, and a band from the least to the most.

    `curves` maps some of `names`, by whose order they are coloured, to `{"step", "mean", "least", "most"}`.
    """
    figure, axes = _figure(theme, 3.3, width=NARROW)
    for name, curve in curves.items():
        colour = theme.series[names.index(name) % len(theme.series)]
        axes.fill_between(curve["step"], curve["least"], curve["most"], color=colour, alpha=0.15, linewidth=0)
        axes.plot(curve["step"], curve["mean"], color=colour, linewidth=1.5, label=name)
    axes.set_xlim(left=0)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(label)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8, labelcolor=theme.ink)
    return figure


# --- pictures ---------------------------------------------------------------------------------------------------------


def ranked_strip(theme: Theme, group: dict, verdicts: list[dict | None]) -> "Figure":
    """Source, then the candidates as given, each with mu ± sigma overall and per dimension below.

    `verdicts`: for each candidate the `places` that the data give it and whether its own `agrees`, or None.
    """
    pictures = [*group["sources"], *(candidate["image"] for candidate in group["candidates"])]
    titles = ["source"] * len(group["sources"])
    for place, verdict in enumerate(verdicts, 1):
        mark = f"  (data: {verdict['places']} {'✓' if verdict['agrees'] else '✗'})" if verdict else ""
        titles.append(f"{place}{mark}")
    lines = max((2 * len(candidate["score"].mu) for candidate in group["candidates"]), default=0)
    height = 2.5 + 0.14 * lines
    figure, all_axes = _figure(theme, height, columns=len(pictures), width=1.75 * len(pictures), squeeze=False)
    for axes, picture, title in zip(all_axes[0], pictures, titles, strict=True):
        axes.imshow(enlarged(picture))
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(title, fontsize=9, color=theme.ink)
    for axes, candidate in zip(all_axes[0, len(group["sources"]) :], group["candidates"], strict=True):
        score = candidate["score"]
        names = [OVERALL, *(name for name in score.mu if name != OVERALL)]
        lines = [f"{words(name)}\n{signed(score.mu[name])} ± {score.sigma[name]:.2f}" for name in names]
        axes.set_xlabel("\n".join(lines), fontsize=8, color=theme.ink)
    # A dollar sign would begin a formula.
    figure.suptitle(group["instruction"].replace("$", r"\$"), fontsize=10, color=theme.ink, wrap=True)
    return figure


# --- the frame of every figure ----------------------------------------------------------------------------------------


def _figure(theme: Theme, height: float, *, rows: int = 1, columns: int = 1, width: float = WIDE, **grid):
    """A figure without any global state, and its axes in the theme's colours."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise JRMError("The report needs matplotlib: pip install 'jrm-plugin[demo]'.") from None
    height_ratios = grid.pop("height_ratios", None)
    figure = Figure(figsize=(width, height), facecolor=theme.paper, layout="constrained")
    all_axes = figure.subplots(rows, columns, gridspec_kw={"height_ratios": height_ratios}, **grid)
    for axes in figure.axes:
        axes.set_facecolor(theme.paper)
        axes.grid(color=theme.grid, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(colors=theme.muted, labelcolor=theme.ink, labelsize=8.5, length=3)
        axes.xaxis.label.set(color=theme.ink, size=9)
        axes.yaxis.label.set(color=theme.ink, size=9)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(theme.grid)
    return figure, all_axes
