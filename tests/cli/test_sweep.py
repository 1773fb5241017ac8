"""`jrm sweep`: a run for each alpha and seed as `jrm train` makes it, gone on from after a kill, and compared."""

import json
import os
import signal

import pytest
import yaml
from safetensors.torch import load_file

SWEEP = ("--alpha", "0", "0.7", "--seeds", "0", "1")


@pytest.fixture(scope="module")
def config(backbone_folder, edits, tmp_path_factory):
    path = tmp_path_factory.mktemp("sweep") / "config.yaml"
    settings = {
        "model": str(backbone_folder("qwen3_vl")),
        "train_data": str(edits / "train.json"),
        "eval_data": {"held_out": str(edits / "heldout.json")},
        "eval_strategy": "steps",
        "eval_steps": 1,
        "rubrics": "short",
        "reward_head_widths": [16],
        "max_pixels": 2304,
        "max_length": 1024,
        "per_device_train_batch_size": 2,
        "gradient_checkpointing": False,
        "max_steps": 2,
        "learning_rate": 0.001,
        "logging_steps": 1,
        "report_to": "none",
        "alpha": 0.5,  # which the sweep sets
    }
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def swept(start_jrm, jrm, config, tmp_path_factory):
    """The folder of a sweep that was killed in its third run, and what its first two runs were then."""
    output = tmp_path_factory.mktemp("swept") / "sweep"
    running = start_jrm("sweep", "--config", config, *SWEEP, "--output", output)
    running.wait_for(output / "alpha-0-seed-1" / "jrm_train.json")
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    finished = {path: path.stat().st_mtime_ns for path in output.glob("*/trainer_state.json")}
    assert len(finished) == 2 and not (output / "report.html").exists()
    return output, finished, jrm("sweep", "--config", config, *SWEEP, "--output", output, "--wide")


def test_killed_it_goes_on_and_trains_nothing_twice(swept):
    output, before, finished = swept
    assert finished.code == 0, finished.err
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert len(list(output.glob("*/trainer_state.json"))) == 4


def test_its_numbers_are_the_logs(swept):
    output, _, finished = swept
    results = json.loads((output / "results.json").read_text())
    assert (results["alphas"], results["seeds"]) == ([0.0, 0.7], [0, 1])
    found = results["sets"]["held_out"]["overall"]
    values = {}
    for alpha in ("0", "0.7"):
        for seed in (0, 1):
            log = json.loads((output / f"alpha-{alpha}-seed-{seed}" / "trainer_state.json").read_text())["log_history"]
            values[alpha, seed] = [row[k] for row in log for k in row if k == "eval_held_out_accuracy/overall"]
            assert len(values[alpha, seed]) == 2
    for alpha, key in (("0", "0.0"), ("0.7", "0.7")):
        assert found["last"][key]["seeds"] == {str(seed): values[alpha, seed][-1] for seed in (0, 1)}
        assert found["best"][key]["seeds"] == {str(seed): max(values[alpha, seed]) for seed in (0, 1)}
    differences = [values["0.7", seed][-1] - values["0", seed][-1] for seed in (0, 1)]
    assert found["difference"]["0.7"]["value"] == pytest.approx(sum(differences) / 2)
    assert list(results["curves"]["critique_loss"]) == ["alpha = 0.7"]  # where alpha is 0, no critique is read
    assert list(results["curves"]["rank_loss"]) == ["alpha = 0", "alpha = 0.7"]
    charts = {path.stem for path in (output / "charts").iterdir()}
    curves = ("rank_loss", "critique_loss", "loss", "grad_norm", "accuracy_overall")
    assert charts == {"accuracy_1", *(f"training_{curve}" for curve in curves)}
    assert "overall less alpha = 0" in finished.out
    assert "overall less alpha = 0" in (output / "report.html").read_text()


def test_a_run_is_what_jrm_train_makes(swept, jrm, config, tmp_path):
    output, _, _ = swept
    options = ("--alpha", "0.7", "--seed", "1", "--output_dir", tmp_path / "run")
    assert jrm("train", "--config", config, *options).code == 0
    alone, of_sweep = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "run", output / "alpha-0.7-seed-1")
    )
    assert all(of_sweep[name].equal(weight) for name, weight in alone.items())


def test_wrong_uses_are_one_sentence(swept, refused, config, edits, tmp_path):
    output, _, _ = swept
    start = ("sweep", "--config", config, "--output")
    assert "another max_steps" in refused(*start, output, *SWEEP, "--max_steps", "6")
    assert "names a value twice: 0.3, 0.3" in refused(*start, tmp_path / "new", "--alpha", "0.3", "0.3")
    assert "below 1" in refused(*start, tmp_path / "new", "--alpha", "0", "1")
    settings = yaml.safe_load(config.read_text())
    del settings["eval_data"], settings["eval_strategy"]
    without = tmp_path / "without.yaml"
    without.write_text(yaml.safe_dump(settings))
    assert "give eval_data and eval_strategy" in refused("sweep", "--config", without, "--output", tmp_path / "new")
