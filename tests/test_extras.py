"""A package that a command needs and that is not installed is one sentence, before any work."""

import sys

import pytest

from jrm_plugin.cli import main
from jrm_plugin.errors import JRMError
from jrm_plugin.extras import check_tried, require
from jrm_plugin.scoring.loading import load_scorer


def test_first_package_that_cannot_be_imported_is_named(monkeypatch):
    require("json yaml", "jrm test", install="jrm-plugin[test]")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(JRMError) as error:
        require("json yaml nowhere", "jrm test", install="jrm-plugin[test]")
    assert str(error.value).startswith("jrm test needs yaml, which cannot be used here (")
    assert str(error.value).endswith("): pip install 'jrm-plugin[test]'.")


@pytest.mark.parametrize(
    ("installed", "told"),
    [
        (None, "the engine vllm needs vllm, which is not installed: pip install 'jrm-plugin[vllm]'."),
        ("0.31.9", "and not with the 0.31.9 that is installed"),
        ("0.33.0rc1", "and not with the 0.33.0rc1 that is installed"),
        ("0.32.1+cu129", None),
    ],
)
def test_a_vllm_that_was_not_tried_is_one_sentence(monkeypatch, installed, told):
    monkeypatch.setattr("jrm_plugin.extras.installed_version", lambda package: installed)
    if told is None:
        check_tried("vllm", "the engine vllm", install="jrm-plugin[vllm]")
        return
    with pytest.raises(JRMError) as error:
        load_scorer("jrm-tiny", engine="vllm")
    assert told in str(error.value) and str(error.value).endswith("pip install 'jrm-plugin[vllm]'.")


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [("train", "trl", "trl"), ("train", "datasets", "trl"), ("grpo", "trl", "trl"), ("demo", "matplotlib", "demo")],
)
def test_commands_that_need_an_extra(monkeypatch, capsys, tmp_path, command, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    arguments = ["--output", str(tmp_path / "demo")] if command == "demo" else ["--config", "nowhere.yaml"]
    with pytest.raises(SystemExit) as end:
        main([command, *arguments])
    assert end.value.code == 2
    assert f"jrm: jrm {command} needs {package}, which cannot" in (said := capsys.readouterr().err)
    assert f"pip install 'jrm-plugin[{extra}]'." in said and said.count("\n") == 1
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    ("package", "changes", "told"),
    [
        ("peft", {"lora_r": 4}, r"lora_r needs peft, .* pip install 'jrm-plugin\[trl\]'"),
        ("tensorboard", {"report_to": "tensorboard"}, "report_to: tensorboard cannot be used: .*requires tensorboard"),
    ],
)
def test_settings_that_need_a_package(monkeypatch, tmp_path, package, changes, told):
    from jrm_plugin.integrations.trl import JointRewardConfig, TrainArguments, train

    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    arguments = TrainArguments("nowhere", "nowhere.json", lora_r=changes.get("lora_r"))
    training = JointRewardConfig(str(tmp_path / "run"), use_cpu=True, report_to=changes.get("report_to", "none"))
    with pytest.raises(JRMError, match=told):
        train(arguments, training)
    assert not (tmp_path / "run").exists()
