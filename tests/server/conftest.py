"""A server with the built-in model, and a scorer whose work can be held up."""

from collections.abc import Iterator

import httpx
import pytest
from scoring_server import Brightness, ready_server

from jrm_plugin import RewardScorer


@pytest.fixture
def brightness() -> Brightness:
    return Brightness()


@pytest.fixture(scope="session")
def server(tiny: RewardScorer) -> Iterator[httpx.Client]:
    """A server with the built-in model, for tests that leave it as it is."""
    with ready_server(tiny) as client:
        yield client
