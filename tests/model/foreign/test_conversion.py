"""Checkpoints of other projects become JRM folders with the same scores, and go back bit for bit."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from jrm_plugin.model.foreign.conversion import convert, convert_back
from jrm_plugin.records.samples import Sample
from jrm_plugin.scoring.scorer import RewardScorer

PEERS = [("editreward", "qwen2_5_vl"), ("editreward", "qwen3_vl"), ("hpsv3", "qwen2_vl")]
INSTRUCTIONS = ["make the red circle blue", "  {move} the square 50% left,\n then right "]


def picture(seed: int, width: int = 40, height: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def sample_of(peer, instruction: str, seed: int = 0) -> tuple[Sample, list[Image.Image]]:
    if peer.name == "hpsv3":
        return Sample.generation(instruction, picture(seed)), [picture(seed)]
    return Sample.edit(picture(seed), instruction, picture(seed + 1)), [picture(seed), picture(seed + 1)]


@pytest.fixture(scope="module", params=PEERS, ids="-".join)
def peer(request, make_peer):
    return make_peer(*request.param)


@pytest.fixture(scope="module")
def converted(peer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    convert(peer.write(folder / "theirs"), folder / "ours", base=str(peer.base), prompts=peer.prompts)
    return folder / "ours"


def test_scores_are_the_peers_end_to_end(peer, converted):
    scorer = RewardScorer.from_pretrained(converted, device="cpu")
    for k, instruction in enumerate(INSTRUCTIONS):
        sample, images = sample_of(peer, instruction, 3 * k)
        score, theirs = scorer.score(sample), peer.scores(images, instruction)
        assert len(theirs) == len(scorer.dimensions)
        for name, (mu, log_sigma) in zip(scorer.dimensions, theirs, strict=True):
            assert score.mu[name] == pytest.approx(mu, abs=1e-5)
            assert score.sigma[name] == pytest.approx(np.exp(log_sigma), rel=1e-5)


def test_and_back_bit_for_bit(peer, converted, tmp_path):
    convert_back(converted, tmp_path / "back", peer.name)
    (file,) = (tmp_path / "back").iterdir()
    assert file.name == ("HPSv3.safetensors" if peer.name == "hpsv3" else "model.safetensors")
    back = load_file(file)
    assert back.keys() == peer.weights.keys()
    for name, weight in peer.weights.items():
        assert back[name].dtype == weight.dtype and torch.equal(back[name], weight), name
