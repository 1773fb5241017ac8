"""Runs `jrm` as users do, in processes of its own, without importing torch and TRL again for each.

A process that has imported everything and done nothing forks one child per command (`multiprocessing`'s forkserver), so
a command has a real exit code, real output streams, and can be killed.
"""

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS

_PRELOAD = [
    "transformers.models.qwen3_vl.modeling_qwen3_vl",
    "transformers.models.auto.tokenization_auto",
    "matplotlib.figure",
    "openai.resources.chat.completions",
    "scipy.stats",
    "jrm_plugin.cli.eval",
    "jrm_plugin.cli.score",
    "jrm_plugin.cli.train",
    "jrm_plugin.evaluation.benchmark_page",
    "jrm_plugin.integrations.trl.training",
    "jrm_plugin.scoring.scorer",
]
_COMMAND = """
import multiprocessing
import os
multiprocessing.set_start_method("fork", force=True)  # not the forkserver's, for data loader workers
for descriptor, path in ((1, out), (2, err)):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
os.chdir(folder)
os.setpgrp()
os.environ.update(environment)
from jrm_plugin.cli import main
main(arguments)
"""


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str


class Running:
    """A command that was started."""

    def __init__(self, context, arguments: list[str], streams: Path, folder: Path | str, environment: dict[str, str]):
        self.out, self.err = streams / "out", streams / "err"
        names = {"arguments": arguments, "folder": str(folder), "environment": environment}
        names |= {"out": str(self.out), "err": str(self.err)}
        self._process = context.Process(target=exec, args=(_COMMAND, names))
        self._process.start()
        self.pid: int = self._process.pid

    def wait(self) -> Finished:
        self._process.join(timeout=300)
        if self._process.is_alive():  # processes that wait for each other for ever
            self._process.kill()
            self._process.join()
        out = self.out.read_text() if self.out.is_file() else ""
        return Finished(self._process.exitcode, out, self.err.read_text())

    def wait_for(self, path: Path) -> None:
        """Returns as soon as `path` exists; fails if the command ends before."""
        while not path.exists():
            assert self._process.is_alive(), f"{path} was never made: {self.wait()}"
            time.sleep(0.002)


@pytest.fixture(scope="session")
def start_jrm(tmp_path_factory) -> Callable[..., Running]:
    """`start_jrm(*arguments)` starts a command and does not wait for it.

    `folder`: where it runs. `streams`: a folder for the files `out` and `err`. `environment`: further variables.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)

    def start(*arguments, streams: Path | None = None, folder: Path | str = ".", environment=None) -> Running:
        arguments = [str(argument) for argument in arguments]
        return Running(context, arguments, streams or tmp_path_factory.mktemp("jrm"), folder, environment or {})

    return start


@pytest.fixture(scope="session")
def jrm(start_jrm) -> Callable[..., Finished]:
    """`jrm(*arguments, folder=…)` runs a command to its end."""
    return lambda *arguments, **options: start_jrm(*arguments, **options).wait()


@pytest.fixture(scope="session")
def refused(jrm) -> Callable[..., str]:
    """`refused(*arguments)`: the one sentence with which a command says no; asserts that it says nothing else."""

    def run(*arguments, **options) -> str:
        finished = jrm(*arguments, **options)
        assert finished.code == 2
        assert finished.out == ""
        assert finished.err.startswith("jrm: ")
        assert finished.err.count("\n") == 1 and finished.err.endswith("\n")
        return finished.err

    return run


@pytest.fixture(scope="session")
def model_folder(make_scorer, tmp_path_factory) -> Path:
    """A JRM checkpoint with random weights."""
    folder = tmp_path_factory.mktemp("model")
    scorer = make_scorer()
    scorer.model.save_pretrained(folder)
    scorer.processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def edits(tmp_path_factory) -> Path:
    """A small ShapeEdits folder; `images/` has sources and edited images."""
    return SHAPE_EDITS.write(tmp_path_factory.mktemp("edits"), train=32, heldout=6, language=8, progress=False)


@pytest.fixture(scope="session")
def images(edits) -> list[str]:
    """Paths of a source image and of the two edited images of its pair."""
    return [str(edits / "images" / f"heldout_000000_{name}.png") for name in ("source", "a", "b")]


@pytest.fixture(scope="session")
def sample(images, model_folder) -> list[str]:
    """The arguments of a command for one source and two edited images."""
    return [
        *("--model", str(model_folder), "--source", images[0], "--instruction", "make the red circle blue"),
        *("--edited", images[1], images[2]),
    ]
