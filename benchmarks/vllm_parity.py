"""How far scores from vLLM are from `RewardScorer`'s, and in bfloat16 from what rounding alone does to them.

    python -m benchmarks.vllm_parity             # in an environment with vLLM, and on the device that it was built for

Each row is one model, layout and dtype, over mixed samples: edits of one and of several images, generations and text
answers, of many sizes, and in between groups that share their source. The models are the built-in one, and random ones
of a million parameters of each backbone family with the full rubrics. `mu` and `log_sigma` are the largest differences
over samples and dimensions, `mu_spread` how far apart the scores are of which that is the error. `scorer_…_noise` and
`vllm_…_noise` are how far each engine is from `RewardScorer` in float32, root mean squares: what rounding to bfloat16
does to each. Rows go into `results/vllm-parity.csv`; stopped at any point, the same command goes on.
"""

import argparse
import csv
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the engine in this process, where it starts in seconds
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from transformers import CONFIG_MAPPING, Qwen2VLImageProcessorPil

from benchmarks.measuring import device_description, versions, write_csv
from jrm_plugin.extras import installed_version
from jrm_plugin.model.configuration import JRMConfig
from jrm_plugin.model.modeling import JRMForRewardModeling
from jrm_plugin.model.processing import JRMProcessor
from jrm_plugin.model.tiny import VISION, tiny_tokenizer
from jrm_plugin.records.samples import Sample
from jrm_plugin.scoring.devices import default_device
from jrm_plugin.scoring.loading import load_scorer
from jrm_plugin.scoring.protocol import Scorer

RESULTS = Path(__file__).parent / "results" / "vllm-parity.csv"
TEXT = "make remove add move the a red blue green large small circle square photo left right of behind lighter"
IDS = ("vision_start_token_id", "image_token_id", "video_token_id", "vision_end_token_id")


class Setting(NamedTuple):
    """A model that is measured; `family` may be the name of a checkpoint."""

    family: str
    order: str
    sequences: str
    rope_positions: str


SETTINGS = (
    Setting("jrm-tiny", "", "", ""),
    Setting("qwen3_vl", "rubric_first", "joint", "mrope"),
    Setting("qwen3_vl", "images_first", "per_dimension", "1d"),
    Setting("qwen2_5_vl", "images_first", "joint", "mrope"),
    Setting("qwen2_vl", "rubric_first", "per_dimension", "mrope"),
)


def write_checkpoint(folder: Path, setting: Setting) -> None:
    """A random model of about a million parameters, with the full rubrics."""
    tokenizer = tiny_tokenizer([TEXT] * 2)
    patch = 16 if setting.family == "qwen3_vl" else 14
    images = Qwen2VLImageProcessorPil(
        patch_size=patch, merge_size=2, size={"shortest_edge": 4 * patch**2, "longest_edge": 64 * patch**2}
    )
    layout = {"order": setting.order, "sequences": setting.sequences}
    processor = JRMProcessor(tokenizer, images, image_token=VISION[1], **layout)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in zip(IDS, VISION, strict=True)}
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e4}
    text = {"vocab_size": 2048, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 4}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192}
    text |= {"pad_token_id": tokenizer.pad_token_id, "initializer_range": 0.05, "rope_parameters": rope}
    vision = {"depth": 2, "num_heads": 4, "patch_size": patch, "spatial_merge_size": 2, "initializer_range": 0.05}
    if setting.family == "qwen2_vl":
        vision |= {"embed_dim": 128, "hidden_size": 128, "mlp_ratio": 2}
    else:
        vision |= {"hidden_size": 128, "intermediate_size": 192, "out_hidden_size": 128}
    if setting.family == "qwen2_5_vl":
        vision |= {"window_size": 8 * patch, "fullatt_block_indexes": [1]}
    if setting.family == "qwen3_vl":
        text |= {"head_dim": 32}
        rope |= {"mrope_section": [6, 5, 5], "mrope_interleaved": True}
        vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 256}
    tied = setting.family != "qwen2_5_vl"
    backbone = CONFIG_MAPPING[setting.family](
        text_config=text | {"tie_word_embeddings": tied}, vision_config=vision, tie_word_embeddings=tied, **ids
    )
    torch.manual_seed(0)
    config = JRMConfig(
        backbone_config=backbone, reward_token_id=processor.reward_token_id, rope_positions=setting.rope_positions
    )
    JRMForRewardModeling(config).save_pretrained(folder)
    processor.save_pretrained(folder)


def make_samples(count: int, seed: int = 0) -> list[Sample]:
    """Edits of one image and of several, generations, text answers, and groups of six of one source."""
    rng = np.random.default_rng(seed)

    def picture() -> Image.Image:
        width, height = rng.integers(16, 160, 2)
        patches = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        return patches.resize((int(width), int(height)), Image.Resampling.BILINEAR)

    def text() -> str:
        return " ".join(rng.choice(TEXT.split(), rng.integers(2, 30)))

    samples: list[Sample] = []
    while len(samples) < count:
        source, instruction = picture(), text()
        samples += [Sample.edit(source, instruction, picture()) for _ in range(6)]
        samples.append(Sample.edit([picture() for _ in range(rng.integers(2, 4))], text(), picture()))
        samples.append(Sample.generation(text(), picture()))
        samples.append(Sample.text_response(picture(), text(), text()))
        samples.append(Sample.text_response(None, text(), text()))
    return [samples[k] for k in rng.permutation(len(samples))[:count]]


def numbers(scores: list[Any]) -> np.ndarray:
    """`[2, S, D]`: mu, and log sigma."""
    rows = [[list(score.mu.values())[:-1], list(np.log(list(score.sigma.values())[:-1]))] for score in scores]
    return np.array(rows).transpose(1, 0, 2)


def measured(scorer: Scorer, samples: list[Sample]) -> np.ndarray:
    return numbers(scorer.score(samples))


def measure(folder: str, setting: Setting, samples: list[Sample], device: str) -> list[dict[str, Any]]:
    rows = []
    exact = measured(load_scorer(folder, device=device, dtype="float32"), samples)
    for dtype in ("float32", "bfloat16"):
        ours = measured(load_scorer(folder, device=device, dtype=dtype), samples)
        theirs = measured(load_scorer(folder, dtype=dtype, engine="vllm", memory_budget=2**28), samples)
        row = setting._asdict() | {"dtype": dtype, "samples": len(samples), "mu_spread": np.ptp(exact[0], 0).max()}
        row |= dict(zip(("mu", "log_sigma"), np.abs(theirs - ours).max((1, 2)), strict=True))
        for name, engine in (("scorer", ours), ("vllm", theirs)):
            row |= {f"{name}_{kind}_noise": n for kind, n in zip(("mu", "log_sigma"), rms(engine - exact), strict=True)}
        row = {key: float(f"{value:.3g}") if isinstance(value, float) else value for key, value in row.items()}
        rows.append(row | {"device": device_description(device), "vllm": installed_version("vllm")} | versions())
    return rows


def rows_in(path: Path) -> list[dict[str, Any]]:
    """The rows of an earlier run, whose models are not measured again; remove the file to measure all."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [*csv.DictReader(file)]


def rms(difference: np.ndarray) -> np.ndarray:
    """Root mean squares of mu and of log sigma."""
    return np.sqrt((difference**2).mean((1, 2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--csv", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    device, samples, rows = default_device(), make_samples(options.samples), rows_in(options.csv)
    known = {tuple(row[name] for name in (*Setting._fields, "samples")) for row in rows}
    for setting in SETTINGS:
        if (*setting, str(len(samples))) in known:
            continue
        with tempfile.TemporaryDirectory() as folder:
            if setting.order:
                write_checkpoint(Path(folder), setting)
            rows += measure(folder if setting.order else setting.family, setting, samples, device)
        print_rows(rows[-2:])
        write_csv(options.csv, rows)


def print_rows(rows: list[dict[str, Any]]) -> None:
    table = Table("model", "layout", "dtype", "spread", "mu", "log sigma", "RewardScorer's noise", "vLLM's noise")
    for row in rows:
        layout = f"{row['order']}/{row['sequences']}/{row['rope_positions']}"
        figures = [f"{row[key]:.1e}" for key in ("mu_spread", "mu", "log_sigma", "scorer_mu_noise", "vllm_mu_noise")]
        table.add_row(row["family"], layout, row["dtype"], *figures)
    Console().print(table)


if __name__ == "__main__":
    main()
