"""The example of `examples/trl`: its oracle is right, and it runs to its end."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jrm_plugin.integrations.trl import InvalidAnswer
from jrm_plugin.synthetic.shape_reader import oracle_score

SCRIPT = Path(__file__).parents[3] / "examples" / "trl" / "shape_commands.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("shape_commands", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_oracle_agrees_with_the_judge_of_pictures(example):
    rng = np.random.default_rng(0)
    right = 0
    for row in example.draw_rows(40, 1, heldout=True):
        source, instruction = row["source_image"], row["instruction"]
        asked = example.right_command(row["kind"], instruction)
        assert example.is_right(asked, source, instruction)
        assert oracle_score(source, instruction, example.draw(asked, row)) == 8
        command = example.warm_up_command(row, rng)
        try:
            picture = example.draw(command, row)
        except InvalidAnswer:
            assert not example.is_right(command, source, instruction)
        else:
            right += example.is_right(command, source, instruction)
            judged = oracle_score(source, instruction, picture)
            assert (judged == 8) == example.is_right(command, source, instruction)
    assert 0 < right < 40


@pytest.mark.parametrize("command", ["", "paint circle", "remove", "remove circle now", "recolour circle middle"])
def test_what_is_no_command_is_not_drawn(example, command):
    with pytest.raises(InvalidAnswer):
        example.draw(command, example.draw_rows(1, 0, heldout=False)[0])


@pytest.mark.parametrize(
    ("flags", "names"),
    [([], ["jrm_reward"]), (["--per-dimension"], ["jrm_instruction_following", "jrm_visual_quality"])],
)
def test_it_runs_to_its_end(example, tmp_path, monkeypatch, flags, names):
    arguments = ["--steps", "2", "--warm-up-steps", "2", "--heldout", "6", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["shape_commands.py", *arguments, *flags])
    example.main()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [entry["step"] for entry in summary["training"]] == [1, 2]
    assert all([*entry["rewards"]] == names for entry in summary["training"])
    for end in ("start", "end"):
        assert summary[end]["oracle_success"]["n"] == summary[end]["reward"]["n"] == 6
    assert Image.open(tmp_path / "out" / "curves.png").width > 500
