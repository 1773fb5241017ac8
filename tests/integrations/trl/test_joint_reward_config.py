"""`JointRewardConfig`: the paper's hyperparameters (appendix B.1) where nothing is said."""

import pytest
import torch

from jrm_plugin.integrations.trl import JointRewardConfig


def test_defaults_are_the_papers(tmp_path):
    config = JointRewardConfig(str(tmp_path))
    paper = {
        "alpha": 0.7,
        "objective": "marginal",
        "tie_threshold": 0.0,
        "learning_rate": 2e-6,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "weight_decay": 0.1,
        "lr_scheduler_type": "cosine",
        "num_train_epochs": 10,
        "max_length": 8192,
        "max_pixels": None,  # a processor's own; the paper's 200,704 where one is made from a backbone
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "disable_dropout": False,
        "muon_learning_rate": None,
    }
    assert {name: getattr(config, name) for name in paper} == paper
    assert config.optim.startswith("adamw")
    assert config.get_warmup_steps(1000) == 50
    assert config.per_device_train_batch_size * config.gradient_accumulation_steps * 8 == 64  # on the paper's 8 GPUs


def test_bf16_is_on_where_the_device_has_it(tmp_path):
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    assert JointRewardConfig(str(tmp_path)).bf16 is has_bf16
    assert JointRewardConfig(str(tmp_path), use_cpu=True).bf16 is False
    assert JointRewardConfig(str(tmp_path), use_cpu=True, bf16=True).bf16 is True


def test_flex_attention_needs_a_gpu(tmp_path):
    with pytest.raises(ValueError, match="flex_attention needs a GPU"):
        JointRewardConfig(str(tmp_path), flex_attention=True, use_cpu=True, report_to="none")


@pytest.mark.parametrize(
    ("field", "value"),
    [("alpha", -0.1), ("alpha", 1.1), ("alpha", float("nan")), ("objective", "other"), ("tie_threshold", -1.0)],
)
def test_bad_value_is_named(tmp_path, field, value):
    with pytest.raises(ValueError, match=f"{field} must .*{value}"):
        JointRewardConfig(str(tmp_path), **{field: value})


@pytest.mark.parametrize(("field", "value"), [("center_rewards_coefficient", 0.01), ("eos_token", "</s>")])
def test_option_that_would_be_ignored_is_refused(tmp_path, field, value):
    with pytest.raises(ValueError, match=f"{field} has no effect"):
        JointRewardConfig(str(tmp_path), **{field: value})


def test_checkpoints_that_no_run_could_go_on_from_are_refused(tmp_path):
    with pytest.raises(ValueError, match="save_only_model leaves out the optimizer"):
        JointRewardConfig(str(tmp_path), save_only_model=True)


def test_every_field_reads_from_a_command_line(tmp_path):
    from trl import TrlParser

    words = f"--output_dir {tmp_path} --alpha 1 --objective expected --muon_learning_rate 0.02 --max_length 512"
    (config,) = TrlParser(JointRewardConfig).parse_args_and_config(words.split())
    assert (config.alpha, config.objective, config.muon_learning_rate, config.max_length) == (
        1.0,
        "expected",
        0.02,
        512,
    )
