"""The commands of the README and of the docs run as they stand, or say why they do not run here."""

import json
import shlex
from collections.abc import Callable
from functools import cache
from pathlib import Path
from shutil import copytree

import pyarrow
import pytest
from documentation import ROOT, Block, commands
from PIL import Image
from pyarrow import csv, parquet

from jrm_plugin.integrations.trl.training import parse

# By the beginning of a command: why it does not run here.
NOT_RUN = {
    "pip install": "it installs packages; tests/test_package.py installs the wheel",
    "make demo": "ten minutes",
    "make test": "it runs these tests",
    "make editor": "half an hour; tests/examples/test_image_editor.py has parts",
    "python -m examples.image_editor": "minutes; tests/examples/test_image_editor.py has parts",
    "python -m benchmarks.editor_cost": "a pre-trained editor; what it measures is tried by tests/examples",
    "jrm train --config examples/train": "a model of 8 billion parameters; its config is read below",
    "accelerate launch": "several GPUs",
    "torchrun": "several machines",
    "jrm grpo --config grpo.yaml": "a policy from the hub; tests/cli/test_grpo.py runs such a config",
    "jrm self-correct --config examples/self_correction": "half a minute; tests/cli/test_self_correct.py has parts",
    "python3 -m verl.trainer": "GPUs; tests/integrations/verl runs its reward path",
    "python examples/trl/shape_commands.py": "two minutes; tests/integrations/trl/test_shape_commands.py has parts",
    "python examples/verl/reward_path_on_cpu.py": "tests/integrations/verl/test_example.py runs it",
    "JRM_MODEL=/models/jrm": "GPUs",
    "jrm convert": "checkpoints of 17 GB; tests/cli/test_convert.py converts small ones",
    "jrm score --model PickScore_v1": "a model of the hub; tests/scoring/test_pick_score.py has a small one",
    "jrm eval --benchmark mmrb2": "the published data; tests/evaluation/benchmarks reads small files in their form",
    "jrm eval --benchmark shape_edits --limit 50 --model jrm-tiny openai": "a server; tests/cli/test_eval.py has one",
    "jrm audit": "preferences of one's own; tests/cli/test_audit.py runs it",
    "python -m benchmarks.label_noise": "half an hour; tests/benchmarks/test_label_noise.py runs a short one",
    "jrm annotate": "a server, or pairs of one's own; tests/cli/test_annotate.py has both",
    "jrm train --config train.yaml": "a config of one's own; tests/cli/test_train.py runs such",
    "jrm calibrate": "held-out pairs of one's own; tests/cli/test_calibrate.py runs it",
    "jrm analyze": "models of one's own; tests/cli/test_analyze.py runs it",
    "python examples/consistency/over_edits.py": "models of one's own; tests/cli/test_examples.py runs it",
    "jrm train --config examples/consistency": "ten minutes; its config is read below",
    "python -m benchmarks.consistency": "an hour; tests/benchmarks/test_consistency.py runs parts",
    "jrm demo": "minutes; tests/cli/test_demo.py has parts",
    "python -m benchmarks.reward_hacking": "half an hour; tests/benchmarks/test_uncertainty.py runs a short one",
    "jrm sweep": "runs of the demo's size; tests/cli/test_sweep.py runs small ones",
    "jrm serve": "it serves until it is stopped; tests/cli/test_serve.py runs it",
    "curl": "a server; tests/server asks one",
    "  {": "the rest of what curl sends",
    '  "': "the rest of what curl sends",
    "jrm score --engine vllm": "vLLM; tests/scoring/test_vllm_scorer.py scores with it",
    "jrm rank --engine vllm": "vLLM; tests/scoring/test_vllm_scorer.py ranks with it",
    "jrm push": "the hub; tests/cli/test_push.py pushes to a server of its own",
}


def documented() -> list:
    rows = []
    for block, command in commands():
        reason = next((why for start, why in NOT_RUN.items() if command.startswith(start)), None)
        marks = pytest.mark.skip(reason=f"not run here: {reason}") if reason else ()
        rows.append(pytest.param(block, command, marks=marks, id=f"{block.name} {command[:40]}"))
    return rows


@pytest.fixture(scope="module")
def readers_folder(tmp_path_factory, images) -> Callable[[Block], Path]:
    """`readers_folder(block)`: images, edits of them and lines that name them, where the commands of a block run."""
    folder = tmp_path_factory.mktemp("reader")
    for name, path in zip("abc", images, strict=True):
        Image.open(path).save(folder / f"{name}.png")
    for name in ("candidates/1", "candidates/2", "out/x_a", "out/x_b"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.open(images[1]).save(folder / f"{name}.png")
    samples = [{"source": "a.png", "instruction": "make the red circle blue", "edited": f"{name}.png"} for name in "bc"]
    (folder / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    table = pyarrow.Table.from_pylist(samples)
    csv.write_csv(table, folder / "samples.csv")
    parquet.write_table(table, folder / "samples.parquet")
    return cache(lambda block: copytree(folder, tmp_path_factory.mktemp("block"), dirs_exist_ok=True))


@pytest.mark.parametrize(("block", "command"), documented())
def test_a_command_runs(block: Block, command: str, jrm, readers_folder):
    program, *arguments = shlex.split(command, comments=True)
    assert program == "jrm", f"{block.name}: run it, or say in NOT_RUN why not"
    finished = jrm(*arguments, folder=readers_folder(block))
    assert finished.code == 0, finished.err


def test_no_reason_is_given_for_a_command_that_is_not_there():
    texts = [command for _, command in commands()]
    assert [start for start in NOT_RUN if not any(text.startswith(start) for text in texts)] == []


@pytest.mark.parametrize("name", ["qwen3_vl_8b", "qwen3_vl_8b_lora", "qwen3_vl_8b_qlora"])
def test_a_config_that_cannot_run_here_is_read(name):
    arguments, training = parse(ROOT / "examples" / "train" / f"{name}.yaml")
    assert arguments.model == "Qwen/Qwen3-VL-8B-Instruct" and training.output_dir.startswith("outputs/")


def test_the_config_of_three_dimensions_is_the_demos_and_one_line():
    arguments, training = parse(ROOT / "examples" / "consistency" / "shape_edits.yaml")
    _, demo = parse(
        ROOT / "jrm_plugin" / "resources" / "demo" / "shapes_joint.yaml",
        ["--model", "m", "--train_data", "d", "--output_dir", "outputs/three-dimensions"],
    )
    assert arguments.dimensions == ["instruction_following", "visual_quality", "consistency"]
    training.eval_steps = demo.eval_steps
    assert training.to_dict() == demo.to_dict()
