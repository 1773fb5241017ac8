"""`jrm env`: versions, the device and the integrations, whatever is broken among them."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from jrm_plugin import __version__
from jrm_plugin.cli import env

READY = {
    "flow_factory": "not installed",
    "flow_grpo": "not installed",
    "ray": "ready",
    "trl": "ready",
    "verl": "registered as the reward manager jrm of verl",
    "verl_omni": "not installed",
    "vllm": "not installed: pip install jrm-plugin[vllm]",
}


def test_json_and_table_say_the_same(jrm):
    finished = jrm("env", "--json")
    assert (finished.code, finished.err) == (0, "")
    found = json.loads(finished.out)
    assert set(found["Integrations"]) == set(READY)
    assert all(found["Integrations"][name].startswith(state) for name, state in READY.items())
    assert found["Versions"]["jrm-plugin"] == __version__
    assert found["Versions"]["torch"] == version("torch")
    assert len(found["Device"]) >= 1
    table = jrm("env").out
    for rows in found.values():
        assert all(name in table for name in rows)


def test_a_version_that_was_not_tried_is_one_sentence(monkeypatch):
    monkeypatch.setattr(env, "version", lambda name: {"transformers": "99.0", "pillow": "12.1.0"}[name])
    monkeypatch.setattr(env, "requires", lambda name: ["transformers>=5.1,<6", "pillow>=11; extra == 'x'"])
    assert env.untried_versions() == {"transformers": "99.0 is outside of >=5.1,<6, with which jrm-plugin was tried"}


def integrations(*path: Path, missing: tuple[str, ...] = ()) -> dict[str, str]:
    """What `jrm env` says in a fresh Python with further folders on its path, or as if packages were not installed."""
    code = f"""
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in {missing!r} else find_spec(name, *rest)
from jrm_plugin.cli import main
main(["env", "--json"])
"""
    finished = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))},
        capture_output=True,
        text=True,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    return json.loads(finished.stdout)["Integrations"]


def test_broken_frameworks_break_nothing_else(tmp_path):
    """One that cannot be imported, and a version that has moved what an adapter needs."""
    (tmp_path / "trl.py").write_text("raise RuntimeError('built for another torch')")
    (tmp_path / "verl").mkdir()
    (tmp_path / "verl" / "__init__.py").write_text("__version__ = '0.2'")
    found = integrations(tmp_path)
    assert found["trl"] == "failed: RuntimeError: built for another torch"
    assert found["verl"] == "failed: ModuleNotFoundError: No module named 'verl.experimental'"
    assert all(found[name].startswith(READY[name]) for name in ("flow_grpo", "ray", "verl_omni"))


def test_missing_frameworks():
    found = integrations(missing=("ray", "trl", "verl"))
    assert found["trl"] == "not installed: pip install jrm-plugin[trl]"
    assert found["verl"] == "not installed: pip install jrm-plugin[verl]"
    assert found["ray"] == "not installed"
