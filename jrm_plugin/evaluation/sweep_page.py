"""The page of `jrm sweep`: accuracy by alpha, and losses over training (paper figures 4, 5, 10 and 11)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation import charts
from jrm_plugin.evaluation.report import Page, template
from jrm_plugin.evaluation.sweep import CURVES, named
from jrm_plugin.files import write_text
from jrm_plugin.records.samples import OVERALL

CHARTS = "charts"  # the folder of the plots beside the page


def write_page(path: Path, results: Mapping[str, Any]) -> Path:
    """Writes the page, and its plots as PNG files into the folder `charts` beside it.

    Raises:
        JRMError: it cannot be written, or matplotlib is missing.
    """
    folder, names = path.parent / CHARTS, list(map(named, results["alphas"]))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        page = Page(folder)
        content = {
            "title": "What language supervision adds",
            "results": results,
            "alphas": [f"{alpha:g}" for alpha in results["alphas"]],
            "accuracy": {
                name: _accuracy(page, number, name, of_set)
                for number, (name, of_set) in enumerate(results["sets"].items(), 1)
            },
            "rows": {name: rows_of(results, name) for name in results["sets"]},
            "headings": {name: headings(results, name) for name in results["sets"]},
            "losses": loss_rows(results),
            "loss_headings": ["", *names],
            "curves": [
                _curve(page, names, key, label, results["curves"][key])
                for key, label in CURVES.items()
                if key in results["curves"]
            ],
        }
    except OSError as error:
        raise JRMError(f"the page cannot be written to {path.parent}: {error.strerror or error}.") from error
    text = template("sweep.html.j2").render(content)
    return write_text(path, text.encode(errors="replace").decode())  # names may hold what is no Unicode


def _accuracy(page: Page, number: int, name: str, of_set: Mapping[str, Any]) -> dict[str, str]:
    by_alpha = {dimension: found["last"] for dimension, found in of_set.items()}
    alt = f"Accuracy on {charts.words(name)} by alpha."
    return page.chart(f"accuracy_{number}", alt, charts.alpha_plot, list(of_set), by_alpha)


def _curve(page: Page, names: list[str], key: str, label: str, curves: Mapping[str, Any]) -> dict[str, str]:
    name = f"training_{key.replace('/', '_')}"
    return page.chart(name, f"{label} over training.", charts.sweep_plot, names, label, curves)


def rows_of(results: Mapping[str, Any], name: str) -> list[list[str]]:
    """A row an alpha: alpha, for each dimension the accuracy at the end, then the overall one's difference and best."""
    of_set, first = results["sets"][name], results["alphas"][0]
    main = OVERALL if OVERALL in of_set else next(iter(of_set))
    rows = []
    for alpha in results["alphas"]:
        difference = "–" if alpha == first else cell(of_set[main]["difference"][alpha], 100, signed=True)
        cells = [cell(found["last"][alpha], 100) for found in of_set.values()]
        rows.append([f"{alpha:g}", *cells, difference, cell(of_set[main]["best"][alpha], 100)])
    return rows


def headings(results: Mapping[str, Any], name: str) -> list[str]:
    of_set, first = results["sets"][name], results["alphas"][0]
    main = OVERALL if OVERALL in of_set else next(iter(of_set))
    last = [f"{charts.words(main)} less alpha = {first:g}", f"{charts.words(main)}, best evaluation"]
    return ["alpha", *map(charts.words, of_set), *last]


def loss_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """A row a loss of the last evaluation, a cell an alpha."""
    return [
        [charts.words(name), *(cell(by_alpha[alpha], 1) if alpha in by_alpha else "–" for alpha in results["alphas"])]
        for name, by_alpha in results["losses"].items()
    ]


def cell(found: Mapping[str, Any], scale: float, *, signed: bool = False) -> str:
    """A value with its interval."""
    digits = ("+" if signed else "") + (".1f" if scale == 100 else ".3f")
    value, low, high = (
        None if found[key] is None else f"{scale * found[key]:{digits}}" for key in ("value", "low", "high")
    )
    text = value if low is None else f"{value} ({low} to {high})"
    return str(text).replace("-", "−")
