import dataclasses
import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jrm_plugin.errors import JRMError
from jrm_plugin.records.scores import RewardScore


def test_overall_is_the_mean_and_the_sigma_of_the_mean():
    score = RewardScore({"a": 1, "b": 2}, {"b": 4, "a": 3})
    assert score.mu == {"a": 1.0, "b": 2.0, "overall": 1.5}
    assert score.sigma == {"a": 3.0, "b": 4.0, "overall": 2.5}
    assert list(score.sigma) == ["a", "b", "overall"]
    assert score.to_dict() == {"mu": score.mu, "sigma": score.sigma}
    assert pickle.loads(pickle.dumps(score)) == score


@pytest.mark.parametrize(("rule", "mu", "sigma"), [("mean", 1.5, 2.5), ("sum", 3.0, 5.0), ("min", 1.0, 4.0)])
def test_overall_by_each_rule(rule, mu, sigma):
    score = RewardScore({"a": 2, "b": 1}, {"a": 3, "b": 4}, rule)
    assert (score.mu["overall"], score.sigma["overall"]) == (mu, sigma)
    for again in (RewardScore.from_dict(score.to_dict()), RewardScore.from_columns(score.to_columns())):
        assert again == score and again.overall_rule == rule
    assert pickle.loads(pickle.dumps(score)) == dataclasses.replace(score) == score


def test_an_unknown_rule_and_one_that_does_not_fit_the_overall_score():
    with pytest.raises(JRMError, match="one of mean, sum, min of the dimensions', not 'max'"):
        RewardScore({"a": 1}, {"a": 1}, "max")
    record = RewardScore({"a": 2, "b": 1}, {"a": 3, "b": 4}, "sum").to_dict()
    with pytest.raises(JRMError, match="it is 1, not 3"):
        RewardScore.from_dict(record | {"overall_rule": "min"})


def test_scores_are_plain_floats():
    score = RewardScore({"a": np.float32(1)}, {"a": np.float64(2)})
    assert {type(value) for value in (*score.mu.values(), *score.sigma.values())} == {float}
    assert json.loads(json.dumps(score.to_dict())) == score.to_dict()
    assert score.mu["overall"] == 1 and score.sigma["overall"] == 2


@given(st.dictionaries(st.sampled_from("abcde"), st.tuples(st.floats(-1e6, 1e6), st.floats(0, 1e6)), min_size=1))
def test_overall_by_its_formula(values):
    score = RewardScore({name: mu for name, (mu, _) in values.items()}, {name: s for name, (_, s) in values.items()})
    mus, sigmas = np.array(list(values.values())).T
    assert score.mu["overall"] == pytest.approx(mus.mean(), rel=1e-9, abs=1e-9)
    assert score.sigma["overall"] == pytest.approx(np.sqrt((sigmas**2).sum()) / len(values), rel=1e-9)


@given(st.dictionaries(st.sampled_from("abcde"), st.tuples(st.floats(-1e6, 1e6), st.floats(0, 1e6)), min_size=1))
def test_what_a_score_writes_makes_an_equal_score(values):
    score = RewardScore({name: mu for name, (mu, _) in values.items()}, {name: s for name, (_, s) in values.items()})
    record = json.loads(json.dumps(score.to_dict()))
    turned = {kind: dict(reversed(by_name.items())) for kind, by_name in record.items()}
    for again in (RewardScore.from_dict(record), RewardScore(**record), RewardScore(**turned)):
        assert again == score and hash(again) == hash(score)
    rounded = {kind: {name: float(np.float32(x)) for name, x in by_name.items()} for kind, by_name in record.items()}
    RewardScore.from_dict(rounded)


def test_a_part_of_a_score_is_replaced():
    score = RewardScore({"a": 1, "b": 2}, {"a": 3, "b": 4})
    moved = dataclasses.replace(score, mu={"a": 5, "b": 2})
    assert moved == RewardScore({"a": 5, "b": 2}, {"a": 3, "b": 4}) and moved.mu["overall"] == 3.5
    assert dataclasses.replace(score) == score
    with pytest.raises(JRMError, match="overall mu of a reward score .* it is 3.5, not 1.5; leave it out"):
        dataclasses.replace(score, mu=score.mu | {"a": 5})


def test_a_score_shows_rounded_numbers():
    score = RewardScore({"a": 1 / 3, "b": -1234.56789}, {"a": 1e-9, "b": 2})
    assert repr(score) == "RewardScore(overall=-617.1±1, a=0.3333±1e-09, b=-1235±2)"


def test_a_score_goes_through_the_columns_of_a_table():
    score = RewardScore({"a": 1 / 3, "b_c": -2}, {"a": 0.5, "b_c": 2})
    columns = score.to_columns()
    assert list(columns) == ["mu_overall", "sigma_overall", "mu_a", "sigma_a", "mu_b_c", "sigma_b_c"]
    assert RewardScore.from_columns({"edited": "b.png", "mu_d": None, "sigma_d": None, **columns}) == score
    assert RewardScore.from_columns({name: str(value) for name, value in columns.items()}) == score  # as CSV has them


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"error": "no image"}, "needs mu and sigma"),
        ({"mu_a": 1.0}, "needs mu and sigma of the same dimensions"),
        ({"mu_a": "x", "sigma_a": 1}, "the column 'mu_a' of a score must hold a number, not 'x'"),
        ({"mu_a": 1, "sigma_a": 1, "mu_overall": 2, "sigma_overall": 1}, "it is 1, not 2"),
    ],
)
def test_a_row_without_a_score_is_refused(row, message):
    with pytest.raises(JRMError, match=message):
        RewardScore.from_columns(row)


@pytest.mark.parametrize("record", [None, {}, {"mu": {"a": 1}}, {"mu": {"a": 1}, "sigma": {"a": 1}, "k": 1}])
def test_what_is_no_record_of_a_score(record):
    with pytest.raises(JRMError, match="a reward score's record must"):
        RewardScore.from_dict(record)


@pytest.mark.parametrize(
    ("mu", "sigma"),
    [
        ({}, {}),
        ({"a": 1}, {"b": 1}),
        ({"a": 1}, {"a": 1, "b": 1}),
        ({"overall": 1}, {"overall": 1}),
        ({"a": 1, "overall": 1.001}, {"a": 1}),
        ({"a": 1, "b": 3}, {"a": 1, "b": 1, "overall": 1}),
        ({"a": 1, "overall": math.nan}, {"a": 1}),
        ({"a": math.nan}, {"a": 1}),
        ({"a": 1}, {"a": math.inf}),
        ({"a": 1}, {"a": -1}),
    ],
)
def test_broken_scores(mu, sigma):
    with pytest.raises(JRMError, match="a reward score"):
        RewardScore(mu, sigma)
