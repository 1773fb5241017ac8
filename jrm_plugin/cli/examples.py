"""`jrm examples`: the configs and scripts that the docs name, listed or copied."""

import argparse
from pathlib import Path

import jrm_plugin
from jrm_plugin.cli.common import make_table, print_table
from jrm_plugin.errors import JRMError
from jrm_plugin.files import check_writable, read_text, write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--copy",
        type=Path,
        nargs="?",
        const=Path("examples"),
        metavar="FOLDER",
        help="copy them into this folder (default: examples, which the commands of the docs name)",
    )


def run(options: argparse.Namespace) -> int:
    files = {path.relative_to(examples_folder()): path for path in sorted(examples_folder().rglob("*.*"))}
    files = {name: path for name, path in files.items() if path.suffix in (".md", ".py", ".sh", ".yaml")}
    if options.copy is None:
        table = make_table("Examples", "file", "what it is")
        for name, path in files.items():
            table.add_row(str(name), _first_sentence(path))
        print_table(table)
        return 0
    for name, path in files.items():
        copy = options.copy / name
        if copy.exists() and read_text(copy) != read_text(path):
            raise JRMError(f"{copy} is there and differs from the example: name another folder after --copy.")
    for name, path in files.items():
        check_writable((options.copy / name).parent)
        write_text(options.copy / name, read_text(path)).chmod(path.stat().st_mode)
    print(f"{len(files)} files were copied to {options.copy}.")
    return 0


def examples_folder() -> Path:
    """In an installed package beside its rooms; in a checkout at its top."""
    package = Path(jrm_plugin.__file__).parent
    installed = package / "examples"
    return installed if installed.is_dir() else package.parent / "examples"


def _first_sentence(path: Path) -> str:
    """The first line that says something: of a comment, a docstring or a title."""
    lines = (line.strip("#\"' ") for line in read_text(path).splitlines() if not line.startswith("#!"))
    return next(line for line in lines if line)
