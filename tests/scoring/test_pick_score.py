"""PickScore: a CLIP behind the same face, chosen by its config."""

import logging
import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from jrm_plugin.errors import JRMError
from jrm_plugin.records.samples import Sample
from jrm_plugin.rollouts import RolloutReward
from jrm_plugin.scoring.loading import load_scorer
from jrm_plugin.scoring.pick_score import PickScorer
from jrm_plugin.scoring.protocol import Scorer

TEXT = "a blue cat"


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny CLIP, with the buffer that files of earlier versions hold."""
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: k for k, token in enumerate(vocabulary)}, merges=[])
    tokenizer.save_pretrained(folder)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": len(vocabulary) - 2, "eos_token_id": len(vocabulary) - 1, "vocab_size": len(vocabulary)}
    config = CLIPConfig(
        text_config=size | ids | {"max_position_embeddings": 77},
        vision_config=size | {"image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    torch.manual_seed(0)
    model = CLIPModel(config)
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scorer(folder):
    return load_scorer(folder, device="cpu", memory_budget=None)


def test_a_score_is_the_scaled_cosine_of_transformers_own_forward(folder, scorer):
    assert isinstance(scorer, PickScorer) and isinstance(scorer, Scorer) and scorer.dimensions == ["human_preference"]
    model = CLIPModel.from_pretrained(folder)
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(picture(1), return_tensors="pt")["pixel_values"]
    ids = CLIPTokenizer.from_pretrained(folder)(TEXT, return_tensors="pt")["input_ids"]
    expected = model(input_ids=ids, pixel_values=pixels).logits_per_image.item()
    score = scorer.score(Sample.generation(TEXT, picture(1)))
    assert score.mu["human_preference"] == score.mu["overall"] == pytest.approx(expected, abs=1e-5)
    assert score.sigma == {"human_preference": 0.0, "overall": 0.0}


def test_a_score_is_the_same_alone_and_beside_others(scorer):
    samples = [Sample.generation(text, picture(k)) for k in range(3) for text in (TEXT, "a red dog with a hat")]
    assert scorer.score(samples) == [scorer.score(sample) for sample in samples]


def test_ranks_and_rewards_as_any_scorer(scorer):
    samples = [Sample.generation(TEXT, picture(k)) for k in range(4)]
    ranking = scorer.rank(samples)
    assert [r.score.mu["overall"] for r in ranking] == sorted(s.mu["overall"] for s in scorer.score(samples))[::-1]
    best, second = ranking[0].score, ranking[1].score
    difference = best.mu["overall"] - second.mu["overall"]
    assert best.reward("win_probability", against=second) == pytest.approx(1 / (1 + math.exp(-difference)))
    assert math.isfinite(RolloutReward(mode="lower_confidence_bound").reward(best))
    with pytest.raises(JRMError, match="another instruction or source"):
        scorer.rank([samples[0], Sample.generation("another", picture(1))])


def test_what_it_cannot_do_is_said_once(folder, caplog):
    caplog.set_level(logging.WARNING)
    scorer = PickScorer.from_pretrained(folder, device="cpu")
    edit = Sample.edit(picture(0), "make it " + "very " * 40 + "red", picture(1))
    scorer.score([edit, edit])
    sigma, source, text = caplog.messages
    assert "gives no sigma" in sigma and "source images are ignored" in source and "reads 77 tokens" in text
    unscored, score = scorer.score([Sample.text_response(None, "what?", "a cat"), edit], on_error="return")
    assert isinstance(unscored, JRMError) and "scores nothing else" in str(unscored)
    assert score == scorer.score(edit)
    with pytest.raises(JRMError, match="sample 1 cannot be scored: .*nowhere.png"):
        scorer.score([edit, Sample.generation(TEXT, "nowhere.png")])


def test_what_it_has_no_use_for_is_refused(folder, tmp_path):
    with pytest.raises(JRMError, match="is a PickScore, which has no max_pixels; leave that out"):
        load_scorer(folder, max_pixels=100)
    for file in ("config.json", "model.safetensors"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    with pytest.raises(JRMError, match="which writes no critiques; take a JRM"):
        load_scorer(folder).critique([Sample.generation(TEXT, picture(1))])
    with pytest.raises(JRMError, match="has no preprocessor_config.json"):
        load_scorer(tmp_path)
