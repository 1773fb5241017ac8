"""The page of `jrm analyze`: the paper's three panels, attention as pictures, and the gradients of the two losses."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation import charts
from jrm_plugin.evaluation.analysis import Reading
from jrm_plugin.evaluation.drawing import draw_attention, draw_boxes, enlarged
from jrm_plugin.evaluation.metrics import SPECTRAL_MEASURES
from jrm_plugin.evaluation.pairs import samples_of
from jrm_plugin.evaluation.report import Page, template
from jrm_plugin.files import write_text
from jrm_plugin.records.preferences import PreferencePair

CHARTS, PICTURES = "charts", "attention"  # folders beside the page
SHOWN_MEASURES = ["effective_rank", "spectral_entropy", "isotropy"]  # the paper's
KINDS = {"raw": "as they are", "centred": "mean subtracted"}
# How each number is called, and with how many digits it is written; shares are in percent.
MEASURES = {
    "effective_rank": ("effective rank", "number"),
    "spectral_entropy": ("spectral entropy", "number"),
    "isotropy": ("isotropy", "number"),
    "energy_of_three": ("energy in the three largest directions", "share"),
}
SHARES = {
    "images": "of all attention, on images",
    "edited": "of all attention, on the edited image",
    "inside": "of the edited image's, inside the critiques' regions",
    "area": "area of these regions",
    "inside_less_area": "inside less area",
}
GRADIENTS = {
    "cosine": "cosine of the two gradients",
    "rank_norm": "norm of the ranking loss's",
    "critique_norm": "norm of the critique loss's",
}


def write_page(
    path: Path, results: Mapping[str, Any], readings: Mapping[str, Reading], pairs: Sequence[PreferencePair]
) -> Path:
    """Writes the page, and its charts and pictures as PNG files into folders beside it.

    Args:
        path: of the page.
        results: what `summarize_readings` gave.
        readings: of the models.
        pairs: that were read.

    Raises:
        JRMError: it cannot be written, an image cannot be read, or matplotlib is missing.
    """
    try:
        for name in (CHARTS, PICTURES):
            (path.parent / name).mkdir(parents=True, exist_ok=True)
        content = _content(Page(path.parent / CHARTS), results) | {
            "shown": _shown(Page(path.parent / PICTURES), readings, pairs)
        }
    except OSError as error:
        raise JRMError(f"the page cannot be written to {path.parent}: {error.strerror or error}.") from error
    text = template("analysis.html.j2").render(content)
    return write_text(path, text.encode(errors="replace").decode())  # names may hold what is no Unicode


def _content(page: Page, results: Mapping[str, Any]) -> dict[str, Any]:
    models = results["representation"]["models"]
    spectra = "Singular values of the hidden states, largest first."
    return {
        "title": "Reward models, looked into",
        "results": results,
        "tables": tables_of(results),
        "panels": [
            page.chart("spectrum_raw", spectra, charts.spectrum_plot, models, "raw"),
            page.chart(
                "measures_raw", "What is measured of them.", charts.measures_plot, models, "raw", SHOWN_MEASURES
            ),
            page.chart("projection", "Samples along three principal components.", charts.projection_plot, models),
            page.chart(
                "spectrum_centred", f"{spectra[:-1]}, mean subtracted.", charts.spectrum_plot, models, "centred"
            ),
            page.chart("measures_centred", "The same.", charts.measures_plot, models, "centred", SHOWN_MEASURES),
        ],
        "cosines": page.chart("cosines", "Cosines of gradients.", charts.cosines_plot, results["gradients"]["models"])
        if results["gradients"]["models"]
        else None,
    }


def tables_of(results: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The numbers as rows of tables, by section: `name`, a cell for each of `models`, and one for each difference.

    A cell is a value with its interval, in words; empty where a model has none.
    """
    names, representation = results["models"], results["representation"]
    others = names[1:]
    rows: dict[str, list[dict[str, Any]]] = {"representation": [], "attention": [], "gradients": []}
    for kind, of_kind in KINDS.items():
        for measure in SPECTRAL_MEASURES:
            title, unit = MEASURES[measure]
            rows["representation"].append(
                {
                    "name": f"{title}, {of_kind}",
                    "cells": [_cell(representation["models"][name][kind][measure], unit) for name in names],
                    "differences": [_cell(representation["differences"][n][kind][measure], unit, True) for n in others],
                }
            )
    row = {"name": "distance from the mean, in units of the hidden state"}
    row["cells"] = [_cell(representation["models"][name]["projection"]["spread"], "number") for name in names]
    row["differences"] = [_cell(representation["differences"][name]["spread"], "number", True) for name in others]
    rows["representation"].append(row)
    first, *rest = (representation["models"][name]["projection"] for name in names)
    variance = [{"value": sum(found["variance"]), "low": None} for found in (first, *rest)]
    row = {"name": "variance along the three components that are shown", "differences": [""] * len(rest)}
    rows["representation"].append(row | {"cells": [_cell(share, "share") for share in variance]})
    if rest:
        row = {"name": "disparity of shape to the first", "differences": [""] * len(rest)}
        rows["representation"].append(row | {"cells": ["", *(_cell(found["disparity"], "number") for found in rest)]})
    for section, titles, unit in (("attention", SHARES, "share"), ("gradients", GRADIENTS, "number")):
        read, differences = results[section]["models"], results[section]["differences"]
        for key, title in titles.items() if read else ():
            of_key = differences if section == "attention" else {}
            less = [_cell(of_key[name][key], unit, True) if name in of_key else "" for name in others]
            if section == "gradients" and key == "cosine":
                less = [_cell(differences[name], unit, True) if name in differences else "" for name in others]
            cells = [_cell(read[name][key], unit) if name in read else "" for name in names]
            rows[section].append({"name": title, "cells": cells, "differences": less})
    if read := results["gradients"]["models"]:
        conflicts = [_cell(read[name]["conflicts"], "share") if name in read else "" for name in names]
        row = {"name": "batches in which they conflict", "cells": conflicts, "differences": [""] * len(others)}
        rows["gradients"].append(row)
    return rows


def _cell(found: Mapping[str, Any] | None, unit: str, signed: bool = False) -> str:
    if found is None:
        return ""

    def written(value: float) -> str:
        text = f"{100 * value:{'+' if signed else ''}.1f}" if unit == "share" else f"{value:{'+' if signed else ''}.3g}"
        return text.replace("-", "−")

    sign = "" if unit == "number" else " points" if signed else " %"
    if found["low"] is None:
        return f"{written(found['value'])}{sign}"
    return f"{written(found['value'])}{sign} ({written(found['low'])} to {written(found['high'])})"


def _shown(page: Page, readings: Mapping[str, Reading], pairs: Sequence[PreferencePair]) -> list[dict[str, Any]]:
    """The first samples: their images, and each model's attention onto them, all of a sample on one scale."""
    read = {name: reading.attention for name, reading in readings.items() if reading.attention is not None}
    if not read:
        return []
    samples = samples_of(pairs)
    critiques = [of_side for pair in pairs for of_side in (pair.chosen_critiques, pair.rejected_critiques)]
    shown = []
    for position in range(len(next(iter(read.values())).maps)):
        sample = samples[position]
        images = [*sample.prompt_images, *sample.response_images]
        # Of what falls on images, so that models which attend to text more and less are seen alike.
        shares = {
            name: [image / sum(map(np.sum, of_model.maps[position])) for image in of_model.maps[position]]
            for name, of_model in read.items()
        }
        most = max(float(image.max()) for of_model in shares.values() for image in of_model)
        pictures = [enlarged(image) for image in images]
        if len(sample.response_images) == 1:
            for critique in critiques[position].values():
                pictures[-1] = draw_boxes(pictures[-1], critique) if critique.edit_region else pictures[-1]
        rows = {"": [page.picture(picture, f"{position + 1}_{k}") for k, picture in enumerate(pictures)]}
        for number, (name, of_model) in enumerate(shares.items(), 1):
            overlaid = [draw_attention(image, share, most) for image, share in zip(images, of_model, strict=True)]
            rows[name] = [page.picture(o, f"{position + 1}_{k}_model_{number}") for k, o in enumerate(overlaid)]
        captions = ["source"] * len(sample.prompt_images) + ["edited"] * len(sample.response_images)
        shown.append({"instruction": sample.prompt_text, "captions": captions, "rows": rows})
    return shown
