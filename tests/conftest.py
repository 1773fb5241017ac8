"""Tiny backbones with random weights in real Hugging Face folders, and samples to score with them.

Nothing here is trained: the contracts tested with it hold for any weights. Everything is made once per session and is
offline.
"""

import json
import os

import torch

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of commands that tests start: several at a time, and models are tiny
os.environ.setdefault("RAY_worker_niceness", "0")  # at Ray's 15, its workers starve beside the other tests
if not torch.cuda.is_available():  # kernels then run in Triton's interpreter, which must be known when it is imported
    os.environ["TRITON_INTERPRET"] = "1"

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import transformers
from hypothesis import settings
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from jrm_plugin.model.modeling import JRMForRewardModeling
from jrm_plugin.model.processing import JRMProcessor
from jrm_plugin.model.rubrics import default_rubrics
from jrm_plugin.model.tiny import tiny_tokenizer, write_tiny_backbone
from jrm_plugin.records.critiques import Critique, EditRegion
from jrm_plugin.records.samples import Sample
from jrm_plugin.scoring.scorer import RewardScorer

torch.set_num_threads(1)
# The same examples in every run; `pytest --hypothesis-profile explore` looks for others.
settings.register_profile("jrm", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile("jrm")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests stay in one process, which makes once what they share; all that use Ray share its cluster."""
    for item in items:
        uses_ray = {"ray", "verl", "test_verl_omni.py"} & {*item.path.relative_to(item.config.rootpath).parts}
        item.add_marker(pytest.mark.xdist_group("ray" if uses_ray else str(item.path)))


FAMILIES = ("qwen3_vl", "qwen2_5_vl", "qwen2_vl")
TEXT = "make the red circle blue remove add square move triangle left right of noise edit was done as asked"
WORDS = TEXT.split()
TEXTS = [TEXT, '{"reasoning":"the circle is blue as asked"}', "instruction_following: visual_quality: "] * 3


# A test that takes one of these runs once for each backbone, each order and each kind of sequences.


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(params=("images_first", "rubric_first"))
def order(request) -> str:
    return request.param


@pytest.fixture(params=("joint", "per_dimension"))
def sequences(request) -> str:
    return request.param


# --- tokenizers -------------------------------------------------------------------------------------------------------

QWEN_SPECIAL_TEXT = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
)
QWEN_NOT_SPECIAL_TEXT = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> "
    "<tool_response> </tool_response> <think> </think>"
)
QWEN_SPECIAL, QWEN_NOT_SPECIAL = QWEN_SPECIAL_TEXT.split(), QWEN_NOT_SPECIAL_TEXT.split()
QWEN_CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for block in message.content %}"
    "{% if block.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ block.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_qwen_tokenizer() -> Qwen2Tokenizer:
    """Qwen's own tokenizer class and added tokens, special and not, over a small byte-level vocabulary."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    # Trained on what the added tokens spell too, so that its merges come as close to them as merges can.
    bpe.train_from_iterator([*TEXTS, " ".join(QWEN_SPECIAL + QWEN_NOT_SPECIAL) * 3], trainer)
    bpe = json.loads(bpe.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=bpe["vocab"],
        merges=[tuple(merge) for merge in bpe["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=QWEN_SPECIAL,
    )
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in QWEN_NOT_SPECIAL])
    tokenizer.chat_template = QWEN_CHAT_TEMPLATE
    return tokenizer


# --- backbones --------------------------------------------------------------------------------------------------------


def write_qwen2_backbone(folder: Path, family: str, tokenizer, *, tied: bool, width: int = 32, seed: int = 0) -> None:
    """An untrained Qwen2-VL or Qwen2.5-VL whose vocabulary has no spare rows for the tokens that JRM adds."""
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    ids |= {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 8192,
        "initializer_range": 0.2,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "tie_word_embeddings": tied,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [width // 16, 3 * width // 32, 3 * width // 32],
            "rope_theta": 10000.0,
        },
    }
    vision = {"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, "initializer_range": 0.1}
    if family == "qwen2_vl":
        config_class, model_class = Qwen2VLConfig, Qwen2VLForConditionalGeneration
        vision |= {"embed_dim": 32, "hidden_size": width, "mlp_ratio": 2}
    else:
        config_class, model_class = Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
        vision |= {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": width, "window_size": 56}
        vision["fullatt_block_indexes"] = [1]
    config = config_class(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=84 * 84, size={}).save_pretrained(folder)


@pytest.fixture(scope="session")
def qwen_tokenizer() -> Qwen2Tokenizer:
    return make_qwen_tokenizer()


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory) -> Callable[[str], Path]:
    """`backbone_folder(family)`: a folder as a hub model's; Qwen2.5-VL's embeddings are untied, the others' tied.

    `width` is that of a Qwen2-VL's or Qwen2.5-VL's hidden states.
    """

    @cache
    def make(family: str, width: int) -> Path:
        folder = tmp_path_factory.mktemp(family)
        if family == "qwen3_vl":
            write_tiny_backbone(folder, TEXTS, image_size=48)
        elif family == "qwen2_5_vl":
            write_qwen2_backbone(folder, family, make_qwen_tokenizer(), tied=False, width=width)
        else:
            write_qwen2_backbone(folder, family, tiny_tokenizer(TEXTS), tied=True, width=width)
        return folder

    return lambda family, width=32: make(family, width)


@pytest.fixture(scope="session")
def make_scorer(backbone_folder) -> Callable[..., RewardScorer]:
    """`make_scorer(family, order, sequences)`: a new reward model and processor in evaluation mode."""

    def make(
        family="qwen3_vl", order="images_first", sequences="joint", *, config=None, width=32, **layout
    ) -> RewardScorer:
        layout = {"rubrics": default_rubrics("short"), "max_pixels": 64 * 64} | layout
        folder = backbone_folder(family, width)
        processor = JRMProcessor.from_backbone(folder, order=order, sequences=sequences, **layout)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = JRMForRewardModeling.from_backbone(folder, processor=processor, config=config)
        return RewardScorer(model, processor)

    return make


@pytest.fixture(scope="session")
def scorer_of(make_scorer) -> Callable[..., RewardScorer]:
    """Like `make_scorer`, but made once: for tests that leave model and processor as they are."""
    return cache(make_scorer)


@pytest.fixture(scope="session")
def tiny() -> RewardScorer:
    """The built-in model, for tests that leave it as it is."""
    return RewardScorer.from_pretrained("jrm-tiny", device="cpu")


@pytest.fixture(scope="session")
def reward_server(tiny) -> Iterator[str]:
    """The address of a server of the built-in model, with every wire that there is."""
    from scoring_server import ready_server  # what a server needs, and the tests of kernels do not

    from jrm_plugin.scoring.loading import model_digest
    from jrm_plugin.server.app import PICKLE_WIRES

    wires = tuple(PICKLE_WIRES)
    with ready_server(tiny, digest=model_digest("jrm-tiny").hex(), pickle_wires=wires, batch_window=0.0) as client:
        yield str(client.base_url).rstrip("/")


# --- samples ----------------------------------------------------------------------------------------------------------


def make_image(rng: np.random.Generator) -> Image.Image:
    """A few coloured patches, of any size and shape."""
    width, height = rng.integers(16, 72, 2)
    patches = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
    return patches.resize((int(width), int(height)), Image.Resampling.NEAREST)


def make_sample(rng: np.random.Generator, kind: int) -> Sample:
    words = " ".join(rng.choice(WORDS, rng.integers(2, 12)))
    if kind == 0:
        return Sample.edit([make_image(rng) for _ in range(rng.integers(2, 4))], words, make_image(rng))
    if kind == 1:
        return Sample.generation(words, make_image(rng))
    if kind == 2:
        return Sample.text_response(make_image(rng), words, " ".join(rng.choice(WORDS, 5)))
    if kind == 3:
        return Sample.text_response(None, words, " ".join(rng.choice(WORDS, 5)))
    return Sample.edit(make_image(rng), words, make_image(rng))


@pytest.fixture(scope="session")
def make_samples() -> Callable[[int], list[Sample]]:
    """`make_samples(n)`: edits of one and of several images, generations, and text answers with and without image."""

    def make(n: int, seed: int = 0) -> list[Sample]:
        rng = np.random.default_rng(seed)
        return [make_sample(rng, k % 6) for k in range(n)]

    return make


@pytest.fixture(scope="session")
def critiques() -> dict[str, Critique]:
    """One critique a dimension, of different lengths, with tags and a region."""
    region = EditRegion(0, "red circle", (100, 200, 300, 400))
    return {
        "instruction_following": Critique("<|bbox_0|> the circle is blue as asked <|global|>", (region,)),
        "visual_quality": Critique("noise left of the square"),
    }


# --- a policy for RL --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory) -> Path:
    """A causal language model with random weights and its tokenizer, which knows `TEXT`'s words and a chat template."""
    folder = tmp_path_factory.mktemp("policy")
    tokenizer = tiny_tokenizer(TEXTS)
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
