"""`jrm`: how it finds its commands, and how it ends."""

import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "trl")


def test_help_answers_at_once():
    """No command's help imports torch; that of all commands imports nothing at all."""
    code = f"""
import sys
from jrm_plugin.cli.app import COMMANDS, main
for arguments in [[], *([command] for command in COMMANDS)]:
    try: main([*arguments, "--help"])
    except SystemExit as exit: print(exit.code, sorted(sys.modules.keys() & {{*{HEAVY}, "numpy", "PIL", "rich"}}))
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.stderr == ""
    first, *others = [line for line in finished.stdout.splitlines() if line.startswith("0 [")]
    assert first == "0 []" and len(others) == 8
    assert not any(name in line for line in others for name in HEAVY)
    assert finished.stdout.count("usage: jrm") == 9


@pytest.mark.parametrize("arguments", [["score", "--unknown", "1"], ["paint"], [], ["train"]])
def test_wrong_usage_exits_with_2(jrm, arguments):
    finished = jrm(*arguments)
    assert finished.code == 2 and finished.err.startswith("usage: jrm") and "Traceback" not in finished.err


def test_reader_that_leaves_early(start_jrm, sample, tmp_path):
    os.mkfifo(tmp_path / "out")
    running = start_jrm("score", *sample, "--json", streams=tmp_path)
    os.close(os.open(tmp_path / "out", os.O_RDONLY))
    finished = running.wait()
    assert (finished.code, finished.err) == (1, "")
