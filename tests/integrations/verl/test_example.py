"""The example of `examples/verl`: the reward path runs to its end on a CPU, and the recipe for GPUs composes."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("verl", reason="verl is not installed")

from omegaconf import OmegaConf
from verl.utils.config import validate_config

from jrm_plugin.integrations.verl.settings import choose_jrm, settings_of

EXAMPLE = Path(__file__).parents[3] / "examples" / "verl"


def output_of(command: list[str], seconds: float, **variables: str) -> str:
    """What a command wrote; where it takes too long it is asked to end, so that its Ray cluster ends with it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **variables}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment, **pipes)
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
        pytest.fail(f"not done after {seconds} s:\n{output}\n{errors}")
    assert process.returncode == 0, errors
    return output


def test_the_reward_path_runs_to_its_end():
    for needed in ("cachetools", "fastapi", "uvicorn"):
        pytest.importorskip(needed, reason=f"verl's agent loop imports {needed}, which verl installs with its servers")
    options = ["--groups", "2", "--candidates", "6", "--workers", "1"]
    output = output_of([sys.executable, str(EXAMPLE / "reward_path_on_cpu.py"), *options], 500)

    def numbers(line: str) -> list[float]:
        (found,) = re.findall(rf"^{line}: (.*)$", output, re.MULTILINE)
        return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", found)]

    right, wrong, unparsable = numbers("mean reward")
    assert right > wrong > unparsable == -5.0
    assert numbers("got the floor") == [4, 12]
    before, after = re.search(r"^policy loss: (\S+), after one step (\S+)$", output, re.MULTILINE).groups()
    assert float(after) < float(before)
    gained = numbers("log-probability gained")
    assert gained[0] > gained[2]
    samples, batches, *_ = numbers("scorer 0")
    assert samples == 8 and 1 <= batches <= 8
    rows = re.findall(r"^ *make the .*\) .*\) .*\)", output, re.MULTILINE)
    assert len(rows) == 2
    assert "Ray actors left: none" in output


def test_the_recipe_composes_and_is_accepted(tmp_path):
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {"PATH": tools, "JRM_MODEL": "jrm-tiny", "DATA": str(tmp_path), "NODES": "2", "REPLICAS": "2"}
    script = ["bash", str(EXAMPLE / "run_grpo_qwen2_5_vl.sh"), "--cfg", "job", "--resolve"]
    config = OmegaConf.create(output_of(script, 240, **variables))
    choose_jrm(config)
    assert config.reward.reward_manager.name == "jrm"
    settings = settings_of(config.reward.jrm)
    assert (settings.model_path, settings.task, settings.replicas, settings.num_gpus) == ("jrm-tiny", "response", 2, 1)
    assert (config.trainer.n_gpus_per_node, config.trainer.nnodes) == (3, 2)
    assert config.data.train_files == f"{tmp_path}/train.parquet"
    validate_config(config, use_reference_policy=True, use_critic=False)
