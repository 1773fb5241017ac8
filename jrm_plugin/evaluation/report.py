"""A report on a trained model: one HTML file that needs nothing else, its charts and pictures as PNG files beside it.

`write_report(folder, report)` takes a `Report`, defined below as plain dictionaries. Numbers come in the shapes that
the functions of `jrm_plugin.evaluation` return; images are anything that `load_image` reads.
"""

import base64
import html
import io
import math
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import jinja2
from markupsafe import Markup
from PIL import Image, ImageOps

from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation import charts
from jrm_plugin.evaluation.drawing import draw_boxes, enlarged, region_colour
from jrm_plugin.records.critiques import TAG, Critique
from jrm_plugin.records.samples import OVERALL
from jrm_plugin.records.scores import RewardScore

SHOWN_PIXELS = 800  # longer side of the largest picture in the page


class Stage(TypedDict):
    """A stage of the training. `log` is the trainer's `state.log_history`: rows with `step` and, of the training,
    `rank_loss`, `critique_loss`, `accuracy/<dimension>`; of evaluation set `x`, `eval_x_rank_loss` and so on."""

    name: str
    log: list[dict]
    note: NotRequired[str]  # what a reader of its curves should know, as a sentence


class ShownCandidate(TypedDict):
    image: Any
    score: RewardScore
    note: NotRequired[str]  # what is known of it, for example "wrong object, blurred"
    data_score: NotRequired[float]  # what it is worth by the data, the larger the better; of all of a group or of none


class ShownGroup(TypedDict):
    """Candidates for one instruction, in any order: the page puts the best first."""

    instruction: str
    sources: list
    candidates: list[ShownCandidate]


class ShownCritiques(TypedDict):
    """What a model wrote about one image; `critiques` by dimension hold `Critique`s or `UnparsedCritique`s."""

    instruction: str
    sources: list
    image: Any
    critiques: dict[str, Any]
    expected: NotRequired[dict[str, Critique]]  # what the data say of it


class Arm(TypedDict):
    """One of the compared models; `log` is that of its joint stage."""

    name: str  # "alpha = 0.7"
    log: list[dict]
    summary: dict  # pairs.summarize
    effective_rank: dict  # representation.evaluate_representation


class Comparison(TypedDict):
    """The trained model first, then the baseline; both start from one language warm start, and the report says so."""

    arms: list[Arm]
    accuracy_difference: dict[str, dict]  # dimension -> metrics.accuracy_difference(first arm, second arm)


class Report(TypedDict):
    title: str
    lead: str  # one or two sentences: what was trained on what
    facts: dict[str, Any]  # further sizes and settings to list: {"training pairs": 3000, "parameters": 912345}
    stages: list[Stage]
    summary: dict  # pairs.summarize
    critique_quality: NotRequired[dict]  # critiques.evaluate_critiques
    effective_rank: NotRequired[dict]  # representation.evaluate_representation
    ranked: list[ShownGroup]
    critiques: list[ShownCritiques]
    comparison: NotRequired[Comparison]
    timings: dict[str, float]  # step -> seconds, in order
    versions: dict[str, str]
    seed: int
    command: str  # that makes this result again


def write_report(folder: str | Path, report: Report) -> Path:
    """Write `report.html` and the PNG files into `folder`; returns the path of the HTML file.

    Raises:
        JRMError: the folder cannot be written, an image cannot be read, or matplotlib is missing.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        page = Page(folder)
        text = template("report.html.j2").render(_content(page, report))
        path = folder / "report.html"
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise JRMError(f"The report cannot be written to {folder}: {error.strerror or error}.") from error
    return path


class Page:
    """Writes each picture beside the report and gives it back for the HTML."""

    def __init__(self, folder: Path):
        self.folder = folder

    def chart(self, name: str, alt: str, draw: Callable, *args, **options) -> dict:
        """A chart in both themes; the file is the light one."""
        light, dark = (charts.png(draw(theme, *args, **options)) for theme in (charts.LIGHT, charts.DARK))
        (self.folder / f"{name}.png").write_bytes(light)
        return {"alt": alt, "light": _data_url(light), "dark": _data_url(dark)}

    def picture(self, image: Image.Image, name: str | None = None) -> str:
        """A picture, photographs reduced to what a page shows."""
        if max(image.size) > SHOWN_PIXELS:
            image = ImageOps.contain(image, (SHOWN_PIXELS, SHOWN_PIXELS))
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", optimize=True)
        if name:
            (self.folder / f"{name}.png").write_bytes(buffer.getvalue())
        return _data_url(buffer.getvalue())


def _data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


# --- what the page shows ----------------------------------------------------------------------------------------------


def _content(page: Page, report: Report) -> dict:
    summary = report["summary"]
    groups = {name: group for name, group in summary["groups"].items() if group["accuracy"]}
    dimensions = [OVERALL, *(name for name in summary["dimensions"] if name != OVERALL)]
    content = {
        **report,
        "with_verdicts": any("data_score" in c for group in report["ranked"] for c in group["candidates"]),
        "with_dots": any(
            name.startswith("eval_") for stage in report["stages"] for row in stage["log"] for name in row
        ),
        "dimensions": dimensions,
        "tiles": _tiles(report, dimensions),
        "ranked": [_ranked(page, k, group) for k, group in enumerate(report["ranked"], 1)],
        "critiques": [_critiques(page, k, shown) for k, shown in enumerate(report["critiques"], 1)],
        "accuracy_charts": _accuracy_charts(page, summary, groups, dimensions),
        "accuracy_tables": list(groups.values()),
        "calibration_charts": [
            page.chart(
                f"calibration_{name}",
                f"Calibration of {charts.words(name)}: predicted probability against observed preference.",
                charts.calibration_plot,
                dimensions,
                name,
                summary["calibration"][name],
            )
            for name in dimensions
            if summary["calibration"][name]["n"]
        ],
        "training_charts": _training_charts(page, report),
        "spectrum_charts": _spectrum_charts(page, report),
        "total_seconds": sum(report["timings"].values()),
    }
    return content | {"contents": _contents(content)}


def _contents(content: dict) -> dict[str, str]:
    """The sections that this page has, by their ids, and their titles."""
    titles = {
        "ranking": "Candidates, best to worst",
        "critiques": "Critiques the model writes",
        "accuracy": "Where it is right",
        "calibration": "How sure it is, and how right",
        "training": "How it learned",
        "comparison": "What language supervision adds",
        "representation": "How many directions it uses",
        "making": "How this was made",
    }
    there = {
        "ranking": content["ranked"],
        "critiques": content["critiques"],
        "training": content["training_charts"],
        "comparison": "comparison" in content,
        "representation": content["spectrum_charts"],
    }
    return {name: title for name, title in titles.items() if there.get(name, True)}


def _tiles(report: Report, dimensions: list[str]) -> list[dict]:
    """The headline numbers: label, value and a line of small print each."""
    tiles = []
    for name in dimensions:
        share = report["summary"]["accuracy"][name]
        tiles.append(
            {"label": f"{charts.words(name)} accuracy", "value": percent(share["value"]), "note": among(share)}
        )
    if "critique_quality" in report:
        parsed, right = report["critique_quality"]["parsed"], report["critique_quality"]["right"]
        label, share = ("critiques that are right", right) if right["n"] else ("critiques that are valid", parsed)
        note = f"{among(share)}; to the letter as the data say; {percent(parsed['value'])} are valid"
        tiles.append({"label": label, "value": percent(share["value"]), "note": note if right["n"] else among(share)})
    overall = report["summary"]["calibration"][OVERALL]
    if overall["n"]:
        note = f"expected calibration error, overall; log-loss {overall['log_loss']:.3f}, a coin 0.693"
        tiles.append(
            {"label": "calibration error", "value": percent(overall["expected_calibration_error"]), "note": note}
        )
    if "effective_rank" in report:
        rank = report["effective_rank"]
        raw = rank["raw"]["effective_rank"]
        note = f"{raw['low']:.1f} to {raw['high']:.1f}, of {rank['features']} directions, {rank['n']} samples"
        tiles.append({"label": "effective rank", "value": f"{raw['value']:.1f}", "note": note})
    return tiles


def _ranked(page: Page, number: int, group: ShownGroup) -> dict:
    best_first = sorted(group["candidates"], key=lambda candidate: -candidate["score"].mu[OVERALL])
    verdicts = _verdicts(best_first)
    strip = charts.ranked_strip(charts.LIGHT, {**group, "candidates": best_first}, verdicts)
    (page.folder / f"ranked_{number}.png").write_bytes(charts.png(strip))
    scale = Scale.of([candidate["score"] for candidate in best_first])
    candidates = []
    for candidate, verdict in zip(best_first, verdicts, strict=True):
        image = page.picture(enlarged(candidate["image"]))
        rows = scale.rows(candidate["score"])
        note = candidate.get("note", "")
        candidates.append({"image": image, "rows": rows, "note": note, "verdict": verdict, "link": None})
    return {
        "instruction": group["instruction"],
        "sources": [page.picture(enlarged(source)) for source in group["sources"]],
        "candidates": candidates,
        "agreeing": sum(bool(verdict and verdict["agrees"]) for verdict in verdicts),
        "scale": scale,
    }


def _verdicts(best_first: list[ShownCandidate]) -> list[dict | None]:
    """The places that the data give each candidate, several where they call some equal, and whether its own is one."""
    if not all("data_score" in candidate for candidate in best_first):
        return [None] * len(best_first)
    scores = [candidate["data_score"] for candidate in best_first]
    verdicts = []
    for place, score in enumerate(scores, 1):
        first = 1 + sum(other > score for other in scores)
        last = sum(other >= score for other in scores)
        verdicts.append(
            {"places": f"{first}" if first == last else f"{first}–{last}", "agrees": first <= place <= last}
        )
    return verdicts


class Scale(NamedTuple):
    """Of the bars of an instruction's scores: whole numbers below and above all values and zero."""

    low: int
    high: int

    @classmethod
    def of(cls, scores: Sequence[RewardScore]) -> "Scale":
        values = [s.mu[name] + side * s.sigma[name] for s in scores for name in s.mu for side in (-1, 1)]
        low, high = min(0, math.floor(min(values, default=0))), max(1, math.ceil(max(values, default=1)))
        if not low:
            return cls(low, high)
        return cls(min(low, -math.ceil(high / 5)), max(high, math.ceil(-low / 5)))  # room for zero's label

    def place(self, value: float) -> float:
        """Per cent of the way from low to high."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)

    @property
    def zero(self) -> float:
        return self.place(0)

    def rows(self, score: RewardScore) -> list[dict]:
        """What is drawn of a score: a bar for each name, overall first."""
        rows = []
        for name in score.names:
            mu, sigma = score.mu[name], score.sigma[name]
            left, right = self.place(mu - sigma), self.place(mu + sigma)
            rows.append(
                {"name": name, "mu": mu, "sigma": sigma, "at": self.place(mu), "left": left, "width": right - left}
            )
        return rows


def _critiques(page: Page, number: int, shown: ShownCritiques) -> dict:
    written = [critique for critique in shown["critiques"].values() if isinstance(critique, Critique)]
    with_boxes = [critique for critique in written if critique.edit_region]
    pictures = [draw_boxes(shown["image"], critique) for critique in with_boxes] or [enlarged(shown["image"])]
    names = [f"critique_{number}" + (f"_{k}" if k else "") for k in range(len(pictures))]
    expected = shown.get("expected", {})
    rows = []
    for dimension, critique in shown["critiques"].items():
        row = {"dimension": dimension, "parsed": isinstance(critique, Critique)}
        if row["parsed"]:
            row["text"] = reasoning_html(critique.reasoning)
        else:
            row |= {"raw": critique.text, "error": critique.error}
        if dimension in expected:
            row["same"] = critique == expected[dimension]
            row["same_words"] = row["parsed"] and critique.reasoning == expected[dimension].reasoning
            row["expected"] = reasoning_html(expected[dimension].reasoning)
        rows.append(row)
    return {
        "instruction": shown["instruction"],
        "sources": [page.picture(enlarged(source)) for source in shown["sources"]],
        "pictures": [page.picture(picture, name) for picture, name in zip(pictures, names, strict=True)],
        "rows": rows,
    }


def _accuracy_charts(page: Page, summary: dict, groups: dict[str, dict], dimensions: list[str]) -> list[dict]:
    by_dimension = {name: {name: summary["accuracy"][name]} for name in dimensions}
    drawn = {"dimension": {"title": "Dimension", "accuracy": by_dimension}, **groups}
    return [
        page.chart(
            f"accuracy_by_{name}",
            f"Accuracy: {group['title'].lower()}.",
            charts.accuracy_bars,
            dimensions,
            group["accuracy"],
        )
        | {"title": group["title"]}
        for name, group in drawn.items()
    ]


def _training_charts(page: Page, report: Report) -> list[dict]:
    stages = report["stages"]
    compared = report["comparison"]["arms"] if "comparison" in report else []
    result = []
    for key, name, label, coin in (
        ("critique_loss", "training_critique_loss", "critique loss (nats per token)", None),
        ("rank_loss", "training_rank_loss", "ranking loss (nats per pair)", math.log(2)),
        (f"accuracy/{OVERALL}", "training_accuracy", "overall accuracy (%)", 0.5),
    ):
        if any(charts.series_of(stage["log"], key) for stage in stages):
            alt = f"{label} over the steps of the training."
            # The baseline learns no critiques, so it has no critique loss to compare.
            arms = [] if key == "critique_loss" else compared
            result.append(page.chart(name, alt, charts.training_curve, stages, key, label, coin, arms))
    return result


def _spectrum_charts(page: Page, report: Report) -> list[dict]:
    if "comparison" in report:
        ranks = {arm["name"]: arm["effective_rank"] for arm in report["comparison"]["arms"]}
    elif "effective_rank" in report:
        ranks = {"this model": report["effective_rank"]}
    else:
        return []
    alt = "Singular values of the hidden states, largest first."
    return [page.chart(f"spectrum_{kind}", alt, charts.spectrum_plot, ranks, kind) for kind in ("raw", "centred")]


# --- how numbers and words are written --------------------------------------------------------------------------------


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def interval(share: dict) -> str:
    return f"{100 * share['low']:.1f} to {100 * share['high']:.1f} %"


def among(share: dict) -> str:
    return f"{interval(share)}, n = {share['n']}"


def points(difference: dict) -> str:
    """A difference of two shares in percentage points, with its interval."""
    value, low, high = (100 * difference[key] for key in ("value", "low", "high"))
    return f"{value:+.1f} points ({low:+.1f} to {high:+.1f})".replace("-", "−")


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def reasoning_html(reasoning: str) -> Markup:
    """The reasoning, escaped, with its tags as chips: a region's in the colour of its box."""

    def chip(region: str | None) -> str:
        if region is None:
            return '<span class="chip">whole image</span>'
        return f'<span class="chip" style="background:{region_colour(int(region))};color:#fff">{region}</span>'

    first, *rest = TAG.split(reasoning)  # text, and then in turn a tag's region and text
    tagged = (chip(region) + html.escape(text) for region, text in zip(rest[::2], rest[1::2], strict=True))
    return Markup(html.escape(first) + "".join(tagged))


def template(name: str) -> jinja2.Template:
    """A template of this folder."""
    folder = files("jrm_plugin.evaluation")
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
    )
    environment.filters |= {
        "words": charts.words,
        "signed": charts.signed,
        "percent": percent,
        "interval": interval,
        "points": points,
        "duration": duration,
    }
    return environment.get_template(name)
