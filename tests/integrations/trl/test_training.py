"""Training from Python: the arguments as a config or as objects, and a folder that scores."""

import pytest
import torch
import yaml
from PIL import Image

from jrm_plugin.data.editreward import write_language
from jrm_plugin.errors import JRMError
from jrm_plugin.integrations.trl import JointRewardConfig, TrainArguments, train
from jrm_plugin.integrations.trl.training import SMALL, parse, threads_that_pay
from jrm_plugin.records.preferences import CritiqueExample
from jrm_plugin.records.samples import Sample
from jrm_plugin.scoring.scorer import RewardScorer


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
