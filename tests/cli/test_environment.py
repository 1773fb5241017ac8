"""`jrm env`: versions, the device and the integrations, whatever is broken among them."""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from jrm_plugin import __version__


def test_json_and_table_say_the_same(jrm):
    finished = jrm("env", "--json")
    assert (finished.code, finished.err) == (0, "")
    found = json.loads(finished.out)
    assert found["Integrations"] == {"trl": "works"}
    assert found["Versions"]["jrm-plugin"] == __version__
    assert found["Versions"]["torch"] == version("torch")
    assert len(found["Device"]) >= 1
    table = jrm("env").out
    for rows in found.values():
        assert all(name in table for name in rows)


@pytest.mark.parametrize(
    ("trl", "said"),
    [
        ("raise RuntimeError('built for another torch')", "failed: RuntimeError: built for another torch"),
        (
            "raise ModuleNotFoundError('no trl', name='trl')",
            "not installed (trl is missing): pip install jrm-plugin[trl]",
        ),
    ],
)
def test_integration_whose_framework_is_broken_or_missing(tmp_path, trl, said):
    (tmp_path / "trl.py").write_text(trl)
    finished = subprocess.run(
        [sys.executable, "-m", "jrm_plugin.cli", "env", "--json"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    assert json.loads(finished.stdout)["Integrations"] == {"trl": said}
