"""What a step of joint training costs: whole, selected and fused logits, and shared prefixes, side by side in one run.

    python -m benchmarks.training       # the medium shape, all layouts, a pair with and without critiques
    python -m benchmarks.training --vocabulary 151936 --layout images_first/joint rubric_first/joint --critique 60
                                        # with a vocabulary as large as a Qwen's: what logits weigh
    python -m benchmarks.training --group 2 4 --rubric 60 455 --repeats 0 --provider selected tree
                                        # FLOPs by the size of the group and the length of the rubric
    python -m benchmarks.training --backbone qwen3-vl-8b --size 448 --critique 60
                                        # on a GPU, in bfloat16

Weights are random, shapes are real (`benchmarks/shapes`), so nothing is downloaded. A step is the forward and backward
pass of the joint loss on one source and G candidates, two dimensions; of more than two candidates, the first is ranked
against each other one. Its batch is collated in the step, from images that are decoded. Providers:

    full      logits of all tokens, as a language model's own loss has them
    selected  logits of critique tokens alone; one padded row a sequence. All ratios refer to it
    fused     the same, the logits piece by piece
    tree      selected logits; what sequences share is computed once, where that costs less

FLOPs are torch's count with eager attention (it counts none for SDPA), of the rows that are chosen for SDPA; it counts
whole squares of attention. With `flex`, the tree's are those of one row with FlexAttention, which skips blocks of
128 x 128 in which nothing is seen: counted, less the blocks that the mask skips.

Times are of SDPA; on CPU the process's, over all threads, so that other processes disturb them little. The repeats of
the providers alternate, and a ratio's spread is over repeats. The peak is of memory beyond weights and inputs; it holds
the gradients of the weights.
"""

import argparse
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from benchmarks.measuring import device_description, peak_bytes, slug, versions, write_csv
from benchmarks.scoring import (
    HERE,
    INSTRUCTION,
    RUBRIC,
    make_group,
    make_model,
    make_processor,
    quantiles,
    spread,
    text_of,
)
from jrm_plugin.model.backbone import SDPA_OR_FLEX, BackboneParts, TokenCosts
from jrm_plugin.model.modeling import JRMForRewardModeling
from jrm_plugin.model.processing import ORDERS, SEQUENCES, EncodedSequence, JRMProcessor
from jrm_plugin.model.tiny import tiny_tokenizer
from jrm_plugin.records.critiques import Critique
from jrm_plugin.records.samples import DIMENSIONS
from jrm_plugin.training.losses import joint_loss, ranking_loss, ranking_loss_per_label

PROVIDERS = ("full", "selected", "fused", "tree")
ALPHA = 0.7


class Setting(NamedTuple):
    order: str
    sequences: str
    group: int
    size: int
    rubric: int
    critique: int


class Step:
    """One step of training, by one provider after another."""

    def __init__(self, model: JRMForRewardModeling, processor: JRMProcessor, setting: Setting):
        self.model, self.processor = model, processor
        self.costs = replace(BackboneParts(model.backbone).costs(), attention="sdpa")
        group = make_group(setting.group, setting.size)
        self.encoded: list[EncodedSequence] = []
        for k, sample in enumerate(group):
            # of different lengths, as critiques are; their mean is what was asked for
            tokens = setting.critique * (4 if k % 2 else 2) // 3
            text = text_of(processor.tokenizer, tokens, first=k)
            self.encoded += processor.encode(sample, {d: Critique(text) for d in DIMENSIONS} if tokens else {})
        rank_G = torch.arange(1.0, setting.group + 1, device=model.device)
        self.rank_NGC = rank_G[None, :, None].expand(1, -1, len(DIMENSIONS) + 1)

    def batch(self, costs: TokenCosts | None) -> dict:
        # new images in every step, which nothing is known of
        images = {id(image): replace(image) for sequence in self.encoded for image in sequence.images}
        sequences = [replace(s, images=[images[id(image)] for image in s.images]) for s in self.encoded]
        return _on(self.model.device, self.processor.collate(sequences, with_labels=True, costs=costs))

    def loss(self, provider: str) -> torch.Tensor:
        batch = self.batch(self.costs if provider == "tree" else None)
        if provider == "full":
            mu_SD, log_sigma_SD, critique_loss = self._full(batch)
        else:
            output = self.model(**batch, fused_cross_entropy=provider == "fused")
            mu_SD, log_sigma_SD, loss_T = output.mu_SD, output.log_sigma_SD, output.critique_loss_T
            critique_loss = loss_T.sum() / max(1, len(loss_T))
        loss_NC = ranking_loss_per_label(mu_SD[None], log_sigma_SD[None], self.rank_NGC)
        return joint_loss(ranking_loss(loss_NC, self.rank_NGC), critique_loss, ALPHA)

    def _full(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        labels_BL, dimension_ids = batch.pop("labels"), batch.pop("dimension_ids", None)
        hidden_BLH, hidden_BH, _ = self.model.hidden_states(**batch)
        logits_BLV = self.model.get_output_embeddings()(hidden_BLH).float()
        target = labels_BL[:, 1:].flatten()
        total = cross_entropy(logits_BLV[:, :-1].flatten(0, 1), target, reduction="sum")
        return *self.model.scores(hidden_BH, dimension_ids), total / max(1, int((target != -100).sum()))

    def run(self, provider: str) -> None:
        self.model.zero_grad(set_to_none=True)
        self.loss(provider).backward()
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()

    def gflop(self, provider: str) -> float:
        """Counted with eager attention."""
        language, vision = self.model.backbone.config.text_config, self.model.backbone.config.vision_config
        for config in (language, vision):
            config._attn_implementation = "eager"
        with FlopCounterMode(display=False) as counter:
            self.run(provider)
        for config in (language, vision):
            config._attn_implementation = "sdpa"
        return counter.get_total_flops() / 1e9

    def gflop_with_flex(self) -> float:
        """Of all trees in one row, less the blocks of attention that FlexAttention skips, forward and backward."""
        costs, self.costs = self.costs, replace(self.costs, attention=SDPA_OR_FLEX)
        gflop, packing = self.gflop("tree"), self.batch(self.costs)["packing"]
        self.costs = costs
        parts = BackboneParts(self.model.backbone)
        attention, config = parts.attention_implementation, self.model.backbone.config.text_config
        parts.use_flex_attention()
        S = packing["token_RS"].shape[1]
        mask = parts.tree_mask(torch.empty(1, S, 1, device=self.model.device), packing.get("end_RS"))
        config._attn_implementation = attention
        skipped = max(0.0, mask.sparsity() / 100) * S**2
        return gflop - 3 * skipped * costs.per_pair * parts.layer_count / 1e9

    def difference(self, provider: str) -> float:
        """The largest difference of a gradient to that of selected logits, as a share of its largest entry."""
        gradients = []
        for name in ("selected", provider):
            self.run(name)
            gradients.append({n: w.grad.float() for n, w in self.model.named_parameters() if w.grad is not None})
        return max(
            float((gradients[1][name] - gradient).abs().max() / gradient.abs().max().clamp(min=1e-3))
            for name, gradient in gradients[0].items()
        )


def step_tokenizer() -> PreTrainedTokenizerBase:
    """One that knows the words of rubric, instruction and critiques."""
    return tiny_tokenizer([f" {RUBRIC} {INSTRUCTION} {'{}[],:'} reasoning edit_region {' '.join(DIMENSIONS)}"] * 2)


def _on(device: torch.device, batch: dict) -> dict:
    return {k: _on(device, v) if isinstance(v, dict) else v.to(device) for k, v in batch.items()}


def measure(step: Step, setting: Setting, providers: list[str], repeats: int) -> list[dict]:
    """A row for each provider, and one for the tree with FlexAttention; the steps of the providers alternate."""
    device = step.model.device.type
    clock = time.perf_counter if device == "cuda" else time.process_time
    seconds: dict[str, list[float]] = {provider: [] for provider in providers}
    for _ in range(repeats):
        for provider in providers:
            start = clock()
            step.run(provider)
            seconds[provider].append(clock() - start)
    gflop = {provider: step.gflop(provider) for provider in providers}
    if "tree" in providers:
        gflop["tree, flex"] = step.gflop_with_flex()
    rows = []
    for name, count in gflop.items():
        times, base = seconds.get(name, []), seconds["selected"]
        row = setting._asdict() | {"provider": name, "gflop": round(count, 3)}
        row["flop_ratio"] = round(gflop["selected"] / count, 4)
        row |= quantiles("time_ratio", [b / a for a, b in zip(times, base, strict=False)])
        row |= quantiles("seconds", times)
        row["samples_per_second"] = round(setting.group / np.median(times), 3) if times else None
        row["peak_bytes"] = row["largest_gradient_difference"] = None
        if name in providers and repeats:
            row["largest_gradient_difference"] = step.difference(name)
        rows.append(row)
    return rows


def print_rows(rows: list[dict]) -> None:
    table = Table("layout", "G", "px", "rubric", "critique", "provider", "GFLOP", "fewer", "faster", "samples/s", "MiB")
    for row in rows:
        table.add_row(
            f"{row['order']}/{row['sequences']}", *(str(row[name]) for name in Setting._fields[2:]), row["provider"],
            f"{row['gflop']:.1f}", f"{row['flop_ratio']:.2f}", spread(row), str(row["samples_per_second"] or ""),
            "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f}",
        )  # fmt: skip
    Console(width=150).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes = sorted(path.stem for path in (HERE / "shapes").glob("*.json"))
    parser.add_argument("--backbone", choices=shapes, default="medium")
    parser.add_argument("--vocabulary", type=int, default=2048, help="tokens of the vocabulary")
    parser.add_argument("--group", type=int, nargs="+", default=[2], help="candidates of a source")
    parser.add_argument("--size", type=int, nargs="+", default=[224], help="edge of the images in pixels")
    parser.add_argument("--rubric", type=int, nargs="+", default=[455], help="tokens of a sequence's rubric")
    parser.add_argument("--critique", type=int, nargs="+", default=[0, 60], help="tokens of a critique, on average")
    layouts = [f"{order}/{sequences}" for order in ORDERS for sequences in SEQUENCES]
    parser.add_argument("--layout", nargs="+", choices=layouts, default=layouts)
    parser.add_argument("--provider", nargs="+", choices=PROVIDERS, default=list(PROVIDERS))
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each provider; 0: count only")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder for the CSV")
    options = parser.parse_args()

    tokenizer = step_tokenizer()
    reward_token_id = make_processor(tokenizer, *ORDERS[:1], "joint", 60, 224).reward_token_id
    model = make_model(
        options.backbone, tokenizer, reward_token_id, options.device, "sdpa", vocabulary=options.vocabulary
    )
    providers = [name for name in PROVIDERS if name in {"selected", *options.provider}]
    settings = [
        Setting(*layout.split("/"), *numbers)
        for layout in options.layout
        for numbers in product(options.group, options.size, options.rubric, options.critique)
    ]
    steps = [Step(model, make_processor(tokenizer, s.order, s.sequences, s.rubric, s.size), s) for s in settings]
    rows = []
    for step, setting in zip(tqdm(steps, unit="setting"), settings, strict=True):
        rows += measure(step, setting, providers, options.repeats)
    if options.repeats:  # last, because it changes how memory is given back
        of_setting = {setting: step for setting, step in zip(settings, steps, strict=True)}
        for row in tqdm([row for row in rows if row["provider"] in providers], desc="Memory", unit="step"):
            step = of_setting[Setting(*(row[name] for name in Setting._fields))]
            model.zero_grad(set_to_none=True)
            row["peak_bytes"] = peak_bytes(lambda step=step, row=row: step.run(row["provider"]), options.device)
    device = device_description(options.device)
    shape = {"backbone": options.backbone, "vocabulary": options.vocabulary}
    rows = [shape | row | {"device": device} | versions() for row in rows]
    print_rows(rows)
    name = f"training-{options.backbone}-{slug(device)}"
    name += f"-vocabulary-{options.vocabulary}" if options.vocabulary != 2048 else ""
    name += "-flops" if not options.repeats else ""
    write_csv(options.output / f"{name}.csv", rows)
    print(f"wrote {options.output / name}.csv")


if __name__ == "__main__":
    main()
