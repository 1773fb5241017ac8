"""Every way to choose JRM in verl, through verl's own command and `load_reward_manager`, and what is refused."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import pytest

pytest.importorskip("verl")

from omegaconf import DictConfig, OmegaConf, open_dict  # noqa: E402
from verl.experimental.reward_loop.reward_manager import NaiveRewardManager, get_reward_manager_cls  # noqa: E402
from verl.trainer.ppo.reward import load_reward_manager, resolve_reward_manager_cls  # noqa: E402

from jrm_plugin import JRMError  # noqa: E402
from jrm_plugin.integrations.verl import JRMRewardManager, JRMSettings, plugin, registered  # noqa: E402

TOKENIZER = SimpleNamespace(decode=lambda ids, **options: "text")
PLAIN = "{defaults: [ppo_trainer, _self_], reward_model: jrm, reward: {jrm: {model_path: jrm-tiny, device: cpu}}}"
GROUP = PLAIN.replace("_self_], reward_model: jrm,", "reward_model: jrm, _self_],")
MODEL = ("reward.jrm.model_path=jrm-tiny", "reward.jrm.device=cpu")
ADDED = tuple(f"+{one}" for one in MODEL)
WAYS = {
    "the option jrm of verl's group reward": ("", ("reward=jrm", *MODEL)),
    "the group reward_model, on the command line": ("", ("+reward_model=jrm", *MODEL)),
    "the group reward_model, in the defaults of a YAML": (GROUP, ()),
    "the plain key reward_model": (PLAIN, ()),
    "the name of the reward manager": ("", ("reward.reward_manager.name=jrm", *ADDED)),
    "the legacy name of the reward manager": ("", ("reward_model.reward_manager=jrm", *ADDED)),
}


NOTHING = ("", ())
WITHOUT_PLUS = ("", ("reward_model=jrm",))
# `python -m verl.trainer.main_ppo --cfg job …` for every job; verl is imported once, and each job is a fork of that.
COMPOSE = """
import json, os, runpy, sys
import verl.trainer.main_ppo
for arguments, out, err in json.load(sys.stdin):
    child = os.fork()
    if child == 0:
        for descriptor, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
        sys.argv = ["main_ppo", "--cfg", "job", *arguments]
        runpy.run_module("verl.trainer.main_ppo", run_name="__main__")
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


class Composed(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def composed(tmp_path_factory) -> dict[tuple, Composed]:
    """What verl's own command makes of a YAML and overrides, for all that are tried here."""
    folder = tmp_path_factory.mktemp("config")
    wanted = [*WAYS.values(), NOTHING, WITHOUT_PLUS]
    jobs = []
    for number, (yaml, overrides) in enumerate(wanted):
        if yaml:
            (folder / f"mine{number}.yaml").write_text(yaml)
        flags = ["--config-dir", str(folder), "--config-name", f"mine{number}"] if yaml else []
        jobs.append([[*flags, *overrides], str(folder / f"{number}.out"), str(folder / f"{number}.err")])
    command = [sys.executable, "-W", "ignore", "-c", COMPOSE]
    finished = subprocess.run(command, input=json.dumps(jobs), capture_output=True, text=True, timeout=500)
    codes = map(int, finished.stdout.split())
    files = [[Path(path).read_text() for path in paths] for _, *paths in jobs]
    return {key: Composed(code, *texts) for key, code, texts in zip(wanted, codes, files, strict=True)}


@pytest.fixture
def compose(composed):
    def compose(yaml: str = "", overrides: tuple[str, ...] = ()) -> DictConfig:
        found = composed[yaml, overrides]
        assert found.code == 0, found.err
        config = OmegaConf.create(found.out)
        OmegaConf.set_struct(config, True)  # as Hydra hands it over
        return config

    return compose


@pytest.mark.parametrize("way", WAYS)
def test_way_ends_in_the_same_reward_manager(compose, way, ray_cluster):
    config = compose(*WAYS[way])
    manager = load_reward_manager(config, TOKENIZER)
    assert type(manager) is JRMRewardManager is resolve_reward_manager_cls(config)
    assert config.reward.reward_manager.name == "jrm"
    assert config.reward.jrm == asdict(JRMSettings(model_path="jrm-tiny", device="cpu"))
    assert manager.reward.settings == JRMSettings(model_path="jrm-tiny", device="cpu")
    reward = OmegaConf.to_container(config.reward)
    assert reward == OmegaConf.to_container(compose(*WAYS["the option jrm of verl's group reward"]).reward)


def test_without_any_of_them_nothing_changes(compose):
    config = compose()
    before = copy.deepcopy(config)
    assert type(load_reward_manager(config, TOKENIZER)) is NaiveRewardManager
    assert config == before and "jrm" not in config.reward
    with open_dict(config):
        config.reward_model = "another"
    assert resolve_reward_manager_cls(config) is NaiveRewardManager


def test_a_group_cannot_be_overridden_without_a_plus(composed):
    found = composed[WITHOUT_PLUS]
    assert found.code != 0 and "+reward_model=jrm" in found.err


def with_jrm(compose, **changes) -> DictConfig:
    config = compose(*WAYS["the option jrm of verl's group reward"])
    for key, value in changes.items():
        with open_dict(config):
            OmegaConf.update(config, key.replace("__", "."), value, force_add=True)
    return config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reward__jrm__model_path": None}, "the settings reward.jrm have no model_path; give the folder"),
        ({"reward__jrm__model_path": "???"}, "the settings reward.jrm have no model_path; give the folder"),
        ({"reward__jrm__modle": 1}, "reward.jrm has no key modle; its keys are model_path, device"),
        ({"reward__jrm__replicas": 0}, "replicas in the settings reward.jrm must be a whole number of at least 1"),
        ({"reward__jrm__save_images": 10}, "reward.jrm cannot be used: save_images and save_folder belong together"),
        ({"reward__jrm__task": "paint"}, "must be edit, generation or response, not 'paint'"),
        ({"reward__jrm__mode": "best"}, "unknown reward mode 'best'"),
        (
            {"reward__jrm__on_error": "skip"},
            "the settings reward.jrm cannot be used: on_error must be raise, floor or leave_",
        ),
        (
            {"reward__jrm__on_error": "leave_out"},
            "gives what cannot be scored no reward, and verl needs one for every rollout; use raise or floor",
        ),
        ({"reward__jrm__on_error": "floor"}, "the settings reward.jrm cannot be used: on_error: floor needs a floor"),
        ({"reward__jrm__floor": -3.0}, "the settings reward.jrm cannot be used: floor has no use here"),
        ({"reward__jrm__render": "no.such.function", "reward__jrm__floor": -3.0}, "render no.such.function cannot be"),
        (
            {"reward__jrm__mode": "win_rate"},
            "and verl asks for one reward at a time; use mean, lower_confidence_bound, entropic or win_ov",
        ),
        (
            {"reward__jrm__mode": "win_over_source", "reward__jrm__task": "generation"},
            "compares an edit with its unedited source, and the task generation has none",
        ),
        ({"reward__reward_model__enable": True}, "verl asks its own reward model and never JRM"),
        ({"reward__custom_reward_function__path": "mine.py"}, "the reward manager jrm calls no other reward function"),
        (
            {"reward__reward_manager__name": "dapo", "reward_model": "jrm"},
            "chooses JRM by reward_model and another reward manager, dapo",
        ),
    ],
)
def test_what_is_refused_before_a_run_starts(compose, changes, said):
    with pytest.raises(JRMError, match=said):
        resolve_reward_manager_cls(with_jrm(compose, **changes))


def test_plain_key_without_a_model_says_where_to_put_it(compose):
    config = compose(PLAIN)
    with open_dict(config):
        del config.reward.jrm
    with pytest.raises(JRMError, match="the settings reward.jrm have no model_path"):
        resolve_reward_manager_cls(config)


# --- the plug-in itself -----------------------------------------------------------------------------------------------


def test_registered_by_importing_verl_alone():
    code = """
import sys, verl
print(any(name.startswith(("torch.distributed.fsdp", "jrm_plugin.scoring.scorer", "hydra")) for name in sys.modules))
from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls
print(get_reward_manager_cls("jrm").__module__, "jrm_plugin.integrations.ray.scorer_pool" in sys.modules)
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert finished.stdout.split("\n")[1] == "jrm_plugin.integrations.verl.reward_manager True", finished.stderr
    assert get_reward_manager_cls("jrm") is JRMRewardManager
    assert registered().startswith("registered as the reward manager jrm of verl 0.")


def test_a_verl_that_picks_no_class_from_the_config_says_what_to_write(compose):
    older = ModuleType("verl.trainer.ppo.reward")
    older.load_reward_manager = lambda config, tokenizer: "verl's own"
    plugin._see_reward_model(older)
    assert older.load_reward_manager(compose(), TOKENIZER) == "verl's own"
    with pytest.raises(JRMError, match="write reward.reward_manager.name=jrm and leave reward_model out"):
        older.load_reward_manager(compose(PLAIN, ()), TOKENIZER)


def test_what_cannot_be_added_to_verl_is_said_and_breaks_nothing(monkeypatch):
    monkeypatch.setattr(plugin, "failures", {})
    monkeypatch.setitem(sys.modules, "jrm_plugin.integrations.verl.reward_manager", None)
    with pytest.warns(UserWarning, match="jrm-plugin could not add the reward manager jrm to verl: ModuleNotFoundErr"):
        plugin._register(ModuleType("verl.experimental.reward_loop.reward_manager.registry"))
    with pytest.raises(RuntimeError, match="the reward manager jrm: ModuleNotFoundError"):
        registered()


def test_a_broken_verl_does_not_break_the_package(tmp_path):
    Path(tmp_path, "verl.py").write_text("raise RuntimeError('broken')")
    code = "import jrm_plugin, jrm_plugin.integrations.verl; jrm_plugin.Sample; print('fine')"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    finished = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert finished.stdout == "fine\n", finished.stderr
