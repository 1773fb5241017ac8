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


@pytest.mark.parametrize(
    ("mu", "sigma"),
    [
        ({}, {}),
        ({"a": 1}, {"b": 1}),
        ({"a": 1}, {"a": 1, "b": 1}),
        ({"a": 1, "overall": 1}, {"a": 1, "overall": 1}),
        ({"a": math.nan}, {"a": 1}),
        ({"a": 1}, {"a": math.inf}),
        ({"a": 1}, {"a": -1}),
    ],
)
def test_broken_scores(mu, sigma):
    with pytest.raises(JRMError, match="a reward score"):
        RewardScore(mu, sigma)
