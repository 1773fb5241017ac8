"""The Python and the commands that stand in the README and the docs: what their tests run, and what mypy checks.

`python tests/documentation.py FOLDER` writes the Python of each page into a file of that folder, beside the package as
it is installed, for mypy.
"""

import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").glob("*/README.md"))]

# Names that stand for the reader's own things. mypy sees them so, and the tests run with them.
READERS_OWN = """
import datasets
from PIL import Image

from jrm_plugin import ImageLike, RewardScore


def my_editor(image: ImageLike, text: str) -> Image.Image:
    return Image.open("edited.png")


my_model = my_editor
scores = [RewardScore(mu={"visual_quality": mu}, sigma={"visual_quality": 0.5}) for mu in (0.0, 1.0)]
score, baseline = scores
rewards = [0.0, 1.0]
rows = {"prompt": ["draw"] * 8, "instruction": ["draw"] * 8, "source_image": ["scene.png"] * 8}
dataset = datasets.Dataset.from_dict(rows)
"""

# Python blocks that are no program of their own, by a line of theirs, with the reason.
FRAGMENTS = {
    "RewardClient(": "it asks a server; tests/scoring/test_remote.py has one",
    "score_functions = {": "lines of flow_grpo's rewards.py",
    "pandas.read_parquet(": "a file that a run of ten steps leaves; tests/integrations/trl/test_reward.py reads one",
    'engine="vllm"': "it starts vLLM; tests/scoring/test_vllm_scorer.py does",
    "config.reward_fn": "a line of flow_grpo's config",
}


@dataclass(frozen=True)
class Block:
    """What stands between two fences."""

    page: Path
    line: int  # of its first line, from 1
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(*languages: str) -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
            if match[2] in languages:
                content = re.sub(f"^{match[1]}", "", match[3], flags=re.MULTILINE)
                yield Block(page, text.count("\n", 0, match.start(3)) + 1, match[2], content)


def python_blocks() -> Iterator[Block]:
    """Those that run as they stand."""
    return (block for block in blocks("python") if not any(line in block.text for line in FRAGMENTS))


def commands() -> Iterator[tuple[Block, str]]:
    """Every line of the shell blocks that is a command, with what `\\` continues in one line."""
    for block in blocks("bash"):
        for line in block.text.replace("\\\n", " ").splitlines():
            if line.strip() and not line.startswith("#"):
                yield block, line


def main(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "jrm_plugin").mkdir(parents=True)
    rooms = {path.name: path for path in (ROOT / "jrm_plugin").iterdir()}
    rooms |= {"kernels": ROOT / "kernels" / "operators", "integrations": ROOT / "integrations"}
    for name, path in rooms.items():
        (folder / "jrm_plugin" / name).symlink_to(path)
    for block in python_blocks():
        file = folder / (re.sub(r"\W", "_", str(block.page.relative_to(ROOT).with_suffix("")).lower()) + ".py")
        start = "" if file.exists() else READERS_OWN
        with file.open("a", encoding="utf-8") as page:
            page.write(f"{start}\n# {block.name}\n{block.text}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
