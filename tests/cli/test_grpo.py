"""`jrm grpo`: TRL's script with a JRM as a reward, and what it says to mistakes."""

import json
import os
from pathlib import Path

import pytest
import yaml
from PIL import Image

from jrm_plugin import Sample
from jrm_plugin.cli import app, grpo

RENDER = """
import json
import os
from PIL import Image
from jrm_plugin.integrations.trl import InvalidAnswer

def draw(text, row):
    number = sum(text.encode())
    if number % 4 == 0:
        raise InvalidAnswer("no picture")
    picture = Image.open(row["source_image"]).convert("RGB")
    picture.putpixel((number % 48, 5), (0, 0, 0))
    return picture

def length(completions, source_image, instruction, **_):
    with open("seen.jsonl", "a") as file:
        for row in zip(completions, source_image, instruction):
            file.write(json.dumps(row) + "\\n")
    with open("variables.json", "w") as file:
        json.dump({name: value for name, value in os.environ.items() if name.startswith("JRM_")}, file)
    return [float(len(text)) for text in completions]
"""


@pytest.fixture
def run_folder(images, tmp_path) -> Path:
    """A folder with a dataset (JSON lines), rewards of its own, and two image files beside it."""
    (tmp_path / "my_rewards.py").write_text(RENDER)
    data = tmp_path / "data"
    data.mkdir()
    rows = [
        {"prompt": f"edit {name}", "source_image": name, "instruction": "make the red circle blue"}
        for name in images[:2]
    ]
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def config(run_folder, policy_folder):
    """`config(**changes)`: a YAML file in the run's folder. A value of None leaves a key out."""

    def write(**changes) -> Path:
        content = {
            "reward_model": "jrm",
            "reward_model_path": "jrm-tiny",
            "reward_render": "my_rewards.draw",
            "reward_floor": -6.5,
            "reward_funcs": ["my_rewards.length"],
            "reward_weights": [1.0, 0.5],
            "model_name_or_path": str(policy_folder),
            "dataset_name": "data",
            "output_dir": "policy",
            "max_steps": 2,
            "save_steps": 2,
            "per_device_train_batch_size": 4,
            "num_generations": 4,
            "max_completion_length": 6,
            "logging_steps": 1,
            "gradient_checkpointing": False,
            "report_to": "none",
            "bf16": False,
            "use_cpu": True,
        } | changes
        path = run_folder / "grpo.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
        return path

    return write


def test_guards_and_a_second_judge_are_keys_too(tiny):
    rewards = grpo.JRMRewardArguments(
        reward_model_path="jrm-tiny", reward_device="cpu", reward_unedited="floor", reward_floor=-4.0,
        reward_undecided="equal", reward_win_threshold=0.8, reward_second_judge="jrm-tiny",
        reward_second_judge_every=1,
    ).rewards("unused")  # fmt: skip
    source = Image.new("RGB", (48, 48), "red")
    logged: dict = {}
    batch = {"instruction": ["make it blue"] * 2, "source_image": [source] * 2}
    batch["edited_image"] = [source, Image.new("RGB", (48, 48), "blue")]
    found = rewards[0](["p"] * 2, [""] * 2, log_metric=logged.__setitem__, **batch)
    (score,) = tiny.score([Sample.edit(source, "make it blue", batch["edited_image"][1])])
    assert found == pytest.approx([-4.0, score.mu["overall"]], abs=1e-5)
    assert logged["jrm_reward/unedited"] == 0.5
    assert logged["jrm_reward/second_judge/mu"] == pytest.approx(logged["jrm_reward/second_judge/first_mu"], abs=1e-5)


def test_two_steps_beside_another_reward(jrm, tiny, config, run_folder):
    # The variables are set by TRL's own `env:` block; a key of the file wins over them, and they stay as they are.
    variables = {"JRM_FLOOR": "-1", "JRM_DEVICE": "cpu"}
    keys = {"reward_mode": "lower_confidence_bound", "reward_k": 0.25, "reward_dimension": "visual_quality"}
    config(env=variables, **keys, reward_dtype="float32", reward_save_images=1, log_completions=True)
    finished = jrm("grpo", "--config", "grpo.yaml", "--learning_rate", "1e-4", folder=run_folder)
    assert finished.code == 0, finished.err
    assert (run_folder / "policy" / "model.safetensors").is_file()
    state = json.loads((run_folder / "policy" / "checkpoint-2" / "trainer_state.json").read_text())
    logs = [entry for entry in state["log_history"] if "reward" in entry]
    assert len(logs) == 2 and logs[0]["learning_rate"] == 1e-4

    assert json.loads((run_folder / "variables.json").read_text()) == variables
    rows = [json.loads(line) for line in (run_folder / "seen.jsonl").read_text().splitlines()]
    names: dict = {}
    kept: list = []
    exec(RENDER, names)
    for log, seen in zip(logs, (rows[:4], rows[4:]), strict=True):
        rewards = []
        for text, source, instruction in seen:
            try:
                edited = names["draw"](text, {"source_image": source})
            except names["InvalidAnswer"]:
                rewards.append(-6.5)
            else:
                (score,) = tiny.score([Sample.edit(source, instruction, edited)])
                rewards.append(score.mu["visual_quality"] - 0.25 * score.sigma["visual_quality"])
        mean = sum(rewards) / 4
        kept += [reward for reward in rewards if reward != -6.5]
        assert log["rewards/jrm_visual_quality/mean"] == pytest.approx(mean, abs=1e-4)
        lengths = sum(len(text) for text, *_ in seen) / 4
        assert log["reward"] == pytest.approx(mean + 0.5 * lengths, abs=1e-4)
    (lines,) = (run_folder / "policy" / "jrm_rollouts").glob("*/metadata.jsonl")
    lines = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [line["reward"] for line in lines] == pytest.approx(kept, abs=1e-4)
    assert "is in policy/completions, as Parquet files" in finished.out


def test_a_reward_for_each_dimension(jrm, config, run_folder):
    config(
        **{"reward_dimensions": ["instruction_following", "visual_quality"], "reward_mode": "entropic"},
        **{"reward_beta": 3.0, "reward_weights": [1.0, 0.5, 0.0], "reward_save_images": 1},
        **{"multi_objective_aggregation": "normalize_then_sum", "max_steps": 1, "save_steps": 1},
    )
    finished = jrm("grpo", "--config", "grpo.yaml", folder=run_folder)
    assert finished.code == 0, finished.err
    state = json.loads((run_folder / "policy" / "checkpoint-1" / "trainer_state.json").read_text())
    (log,) = (entry for entry in state["log_history"] if "reward" in entry)
    (lines,) = (run_folder / "policy" / "jrm_rollouts").glob("*/metadata.jsonl")
    lines = [json.loads(line) for line in lines.read_text().splitlines()]
    for name in ("instruction_following", "visual_quality"):
        rewards = [line[f"mu_{name}"] - line[f"sigma_{name}"] ** 2 / 6 for line in lines]
        assert [line[f"reward_{name}"] for line in lines] == pytest.approx(rewards)
        rewards += [-6.5] * (4 - len(rewards))
        assert log[f"rewards/jrm_{name}/mean"] == pytest.approx(sum(rewards) / 4, abs=1e-4)


def test_text_answers_from_a_mixture(jrm, config, run_folder):
    mixture = [{"path": "json", "data_files": "data/train.jsonl"}]
    config(
        **{"datasets": mixture, "dataset_name": None, "reward_funcs": None, "reward_weights": None},
        **{"reward_render": None, "reward_floor": None, "reward_task": "response", "reward_mode": "win_rate"},
        # neither is given: the device decides, and TRL's own default of bf16 is not for every CPU
        **{"bf16": None, "use_cpu": None},
        max_steps=1,
        save_strategy="no",
    )
    finished = jrm("grpo", "--config", "grpo.yaml", folder=run_folder)
    assert finished.code == 0, finished.err
    assert "'rewards/jrm_reward/mean': '0.5'" in finished.out  # the mean of a group's win probabilities


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"reward_model": None}, "needs reward_model: jrm, and the config grpo.yaml says nothing of a reward model"),
        ({"reward_model": "best"}, "has 'best' there; write it, or run trl grpo."),
        ({"reward_temperature": 3}, "unknown key reward_temperature"),
        ({"num_generation": 3}, "unknown key num_generation; did you mean num_generations?"),
        ({"reward_floor": "low"}, "reward_floor must be a number, not 'low'"),
        ({"reward_floor": None}, "render needs a floor in the mode mean"),
        ({"reward_mode": "median"}, "unknown reward mode 'median'"),
        ({"reward_mode": "median", "num_generations": 3}, "unknown reward mode 'median'"),  # before TRL's own checks
        ({"model_name_or_path": None, "num_generations": 3}, "has no model_name_or_path"),
        ({"reward_mode": "lower_confidence_bound", "reward_k": -1}, "k of a lower confidence bound must be at least 0"),
        ({"reward_dimension": "beauty"}, "the reward model has no dimension 'beauty'"),
        ({"reward_dimensions": ["beauty"], "reward_weights": None}, "the reward model has no dimension 'beauty'"),
        ({"reward_dimensions": ["a"], "reward_dimension": "a"}, "a reward for each of several exclude each other"),
        ({"reward_dimensions": ["a", "b"]}, "one weight for each of jrm_a, jrm_b, my_rewards.length, in this order"),
        ({"reward_mode": "entropic", "reward_beta": 0}, "beta of an entropic reward must be above 0"),
        ({"reward_on_error": "skip"}, "on_error must be raise, floor or leave_out, not 'skip'"),
        ({"reward_device": "toaster"}, "the device toaster cannot be used here"),
        ({"reward_dtype": "int8"}, "dtype must be float32, bfloat16, float16 or left out, not 'int8'"),
        ({"reward_save_images": 0}, "save_images must be a whole number of at least 1"),
        ({"reward_task": "video"}, "must be edit, generation or response, not 'video'"),
        ({"reward_render": "my_rewards.paint"}, "render my_rewards.paint cannot be imported"),
        ({"reward_model_path": "no_such_folder/x"}, "no_such_folder/x"),
        ({"reward_weights": [1.0]}, "one weight for each of jrm, my_rewards.length, in this order, not [1.0]."),
        ({"reward_funcs": "my_rewards.length"}, "reward_funcs must be a list"),
        ({"reward_funcs": ["no_such_module.f"]}, "cannot go on: No module named 'no_such_module'"),
        ({"model_name_or_path": None}, "has no model_name_or_path"),
        ({"dataset_name": None}, "has no dataset_name and no datasets"),
        ({"dataset_name": "no_such_data"}, "cannot go on: "),
        ({"num_generations": 3}, "num_generations"),
    ],
)
def test_a_mistake_is_one_sentence(refused, config, run_folder, changes, message):
    config(**changes)
    assert message in refused("grpo", "--config", "grpo.yaml", folder=run_folder)


def test_a_missing_column_is_named(jrm, config, run_folder):
    (run_folder / "data" / "train.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    config(reward_funcs=None, reward_weights=None)
    finished = jrm("grpo", "--config", "grpo.yaml", folder=run_folder)
    assert finished.code == 2
    assert "jrm: a JRM reward with the task edit needs instruction and source_image" in finished.err
    assert "Traceback" not in finished.err


def test_what_a_config_sets_is_for_its_run_alone(config, run_folder, monkeypatch, capsys):
    monkeypatch.chdir(run_folder)
    monkeypatch.setenv("JRM_DEVICE", "cpu")
    before = dict(os.environ)
    variables = {"JRM_MODEL": "no_such_folder/first", "JRM_DEVICE": "cuda:7"}
    config(env=variables, reward_model_path=None, reward_device="cpu")
    with pytest.raises(SystemExit):
        app.main(["grpo", "--config", "grpo.yaml"])
    assert "no_such_folder/first" in capsys.readouterr().err
    assert dict(os.environ) == before
