"""Training from Python: the arguments as a config or as objects, and a folder that scores."""

import json

import pytest
import torch
import yaml
from pictures import png
from PIL import Image

from jrm_plugin.data.editreward import write_language
from jrm_plugin.errors import JRMError
from jrm_plugin.integrations.trl import JointRewardConfig, TrainArguments, train
from jrm_plugin.integrations.trl.training import SMALL, parse, threads_that_pay
from jrm_plugin.records.preferences import CritiqueExample
from jrm_plugin.records.samples import Sample
from jrm_plugin.scoring.scorer import RewardScorer
from jrm_plugin.synthetic.shape_edits import SHAPE_EDITS


@pytest.fixture
def config(tmp_path):
    """`config(**content)`: a YAML file with it, beside what a run needs."""

    def write(**content):
        path = tmp_path / "config.yaml"
        path.write_text(
            yaml.safe_dump({"model": "jrm-tiny", "train_data": "train.json", "output_dir": "run", **content})
        )
        return path

    return write


def test_evaluation_sets_as_a_mapping_as_items_and_overridden(config):
    assert parse(config())[0].eval_data == []
    path = config(eval_data={"seen": "a.json", "unseen": "b.json"})
    assert parse(path)[0].eval_data == ["seen=a.json", "unseen=b.json"]
    assert parse(config(eval_data=["seen=a.json"]))[0].eval_data == ["seen=a.json"]
    for override in (["--eval_data", "c=c.json"], ["--eval_data=c=c.json"]):
        assert parse(path, override)[0].eval_data == ["c=c.json"]


def test_flags_override_the_file(config):
    arguments, training = parse(config(alpha=0.5, seed=3), ["--alpha", "0.25", "--order", "rubric_first"])
    assert (arguments.order, training.alpha, training.seed) == ("rubric_first", 0.25, 3)


@pytest.mark.parametrize("name", ["eval_data", "dimensions", "reward_head_widths", "log_sigma_bound"])
def test_a_list_is_no_single_value(config, name):
    with pytest.raises(JRMError, match=f"config.yaml cannot be used: .*{name}"):
        parse(config(**{name: "x"}))


def test_a_small_model_on_a_cpu_trains_with_one_thread(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    small, large = torch.nn.Linear(8, 8), torch.nn.Linear(SMALL // 8, 8)
    assert (threads_that_pay(small), threads_that_pay(large)) == (1, torch.get_num_threads())
    assert threads_that_pay(torch.nn.Linear(8, 8, device="meta")) == torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads_that_pay(small) == torch.get_num_threads()


def test_from_python_to_a_folder_that_scores_and_is_not_mixed_with_another(backbone_folder, tmp_path):
    Image.new("RGB", (48, 48), "red").save(tmp_path / "red.png")
    sample = Sample.generation("make the circle blue", str(tmp_path / "red.png"))
    texts = write_language(tmp_path / "texts.jsonl", [CritiqueExample(sample, '{"reasoning":"done as asked"}')])
    arguments = TrainArguments(
        model=str(backbone_folder("qwen3_vl")), train_data=str(texts), rubrics="short", reward_head_widths=[8]
    )
    options = {"output_dir": str(tmp_path / "run"), "alpha": 1.0, "max_steps": 1, "use_cpu": True, "report_to": "none"}
    trainer = train(arguments, JointRewardConfig(**options))
    assert trainer.state.global_step == 1
    assert RewardScorer.from_pretrained(tmp_path / "run", device="cpu").score([sample])
    with pytest.raises(JRMError, match="holds a run with another seed; go on with the same settings"):
        train(arguments, JointRewardConfig(**options, seed=1))


def test_what_adapters_adapt_is_held_in_4_bits_and_the_folder_loads_over_the_model_as_it_was(backbone_folder, tmp_path):
    four_bits = pytest.importorskip("bitsandbytes", reason="pip install -e '.[qlora]'").nn.Linear4bit
    Image.new("RGB", (48, 48), "red").save(tmp_path / "red.png")
    sample = Sample.generation("make the circle blue", str(tmp_path / "red.png"))
    texts = write_language(tmp_path / "texts.jsonl", [CritiqueExample(sample, '{"reasoning":"done as asked"}')])
    arguments = TrainArguments(
        model=str(backbone_folder("qwen3_vl")), train_data=str(texts), rubrics="short", lora_r=2, load_in_4bit=True
    )
    options = {"output_dir": str(tmp_path / "run"), "alpha": 1.0, "max_steps": 1, "use_cpu": True, "report_to": "none"}
    trainer = train(arguments, JointRewardConfig(**options))
    assert any(isinstance(module, four_bits) for module in trainer.model.modules())
    assert RewardScorer.from_pretrained(tmp_path / "run", device="cpu").score([sample])


def test_a_benchmark_as_evaluation_data_logs_the_numbers_of_its_table(tmp_path, capsys):
    rows = [
        {"dimension": dimension, "source_image": "0.png", "prompt": "make it blue", "winner": "1.png", "loser": "2.png"}
        for dimension in ("IA", "VC", "VQ")
    ]
    (tmp_path / "compass.json").write_text(json.dumps([row | {"label": "preference"} for row in rows]))
    for seed in range(3):
        (tmp_path / f"{seed}.png").write_bytes(png(seed, size=48))
    shapes = SHAPE_EDITS.write(tmp_path / "shapes", train=4, heldout=6, language=0, progress=False)
    arguments = TrainArguments(
        model="jrm-tiny",
        train_data=str(shapes / "train.json"),
        eval_data=[f"shapes=shape_edits:{shapes}", f"compass=edit_reward_compass:{tmp_path / 'compass.json'}"],
    )
    options = {"output_dir": str(tmp_path / "run"), "max_steps": 1, "use_cpu": True, "report_to": "none"}
    options |= {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4, "save_strategy": "no"}
    trainer = train(arguments, JointRewardConfig(**options, alpha=0.0))
    log = {name: value for row in trainer.state.log_history for name, value in row.items()}
    assert log["eval_shapes_benchmark/Overall"] == pytest.approx(log["eval_shapes_accuracy/overall"])
    assert log["eval_compass_benchmark/VC, no ties"] == log["eval_compass_accuracy/overall"]
    assert log["eval_compass_benchmark/IA, no ties"] == log["eval_compass_accuracy/instruction_following"]
    assert "As its table has it: Overall" in capsys.readouterr().out
