"""Scores in whatever state others have set: the same, and the state as it was."""

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from jrm_plugin.records.samples import DIMENSIONS
from jrm_plugin.scoring.scorer import RewardScorer

TOLERANCE = 1e-5


def table(scores):
    return np.array([[s.mu[n] for n in DIMENSIONS] + [np.log(s.sigma[n]) for n in DIMENSIONS] for s in scores])


@contextmanager
def set_to(get, set_, value):
    before = get()
    set_(value)
    try:
        yield
    finally:
        assert get() == value
        set_(before)


def attribute(owner, name, value):
    return set_to(lambda: getattr(owner, name), lambda given: setattr(owner, name, given), value)


@contextmanager
def warnings_as_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filters = list(warnings.filters)
        yield
        assert warnings.filters == filters


@contextmanager
def training(model):
    model.train()
    yield
    assert all(module.training for module in model.modules())
    model.eval()


SETTINGS = {
    "autocast": lambda model: torch.autocast("cpu", dtype=torch.bfloat16),
    "training mode": training,
    "default dtype": lambda model: set_to(torch.get_default_dtype, torch.set_default_dtype, torch.float64),
    "default device": lambda model: torch.device("meta"),
    "gradients": lambda model: torch.enable_grad(),
    "no gradients": lambda model: torch.no_grad(),
    "inference mode": lambda model: torch.inference_mode(),
    "deterministic": lambda model: set_to(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
    ),
    "matmul precision": lambda model: set_to(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"
    ),
    "convolution precision": lambda model: attribute(torch.backends.mkldnn.conv, "fp32_precision", "bf16"),
    "truncated files": lambda model: attribute(ImageFile, "LOAD_TRUNCATED_IMAGES", True),
    "pixel limit": lambda model: attribute(Image, "MAX_IMAGE_PIXELS", 10),
    "no pixel limit": lambda model: attribute(Image, "MAX_IMAGE_PIXELS", None),
    "warnings as errors": lambda model: warnings_as_errors(),
    "numpy errors": lambda model: np.errstate(all="raise"),
}


@pytest.fixture(scope="module")
def expected(scorer_of, make_samples):
    return table(scorer_of("qwen3_vl").score(make_samples(64)))


@pytest.mark.parametrize("setting", SETTINGS)
def test_64_samples_score_the_same_in_any_state(make_scorer, make_samples, expected, setting):
    scorer, samples = make_scorer("qwen3_vl", config={"reward_head_dropout": 0.5}), make_samples(64)
    fresh = RewardScorer(scorer.model, scorer.processor)
    with SETTINGS[setting](scorer.model):
        for _ in range(2):  # the second time with image features of the first
            assert np.abs(table(fresh.score(samples)) - expected).max() < TOLERANCE
        assert fresh.hidden_states(samples[:2]).dtype == torch.float32
        assert fresh.critique(samples[:1], max_new_tokens=2)
    assert np.abs(table(fresh.score(samples)) - expected).max() < TOLERANCE


def test_64_samples_score_the_same_from_8_threads_in_every_state_at_once(make_scorer, make_samples, expected):
    scorer, samples = make_scorer("qwen3_vl", config={"reward_head_dropout": 0.5}), make_samples(64)
    scorers = [RewardScorer(scorer.model, scorer.processor) for _ in range(2)]  # of one model
    of_the_process = ["training mode", "default dtype", "truncated files", "pixel limit", "warnings as errors"]
    with ExitStack() as stack:
        for name in of_the_process:
            stack.enter_context(SETTINGS[name](scorer.model))
        with ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(scorers[k % 2].score, samples) for k in range(8)]
        for call in calls:
            assert np.abs(table(call.result()) - expected).max() < TOLERANCE


def test_image_features_go_when_the_vision_weights_change(make_scorer, make_samples):
    scorer, samples = make_scorer("qwen3_vl"), make_samples(6)
    before = table(scorer.score(samples))
    with torch.no_grad():
        for weight in scorer.model.backbone.model.visual.parameters():
            weight.mul_(1.5)
    after = table(scorer.score(samples))
    assert np.abs(after - before).max() > 100 * TOLERANCE
    fresh = RewardScorer(scorer.model, scorer.processor)
    assert np.abs(table(fresh.score(samples)) - after).max() < TOLERANCE


def test_images_are_decoded_within_a_budget_of_bytes():
    from jrm_plugin.scoring.prefetch import DecodingBudget

    budget, lock, now, most = DecodingBudget(100), threading.Lock(), [], []

    def decode(size):
        with budget.taken(size):
            with lock:
                now.append(size)
                most.append(sum(now) if len(now) > 1 else 0)  # one that is larger than all of it is alone
            with lock:
                now.remove(size)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, [30, 500, 60, 10, 90] * 40))
    assert max(most) <= 100


def no_switch():
    return ExitStack()


@contextmanager
def newer_switches():
    """Of convolutions alone, so that torch's older switch, which speaks of recurrent networks too, cannot be asked."""
    with attribute(torch.backends.cudnn.rnn, "fp32_precision", "ieee"):
        with pytest.raises(RuntimeError):
            torch.backends.cudnn.allow_tf32  # noqa: B018
        yield


@pytest.mark.parametrize("state", [no_switch, newer_switches])
def test_no_gpu_convolves_in_tf32_while_scores_are_computed(scorer_of, make_samples, state):
    scorer, seen = scorer_of("qwen3_vl"), []

    def look(*_):
        seen.append(torch.backends.cudnn.conv.fp32_precision)
        if state is no_switch:
            seen.append(torch.backends.cudnn.allow_tf32)

    handles = [module.register_forward_pre_hook(look) for module in scorer.model.backbone.modules()]
    try:
        with state():
            RewardScorer(scorer.model, scorer.processor).score(make_samples(2))
            assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    finally:
        for handle in handles:
            handle.remove()
    assert seen and not {"tf32", True} & {*seen}
    assert torch.backends.cudnn.allow_tf32 is True
