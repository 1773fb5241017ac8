"""`jrm` in forked processes that can be killed."""

import os
from pathlib import Path

from jrm_plugin.cli import main as jrm


def start(arguments: list[str], errors: Path) -> int:
    """A command in a process of its own, whose number it gives; what it says on stderr goes to `errors`."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        jrm(arguments)
    except SystemExit as end:
        code = end.code
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    """The exit code; negative is the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
