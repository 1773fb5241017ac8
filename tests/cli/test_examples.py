"""`jrm examples`: what the docs name can be had without a checkout."""

import runpy
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_every_example_is_listed_with_what_it_is(jrm):
    finished = jrm("examples", environment={"COLUMNS": "200"})
    assert (finished.code, finished.err) == (0, "")
    for path in (path for path in EXAMPLES.rglob("*.*") if path.parent.name != "__pycache__"):
        assert str(path.relative_to(EXAMPLES)) in finished.out
    assert "The paper's setting (appendix B.1) on EditReward-Data" in finished.out


def test_over_edits_are_told_by_each_dimension_of_each_model(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["over_edits.py", "--models", "jrm-tiny", "--pairs", "6"])
    runpy.run_path(str(EXAMPLES / "consistency" / "over_edits.py"), run_name="__main__")
    rows = [line for line in capsys.readouterr().out.splitlines() if "jrm-tiny" in line]
    assert [row.split("│")[2].strip() for row in rows] == ["overall", "instruction_following", "visual_quality"]
    assert all(0 <= float(row.split("│")[3]) <= 1 for row in rows)


def test_copies_are_the_examples_and_replace_nothing(jrm, refused, tmp_path):
    for _ in range(2):
        assert jrm("examples", "--copy", folder=tmp_path).code == 0
    script = Path("verl", "run_grpo_qwen2_5_vl.sh")
    copy = tmp_path / "examples" / script
    assert copy.read_bytes() == (EXAMPLES / script).read_bytes()
    assert copy.stat().st_mode == (EXAMPLES / script).stat().st_mode
    copy.write_text("mine")
    assert f"{Path('examples', script)} is there and differs" in refused("examples", "--copy", folder=tmp_path)
    assert copy.read_text() == "mine"
