"""Folds that share nothing, and what is said of a pair whose label its scores contradict."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation.audit import audit, folds_of
from jrm_plugin.records.preferences import PreferencePair
from jrm_plugin.records.samples import Sample
from jrm_plugin.records.scores import RewardScore


def pair(source: str, text: str = "x", **labels: int) -> PreferencePair:
    one, other = (Sample.edit(source.encode(), text, name.encode()) for name in "ab")
    return PreferencePair(one, other, labels=labels or {"overall": 1})


def audited(*cases: tuple[dict[str, int], dict[str, float]], sigma: float = 0.5):
    """The audit of pairs with these labels, whose chosen sample leads by these margins."""
    pairs = [pair(f"{k}.png", **labels) for k, (labels, _) in enumerate(cases)]
    scores = [
        tuple(
            RewardScore({name: side * m for name, m in margins.items()}, dict.fromkeys(margins, sigma))
            for side in (0.5, -0.5)
        )
        for _, margins in cases
    ]
    return audit(pairs, scores, [str(k) for k in range(len(pairs))])


# --- folds ------------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=8, max_size=40), st.integers(2, 4))
def test_folds_hold_every_pair_once_and_share_no_source_and_no_instruction(drawn, folds):
    pairs = [pair(f"{source}.png", f"do {text}") for source, text in drawn]
    try:
        divided = folds_of(pairs, folds)
    except JRMError as error:
        assert "hang together" in str(error)
        return
    assert sorted(row for fold in divided for row in fold) == list(range(len(pairs)))
    for what in (0, 1):
        values = [{drawn[row][what] for row in fold} for fold in divided]
        assert sum(map(len, values)) == len(set().union(*values))


def test_folds_are_of_about_one_size_and_a_seed_gives_others():
    pairs = [pair(f"{k}.png", f"do {k // 3}") for k in range(30)]
    folds = folds_of(pairs, 5)
    assert [len(fold) for fold in folds] == [6] * 5
    assert folds == folds_of(pairs, 5) != folds_of(pairs, 5, seed=1)


def test_pairs_that_all_hang_together_are_refused_unless_less_must_stay_together():
    pairs = [pair(f"{k}.png", "the same") for k in range(8)]
    with pytest.raises(JRMError, match="8 of 8 pairs hang together by their source and instruction"):
        folds_of(pairs, 2)
    assert len(folds_of(pairs, 2, together=["source"])) == 2
    pairs = [pair("one.png", f"do {k}") for k in range(8)]
    assert len(folds_of(pairs, 2, together=["prompt"])) == 2


# --- verdicts ---------------------------------------------------------------------------------------------------------


def test_the_surest_contradiction_stands_first_and_only_sure_ones_are_to_be_dropped():
    margins = (3.0, -3.0, 2.0, -0.3, 2.5, -6.0, 4.0, 5.0)
    found = audited(*(({"overall": 1}, {"a": margin}) for margin in margins))
    assert [(p.name, found.verdict(p), found.proposed(p)) for p in found.pairs] == [
        ("5", "contradicted", "drop"),
        ("1", "contradicted", "drop"),
        ("3", "doubtful", "keep"),
        ("2", "agrees", "keep"),
        ("4", "agrees", "keep"),
        ("0", "agrees", "keep"),
        ("6", "agrees", "keep"),
        ("7", "agrees", "keep"),
    ]
    assert found.threshold == pytest.approx(sum(p.probability for p in found.pairs) / 8)
    assert [found.proposed(p, "flip") for p in found.pairs[:3]] == ["flip", "flip", "keep"]
    assert found.summary()["verdicts"] == {"contradicted": 2, "doubtful": 1, "agrees": 5}
    assert found.summary()["agreement"]["overall"]["value"] == 5 / 8


@settings(max_examples=40)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.floats(0.05, 3))
def test_which_sample_is_called_chosen_makes_no_difference(margins, sigma):
    there = audited(*(({"overall": 1}, {"a": margin}) for margin in margins), sigma=sigma)
    back = audited(*(({"overall": -1}, {"a": -margin}) for margin in margins), sigma=sigma)
    assert [p.name for p in there.pairs] == [p.name for p in back.pairs]
    for one, other in zip(there.pairs, back.pairs, strict=True):
        assert one.probability == pytest.approx(other.probability, rel=1e-9)
        assert one.probability + one.opposite == pytest.approx(1)
        assert there.verdict(one) == back.verdict(other)


def test_a_pair_is_as_likely_as_its_preferences_together_whatever_ties_stand_beside_them():
    (found,) = audited(({"a": 1, "b": -1, "c": 0}, {"a": 2.0, "b": 1.0, "c": 4.0})).pairs
    assert found.probability == pytest.approx(math.sqrt(found.probabilities["a"] * found.probabilities["b"]))
    assert found.probabilities["b"] < 0.5 < found.probabilities["a"]
    assert found.dimension == "c"  # the label that is contradicted most surely


def test_a_tie_is_contradicted_by_a_sure_order_and_is_kept_for_people_to_judge():
    found = audited(({"overall": 0}, {"a": 8.0}), ({"overall": 0}, {"a": 0.0}), ({"overall": 1}, {"a": 2.0}))
    sure, order, equal = found.pairs
    assert (sure.name, equal.name, order.name) == ("0", "1", "2")
    assert equal.probability == pytest.approx(1) and sure.probability < 0.1
    assert (found.verdict(sure), found.proposed(sure)) == ("contradicted", "keep")
    assert found.verdict(equal) == "agrees"
    with pytest.raises(JRMError, match="all pairs are ties"):
        audited(({"overall": 0}, {"a": 8.0}))


def test_less_sigma_is_a_surer_contradiction():
    sure, unsure = (audited(({"overall": 1}, {"a": -1.0}), sigma=sigma).pairs[0] for sigma in (0.1, 2.0))
    assert sure.probability < unsure.probability < 0.5
