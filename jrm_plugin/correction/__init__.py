"""Self-correction: a reward model's critiques guide an image editor (paper section 4.4)."""

from jrm_plugin.correction.editing import Editor, EditRequest
from jrm_plugin.correction.loop import self_correct
from jrm_plugin.correction.rounds import CorrectionRound, read_rounds
from jrm_plugin.correction.table import correction_table, initial_quantiles

__all__ = [
    "CorrectionRound",
    "EditRequest",
    "Editor",
    "correction_table",
    "initial_quantiles",
    "read_rounds",
    "self_correct",
]
