"""Labelled pairs whose samples are texts, so that a stand-in for a scorer can read what it answers off the sample."""

from collections.abc import Callable

import pytest

from jrm_plugin.records.preferences import PreferencePair
from jrm_plugin.records.samples import Sample


@pytest.fixture(scope="session")
def make_pair() -> Callable[..., PreferencePair]:
    """`make_pair("2 1", "0 0")`: a pair of two answers, the first preferred overall unless `labels` say otherwise."""

    def make(chosen: str, rejected: str, labels: dict | None = None, **more) -> PreferencePair:
        samples = (Sample.text_response(None, "which is better?", text) for text in (chosen, rejected))
        return PreferencePair(*samples, labels={"overall": 1} if labels is None else labels, **more)

    return make
