"""A backbone small enough to train from scratch on a CPU: Qwen3-VL's architecture with about a million parameters.

It is written as an ordinary Hugging Face folder (weights, config, tokenizer, image processor), so that everything
after it takes the same path as `Qwen/Qwen3-VL-8B-Instruct` does. `jrm-tiny` is made from one.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

PAD, END, TURN = "<|endoftext|>", "<|im_end|>", "<|im_start|>"
VISION = ("<|vision_start|>", "<|image_pad|>", "<|video_pad|>", "<|vision_end|>")

# The parts of a critique that are the same in every critique are one token each, so that a small model spends its
# steps on what differs. Everything else is words, (lists of) numbers and punctuation; any text can be read.
_PIECES = (
    r'[a-z_]+: \{"edit_region":\[\{"id":0,"label":"|"\}\n[a-z_]+: \{"reasoning":"',
    r'\{"edit_region":\[\{"id":0,"label":"|","bbox_2d":\[|\]\}\],"reasoning":"|\{"reasoning":"|"\}',
    r"[a-z_]+: |user\n|assistant\n",
    r" ?\p{L}+| ?\p{N}+(?:,\p{N}+)*|[^\s\p{L}\p{N}]|\s+",
)

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for block in message.content %}"
    "{% if block.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ block.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-level BPE learned from `texts`: their words become single tokens, all other text falls into bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("|".join(_PIECES)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *["user\nassistant\n"] * 2], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, padding_side="right")
    fast.add_special_tokens({"extra_special_tokens": [TURN, *VISION]})
    fast.chat_template = _CHAT_TEMPLATE
    return fast


def write_tiny_backbone(folder: str | Path, texts: Iterable[str], *, image_size: int, seed: int = 0) -> None:
    """Writes an untrained backbone whose tokenizer knows the words of `texts`.

    Args:
        folder: is created.
        texts: what the model will read and write.
        image_size: edge in pixels of the images it is meant for, a multiple of 12; an image is 3 x 3 tokens.
        seed: of the random weights.
    """
    merge = 2
    patch = image_size // (3 * merge)
    tokenizer = tiny_tokenizer(texts)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in VISION}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": 64 * ((len(tokenizer) + 12) // 64 + 1),  # room for the reward token and the region tags
            "hidden_size": 128,
            "intermediate_size": 192,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 32,
            "max_position_embeddings": 8192,
            "initializer_range": 0.05,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
                "rope_theta": 100.0,
            },
        },
        vision_config={
            "depth": 1,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "out_hidden_size": 128,
            "patch_size": patch,
            "spatial_merge_size": merge,
            "num_position_embeddings": (image_size // patch) ** 2,
            "deepstack_visual_indexes": [0],
            "initializer_range": 0.05,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config)
        # At the default scale the vision encoder learns where a patch is ten times slower.
        nn.init.normal_(model.model.visual.pos_embed.weight, std=0.5)
    model.generation_config.update(
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, do_sample=False
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(
        patch_size=patch, merge_size=merge, size={"shortest_edge": image_size**2, "longest_edge": image_size**2}
    ).save_pretrained(folder)
