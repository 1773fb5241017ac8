"""`jrm train`: what it makes, how it goes on after it was stopped, and what it says to mistakes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch.distributed import TCPStore

from jrm_plugin.data.editreward import read_edit_reward
from jrm_plugin.integrations.trl.checkpoints import last_whole_checkpoint
from jrm_plugin.records.samples import Sample
from jrm_plugin.scoring.scorer import RewardScorer

ADAMW = {}
MUON_AND_WORKER = {"muon_learning_rate": 0.01, "dataloader_num_workers": 1}


@pytest.fixture(scope="session")
def settings(backbone_folder, edits) -> dict:
    """A run of twelve updates, eight in an epoch, with dropout in the head and checkpoints in the middle of epochs."""
    return {
        "model": str(backbone_folder("qwen3_vl")),
        "train_data": str(edits / "train.json"),
        "rubrics": "short",
        "reward_head_widths": [32],
        "reward_head_dropout": 0.3,
        "max_pixels": 2304,
        "max_length": 1024,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": False,
        "max_steps": 12,
        "learning_rate": 0.001,
        "save_steps": 3,
        "logging_steps": 4,
    }


@pytest.fixture
def config(settings, tmp_path):
    """`config(**changes)`: a YAML file of `settings` with changes; the output is `tmp_path / "run"`."""

    def write(**changes) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({**settings, "output_dir": str(tmp_path / "run"), **changes}))
        return path

    return write


@pytest.fixture(scope="session")
def uninterrupted(jrm, settings, tmp_path_factory) -> dict[str, Path]:
    """The folders of two runs that nothing interrupted."""
    folders = {}
    for name, options in (("adamw", ADAMW), ("muon_and_worker", MUON_AND_WORKER)):
        folders[name] = tmp_path_factory.mktemp(name) / "run"
        path = folders[name].with_name("config.yaml")
        path.write_text(yaml.safe_dump({**settings, **options, "output_dir": str(folders[name])}))
        finished = jrm("train", "--config", path)
        assert finished.code == 0, finished.err
        assert f"Trained; the model is in {folders[name]}" in finished.out
    return folders


def assert_same_weights(folder: Path, other: Path) -> None:
    one, two = (load_file(path / "model.safetensors") for path in (folder, other))
    assert one.keys() == two.keys()
    assert {name: (one[name] - two[name]).abs().max().item() for name in one} == dict.fromkeys(one, 0.0)


def test_the_folder_scores_and_training_moved_every_weight(uninterrupted, settings, edits):
    scorer = RewardScorer.from_pretrained(uninterrupted["adamw"], device="cpu")
    assert scorer.processor.max_pixels == 2304
    pair = read_edit_reward(edits / "heldout.json", progress=False).examples[0]
    assert len(scorer.score([pair.chosen, pair.rejected])) == 2
    adamw, muon = (load_file(uninterrupted[name] / "model.safetensors") for name in uninterrupted)
    for name in adamw:
        assert not torch.equal(adamw[name], muon[name]), name


@pytest.mark.parametrize(("name", "options"), [("adamw", ADAMW), ("muon_and_worker", MUON_AND_WORKER)])
def test_sigkill_in_mid_epoch_changes_nothing(start_jrm, jrm, config, uninterrupted, tmp_path, name, options):
    path = config(**options)
    running = start_jrm("train", "--config", path)
    running.wait_for(tmp_path / "run" / "checkpoint-3")
    os.kill(running.pid, signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    assert not (tmp_path / "run" / "checkpoint-12").exists()
    finished = jrm("train", "--config", path)
    assert finished.code == 0, finished.err
    assert_same_weights(tmp_path / "run", uninterrupted[name])


def test_ctrl_c_saves_and_the_same_command_goes_on(start_jrm, jrm, config, uninterrupted, tmp_path):
    path = config(**MUON_AND_WORKER, save_strategy="no")
    running = start_jrm("train", "--config", path)
    running.wait_for(tmp_path / "run" / "jrm_train.json")  # written just before the first step
    os.killpg(running.pid, signal.SIGINT)  # a terminal's Ctrl-C reaches the data loader's worker too
    stopped = running.wait()
    assert stopped.code == 130 and "Traceback" not in stopped.err
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    assert stopped.err.endswith(f"jrm: stopped; the same command goes on from {checkpoint}.\n")
    # How often it saves and logs may change.
    assert jrm("train", "--config", config(**MUON_AND_WORKER, save_steps=5, logging_steps=3)).code == 0
    assert_same_weights(tmp_path / "run", uninterrupted["muon_and_worker"])


def test_checkpoint_that_was_being_written_is_passed_over(jrm, config, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted["adamw"], tmp_path / "run")
    run = tmp_path / "run"
    for name in ("checkpoint-9", "checkpoint-12"):
        shutil.rmtree(run / name)
    (run / ".saving" / "checkpoint-9").mkdir(parents=True)
    (run / ".saving" / "checkpoint-9" / "model.safetensors").write_bytes(b"half")
    (run / "model.safetensors").unlink()
    finished = jrm("train", "--config", config())
    assert finished.code == 0, finished.err
    assert not (run / ".saving").exists()
    assert_same_weights(run, uninterrupted["adamw"])


def test_other_settings_are_refused_by_name(refused, config, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted["adamw"], tmp_path / "run")
    weights = (tmp_path / "run" / "model.safetensors").read_bytes()
    message = refused("train", "--config", config(learning_rate=0.002, alpha=0.5, save_steps=1))
    assert "another alpha, learning_rate;" in message
    (tmp_path / "run" / "jrm_train.json").unlink()
    assert "results of an unknown run" in refused("train", "--config", config())
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights


def test_other_data_is_refused_by_name(refused, jrm, config, edits, tmp_path):
    """Going on would mix two data sets, half an epoch of each."""
    shutil.copytree(edits, tmp_path / "edits")
    train = tmp_path / "edits" / "train.json"
    critiques, image = train.with_name("train_critiques.jsonl"), train.parent / "images" / "train_000005_a.png"
    path = config(train_data=str(train), max_steps=1, save_steps=1)
    assert jrm("train", "--config", path).code == 0
    swapped = json.loads(train.read_text())
    swapped[5]["path1"], swapped[5]["path2"] = swapped[5]["path2"], swapped[5]["path1"]
    for file, content, what in (
        (train, json.dumps(swapped).encode(), "records"),
        (critiques, critiques.read_bytes().replace(b'"reasoning": "', b'"reasoning": "well, ', 1), "records"),
        (image, image.with_name("train_000006_a.png").read_bytes(), "images"),
    ):
        before = file.read_bytes()
        assert content != before
        file.write_bytes(content)
        assert f"holds a run with another {what} of train_data;" in refused("train", "--config", path)
        file.write_bytes(before)
    assert jrm("train", "--config", path).code == 0


def test_two_trainings_in_one_folder(start_jrm, refused, config, tmp_path):
    path = config(save_strategy="no", max_steps=1000)
    first = start_jrm("train", "--config", path)
    first.wait_for(tmp_path / "run" / "jrm_train.json")
    assert f"another command is writing to {tmp_path / 'run'};" in refused("train", "--config", path)
    os.kill(first.pid, signal.SIGINT)
    assert first.wait().code == 130


def test_folder_of_another_model_is_left_alone(refused, config, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted["adamw"], tmp_path / "run")
    for path in (tmp_path / "run").glob("checkpoint-*"):
        shutil.rmtree(path)
    (tmp_path / "run" / "jrm_train.json").unlink()
    layout = dict.fromkeys(("rubrics", "reward_head_widths", "reward_head_dropout"))
    changes = {"model": str(tmp_path / "run"), **layout}  # the output is the input
    assert "results of an unknown run" in refused("train", "--config", config(**changes))


def test_divergence_is_no_success(refused, config, tmp_path):
    changes = {"learning_rate": 1e30, "max_grad_norm": 0.0, "disable_tqdm": True, "logging_strategy": "no"}
    assert "training diverged" in refused("train", "--config", config(**changes))
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_damaged_checkpoint_is_passed_over(jrm, config, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted["adamw"], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-12")
    (tmp_path / "run" / "checkpoint-9" / "optimizer.pt").write_bytes(b"half")
    finished = jrm("train", "--config", config())
    assert finished.code == 0, finished.err
    assert "checkpoint-9 is passed over: its file optimizer.pt is damaged or cut off." in finished.err
    assert_same_weights(tmp_path / "run", uninterrupted["adamw"])


def test_eval_sets_by_name_and_overrides(jrm, config, edits, tmp_path):
    sets = {"heldout": str(edits / "heldout.json"), "again": str(edits / "heldout.json")}
    finished = jrm("train", "--config", config(eval_data=sets, eval_strategy="steps", eval_steps=1), "--max_steps", "1")
    assert finished.code == 0, finished.err
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["max_steps"] == 1
    logged = {name for entry in state["log_history"] for name in entry}
    assert {"eval_heldout_accuracy/overall", "eval_again_accuracy/overall"} <= logged


def test_each_evaluation_is_a_table_and_the_curves_are_a_picture(jrm, config, edits, tmp_path):
    sets = {"heldout": str(edits / "heldout.json")}
    changes = {"eval_data": sets, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 2, "logging_steps": 1}
    finished = jrm("train", "--config", config(**changes))
    assert finished.code == 0, finished.err
    titles = re.findall(r"Step ([0-9]+), heldout: rank loss [0-9.]+, critique loss [0-9.]+", finished.out)
    assert titles == ["1", "2"]
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    accuracies = [entry for entry in state["log_history"] if "eval_heldout_accuracy/overall" in entry]
    cells = re.findall(r"overall +│ +([0-9.]+) ", finished.out)
    assert cells == [f"{entry['eval_heldout_accuracy/overall']:.3f}" for entry in accuracies]
    with Image.open(tmp_path / "run" / "curves.png") as picture:
        picture.load()
        assert picture.width > picture.height > 500


def test_csv_to_a_trained_model_in_one_yaml(jrm, refused, edits, tmp_path):
    """A stranger's own table: its names, its labels, images beside it."""
    folder = tmp_path / "mine"
    folder.mkdir()
    lines = ["before,prompt,first,second,winner"]
    for row, record in enumerate(json.loads((edits / "train.json").read_text())[:6]):
        for name in ("path_src", "path1", "path2"):
            shutil.copy(edits / record[name], folder)
        better, worse = Path(record["path1"]).name, Path(record["path2"]).name
        sides = f"{better},{worse},A" if row % 2 else f"{worse},{better},B"
        lines.append(f'{Path(record["path_src"]).name},"{record["prompt"]}",{sides}')
    (folder / "pairs.csv").write_text("\n".join(lines))
    config = tmp_path / "config.yaml"
    content = {"model": "jrm-tiny", "train_data": "mine/pairs.csv", "output_dir": "run", "max_steps": 1}
    config.write_text(yaml.safe_dump(content))
    message = refused("train", "--config", "config.yaml", folder=tmp_path)
    columns = {"source": "before", "instruction": "prompt", "a": "first", "b": "second", "label": "winner"}
    in_yaml = yaml.safe_dump(columns, sort_keys=False, default_flow_style=True).strip()
    assert f"say which is which with columns: {in_yaml}." in message
    config.write_text(yaml.safe_dump({**content, "columns": columns}))
    finished = jrm("train", "--config", "config.yaml", folder=tmp_path)
    assert finished.code == 0, finished.err
    assert "jrm: mine/pairs.csv: CSV, 6 pairs of images; source=before, instruction=prompt, a=first, " in finished.err
    assert "label=winner (A 3, B 3)." in finished.err
    assert "The train set has no critiques, so alpha=0.7 weighs nothing" in finished.err
    assert RewardScorer.from_pretrained(tmp_path / "run", device="cpu")
    changed = {**columns, "a": "second", "b": "first"}
    config.write_text(yaml.safe_dump({**content, "columns": changed}))
    assert "another columns, records of train_data;" in refused_with_data(jrm, tmp_path)


def refused_with_data(jrm, folder: Path) -> str:
    """The error of a command that has said before how it read the data."""
    finished = jrm("train", "--config", "config.yaml", folder=folder)
    assert finished.code == 2
    return finished.err.splitlines()[-1]


def test_a_finished_run_that_is_given_more_steps_is_told_how_to_go_on(refused, config, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted["adamw"], tmp_path / "run")
    message = refused("train", "--config", config(max_steps=20))
    assert "holds a run with another max_steps, which is finished" in message
    assert f"to train on, give model: {tmp_path / 'run'} and another output_dir" in message


def test_adapters_have_a_learning_rate_of_their_own(jrm, config, settings, tmp_path):
    path = config(lora_r=2, max_steps=1)
    path.write_text(yaml.safe_dump({n: v for n, v in yaml.safe_load(path.read_text()).items() if n != "learning_rate"}))
    assert jrm("train", "--config", path).code == 0
    assert json.loads((tmp_path / "run" / "jrm_train.json").read_text())["learning_rate"] == 1e-4


def test_lora_folder_scores(jrm, config, edits, tmp_path):
    finished = jrm("train", "--config", config(lora_r=4, lora_alpha=8, max_steps=1))
    assert finished.code == 0, finished.err
    sample = Sample.generation("make it blue", str(edits / "images" / "heldout_000000_a.png"))
    assert RewardScorer.from_pretrained(tmp_path / "run", device="cpu").score([sample])


def test_going_on_from_a_checkpoint_keeps_its_layout(refused, jrm, config, uninterrupted, tmp_path):
    model = str(uninterrupted["adamw"])
    message = refused("train", "--config", config(model=model))
    assert "is a JRM checkpoint and has its own rubrics, reward_head_widths, reward_head_dropout;" in message
    own = dict.fromkeys(("rubrics", "reward_head_widths", "reward_head_dropout"))
    assert jrm("train", "--config", config(model=model, max_steps=1, **own)).code == 0
    for name in ("jrm_processor.json", "config.json"):
        assert json.loads((tmp_path / "run" / name).read_text()) == json.loads(Path(model, name).read_text())


# --- several processes ------------------------------------------------------------------------------------------------


@pytest.fixture
def start_two(start_jrm):
    """`start_two(config)` starts a run of two processes that talk by gloo, and keeps their store as a launcher does."""
    stores = []

    def start(path: Path) -> list:
        stores.append(TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(stores[-1].port)}
        common["TORCHELASTIC_USE_AGENT_STORE"] = "True"
        return [
            start_jrm("train", "--config", path, environment={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(2)
        ]

    return start


def assert_end_well(processes: list) -> None:
    finished = [process.wait() for process in processes]
    assert [each.code for each in finished] == [0, 0], [each.err for each in finished]


def sentence_of_both(processes: list, codes: list[int]) -> str:
    """What two processes say when both end by a fault: one sentence, and no traceback."""
    finished = [process.wait() for process in processes]
    assert [each.code for each in finished] == codes
    assert not any("Traceback" in each.err for each in finished)
    (sentence,) = (line for each in finished for line in each.err.splitlines() if line.startswith("jrm: "))
    return sentence


def test_two_processes_learn_what_one_does(start_two, jrm, config, tmp_path):
    """The same pairs in one batch or spread over processes: the critique loss is a mean over all their tokens."""
    options = {"max_steps": 2, "use_cpu": True, "reward_head_dropout": 0.0, "lr_scheduler_type": "constant"}
    options |= {"optim": "sgd", "learning_rate": 0.1, "warmup_steps": 0, "weight_decay": 0.0, "logging_steps": 1}
    options |= {"max_grad_norm": 0.0, "save_steps": 1}  # clipping would hide a wrong scale
    path = config(**options, per_device_train_batch_size=1)
    assert_end_well(start_two(path))
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["epoch"] == 2 * 4 / 32
    assert jrm("train", "--config", config(**options, output_dir=str(tmp_path / "one"))).code == 0
    two, one, first = (
        load_file(tmp_path / folder / "model.safetensors") for folder in ("run", "one", "one/checkpoint-1")
    )
    assert max((one[name] - first[name]).abs().max().item() for name in one) > 1e-3
    for name in one:
        assert torch.allclose(one[name], two[name], rtol=0, atol=1e-5), name
    log = json.loads((tmp_path / "one" / "trainer_state.json").read_text())["log_history"]
    for here, there in zip(state["log_history"][:2], log[:2], strict=True):
        for name in ("loss", "critique_loss", "rank_loss", "accuracy/overall", "sigma/overall"):
            assert here[name] == pytest.approx(there[name], abs=1e-4), name


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_two_processes_with_a_head_that_takes_no_part(start_two, config, backbone_folder, alpha):
    """DDP waits for a gradient of every parameter, also of an untied language head without critiques."""
    options = {"model": str(backbone_folder("qwen2_5_vl")), "alpha": alpha, "max_steps": 2, "use_cpu": True}
    path = config(**options, gradient_checkpointing=True, save_strategy="no", max_length=2048)
    assert_end_well(start_two(path))


def test_sigint_to_one_of_two_processes_stops_both_at_the_same_step(start_two, config, tmp_path):
    path = config(use_cpu=True, save_strategy="no")
    processes = start_two(path)
    processes[0].wait_for(tmp_path / "run" / "jrm_train.json")
    os.kill(processes[1].pid, signal.SIGINT)
    assert [process.wait().code for process in processes] == [130, 130]
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in checkpoint.iterdir()}


def test_a_process_that_is_killed_is_told_once_by_the_other(start_two, config, tmp_path):
    processes = start_two(config(use_cpu=True, max_steps=1000))
    processes[0].wait_for(tmp_path / "run" / "checkpoint-3")
    os.kill(processes[1].pid, signal.SIGKILL)
    sentence = sentence_of_both(processes, [2, -signal.SIGKILL])
    checkpoint = last_whole_checkpoint(tmp_path / "run")
    assert "another process of this run has ended (" in sentence
    assert sentence.endswith(f"the last checkpoint is {checkpoint}, and the same command goes on.")


def test_images_that_vanish_are_told_once(start_two, config, edits, tmp_path):
    shutil.copytree(edits, tmp_path / "edits")
    processes = start_two(config(use_cpu=True, max_steps=1000, train_data=str(tmp_path / "edits" / "train.json")))
    processes[0].wait_for(tmp_path / "run" / "jrm_train.json")
    for path in (tmp_path / "edits" / "images").glob("train_*_a.png"):
        path.unlink()
    assert re.search(r"train\.json, row [0-9]+: .*_a\.png' does not exist", sentence_of_both(processes, [2, 2]))


def test_a_run_goes_on_with_updates_of_the_same_pairs_made_otherwise(jrm, refused, config, uninterrupted, tmp_path):
    """As in one process or in several: what counts is the pairs of an update."""
    run = tmp_path / "run"
    shutil.copytree(uninterrupted["adamw"], run)
    shutil.rmtree(run / "checkpoint-12")
    (run / "model.safetensors").unlink()
    assert "another pairs an update;" in refused("train", "--config", config(gradient_accumulation_steps=1))
    divided = {"environment": {"ACCELERATE_USE_FSDP": "true"}}
    assert "another sharding;" in refused("train", "--config", config(), **divided)
    finished = jrm("train", "--config", config(gradient_accumulation_steps=1, per_device_train_batch_size=4))
    assert finished.code == 0, finished.err
    states = [json.loads((folder / "trainer_state.json").read_text()) for folder in (run, uninterrupted["adamw"])]
    assert [(state["global_step"], state["epoch"]) for state in states] == [(12, 12 * 4 / 32)] * 2


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed: pip install -e '.[deepspeed]'")
def test_a_model_whose_weights_deepspeed_divides_is_made_trained_and_saved(start_two, config, tmp_path):
    zero = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    (tmp_path / "zero.json").write_text(json.dumps(dict.fromkeys(names, "auto") | {"zero_optimization": zero}))
    path = config(max_steps=1, deepspeed=str(tmp_path / "zero.json"))  # `use_cpu` would keep DeepSpeed out
    assert_end_well(start_two(path))
    RewardScorer.from_pretrained(tmp_path / "run", device="cpu")


def test_accelerate_launch(config, tmp_path):
    path = config(max_steps=1, use_cpu=True)
    launch = "accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port 0"
    command = [sys.executable, "-m", *launch.split(), "-m", "jrm_plugin.cli", "train", "--config", str(path)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["epoch"] == 8 / 32
    RewardScorer.from_pretrained(tmp_path / "run", device="cpu")


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"alhpa": 0.5}, "alhpa"),
        ({"alpha": "much"}, "alpha"),
        ({"alpha": 2}, "between 0 and 1"),
        ({"objective": "best"}, "'best'"),
        ({"order": "sideways"}, "sideways"),
        ({"train_data": "nowhere.json"}, "nowhere.json"),
        ({"eval_data": "heldout.json"}, "heldout.json"),
        ({"eval_data": ["heldout.json"]}, "name=path"),
        ({"eval_strategy": "steps", "eval_steps": 1}, "eval_data"),
        ({"center_rewards_coefficient": 0.1}, "center_rewards_coefficient"),
        ({"model": "/nowhere"}, "/nowhere"),
        ({"rubrics": "nowhere.md"}, "nowhere.md"),
        ({"max_length": 20}, "longer than max_length=20"),
        ({"dimensions": ["beauty"]}, "beauty"),
        ({"report_to": "nobody"}, "nobody is not supported"),
        ({"deepspeed": "zero2.json"}, "eepspeed"),
        ({"load_in_4bit": True}, "load_in_4bit needs lora_r"),
    ],
)
def test_bad_setting(refused, config, tmp_path, changes, said):
    assert said in refused("train", "--config", config(**changes))
    assert not list(tmp_path.glob("run/*"))


def test_missing_model_in_config(refused, config, settings, tmp_path):
    path = config()
    path.write_text(yaml.safe_dump({name: value for name, value in settings.items() if name != "model"}))
    assert "model" in refused("train", "--config", path)


@pytest.mark.parametrize("content", ["a: [", "- 1", ""])
def test_config_that_is_none(refused, tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    assert "config.yaml" in refused("train", "--config", tmp_path / "config.yaml")


def test_config_that_does_not_exist(refused):
    assert "nowhere.yaml" in refused("train", "--config", "nowhere.yaml")


def test_output_folder_that_cannot_be_written(refused, config, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "cannot be written" in refused("train", "--config", config(output_dir=str(tmp_path / "file" / "run")))
    assert (tmp_path / "file").read_text() == "mine"


def test_bad_record_stops_before_training_or_is_listed(refused, jrm, config, edits, tmp_path):
    records = json.loads((edits / "train.json").read_text())
    records[2]["path1"] = "images/nowhere.png"
    (tmp_path / "train.json").write_text(json.dumps(records))
    changes = {"train_data": str(tmp_path / "train.json"), "images_root": str(edits), "max_steps": 1}
    message = refused("train", "--config", config(**changes))
    assert "row 3" in message and "nowhere.png" in message
    finished = jrm("train", "--config", config(**changes, strict=False))
    assert finished.code == 0
    assert "row 3" in finished.err and "1 records of" in finished.err and "31 kept" in finished.err
