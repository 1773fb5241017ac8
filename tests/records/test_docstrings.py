"""The examples in the docstrings of records and kernels are true."""

import doctest
from importlib import import_module

import pytest
import torch

MODULES = [
    "jrm_plugin.records.samples",
    "jrm_plugin.records.scores",
    "jrm_plugin.kernels.group_ranking_loss",
    "jrm_plugin.kernels.plackett_luce_loss",
    "jrm_plugin.kernels.pool_reward_tokens",
    "jrm_plugin.kernels.uncertainty_ranking_loss",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name):
    result = doctest.testmod(import_module(name), extraglobs={"torch": torch})
    assert result.attempted and not result.failed
