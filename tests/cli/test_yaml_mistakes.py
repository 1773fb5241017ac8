"""Configs with mistakes, of every command that reads one: taken, or refused in a sentence before anything is loaded."""

import pytest
import yaml
import yaml_mistakes

from jrm_plugin.cli import grpo, self_correct
from jrm_plugin.configs import read_config
from jrm_plugin.errors import JRMError
from jrm_plugin.integrations.trl import training


def test_random_mistakes_are_taken_or_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended, faults = yaml_mistakes.run(tmp_path, seed=0, seconds=8)
    assert not faults, "\n".join(faults[:3])
    assert ended["refused"] and ended["taken"]


@pytest.fixture
def refused(tmp_path):
    """`refused(parse, text)`: what is said to a config."""

    def refuse(parse, text: str | bytes) -> str:
        path = tmp_path / "config.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        with pytest.raises(JRMError) as error:
            parse(path)
        assert "\n" not in str(error.value)
        return str(error.value)

    return refuse


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must hold keys and values"),
        ("- 1", "must hold keys and values"),
        ("a: 1\na: 2", "line 2: the key a is there twice"),
        ("a: {b: 1, b: 2}", "line 1: the key b is there twice"),
        ("a:\n\tb: 1", "no valid YAML"),
        ("a: !!python/object/apply:os.system [exit]", "no valid YAML"),
        ("a: !!int x", "put it in quotes"),
        ("a: 2026-13-45", "put it in quotes"),
        ("a: 2026-01-01", "has '2026-01-01' in a, a date; put text in quotes"),
        ("a: {b: [.nan]}", "has nan in a.b; give a finite number"),
        ("1: 2", "has the key 1, which is no text"),
        ('a: "\\0"', "a character that no text may hold"),
        ("a: " + "9" * 30, "more than 64 bits in a"),
        ("a: &a [*a]", "holds itself"),
        (yaml_mistakes.bomb(yaml_mistakes.random.Random(3)) + "a: 1", "more than 20000 values"),
        ("a: " + "[" * 20_000, "nested too deep"),
        ("a: 1\n" * 50_000, "has more than 200000 bytes"),
        ("a: é".encode("latin-1"), "is not UTF-8"),
    ],
)
def test_a_file_that_is_no_config(refused, text, said):
    assert said in refused(read_config, text)


@pytest.mark.parametrize(
    ("command", "changes", "said"),
    [
        ("train", {"alhpa": 1}, "unknown key alhpa; did you mean alpha?"),
        ("train", {"learning_rate": [1]}, "learning_rate must be a number, not [1]"),
        ("train", {"weight_decay": None}, "weight_decay must be a number, not None"),
        ("train", {"max_steps": True}, "max_steps must be a whole number, not True"),
        ("train", {"max_steps": 1.5}, "max_steps must be a whole number, not 1.5"),
        ("train", {"model": {"name": "x"}}, "model must be text, not {'name': 'x'}"),
        ("train", {"eval_strategy": False}, "eval_strategy must be text, not False; put text in quotes"),
        ("train", {"reward_head_widths": [16, "x"]}, "reward_head_widths must be a list of whole numbers"),
        ("train", {"log_sigma_bound": 2.0}, "log_sigma_bound must be a list of numbers"),
        ("train", {"eval_data": {"heldout": ["a", "b"]}}, "eval_data must give heldout one path"),
        ("train", {"env": {"A": [1]}}, "env must give each variable a text, not A: [1]"),
        ("train", {"lora_r": 0}, "lora_r must be 1 or more, got 0"),
        ("grpo", {"reward_weights": [1.0, None]}, "reward_weights must be a list of numbers"),
        (
            "grpo",
            {"datasets": [{"path": "x", "columns": 3}]},
            "datasets cannot be used: columns must be a list of texts",
        ),
        ("grpo", {"datasets": [{"name": "x"}]}, "datasets has no path; give it"),
        ("self-correct", {"data": 3}, "data must be text or a mapping, not 3"),
        ("self-correct", {"thresholds": [0.5, "low"]}, "thresholds must be"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(refused, command, changes, said):
    content, parse = yaml_mistakes.COMMANDS[command]
    assert said in refused(parse, yaml.safe_dump({**content, **changes}))


def test_spellings_that_mean_what_they_say(tmp_path):
    path = tmp_path / "config.yaml"
    spellings = {
        "learning_rate": "1e-3",
        "max_pixels": "50_176",
        "bf16": "false",
        "max_steps": "3",
        "reward_head_widths": ["16"],
    }
    path.write_text(yaml.safe_dump({**yaml_mistakes.TRAIN, **spellings, "resume_from_checkpoint": True}))
    arguments, options = training.parse(path)
    assert (options.learning_rate, options.max_pixels, options.bf16, options.max_steps) == (1e-3, 50_176, False, 3)
    assert arguments.reward_head_widths == [16] and arguments.eval_data == ["heldout=heldout.json"]
    path.write_text(yaml.safe_dump({**yaml_mistakes.GRPO, "reward_weights": ["1e0", "5e-1"]}))
    assert grpo.parse(path)[2].reward_weights == [1.0, 0.5]
    path.write_text(yaml.safe_dump(yaml_mistakes.SELF_CORRECT))
    assert self_correct.parse(path).rounds == 1


def test_a_flag_is_checked_too(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(yaml_mistakes.TRAIN))
    for flag, value, said in (
        ("--alpha", "nan", "between 0 and 1"),
        ("--weight_decay", "inf", "weight_decay must be a finite"),
        ("--max_step", "3", "max_step"),
    ):
        with pytest.raises(JRMError, match=said):
            training.parse(path, [flag, value])
