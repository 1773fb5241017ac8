"""The page on which people look at labels that a model contradicts."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jrm_plugin.data.corrections import Action
from jrm_plugin.evaluation.audit import Audit, AuditedPair, where
from jrm_plugin.evaluation.charts import signed, words
from jrm_plugin.evaluation.gallery import shown_pair
from jrm_plugin.evaluation.report import template
from jrm_plugin.files import write_text


def write_page(path: Path, audit: Audit, facts: Mapping[str, Any], *, pairs: int, action: Action) -> Path:
    """Writes one page with the pairs whose labels are contradicted most surely.

    Args:
        path: of the page.
        audit: all pairs.
        facts: how the scores came about, by names for people.
        pairs: how many are shown at most.
        action: what was proposed for contradicted pairs.

    Raises:
        JRMError: it cannot be written, or an image cannot be read.
    """
    summary = audit.summary()
    counts = summary["verdicts"]
    content = {
        "title": "Labels to review",
        "lead": f"Pairs: {summary['pairs']:,}; contradicted: {counts['contradicted']:,}; doubtful: "
        f"{counts['doubtful']:,}. The page shows {min(pairs, summary['pairs']):,}.",
        "summary": summary,
        "facts": facts,
        "pairs": [_shown(audit, pair, action) for pair in audit.pairs[:pairs]],
    }
    text = template("audit.html.j2").render(content)
    return write_text(path, text.encode(errors="replace").decode())  # names of files may hold what is no Unicode


def _shown(audit: Audit, pair: AuditedPair, action: Action) -> dict[str, Any]:
    name = pair.dimension
    label = pair.pair.labels[name]
    margin = pair.chosen.mu[name] - pair.rejected.mu[name]
    sigma = math.hypot(pair.chosen.sigma[name], pair.rejected.sigma[name])
    notes = {
        1: ("labelled better", "labelled worse"),
        0: ("labelled equal",) * 2,
        -1: ("labelled worse", "labelled better"),
    }
    each = ", ".join(f"{words(label)} {p:.3f}" for label, p in pair.probabilities.items())
    shown = shown_pair(pair.pair, [pair.chosen, pair.rejected], notes[label], rejected_first=margin < 0)
    return shown | {
        "name": pair.name,
        "where": where(pair),
        "verdict": audit.verdict(pair),
        "action": audit.proposed(pair, action),
        "seen": pair.seen,
        "said": f"P of the labels: {pair.probability:.3f} ({each}). Difference of the two, {words(name)}: "
        f"{signed(abs(margin))} ± {sigma:.2f}.",
    }
