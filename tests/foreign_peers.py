"""Tiny random checkpoints as EditReward and HPSv3 write them, their code's prompts, and their scores.

`Peer.scores` computes as their code does, from transformers' own class and the tensors of the heads, with no module of
ours: the chat template filled with the whole prompt, tokenized as one string.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    Qwen2VLImageProcessorPil,
)

REWARD_TOKEN = "<|Reward|>"
PIXELS = 256 * 28 * 28
SUFFIX = f"\nrate the picture: {REWARD_TOKEN}\n\nEND\n"
FOLLOWING = "\njudge **how well** it was done  \nfrom {{1}} to 4\nText instruction - {text_prompt}\n"
QUALITY = "\njudge **how it looks**  \nText instruction - {text_prompt}\n"
PREFERENCE = "\njudge the picture by the words  \nTextual prompt - {text_prompt}\n\n"

# As the projects write them: a constant of several pieces, older texts in comments, and imports that fail.
EDITREWARD_PROMPTS = f'''INSTRUCTION_EDIT_FOLLOWING = """{FOLLOWING}"""
INSTRUCTION_EDIT_QUALITY = ("{QUALITY[:20].encode("unicode_escape").decode()}"
    "{QUALITY[20:].encode("unicode_escape").decode()}")
INSTRUCTION_EDIT_OVERALL = """{PREFERENCE}"""
# INSTRUCTION_EDIT_QUALITY = """an older {{text_prompt}}"""
'''
EDITREWARD_COLLATOR = f'''import a_module_that_is_not_there
raise RuntimeError("this code must not run")
prompt_with_special_token = """{SUFFIX}"""
'''
HPSV3_END = f'prompt_with_special_token = """{SUFFIX}"""'
HPSV3_COLLATOR = f'''import a_module_that_is_not_there
INSTRUCTION = """{PREFERENCE}"""
{HPSV3_END}
'''


@dataclass(frozen=True)
class Peer:
    """A checkpoint of another project: what `jrm convert` is given, and what it scores."""

    name: str
    family: str
    base: Path
    weights: dict[str, torch.Tensor]
    prompts: tuple[Path, ...]
    templates: tuple[str, ...]  # of its heads
    heads: tuple[str, ...]

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.weights, folder / ("HPSv3.safetensors" if self.name == "hpsv3" else "model.safetensors"))
        return folder

    @torch.no_grad()
    def scores(self, images: list[Image.Image], instruction: str) -> list[tuple[float, float]]:
        """mu and log sigma of each head."""
        tokenizer = AutoTokenizer.from_pretrained(self.base)
        tokenizer.add_special_tokens({"extra_special_tokens": [REWARD_TOKEN]}, replace_extra_special_tokens=False)
        config = AutoConfig.from_pretrained(self.base)
        config.get_text_config().vocab_size = len(tokenizer)
        backbone = {key: value for key, value in self.weights.items() if not key.startswith("rm_head")}
        model = (
            MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
            .from_pretrained(None, config=config, state_dict=backbone)
            .eval()
        )
        sizes = {} if self.family == "qwen3_vl" else {"size": {"shortest_edge": PIXELS, "longest_edge": PIXELS}}
        pictures = Qwen2VLImageProcessorPil.from_pretrained(self.base, **sizes)(images, return_tensors="pt")
        counts = (pictures["image_grid_thw"].prod(-1) // 4).tolist()
        results = []
        for template, head in zip(self.templates, self.heads, strict=True):
            text = template.format(text_prompt=instruction) + SUFFIX
            content = [{"type": "image"} for _ in images] + [{"type": "text", "text": text}]
            turns = [{"role": "user", "content": content}]
            turn = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            for count in counts:
                turn = turn.replace("<|image_pad|>", "<|placeholder|>" * count, 1)
            ids = torch.tensor([tokenizer(turn.replace("<|placeholder|>", "<|image_pad|>"))["input_ids"]])
            positions = {} if self.family == "qwen3_vl" else {"position_ids": torch.arange(ids.shape[1])[None]}
            hidden = model.model(
                input_ids=ids,
                mm_token_type_ids=(ids == config.image_token_id).int(),
                pixel_values=pictures["pixel_values"],
                image_grid_thw=pictures["image_grid_thw"],
                **positions,
            ).last_hidden_state[0]
            x = hidden[ids[0] == tokenizer.convert_tokens_to_ids(REWARD_TOKEN)].float()
            linears = sorted(
                int(key.split(".")[-2]) for key in self.weights if key.startswith(head) and "weight" in key
            )
            for k in linears:
                x = torch.nn.functional.linear(
                    x, self.weights[f"{head}.{k}.weight"], self.weights.get(f"{head}.{k}.bias")
                )
                x = x if k == linears[-1] else x.relu()
            results.append(tuple(x[0].tolist()))
        return results


def old_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As transformers named them up to 4.51."""
    return {
        key.replace("model.visual.", "visual.").replace("model.language_model.", "model."): value
        for key, value in weights.items()
    }


def make_peer(name: str, family: str, base: Path, code: Path) -> Peer:
    """Heads with random weights over a tiny backbone whose rows are cut to its tokenizer; prompts go into `code`."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    generator = torch.Generator().manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer) + 1, mean_resizing=False)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    embeddings = weights["model.language_model.embed_tokens.weight"]
    for key in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        weights[key][-1] = torch.randn(embeddings.shape[1], generator=generator)
    if model.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    heads = ("rm_head",) if name == "hpsv3" else ("rm_heads.head_0", "rm_heads.head_1")
    for head in heads:
        width = embeddings.shape[1]
        for k, out in ((0, 24), (3, 16), (5, 2)):
            weights[f"{head}.{k}.weight"] = torch.randn(out, width, generator=generator) / width**0.5
            weights[f"{head}.{k}.bias"] = torch.randn(out, generator=generator)
            width = out
    if name == "hpsv3":
        files, templates = {"collator.py": HPSV3_COLLATOR}, (PREFERENCE,)
        weights = old_names(weights)
    else:
        files = {"prompts.py": EDITREWARD_PROMPTS, "collator.py": EDITREWARD_COLLATOR}
        templates = (FOLLOWING, QUALITY)
    for file, text in files.items():
        (code / file).write_text(text)
    return Peer(name, family, base, weights, tuple(code / file for file in files), templates, heads)


def settings(folder: Path, **values: object) -> None:
    """What EditReward's training writes of a run."""
    (folder / "model_config.json").write_text(json.dumps({"model_config": values, "training_args": {}}))
