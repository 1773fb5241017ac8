"""The registry of rewards, and how a GRPO step asks them."""

from collections.abc import Sequence

import torch

orms: dict[str, type] = {}


class ORM:
    def __init__(self, args=None, **kwargs):
        self.args = args


def rewards_of(names: Sequence[str], rows: Sequence[dict], trainer_state=None) -> torch.Tensor:
    """`[N, functions]`, NaN for None; a row holds `messages`, whose last is the completion, and the other columns."""
    functions = [orms[name](args=None) for name in names]
    completions = [row["messages"][-1]["content"] for row in rows]
    columns = {name: [row.get(name) for row in rows] for row in rows for name in row}
    rewards = torch.zeros(len(rows), len(functions))
    for k, function in enumerate(functions):
        answers = function(completions, **{"trainer_state": trainer_state, **columns})
        rewards[:, k] = torch.tensor([float("nan") if answer is None else answer for answer in answers])
    return rewards
