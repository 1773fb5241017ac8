"""Names of weights: a backbone's, which transformers has changed once, and a reward head's; both ways."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from jrm_plugin.errors import JRMError
from jrm_plugin.model.foreign.weights import LazyTensor, Weights, first_rows, padded, zeros

EMBEDDINGS, LM_HEAD = "backbone.model.language_model.embed_tokens.weight", "backbone.lm_head.weight"
_HEAD = "reward_head.heads."
OLD, NEW = "old", "new"  # the names up to transformers 4.51, and those since


def naming(names: Iterable[str]) -> str:
    """Which of the two ways to name a Qwen-VL backbone's weights these follow."""
    return OLD if any(name.startswith("visual.") for name in names) else NEW


def to_ours(name: str) -> str:
    """Our name of a backbone's weight."""
    if name.startswith("visual."):
        name = f"model.{name}"
    elif name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model.")):
        name = f"model.language_model.{name.removeprefix('model.')}"
    return f"backbone.{name}"


def to_theirs(name: str, naming: str) -> str:
    """The name that another project gives to a backbone's weight of ours."""
    name = name.removeprefix("backbone.")
    if naming == OLD:
        for ours, theirs in (("model.visual.", "visual."), ("model.language_model.", "model.")):
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
    return name


def is_head(name: str) -> bool:
    """Whether a weight of theirs is a reward head's."""
    return name.startswith(("rm_head.", "rm_heads."))


@dataclass(frozen=True)
class HeadNames:
    """A reward head as another project names and shapes it.

    Attributes:
        prefixes: of each dimension's head.
        linears: the names of its linear maps in it; `""` for a head that is one linear map itself.
        biased: whether the last one has a bias.
        outputs: of each head: mu and log sigma, or mu alone.
    """

    prefixes: tuple[str, ...]
    linears: tuple[str, ...]
    biased: bool
    outputs: int

    @classmethod
    def of(cls, weights: Weights, prefixes: Sequence[str]) -> "HeadNames":
        """What the head's weights show.

        Raises:
            JRMError: there is none, or it is none that a JRM's head can be.
        """
        pattern = re.compile(re.escape(prefixes[0]) + r"(?:\.(\d+))?\.weight")
        matches = [match for name in weights if (match := pattern.fullmatch(name))]
        linears = sorted({match[1] or "" for match in matches}, key=lambda linear: int(linear or 0))
        if not linears:
            raise JRMError(f"the checkpoint has no head {prefixes[0]}; it is no reward model of this layout.")
        last = ".".join(filter(None, (prefixes[0], linears[-1])))
        outputs = weights[f"{last}.weight"].shape[0]
        if outputs not in (1, 2):
            raise JRMError(f"{last}.weight has {outputs} outputs; a JRM's head has mu and log sigma, 2.")
        return cls(tuple(prefixes), tuple(linears), f"{last}.bias" in weights, outputs)

    def record(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "HeadNames":
        return cls(tuple(record["prefixes"]), tuple(record["linears"]), record["biased"], record["outputs"])

    def pairs(self) -> list[tuple[str, str, bool]]:
        """Their name and ours of each weight, dimension by dimension, and whether it is of the last linear map."""
        pairs = []
        for dimension, prefix in enumerate(self.prefixes):
            for k, linear in enumerate(self.linears):
                is_last = k == len(self.linears) - 1
                theirs = ".".join(filter(None, (prefix, linear)))
                ours = f"{_HEAD}{dimension}.{0 if k == 0 else 1 + 2 * k}"
                kinds = ("weight",) if is_last and not self.biased else ("weight", "bias")
                pairs += [(f"{theirs}.{kind}", f"{ours}.{kind}", is_last) for kind in kinds]
        return pairs

    def widths(self, weights: Weights) -> list[int]:
        """Of its hidden layers."""
        return [weights[f"{self.prefixes[0]}.{linear}.weight"].shape[0] for linear in self.linears[:-1]]

    def to_ours(self, weights: Weights) -> dict[str, LazyTensor]:
        """The head's weights by our names, with zeros for what it does not have.

        Raises:
            JRMError: one is missing or too much, by their names.
        """
        pairs = self.pairs()
        if missing := [theirs for theirs, _, _ in pairs if theirs not in weights]:
            raise JRMError(f"the checkpoint lacks weights of its head: {', '.join(missing)}.")
        if unknown := sorted({name for name in weights if is_head(name)} - {theirs for theirs, _, _ in pairs}):
            raise JRMError(f"the checkpoint's head has weights that a JRM has no place for: {', '.join(unknown[:12])}.")
        head = {ours: padded(weights[theirs], 2) if last else weights[theirs] for theirs, ours, last in pairs}
        if not self.biased:
            lasts = [ours for _, ours, last in pairs if last]
            head |= {ours.removesuffix("weight") + "bias": zeros(head[ours].dtype, 2) for ours in lasts}
        return head

    def to_theirs(self, weights: Weights) -> dict[str, LazyTensor]:
        """The head's weights by their names.

        Raises:
            JRMError: dimensions that shared a head do so no more.
        """
        head: dict[str, LazyTensor] = {}
        for theirs, ours, last in self.pairs():
            tensor = first_rows(weights[ours], self.outputs) if last else weights[ours]
            if theirs in head and not torch.equal(head[theirs].read(), tensor.read()):
                raise JRMError(f"{theirs} is one weight of both dimensions, which were trained apart since.")
            head[theirs] = tensor
        return head
