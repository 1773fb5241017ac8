"""Agreement of written critiques with those of the pairs, counted by hand."""

import json

import pytest

from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation.critiques import evaluate_critiques
from jrm_plugin.records.critiques import Critique, EditRegion, UnparsedCritique

FOLLOWING, QUALITY = "instruction_following", "visual_quality"


class Writer:
    """Gives the first sample the first of `written`, and so on."""

    def __init__(self, written):
        self.written = written

    def critique(self, samples, *, progress=False):
        return self.written[: len(samples)]


def test_critiques_agree_part_by_part(make_pair):
    def following(label="red circle", box=(0, 0, 500, 500), finding="it is green", rest="the rest is unchanged"):
        return Critique(f"<|bbox_0|> {finding} <|global|> {rest}", (EditRegion(0, label, box),))

    clean = Critique("the image is clean")
    expected = {FOLLOWING: following(), QUALITY: clean}
    pairs = [make_pair("1 1", "0 0", chosen_critiques=expected, rejected_critiques=expected)] * 2
    pairs.append(make_pair("1 1", "0 0"))
    broken = UnparsedCritique("{", "not a valid critique")
    written = [
        {FOLLOWING: following(), QUALITY: clean},
        {FOLLOWING: following(box=(0, 0, 500, 250)), QUALITY: Critique("the image is blurred")},
        {FOLLOWING: following(label="blue square", finding="it is blue"), QUALITY: clean},
        {FOLLOWING: broken, QUALITY: clean},
        {FOLLOWING: following(), QUALITY: broken},  # the third pair has no critiques to compare with
        {FOLLOWING: following(), QUALITY: clean},
    ]
    result = evaluate_critiques(Writer(written), pairs)
    assert (result["parsed"]["correct"], result["parsed"]["n"]) == (10, 12)
    counts = {
        name: {part: (share["correct"], share["n"]) for part, share in agreement.items() if part != "box_iou"}
        for name, agreement in result["by_dimension"].items()
    }
    assert counts[FOLLOWING] == {
        "parsed": (5, 6),
        "label": (2, 4),
        "box": (2, 4),
        "finding": (2, 4),
        "global": (3, 4),
        "whole": (1, 4),
    }
    assert counts[QUALITY] == {
        "parsed": (5, 6),
        "label": (0, 0),
        "box": (0, 0),
        "finding": (3, 4),
        "global": (0, 0),
        "whole": (3, 4),
    }
    assert result["by_dimension"][FOLLOWING]["box_iou"] == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert result["by_dimension"][QUALITY]["box_iou"] is None
    assert evaluate_critiques(Writer(written), pairs, n=1)["parsed"]["n"] == 4
    assert json.dumps(result, allow_nan=False)


def test_there_must_be_a_pair_to_write_about(make_pair):
    with pytest.raises(JRMError, match="n=0"):
        evaluate_critiques(Writer([]), [make_pair("1 1", "0 0")], n=0)
    with pytest.raises(JRMError, match="no pair"):
        evaluate_critiques(Writer([]), [])
