"""`jrm`: how it finds its commands, and how it ends."""

import errno
import os
import subprocess
import sys

import pytest

from jrm_plugin.cli import app
from jrm_plugin.errors import JRMError

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
    assert first == "0 []" and len(others) == len(app.COMMANDS)
    assert not any(name in line for line in others for name in HEAVY)
    assert finished.stdout.count("usage: jrm") == 1 + len(app.COMMANDS)


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


# --- what the system refuses ------------------------------------------------------------------------------------------


@pytest.fixture
def run_that_raises(monkeypatch, capsys):
    """`run_that_raises(error)`: the exit code and stderr of a command that fails with this error."""

    def end(error: BaseException) -> tuple[int, str]:
        def fail(arguments):
            raise error

        monkeypatch.setattr(app, "_run", fail)
        with pytest.raises(SystemExit) as exit:
            app.main([])
        return exit.value.code, capsys.readouterr().err

    return end


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (JRMError("model x is none."), "model x is none."),
        (OSError(errno.ENOSPC, "No space left on device", "out/a.png"), "out/a.png: No space left on device."),
        (OSError(errno.ENAMETOOLONG, "File name too long"), "File name too long."),
        (PermissionError(errno.EACCES, "Permission denied", b"caf\xe9"), "caf\\udce9: Permission denied."),
        (OSError("two\nlines."), "two lines."),
        (UnicodeEncodeError("ascii", "±", 0, 1, "ordinal not in range(128)"), "ordinal not in range(128)."),
        (RecursionError("maximum recursion depth exceeded"), "nested too deep"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_what_the_system_refuses_is_one_sentence(run_that_raises, error, said):
    code, err = run_that_raises(error)
    assert code == 2 and err.startswith("jrm: ") and err.count("\n") == 1 and said in err


@pytest.mark.parametrize("error", [TypeError("x"), AssertionError("x"), KeyError("x"), RuntimeError("x")])
def test_a_fault_of_the_program_shows_its_traceback(run_that_raises, error):
    with pytest.raises(type(error)):
        run_that_raises(error)


_PRINT = """
import sys
from jrm_plugin.cli import app
app._run = lambda arguments: print("±", "caf\\udce9")
app.main([])
"""


@pytest.mark.parametrize(
    ("redirection", "code", "out", "err"),
    [
        ("", 0, "\\xb1 caf\\udce9\n", ""),
        (">/dev/full", 2, "", "jrm: the command cannot go on: No space left on device.\n"),
        (">&-", 2, "", "jrm: the standard output is closed; leave it open, or send it to /dev/null.\n"),
        ("2>&-", 0, "\\xb1 caf\\udce9\n", ""),
    ],
)
def test_what_is_printed_can_be_printed(redirection, code, out, err):
    command = ["sh", "-c", f'exec "$0" -c "$1" {redirection}', sys.executable, _PRINT]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    finished = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (finished.returncode, finished.stdout, finished.stderr) == (code, out, err)
