"""`jrm demo`: it never mixes two demos in one folder."""

import os
import shutil

from jrm_plugin.runs import LOCK_FILE, locked


def test_a_demo_with_other_options_is_refused(refused, tmp_path):
    (tmp_path / "demo.json").write_text('{"photos": false, "scale": 1.0, "seed": 1}')
    message = refused("demo", "--output", tmp_path, "--photos", "--seed", "2")
    assert "another photos, seed;" in message
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "meta.json").write_text("{}")
    (tmp_path / "demo.json").unlink()
    assert "unknown run" in refused("demo", "--output", tmp_path)
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "report.html").write_text("mine")
    assert "unknown run" in refused("demo", "--output", tmp_path)
    assert (tmp_path / "report.html").read_text() == "mine"
    (tmp_path / "report.html").unlink()
    with locked(tmp_path / LOCK_FILE):
        assert f"the end of process {os.getpid()}" in refused("demo", "--output", tmp_path)


def test_what_it_cannot_do(refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused("demo", "--output", tmp_path / "file" / "demo")
    assert "--scale must be positive" in refused("demo", "--output", tmp_path, "--scale", "0")
    assert "--scale must be positive" in refused("demo", "--output", tmp_path, "--scale", "inf")
    assert "--seed must be" in refused("demo", "--output", tmp_path, "--seed", "-1")
