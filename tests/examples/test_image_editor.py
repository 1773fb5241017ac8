"""The image editor of `examples`: its sampler against closed forms, its runs after a kill, its page."""

import csv
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.image_editor.__main__ import main
from examples.image_editor.data import WORDS, draw_triples, to_pictures, to_tensor, word_ids
from examples.image_editor.grpo import FlowGRPO, Rollouts, Run, step_loss, train, velocities
from examples.image_editor.hacking import TAUGHT, Round, draw_rounds, labelled_pairs, write_rounds
from examples.image_editor.measure import edit, heldout_prompts, mean_over_prompts, measured
from examples.image_editor.page import Arm, write_page, write_results
from examples.image_editor.pretrain import Pretraining, pretrained
from examples.image_editor.reward import Oracle, judge_pictures, load_judge
from examples.image_editor.sampler import divergence, log_probability, sample, step_of
from jrm_plugin import Sample, Scorer
from jrm_plugin.data.editreward import read_edit_reward
from jrm_plugin.errors import JRMError
from jrm_plugin.judged_rollouts import RolloutJudge
from jrm_plugin.synthetic.shape_reader import judge_generated

ROOT = Path(__file__).parents[2]

NUMBERS = st.floats(-3, 3)
DEVIATIONS = st.floats(0.05, 2)
TIMES = st.lists(st.floats(0.02, 0.98), min_size=1, max_size=9, unique=True).map(
    lambda inner: [1.0, *sorted(inner, reverse=True), 0.0]
)


def picture(numbers) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64).reshape(1, 1, 2, 2)


# --- one Gaussian step ------------------------------------------------------------------------------------------------


@given(st.lists(NUMBERS, min_size=4, max_size=4), st.lists(NUMBERS, min_size=4, max_size=4), DEVIATIONS)
def test_the_log_probability_and_its_gradient_are_those_of_a_gaussian(x, mean, deviation):
    x, mean, s = picture(x), picture(mean).requires_grad_(), torch.tensor([deviation], dtype=torch.float64)
    value = log_probability(x, mean, s)
    expected = torch.distributions.Normal(mean, deviation).log_prob(x).mean()
    assert value.item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-9)
    (gradient,) = torch.autograd.grad(value.sum(), mean)
    assert torch.allclose(gradient, (x - mean.detach()) / deviation**2 / x.numel(), rtol=1e-9, atol=1e-12)


@given(st.lists(NUMBERS, min_size=4, max_size=4), st.lists(NUMBERS, min_size=4, max_size=4), DEVIATIONS)
def test_the_divergence_is_that_of_two_gaussians_and_never_negative(one, other, deviation):
    one, other, s = picture(one), picture(other), torch.tensor([deviation], dtype=torch.float64)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(one, deviation), normal(other, deviation)).mean()
    assert divergence(one, other, s).item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)
    assert divergence(one, other, s).item() >= 0 == divergence(one, one, s).item()


@given(TIMES, NUMBERS, NUMBERS)
def test_without_noise_a_step_is_the_odes(t, x, v):
    for k in range(len(t) - 1):
        step = step_of(t, k, 0.0)
        assert step.of_x * x + step.of_v * v == pytest.approx(x + (t[k + 1] - t[k]) * v, abs=1e-12)
        assert step.deviation == 0


@settings(deadline=None, max_examples=10)
@given(st.floats(-1, 1), st.floats(0.2, 1.5), st.floats(0.1, 1.0))
def test_the_sde_leaves_the_distribution_at_every_t_as_the_ode_has_it(mean, deviation, noise):
    """Data N(m, d²): x_t is N((1 - t) m, (1 - t)² d² + t²), and the velocity that is exact for it is linear in x.

    So a step maps a mean and a variance to a mean and a variance, and no random number is needed. What is left is the
    error of steps of finite length.
    """
    t = np.linspace(0.98, 0.02, 1001).tolist()
    m, variance = (1 - t[0]) * mean, (1 - t[0]) ** 2 * deviation**2 + t[0] ** 2
    for k in range(len(t) - 1):
        total = (1 - t[k]) ** 2 * deviation**2 + t[k] ** 2
        slope = (t[k] - (1 - t[k]) * deviation**2) / total  # E[ε - x0 | x] = -mean + slope (x - (1 - t) mean)
        step = step_of([1.0, t[0], *t[1:]], k + 1, noise)
        assert step == step_of([1.0, t[0], *t[1:]], k + 1, noise)
        of_x = step.of_x + step.of_v * slope
        m = of_x * m + step.of_v * (-mean - slope * (1 - t[k]) * mean)
        variance = of_x**2 * variance + step.deviation**2
    assert m == pytest.approx((1 - t[-1]) * mean, abs=0.01)
    assert variance == pytest.approx((1 - t[-1]) ** 2 * deviation**2 + t[-1] ** 2, rel=0.03)


def linear(x, source, ids, t):
    """A velocity that needs no model."""
    return 0.5 * x - source + 0.1 * t[:, None, None, None]


def test_a_sampler_without_noise_is_the_ode_whatever_steps_are_called_stochastic():
    t = [1.0, 0.8, 0.5, 0.2, 0.0]
    source, ids = torch.rand(5, 3, 4, 4), torch.zeros(5, 2, dtype=torch.long)
    ode, sde = (
        sample([linear] * 4, source, ids, t, torch.Generator().manual_seed(0), stochastic=s, noise=1e-9, batch=2)
        for s in (0, 1)
    )
    # the first batches share their first noise
    assert torch.allclose(ode.x_BCHW[:2], sde.x_BCHW[:2], atol=1e-5)
    assert sde.before_SBCHW.shape == (1, 5, 3, 4, 4) and ode.log_probability_SB.shape == (0, 5)


def test_the_odes_step_is_that_of_diffusers_scheduler():
    pytest.importorskip("diffusers")
    from diffusers import FlowMatchEulerDiscreteScheduler

    from examples.image_editor.sampler import times

    t = times(10)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0.1, 10))
    x, v = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    for k, timestep in enumerate(scheduler.timesteps):
        step = step_of(t, k, 0.0)
        assert torch.allclose(step.of_x * x + step.of_v * v, scheduler.step(v, timestep, x).prev_sample, atol=1e-6)
    assert t[0] == 1 and t[-1] == 0


# --- the loss ---------------------------------------------------------------------------------------------------------


class Slope(torch.nn.Module):
    """An editor of one weight."""

    def __init__(self, weight: float = 0.5):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight))

    def velocity(self, x, source, ids, t):
        return self.weight * x - source


def sampled(policy: Slope, t: list[float]) -> Rollouts:
    """Two stochastic steps of six pictures."""
    torch.manual_seed(0)
    source, ids = torch.rand(6, 3, 4, 4), torch.zeros(6, 2, dtype=torch.long)
    samples = sample([policy.velocity] * 3, source, ids, t, torch.Generator().manual_seed(3), stochastic=2)
    return Rollouts(None, source, ids, samples, None)


def test_at_the_first_update_every_ratio_is_one_and_the_gradient_is_reinforces():
    t, policy = [1.0, 0.7, 0.3, 0.0], Slope()
    rollouts = sampled(policy, t)
    advantages, rows = torch.tensor([1.0, -1.0, 0.5, 2.0, -2.0, 0.0]), torch.arange(6)
    for k in range(2):
        step = step_of(t, k, 0.7)
        loss, logged = step_loss(policy, Slope(), rollouts, advantages, rows, k, t[k], step, FlowGRPO(beta=0.0))
        assert logged == {"kl": 0.0, "clipped": 0.0}
        assert loss.item() == pytest.approx(-advantages.mean().item(), abs=1e-6)  # -mean of 1 · A
        (gradient,) = torch.autograd.grad(loss, policy.weight)
        x, after = rollouts.samples.before_SBCHW[k], rollouts.samples.after_SBCHW[k]
        mean = step.of_x * x + step.of_v * policy.velocity(x, rollouts.source_BCHW, None, None)
        by_hand = ((after - mean) / step.deviation**2 * step.of_v * x).mean((1, 2, 3))  # d log π / d weight
        assert gradient.item() == pytest.approx(-(advantages * by_hand).mean().item(), rel=1e-3, abs=1e-6)


def test_a_ratio_beyond_the_bounds_earns_nothing_more_and_kl_is_to_the_base():
    t, policy = [1.0, 0.7, 0.3, 0.0], Slope()
    rollouts = sampled(policy, t)
    moved, step, rows = Slope(0.6), step_of(t, 0, 0.7), torch.arange(6)
    ratio = []
    for sign in (1.0, -1.0):
        loss, logged = step_loss(
            moved, policy, rollouts, torch.full((6,), sign), rows, 0, 1.0, step, FlowGRPO(beta=0.0)
        )
        assert logged["kl"] > 0 and logged["clipped"] > 0.5
        ratio.append(-loss.item() * sign)
    assert ratio[0] <= 1 + 5e-4 + 1e-7 and ratio[1] >= 1 - 1e-4 - 1e-7  # min for A > 0, max for A < 0
    with_kl, logged = step_loss(moved, policy, rollouts, torch.zeros(6), rows, 0, 1.0, step, FlowGRPO(beta=0.3))
    assert with_kl.item() == pytest.approx(0.3 * logged["kl"], rel=1e-5)


# --- data and rewards -------------------------------------------------------------------------------------------------


def test_triples_are_what_they_say():
    triples = draw_triples(60, 0, heldout=False, right=1.0, blurred=0.0)
    judged = [
        judge_generated(*each)
        for each in zip(triples.source_NHWC, triples.instructions, triples.target_NHWC, strict=True)
    ]
    assert {edit.failure for edit in judged} == {"none"} and {edit.visual_quality for edit in judged} == {4}
    ids = word_ids(triples.instructions)
    assert [" ".join(WORDS[k] for k in row if k) for row in ids.tolist()] == triples.instructions
    assert (to_pictures(to_tensor(triples.target_NHWC)) == triples.target_NHWC).all()
    some_wrong = draw_triples(60, 0, heldout=False)
    wrong = np.mean([(a != b).any() for a, b in zip(some_wrong.target_NHWC, some_wrong.source_NHWC, strict=True)])
    assert 0.7 < wrong < 1
    assert {*draw_triples(9, 1, heldout=True, kinds=("remove",)).kinds} == {"remove"}


def test_the_oracle_is_a_scorer_and_groups_are_rewarded_as_one():
    triples = draw_triples(2, 3, heldout=True, right=1.0, blurred=0.0)
    assert isinstance(Oracle(), Scorer)
    rows = [0, 0, 1, 1]
    sources, instructions = triples.source_NHWC[rows], [triples.instructions[row] for row in rows]
    pictures = np.stack([triples.target_NHWC[0], sources[0], triples.target_NHWC[1], sources[2]])
    judged = judge_pictures(load_judge("oracle", dimensions="all"), sources, instructions, pictures)
    assert judged.rewards["instruction_following"] == [4, 1, 4, 1]
    assert judged.rewards["visual_quality"] == [4, 4, 4, 4]
    assert judged.metrics["unedited"] == 0.5
    assert judged.metrics["instruction_following/undecided_groups"] == 0
    ranking = Oracle().rank([Sample.edit(sources[0], instructions[0], picture) for picture in pictures[:2]])
    assert [ranked.position for ranked in ranking] == [0, 1]


def test_the_reward_is_named_by_the_variables_where_no_model_is(monkeypatch):
    monkeypatch.setenv("JRM_MODEL", "jrm-tiny")
    monkeypatch.setenv("JRM_MODE", "lower_confidence_bound")
    judge = load_judge(None, device="cpu")
    assert judge.rollouts.mode == "lower_confidence_bound" and judge.scorer.dimensions == Oracle.dimensions


def test_an_interval_over_prompts_does_not_count_seeds_as_prompts():
    once = mean_over_prompts([[0, 1, 1, 1]])
    assert once == pytest.approx((0.75, 0.75 - 1.96 * 0.25, 0.75 + 1.96 * 0.25), abs=1e-4)
    assert mean_over_prompts([[0, 1, 1, 1]] * 3) == pytest.approx(once)
    assert math.isclose(mean_over_prompts([[1, 0], [0, 1]]).low, 0.5)


# --- whole runs -------------------------------------------------------------------------------------------------------

PRETRAINING = Pretraining(width=16, layers=1, triples=12, steps=4, batch=4, save_every=2)
# The last step is stochastic too: an editor that has learned nothing would give the source back, the same picture four
# times, with rewards from which nothing is learned.
RUN = FlowGRPO(iterations=3, prompts=2, group=4, kept=2, steps=3, stochastic=3, pool=6, save_every=1)


@cache
def judge() -> RolloutJudge:
    return load_judge("jrm-tiny", device="cpu")


def whole(folder: Path) -> Run:
    """Both stages of a tiny editor."""
    return train(pretrained(folder, PRETRAINING), judge(), folder / "run.pt", RUN, named="jrm-tiny")


# Ends itself at the so-manieth forward pass of the transformer, as a machine that loses power.
KILLED = f"""
import os, signal, sys
from pathlib import Path
import torch
from examples.image_editor.grpo import FlowGRPO, train
from examples.image_editor.pretrain import Pretraining, pretrained
from examples.image_editor.reward import load_judge
passes = 0
def hook(module, given, returned):
    global passes
    if type(module).__name__ == "SD3Transformer2DModel":
        passes += 1
        if passes == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
torch.set_num_threads(1)
torch.nn.modules.module.register_module_forward_hook(hook)
folder, judge = Path(sys.argv[1]), load_judge("jrm-tiny", device="cpu")
train(pretrained(folder, {PRETRAINING!r}), judge, folder / "run.pt", {RUN!r}, named="jrm-tiny")
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Run:
    pytest.importorskip("diffusers", reason="the editor's transformer is diffusers'")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield whole(tmp_path_factory.mktemp("uninterrupted"))
    torch.set_num_threads(threads)


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# The forward pass at which it ends: the fourth step of pre-training, when two are saved; and in the second iteration of
# RL, each of which takes 3 passes to sample and 2 · 3 · 2 to learn.
@pytest.mark.parametrize("passes", [4, PRETRAINING.steps + 20], ids=["pre-training", "RL"])
def test_after_a_kill_a_run_goes_on_to_the_same_weights(uninterrupted, tmp_path, passes):
    finished = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(passes)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == -signal.SIGKILL, finished.stderr
    if passes == 4:
        assert torch.load(tmp_path / "pretraining.pt")["step"] == 2
    else:
        assert len(torch.load(tmp_path / "run.pt")["iterations"]) == 1
    run = whole(tmp_path)
    assert same_weights(run.base, uninterrupted.base)
    assert same_weights(run.editor, uninterrupted.editor)
    moved = zip(run.editor.parameters(), run.base.parameters(), strict=True)
    assert max((one - other).abs().max().item() for one, other in moved) > RUN.learning_rate  # weight decay moves less
    told = [
        [{k: v for k, v in line.items() if "seconds" not in k} for line in r.iterations] for r in (run, uninterrupted)
    ]
    assert told[0] == told[1] and len(told[0]) == 3


def test_with_lora_the_factors_learn_and_the_base_is_the_editor_without_them(uninterrupted, tmp_path):
    base, settings = uninterrupted.base, replace(RUN, lora=2, iterations=2, learning_rate=0.01)
    run = train(base, judge(), tmp_path / "run.pt", settings, named="jrm-tiny")
    state = {name.replace("base_layer.", ""): weight for name, weight in run.editor.state_dict().items()}
    assert all(torch.equal(state[name], weight) for name, weight in base.state_dict().items())
    factors = {name: weight for name, weight in state.items() if name not in base.state_dict()}
    assert all(weight.abs().max() > 0 for name, weight in factors.items() if ".to_" in name)  # half of them began at 0
    given = torch.randn(2, 3, 48, 48), torch.rand(2, 3, 48, 48), torch.ones(2, 7, dtype=torch.int64), torch.ones(2)
    with torch.no_grad():
        assert torch.equal(run.base.velocity(*given), base.velocity(*given))
        assert not torch.equal(run.editor.velocity(*given), base.velocity(*given))
    longer = replace(settings, iterations=3)
    again, at_once = (
        train(base, judge(), tmp_path / file, longer, named="jrm-tiny").editor for file in ("run.pt", "at-once.pt")
    )
    assert same_weights(again, at_once)
    with pytest.raises(JRMError, match="LoRA factors have a rank of at least 1, not 0"):
        train(base, judge(), tmp_path / "none.pt", replace(settings, lora=0), named="jrm-tiny")


def test_another_run_or_a_damaged_state_in_the_folder_is_refused(uninterrupted, tmp_path):
    whole(tmp_path)
    with pytest.raises(JRMError, match="pretraining.pt is of a run with another seed"):
        pretrained(tmp_path, replace(PRETRAINING, seed=1))
    with pytest.raises(JRMError, match="run.pt is of a run with another beta, judge"):
        train(
            uninterrupted.base,
            judge(),
            tmp_path / "run.pt",
            replace(RUN, beta=0.1),
            named="another",
        )
    (tmp_path / "run.pt").write_bytes(b"no state")
    with pytest.raises(JRMError, match="run.pt is no state of this example; remove it"):
        train(uninterrupted.base, judge(), tmp_path / "run.pt", RUN, named="jrm-tiny")


def test_the_page_shows_every_reward_and_the_tables_say_what_was_measured(uninterrupted, tmp_path):
    prompts = heldout_prompts(4, RUN.kinds)
    before = edit([uninterrupted.base.velocity] * RUN.steps, prompts)
    oracle = load_judge("oracle")
    run = train(
        uninterrupted.base,
        oracle,
        tmp_path / "run.pt",
        RUN,
        named="oracle",
        measure=lambda _, policy, base: measured(oracle, prompts, edit(velocities(policy, base, RUN), prompts)),
        measure_every=2,
    )
    assert [each["iteration"] for each in run.measured] == [0, 2, 3]
    assert run.measured[0]["success"] == measured(oracle, prompts, before)["success"]
    after = edit(velocities(run.editor, run.base, RUN), prompts)
    arms = [Arm(name, before, {0: run}, {0: after}) for name in ("alpha-0", "oracle")]  # one run under two names
    write_page(tmp_path, arms, prompts)
    write_results(tmp_path, arms)
    page = (tmp_path / "page.html").read_text()
    assert "alpha-0" in page and "oracle" in page and "4 held-out prompts (recolour, remove)" in page
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("curves.png", "strips.png"))
    with (tmp_path / "image-editor.csv").open() as file:
        rows = list(csv.DictReader(file))
    success = {row["reward"]: float(row["value"]) for row in rows if row["what"] == "success"}
    assert success["none"] == np.mean(arms[0].runs[0].measured[0]["success"])
    assert success["oracle"] == np.mean(arms[1].runs[0].measured[-1]["success"])
    over = [row for row in rows if row["what"] == "over alpha-0"]
    assert [(row["reward"], float(row["value"])) for row in over] == [("oracle", 0)]
    with (tmp_path / "image-editor-steps.csv").open() as file:
        assert [row["iteration"] for row in csv.DictReader(file)] == ["1", "2", "3"] * 2


def test_a_reward_that_is_not_there_is_one_sentence(tmp_path, monkeypatch):
    pytest.importorskip("diffusers", reason="the command asks for it first")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(JRMError, match="demo-output/baseline is no model: make it with jrm demo --compare"):
        main([])
    with pytest.raises(JRMError, match="--judge takes NAME=MODEL, not 'jrm-tiny'"):
        main(["--judge", "jrm-tiny"])


def test_pictures_of_a_policy_become_pairs_that_the_oracle_tells_apart(tmp_path):
    triples = draw_triples(3, 8, heldout=False, right=1.0, blurred=0.0)
    half_right = np.concatenate([triples.target_NHWC, triples.source_NHWC])
    rows = np.array([0, 3, 0, 1, 1, 1, 2, 5, 5])  # of the second prompt all are as asked: nothing to learn there
    (tmp_path / "collected").mkdir()
    np.savez(
        tmp_path / "collected" / "0010.npz",
        sources=triples.source_NHWC[rows % 3],
        instructions=[triples.instructions[row % 3] for row in rows],
        pictures=half_right[rows],
    )
    path = labelled_pairs(tmp_path)
    pairs = read_edit_reward(path, progress=False).examples
    assert [pair.chosen.prompt_text for pair in pairs] == [triples.instructions[k] for k in (0, 2)]
    for pair in pairs:
        judged = [
            judge_generated(each.prompt_images[0], each.prompt_text, each.response_images[0]).instruction_following
            for each in (pair.chosen, pair.rejected)
        ]
        assert judged == [4, 1] == [s["instruction_following"] for s in (pair.chosen_scores, pair.rejected_scores)]
        assert pair.labels["overall"] == 1
    before = path.stat().st_mtime_ns
    assert labelled_pairs(tmp_path) == path and path.stat().st_mtime_ns == before  # what is done is not done again


def test_the_tables_of_the_rounds_hold_what_was_measured(tmp_path):
    measured_once = {
        "iteration": 5,
        "kind": ["add", "move"],
        "failure": ["several_copies", "none"],
        "instruction_following": [2, 4],
        "visual_quality": [4, 4],
        "success": [0, 1],
        "reward": [5.0, 6.0],
        "sigma": [1.0, 1.5],
    }
    line = {"reward": 5.5, "kl": 0.1, "unedited": 0.0}
    accuracy = {"overall": {"value": 0.9, "low": 0.8, "high": 1}}
    better = measured_once | {"failure": ["none", "none"], "success": [1, 1]}
    ends = {"0": measured_once, "1": measured_once, TAUGHT: better}
    rounds = {(0, number): Round(Run(None, None, [line], [end]), accuracy) for number, end in ends.items()}
    write_rounds(tmp_path, rounds)
    draw_rounds(rounds, tmp_path / "rounds.png")
    with (tmp_path / "image-editor-rounds.csv").open() as file:
        rows = {(row["round"], row["what"]): row["value"] for row in csv.DictReader(file)}
    for number in ("0", "1"):
        assert rows[number, "failure, several_copies"] == rows[number, "success"] == "0.5"
        assert rows[number, "success, add"] == "0.0" and rows[number, "reward"] == "5.5"
        assert rows[number, "success, less round 0's"] == "0.0"
    assert rows[TAUGHT, "success, less round 0's"] == "0.5"
    assert rows[TAUGHT, "failure, several_copies, less round 0's"] == "-0.5"
    assert (tmp_path / "rounds.png").stat().st_size > 5000
