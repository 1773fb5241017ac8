"""Whether the two losses pull the shared weights the same way: the cosine of their gradients (paper section 4.2).

The paper calls the two objectives complementary rather than conflicting; this measures it. Shape suffixes: N pairs,
C the dimensions and the overall score, M batches.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from jrm_plugin.errors import JRMError
from jrm_plugin.evaluation.metrics import mean_with_interval, proportion
from jrm_plugin.records.preferences import PreferencePair
from jrm_plugin.training.groups import group_batch, in_groups
from jrm_plugin.training.losses import ranking_loss, ranking_loss_per_label

if TYPE_CHECKING:
    from jrm_plugin.scoring.scorer import RewardScorer

COLUMNS = ("cosine", "rank_norm", "critique_norm")


class Gradients:
    """Of M batches: the cosine of the gradients of both losses, and their norms; `[M, 3]`, as `COLUMNS` says."""

    def __init__(self, value_M3: np.ndarray, parameters: int):
        self.value_M3, self.parameters = value_M3, parameters

    def summary(self) -> dict[str, Any]:
        """Means over batches with Student's intervals, and the share of batches in which the losses conflict."""
        cosine_M = self.value_M3[:, 0]
        means = {name: mean_with_interval(values) for name, values in zip(COLUMNS, self.value_M3.T, strict=True)}
        conflicts = proportion(int((cosine_M < 0).sum()), len(cosine_M))
        return means | {"conflicts": conflicts, "cosines": cosine_M.tolist(), "parameters": self.parameters}

    def less(self, other: "Gradients") -> dict[str, Any]:
        """The difference of cosines to another model's on the same batches."""
        return mean_with_interval(self.value_M3[:, 0] - other.value_M3[:, 0])


def with_critiques(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """The pairs that both losses know."""
    return [pair for pair in pairs if pair.chosen_critiques or pair.rejected_critiques]


def check_enough(pairs: Sequence[PreferencePair], batches: int, size: int) -> None:
    """A `JRMError` where there are fewer pairs than the batches take."""
    if len(pairs) < batches * size:
        raise JRMError(
            f"{batches} batches of {size} pairs with critiques are asked for and {len(pairs)} are there; ask for fewer."
        )


def read_gradients(
    scorer: "RewardScorer", pairs: Sequence[PreferencePair], *, batches: int, size: int, progress: bool = False
) -> Gradients:
    """The gradients of L_rank and L_LM (paper eq. 5 and 6) on batch after batch, with respect to what they share.

    Shared are the weights that both losses reach: those of the backbone, without the reward head, and without the
    language head where it has weights of its own. Dropout is off. The weights stay as they are.

    Args:
        scorer: whose model.
        pairs: with critiques.
        batches: how many.
        size: pairs of a batch.
        progress: show a bar.

    Raises:
        JRMError: there are too few pairs, or no weight that both losses reach.
    """
    check_enough(pairs, batches, size)
    rows, count = [], 0
    for k in tqdm(range(batches), desc="Gradients", unit="batch", disable=not progress):
        rank_loss, critique_loss = _losses(scorer, pairs[k * size : (k + 1) * size])
        weights = [weight for weight in scorer.model.parameters() if weight.requires_grad]
        of_rank = torch.autograd.grad(rank_loss, weights, retain_graph=True, allow_unused=True)
        of_critique = torch.autograd.grad(critique_loss, weights, allow_unused=True)
        shared = [(a, b) for a, b in zip(of_rank, of_critique, strict=True) if a is not None and b is not None]
        count = sum(a.numel() for a, _ in shared)
        if not count:
            raise JRMError("the two losses share no weight that can be trained: load the model without quantization.")
        dot, rank_square, critique_square = (
            float(sum((x.float() * y.float()).sum() for x, y in products))
            for products in (shared, [(a, a) for a, _ in shared], [(b, b) for _, b in shared])
        )
        norms = rank_square**0.5, critique_square**0.5
        if not all(np.isfinite(norms)) or not all(norms):
            raise JRMError(f"batch {k} has a gradient that is zero or no number; the model may have diverged.")
        rows.append([dot / (norms[0] * norms[1]), *norms])
    return Gradients(np.array(rows), count)


def _losses(scorer: "RewardScorer", pairs: Sequence[PreferencePair]) -> tuple[torch.Tensor, torch.Tensor]:
    model, processor = scorer.model, scorer.processor
    batch = {name: tensor.to(model.device) for name, tensor in group_batch(processor, pairs).items()}
    sample_NG, rank_NGC = batch.pop("sample_NG"), batch.pop("rank_NGC")
    with torch.enable_grad():
        output = model(**batch)
        output.check()
        scores = (in_groups(x_SD, sample_NG) for x_SD in (output.mu_SD, output.log_sigma_SD))
        loss_NC = ranking_loss_per_label(*scores, rank_NGC, overall_rule=model.config.overall_rule)
        return ranking_loss(loss_NC, rank_NGC), output.critique_loss_T.mean()
