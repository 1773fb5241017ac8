"""Tiny random checkpoints as EditReward and HPSv3 write them."""

from collections.abc import Callable

import pytest
import torch
from foreign_peers import (
    EDITREWARD_COLLATOR,
    EDITREWARD_PROMPTS,
    FOLLOWING,
    HPSV3_COLLATOR,
    PREFERENCE,
    QUALITY,
    Peer,
    old_names,
)
from transformers import AutoModelForImageTextToText, AutoTokenizer


@pytest.fixture(scope="session")
def make_peer(backbone_folder, tmp_path_factory) -> Callable[..., Peer]:
    """`make_peer(name, family)`: heads with random weights over a tiny backbone whose rows are cut to the tokenizer."""

    def make(name: str, family: str, *, widths: tuple[int, ...] = (24, 16), seed: int = 0) -> Peer:
        base = backbone_folder(family)
        code = tmp_path_factory.mktemp("code")
        tokenizer = AutoTokenizer.from_pretrained(base)
        generator = torch.Generator().manual_seed(seed)
        model = AutoModelForImageTextToText.from_pretrained(base)
        rows = len(tokenizer) + 1
        if model.get_input_embeddings().num_embeddings < rows:
            model.resize_token_embeddings(rows, mean_resizing=False)
        model.resize_token_embeddings(rows, mean_resizing=False)
        weights = {key: value.clone() for key, value in model.state_dict().items()}
        tied = model.config.tie_word_embeddings
        embeddings = weights["model.language_model.embed_tokens.weight"]
        for key in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
            weights[key][-1] = torch.randn(embeddings.shape[1], generator=generator)
        if tied:
            del weights["lm_head.weight"]
        heads = ("rm_head",) if name == "hpsv3" else ("rm_heads.head_0", "rm_heads.head_1")
        for head in heads:
            width = embeddings.shape[1]
            for k, out in zip((0, 3, 5), (*widths, 2), strict=True):
                weights[f"{head}.{k}.weight"] = torch.randn(out, width, generator=generator) / width**0.5
                weights[f"{head}.{k}.bias"] = torch.randn(out, generator=generator)
                width = out
        if name == "hpsv3":
            files, templates = {"collator.py": HPSV3_COLLATOR}, (PREFERENCE,)
            weights = old_names(weights)
        else:
            files, templates = (
                {"prompts.py": EDITREWARD_PROMPTS, "collator.py": EDITREWARD_COLLATOR},
                (FOLLOWING, QUALITY),
            )
        for file, text in files.items():
            (code / file).write_text(text)
        return Peer(name, family, base, weights, tuple(code / file for file in files), templates, heads)

    return make
