"""The README of a trained model: what it is, what it learned from, how well it does, and the code that scores."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from jrm_plugin.evaluation.metrics import proportion


@dataclass(frozen=True)
class Accuracy:
    """On the decided pairs of one evaluation set, in one dimension or overall."""

    data: str
    dimension: str
    correct: int
    n: int


@dataclass(frozen=True)
class ModelCard:
    """What a card says.

    Attributes:
        name: of the folder or the hub's repository, as `RewardScorer.from_pretrained` takes it.
        base_model: the hub name of what the training started from, if it has one.
        model, data, recipe, versions: what is known, as rows of a table each.
        accuracies: of an evaluation while it trained; empty where there was none.
        measured_at: the step of that evaluation.
    """

    name: str
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    recipe: Mapping[str, Any]
    versions: Mapping[str, str]
    accuracies: Sequence[Accuracy] = ()
    measured_at: int | None = None
    base_model: str | None = None
    tags: Sequence[str] = field(default=("jrm", "reward-model"))

    def __str__(self) -> str:
        shares = [proportion(accuracy.correct, accuracy.n) for accuracy in self.accuracies]
        results = [
            EvalResult(
                task_type="reward-modeling",
                dataset_type="preferences",
                dataset_name=accuracy.data,
                metric_type="accuracy",
                metric_name=f"accuracy, {accuracy.dimension}",
                metric_value=round(share["value"], 4),
            )
            for accuracy, share in zip(self.accuracies, shares, strict=True)
        ]
        about = ModelCardData(
            library_name="jrm-plugin",
            base_model=self.base_model,
            tags=list(self.tags),
            model_name=self.name,
            eval_results=results or None,
        )
        rows = [
            (a.data, a.dimension, f"{s['value']:.3f} ({s['low']:.3f} to {s['high']:.3f})", a.n)
            for a, s in zip(self.accuracies, shares, strict=True)
        ]
        return _CARD.format(
            about=about.to_yaml(),
            name=self.name,
            model=_table(("", ""), self.model.items()),
            data=_table(("", ""), self.data.items()),
            recipe=_table(("", ""), self.recipe.items()),
            metrics=_METRICS.format(step=self.measured_at) + _table(("set", "dimension", "accuracy", "pairs"), rows)
            if rows
            else _NO_METRICS,
            versions=_table(("", ""), self.versions.items()),
        )


def renamed(card: str, name: str) -> str:
    """A card as it stands under another name: in its title, in its metadata and in its code."""
    card = re.sub(r'from_pretrained\("[^"]*"\)', lambda _: f'from_pretrained("{name}")', card)
    card = re.sub(r"^# .*", lambda _: f"# {name}", card, count=1, flags=re.MULTILINE)
    return re.sub(r"^- name: .*\n(?=  results:)", lambda _: f"- name: {name}\n", card, count=1, flags=re.MULTILINE)


def _table(titles: Sequence[str], rows: Any) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    # A bar would end the cell.
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )


_METRICS = """The share of pairs put in the order of their labels, ties left out, with its 95 % interval (Wilson).
A coin has 0.5. Measured at step {step}.

"""
_NO_METRICS = "No evaluation set was given, so nothing was measured."
_CARD = """---
{about}
---

# {name}

A visual reward model, trained with Joint Reward Modeling: it scores an image by one token's hidden state, with a mean
and an uncertainty for each dimension, and can write a critique.

## Use

```bash
pip install jrm-plugin
```

```python
from jrm_plugin import RewardScorer, Sample

scorer = RewardScorer.from_pretrained("{name}")
sample = Sample.edit(source="source.png", instruction="make the cat blue", edited="edited.png")
print(scorer.score([sample])[0].mu)
```

## Model

{model}

## Data

{data}

## Training

{recipe}

## Metrics

{metrics}

## Limits

- Only differences between scores of one prompt mean something; a score alone is no grade.
- It judges what its data judged. Images, tasks and instructions of another kind were not measured above.
- A policy that is trained against it finds its errors: judge the policy with something else as well.

## Versions

{versions}
"""
