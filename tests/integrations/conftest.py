"""A real Ray cluster on this machine, and edits of ShapeEdits to score."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from pictures import encode
from PIL import Image

from jrm_plugin import Ranked, RewardScore, RewardScorer, Sample
from jrm_plugin.records.images import load_image
from jrm_plugin.scoring.protocol import ranked
from jrm_plugin.synthetic.shape_edits import draw_edit

# For `rendering`. Not the folder above it, whose folders have the names of packages.
RENDERING = str(Path(__file__).parent / "rendering")
sys.path.append(RENDERING)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """For tests that start actors; they share it, since it takes seconds to start."""
    import ray

    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["PYTHONPATH"] = RENDERING  # of the workers
    ray.init(num_cpus=16, include_dashboard=False, configure_logging=False, log_to_driver=False)
    yield
    ray.shutdown()


class Brightness:
    """A `Scorer` that is no checkpoint: the mean brightness of the response's image."""

    dimensions = ["brightness"]

    def score(self, samples, *, on_error="raise", progress=False) -> list[RewardScore]:
        images = [np.asarray(load_image(sample.response_images[0])) for sample in samples]
        return [RewardScore({"brightness": image.mean()}, {"brightness": 1.0}) for image in images]

    def rank(self, samples, *, dimension="overall", different_prompts=False) -> list[Ranked]:
        return ranked(self.score(samples), dimension)


@pytest.fixture
def brightness() -> Brightness:
    return Brightness()


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """How many samples each call of a `RewardScorer` is about."""
    counts: list[int] = []
    score = RewardScorer.score

    def counting(self, samples, **options):
        counts.append(len(samples))
        return score(self, samples, **options)

    monkeypatch.setattr(RewardScorer, "score", counting)
    return counts


@pytest.fixture(scope="session")
def group_of() -> Callable[..., list[Sample]]:
    """`group_of(seed, count, size)`: samples of one scene that differ in a line through the edited image."""

    def make(seed: int, count: int, size: int = 48) -> list[Sample]:
        edit = draw_edit(np.random.default_rng(seed), heldout=True, outcomes=[("none", "clean")])
        source = Image.fromarray(edit.source).resize((size, size))
        edited = []
        for k in range(count):
            pixels = np.array(source)
            pixels[:, k % size] = 0
            edited.append(encode(pixels))
        return [Sample.edit(encode(source), edit.instruction, image) for image in edited]

    return make
