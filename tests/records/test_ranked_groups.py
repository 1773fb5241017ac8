"""Ranked groups: what is derived, what is refused, and the pairs in them."""

import json

import pytest

from jrm_plugin.errors import JRMError
from jrm_plugin.records.critiques import Critique
from jrm_plugin.records.preferences import PreferencePair, RankedGroup, example_from_record, example_to_record
from jrm_plugin.records.samples import Sample

A, B, C, D = (Sample.edit("source.png", "make it blue", f"{name}.png") for name in "abcd")
PLAIN = Critique("plain")


def test_ranks_become_places_and_scores_give_the_ranks_that_are_missing():
    group = RankedGroup(
        [A, B, C, D],
        ranks={"overall": [10, 2.5, None, 10]},
        scores={"overall": [1, 1, 1, 1], "visual_quality": [2, 4, None, 3], "mood": [1, None, None, None]},
    )
    assert group.ranks == {"overall": (2, 1, None, 2), "visual_quality": (3, 1, None, 2)}
    assert group.scores["mood"] == (1, None, None, None) and group.critiques == ({},) * 4


def test_its_pairs_have_the_better_one_first_and_only_what_compares_them():
    group = RankedGroup(
        [A, B, C],
        ranks={"overall": [2, 1, 1], "visual_quality": [1, None, 2]},
        scores={"mood": [1, None, 3]},
        critiques=[{"visual_quality": PLAIN}, {}, {}],
        info={"row": 4},
    )
    ba, ca, bc = group.pairs()
    assert [(pair.chosen, pair.rejected) for pair in (ba, ca, bc)] == [(B, A), (C, A), (B, C)]
    assert (ba.labels, bc.labels) == ({"overall": 1}, {"overall": 0})
    assert ca.labels == {"overall": 1, "visual_quality": -1, "mood": 1}
    assert (ca.chosen_scores, ca.rejected_scores, ba.chosen_scores) == ({"mood": 3}, {"mood": 1}, None)
    assert ba.rejected_critiques == {"visual_quality": PLAIN} and ba.info == {"row": 4}


@pytest.mark.parametrize(("label", "ranks"), [(1, (1, 2)), (0, (1, 1)), (-1, (2, 1))])
def test_a_pair_is_a_group_of_two(label, ranks):
    pair = PreferencePair(A, B, {"overall": label}, chosen_critiques={"visual_quality": PLAIN})
    assert (pair.candidates, pair.critiques) == ((A, B), ({"visual_quality": PLAIN}, {}))
    assert pair.ranks == RankedGroup([A, B], pair.ranks).ranks == {"overall": ranks}


def test_as_json_and_back():
    group = RankedGroup(
        [A, B, C], {"overall": [1, 1, 2]}, {"mood": [1, None, 3]}, [{}, {"visual_quality": PLAIN}, {}], {"by": "me"}
    )
    assert example_from_record(json.loads(json.dumps(example_to_record(group)))) == group


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([A], {"overall": [1]}), "must have two candidates or more, not 1"),
        (([A, "b.png"], {"overall": [1, 2]}), "candidates of a ranked group must be Samples, not a str"),
        (([A, Sample.edit("x.png", "make it blue", "b.png")], {"overall": [1, 2]}), "must have the same prompt"),
        (([A, B],), "has no label: give ranks for a dimension or overall, or scores"),
        (([A, B], {"overall": [1, None]}), r"ranks\['overall'\] of a ranked group must place two candidates"),
        (([A, B], {"overall": [1, 2, 3]}), r"ranks\['overall'\] .* must give 2 candidates a number each, or None"),
        (([A, B], {"overall": [1, float("nan")]}), "must be a finite number, not nan"),
        (([A, B], {}, {"mood": "12"}), r"scores\['mood'\] .* must give 2 candidates a number each"),
        (([A, B], {"overall": [1, 2]}, {}, [{}]), "has 2 candidates and critiques of 1"),
        (([A, B], {"overall": [1, 2]}, {}, [{}, {"mood": "bad"}]), "must be a Critique"),
    ],
)
def test_what_is_no_group(arguments, said):
    with pytest.raises(JRMError, match=said):
        RankedGroup(*arguments)
