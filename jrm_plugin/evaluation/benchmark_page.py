"""The page of a run of judges on benchmarks: tables, plots, and the worst mistakes as pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation import charts
from jrm_plugin.evaluation.benchmarks.benchmark import Benchmark
from jrm_plugin.evaluation.gallery import shown_pair
from jrm_plugin.evaluation.judges import Judge
from jrm_plugin.evaluation.judging import Verdicts
from jrm_plugin.evaluation.report import Page, template
from jrm_plugin.evaluation.results import worst_mistakes
from jrm_plugin.evaluation.results_table import notes_of, rows_of
from jrm_plugin.files import write_text
from jrm_plugin.records.samples import OVERALL
from jrm_plugin.records.scores import RewardScore

MISTAKES = 6  # shown of each judge on each benchmark
CHARTS = "charts"  # the folder of the plots beside the page


def write_page(
    path: Path,
    results: Mapping[str, Any],
    benchmarks: Sequence[Benchmark],
    judges: Sequence[Judge],
    verdicts: Mapping[str, Mapping[str, Verdicts]],
) -> Path:
    """Writes the page, and its plots as PNG files into the folder `charts` beside it.

    Args:
        path: of the page.
        results: what `summarize_run` returned.
        benchmarks, judges, verdicts: of the run.

    Raises:
        JRMError: it cannot be written, or matplotlib is missing.
    """
    folder = path.parent / CHARTS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        page = Page(folder)
        sections = [
            _section(page, benchmark, results["benchmarks"][benchmark.name], judges, verdicts[benchmark.name])
            for benchmark in benchmarks
        ]
    except OSError as error:
        raise JRMError(f"the page cannot be written to {path.parent}: {error.strerror or error}.") from error
    names = ", ".join(judge.name for judge in judges)
    pairs = sum(section["result"]["pairs"] for section in sections)
    content = {
        "title": "Judges on benchmarks",
        "lead": f"{names} on {pairs:,} pairs of {', '.join(section['result']['title'] for section in sections)}.",
        "sections": sections,
    }
    text = template("benchmarks.html.j2").render(content)
    return write_text(path, text.encode(errors="replace").decode())  # names may hold what is no Unicode


def _section(
    page: Page, benchmark: Benchmark, result: Mapping[str, Any], judges: Sequence[Judge], said: Mapping[str, Verdicts]
) -> dict[str, Any]:
    bars = {
        judge: {title: figure for title, figure in of["columns"].items() if figure["value"] is not None}
        for judge, of in result["judges"].items()
    }
    drawn = []
    if any(bars.values()):
        alt = f"The numbers of the table of {result['title']}, with their intervals."
        drawn.append(page.chart(benchmark.name, alt, charts.accuracy_bars, result["columns"], bars))
    for number, (judge, of) in enumerate(result["judges"].items(), 1):
        dimension = _main_dimension(of["dimensions"])
        numbers = of["dimensions"][dimension]
        if "calibration" not in numbers:
            continue
        name, title = f"{benchmark.name}_{number}", f"{judge}, {charts.words(dimension)}"
        alt = f"Calibration of {title}: predicted probability against observed preference."
        plot = (charts.calibration_plot, [title], title, numbers["calibration"])
        drawn.append(page.chart(f"{name}_calibration", alt, *plot))
        alt = f"Errors of {title} among the pairs that it is surest of."
        drawn.append(page.chart(f"{name}_risk", alt, charts.risk_coverage_plot, title, numbers["risk_coverage"]))
    return {
        "name": benchmark.name,
        "result": result,
        "rows": rows_of(dict(result)),
        "judges": len(result["judges"]),
        "notes": notes_of(dict(result)),
        "charts": drawn,
        "mistakes": [
            {"judge": judge.name, "groups": groups}
            for judge in judges
            if (groups := _mistakes(benchmark, judge, said[judge.name]))
        ],
    }


def _main_dimension(names: Sequence[str] | Mapping[str, Any]) -> str:
    return OVERALL if OVERALL in names else next(iter(names))


def _mistakes(benchmark: Benchmark, judge: Judge, said: Verdicts) -> list[dict[str, Any]]:
    """The worst mistakes of a judge as strips: sources, then its favourite, then the one that people prefer."""
    dimension = _main_dimension(said.judged)
    groups = []
    for k in worst_mistakes(said, dimension, MISTAKES):
        pair = benchmark.pairs[said.positions[dimension][k]]
        rows, label = said.answers[dimension][k], int(said.judged[dimension].label_N[k])
        scores = [] if judge.compares else [RewardScore.from_columns(row) for row in rows]
        names = ("people prefer this one", "the judge prefers this one")
        notes = names if label > 0 else names[::-1]
        # the favourite is the one that people do not prefer
        shown = shown_pair(pair, scores, notes, rejected_first=label > 0)
        groups.append(shown | {"said": _said(rows, said, dimension, k)})
    return groups


def _said(rows: Sequence[Mapping[str, Any]], said: Verdicts, dimension: str, k: int) -> str:
    judged = said.judged[dimension]
    words = [f"Pair {said.positions[dimension][k] + 1}"]
    if "votes" in rows[0]:
        votes = [vote for order in rows[0]["votes"] for vote in order]
        against = sum(vote * int(judged.label_N[k]) < 0 for vote in votes)
        words.append(f"{against} of {len(votes)} verdicts against the one that people prefer")
    else:
        words.append(f"margin {charts.signed(-abs(float(judged.margin_N[k])))}")
    if judged.probability_N is not None:
        p = float(judged.probability_N[k])
        words.append(f"P(the one that people prefer is better) = {min(p, 1 - p):.2f}")
    return ", ".join(words) + "."
