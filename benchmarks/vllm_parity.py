"""How far scores from vLLM are from `RewardScorer`'s, and in bfloat16 from what rounding alone does to them.

    python -m benchmarks.vllm_parity             # in an environment with vLLM, and on the device that it was built for

Each row is one model, layout and dtype, over mixed samples: edits of one and of several images, generations and text
answers, of many sizes, and in between groups that share their source. The models are the built-in one, and random ones
of a million parameters of each backbone family with the full rubrics, whose heads are scaled so that scores of a
dimension have a standard deviation of 1. `mu` and `log_sigma` are the largest differences over samples and dimensions.
In bfloat16, `scorer_noise` and `vllm_noise` are how far each engine is from `RewardScorer` in float32: root mean squares
over all numbers, because the largest of two engines' is chance. Rows go into `results/vllm-parity.csv`.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import device_description, versions, write_csv
from jrm_plugin.model.checkpoint import built_in_folder
from jrm_plugin.model.modeling import JRMForRewardModeling
from jrm_plugin.model.processing import JRMProcessor
from jrm_plugin.model.tiny import write_tiny_backbone
from jrm_plugin.records.samples import Sample
from jrm_plugin.records.scores import RewardScore
from jrm_plugin.scoring.loading import load_scorer
from jrm_plugin.scoring.scorer import RewardScorer

RESULTS = Path(__file__).parent / "results" / "vllm-parity.csv"
WORDS = "make remove add move the a red blue green large small circle square photo left right of behind lighter".split()
