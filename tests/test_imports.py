"""Who may import whom: no circle, integrations -> jrm_plugin -> kernels, and the rooms of jrm_plugin in their order."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "jrm_plugin": "jrm_plugin",
    "kernels/operators": "jrm_plugin.kernels",
    "integrations": "jrm_plugin.integrations",
}

# The rooms of `jrm_plugin`, each of which imports only those before it. The package's own face, `jrm_plugin/__init__`,
# names what is in them; the command line may import everything.
ROOMS = [
    "errors",
    "extras",
    "files",
    "configs",
    "runs",
    "dotted_path",
    "switches",
    "kernels",
    "records",
    "chat_client",
    "data",
    "synthetic",
]
ROOMS += [
    "model",
    "scoring",
    "client",
    "guards",
    "rollouts",
    "saved_rollouts",
    "judged_rollouts",
    "training",
    "evaluation",
    "annotation",
    "correction",
    "integrations",
    "server",
    "cli",
]


def modules() -> dict[str, Path]:
    """Every module of the tree by its name; a package by its folder's."""
    names = {}
    for folder, package in FOLDERS.items():
        for file in (ROOT / folder).rglob("*.py"):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            names[".".join([package, *(part for part in parts if part != "__init__")])] = file
    return names


MODULES = modules()


def statements(body: list[ast.stmt], *, inside_functions: bool) -> Iterator[ast.stmt]:
    """All statements, those for type checkers included."""
    for node in body:
        yield node
        if inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for field in ("body", "orelse", "finalbody", "handlers"):
                yield from statements(getattr(node, field, []), inside_functions=inside_functions)


def imports(name: str, *, inside_functions: bool = False) -> set[str]:
    """The modules that a module imports; those of the tree by their full names."""
    imported = set()
    for node in statements(ast.parse(MODULES[name].read_text()).body, inside_functions=inside_functions):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".") if MODULES[name].name == "__init__.py" else name.split(".")[:-1]
            start = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*start, *([node.module] if node.module else [])])
            inner = (f"{source}.{alias.name}" for alias in node.names)
            imported |= {module if module in MODULES else source for module in inner}
    return imported


def room(name: str) -> str:
    return name.split(".")[1]


def test_no_module_imports_itself_through_others():
    graph = {name: imports(name) & MODULES.keys() for name in MODULES if name != "jrm_plugin"}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other in a circle: {' -> '.join(error.args[1])}")


def test_each_room_imports_only_rooms_before_it():
    assert {room(name) for name in MODULES if name != "jrm_plugin"} <= {*ROOMS}
    for name in MODULES.keys() - {"jrm_plugin"}:
        for imported in imports(name, inside_functions=True) & MODULES.keys():
            if imported == "jrm_plugin":
                assert room(name) == "cli", f"{name} imports the package's face"
            else:
                assert ROOMS.index(room(imported)) <= ROOMS.index(room(name)), f"{name} imports {imported}"


def test_kernels_know_tensors_only():
    for name in MODULES:
        if name.startswith("jrm_plugin.kernels"):
            known = {*sys.stdlib_module_names, "numpy", "torch", "triton"}
            assert {module.split(".")[0] for module in imports(name) - MODULES.keys()} <= known, name


def test_records_and_synthetic_sets_need_no_torch():
    names = [name for name in MODULES if name != "jrm_plugin" and room(name) in ("records", "synthetic")]
    names += ["jrm_plugin.scoring.protocol", "jrm_plugin.scoring.loading", "jrm_plugin.client"]
    code = f"import sys, {', '.join(names)}; print('torch' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert finished.stdout == "False\n", finished.stderr
