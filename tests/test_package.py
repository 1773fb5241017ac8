"""What is installed, and what an import costs."""

import ast
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from shutil import copy, copytree, ignore_patterns

import pytest
import yaml

import jrm_plugin

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "trl", "numpy", "PIL", "datasets", "peft", "rich")
OPTIONAL = ("trl", "datasets", "peft", "matplotlib", "sklearn", "skimage", "pyarrow", "verl", "deepspeed")


def run(code: str, *, folder: Path = ROOT, **environment: str) -> str:
    """What a fresh Python prints that runs `code` in `folder`."""
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_the_tests_of_a_file_share_a_process(request):
    """Otherwise what they share is made in every process, and nobody is told."""
    if getattr(request.config.option, "loadgroup", False):
        assert "@" in request.node.nodeid


def test_the_version_is_the_same_wherever_it_stands():
    versions = {jrm_plugin.__version__, tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]}
    versions.add(yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"])
    assert len(versions) == 1


def test_import_is_lazy():
    loaded = run("import sys, jrm_plugin; print(jrm_plugin.__version__, *sys.modules)").split()
    assert loaded[0] == jrm_plugin.__version__
    assert not {*HEAVY} & {*loaded}


def test_every_public_name_resolves():
    assert "RewardScorer" in jrm_plugin.__all__ and set(jrm_plugin.__all__) <= set(dir(jrm_plugin))
    for name in jrm_plugin.__all__:
        assert getattr(jrm_plugin, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        jrm_plugin.nothing  # noqa: B018


def test_type_checkers_see_the_public_names_where_they_are():
    """What `jrm_plugin/__init__.py` imports for type checkers is what it takes from its table at run time."""
    blocks = [node for node in ast.parse(Path(jrm_plugin.__file__).read_text()).body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.asname: f"{node.module}.{alias.name}" for node in imports for alias in node.names}
    assert seen == {name: f"jrm_plugin.{module}.{name}" for name, module in jrm_plugin._EXPORTS.items()}
    assert jrm_plugin.__all__ == ["__version__", *jrm_plugin._EXPORTS]


def test_core_imports_without_the_extras():
    printed = run(f"""
import pkgutil, sys
from importlib import import_module
sys.modules |= dict.fromkeys({OPTIONAL})  # as if they were not installed
import jrm_plugin
for module in pkgutil.walk_packages(jrm_plugin.__path__, "jrm_plugin."):
    if not module.name.startswith(("jrm_plugin.cli.__main__", "jrm_plugin.integrations")):
        import_module(module.name)
        print(module.name)
""")
    assert {"jrm_plugin.scoring.scorer", "jrm_plugin.data.editreward", "jrm_plugin.synthetic.photo_edits"} <= {
        *printed.split()
    }


def test_core_scores_with_its_own_dependencies_alone():
    """Whatever else is installed is hidden: transformers asks for some packages only when they are used."""
    printed = run("""
import sys
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

needed, waiting = set(), ["jrm-plugin"]
while waiting:
    name = canonicalize_name(waiting.pop())
    if name not in needed:
        needed.add(name)
        try:
            required = map(Requirement, requires(name) or [])
        except PackageNotFoundError:  # of another platform
            continue
        waiting += [r.name for r in required if r.marker is None or r.marker.evaluate({"extra": ""})]
hidden = {top for top, names in packages_distributions().items() if needed.isdisjoint(map(canonicalize_name, names))}
assert "trl" in hidden and "transformers" not in hidden
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, path=None, target=None: None if name in hidden else find(name, path, target)

from PIL import Image
from jrm_plugin import RewardScorer, Sample
pictures = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
scorer = RewardScorer.from_pretrained("jrm-tiny", device="cpu")
print(scorer.score([Sample.edit(pictures[0], "make the red circle blue", pictures[1])])[0].mu)
""")
    assert "overall" in printed


def test_transformers_works_inside_the_checkout():
    """A folder `kernels` that were a package would be taken for Hugging Face's package of that name."""
    code = "import transformers; from transformers.utils import is_kernels_available as k; print(k())"
    assert run(code) == run(code, folder=ROOT.parent)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of the tree, so that the tree stays as it is."""
    tree, dist = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        copy(ROOT / name, tree)
    for name in ("jrm_plugin", "kernels", "integrations", "examples"):
        copytree(ROOT / name, tree / name, ignore=ignore_patterns("__pycache__"))
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", dist, tree)
    (built,) = dist.iterdir()
    return built


def pip(*arguments) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_wheel_holds_every_module_and_resource(wheel):
    packed = {*zipfile.ZipFile(wheel).namelist()}
    expected = {
        place + str(file.relative_to(ROOT / folder))
        for folder, place in (
            ("jrm_plugin", "jrm_plugin/"),
            ("kernels/operators", "jrm_plugin/kernels/"),
            ("integrations", "jrm_plugin/integrations/"),
            ("examples", "jrm_plugin/examples/"),
        )
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }
    assert {
        "jrm_plugin/py.typed",
        "jrm_plugin/kernels/__init__.py",
        "jrm_plugin/integrations/trl/__init__.py",
    } <= packed
    assert {
        "jrm_plugin/resources/rubrics/full/edit/visual_quality.md",
        "jrm_plugin/evaluation/report.html.j2",
    } <= packed
    assert expected == {name for name in packed if ".dist-info/" not in name}


def test_wheel_works_without_the_checkout(wheel, make_scorer, tmp_path):
    scorer = make_scorer()
    scorer.model.save_pretrained(tmp_path / "model")
    scorer.processor.save_pretrained(tmp_path / "model")
    site = tmp_path / "site"
    pip("install", "--no-deps", "--target", site, wheel)
    printed = run(
        """
import jrm_plugin, jrm_plugin.integrations
from jrm_plugin import RewardScorer, Sample
from jrm_plugin.model.rubrics import data_prompt, default_rubrics
assert default_rubrics()["edit"] and default_rubrics("short")["response"] and data_prompt("visual_quality")
score = RewardScorer.from_pretrained("model", device="cpu").score([Sample.text_response(None, "why", "so")])
print(jrm_plugin.__file__, jrm_plugin.kernels.__file__, jrm_plugin.integrations.__file__, score[0].mu["overall"])
""",
        folder=tmp_path,
        PYTHONPATH=str(site),
    )
    *files, mu = printed.split()
    assert all(Path(file).is_relative_to(site) for file in files)
    assert abs(float(mu)) < 100
    for arguments, said in (("--version",), "jrm-plugin"), (("examples", "--copy"), "files were copied to examples"):
        command = [sys.executable, site / "bin" / "jrm", *arguments]
        finished = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True
        )
        assert said in finished.stdout
    assert (tmp_path / "examples" / "train" / "qwen3_vl_8b.yaml").is_file()
