"""What a user writes, and the types that a type checker sees of it; `make lint` checks it, nothing runs it."""

from pathlib import Path
from typing import Any, assert_type

import numpy as np
import torch
from PIL import Image

from jrm_plugin import (
    Critique,
    CritiqueExample,
    EditRegion,
    ImageLike,
    JRMError,
    PreferencePair,
    Ranked,
    RepairedCritique,
    RewardScore,
    RewardScorer,
    Sample,
    Scorer,
    UnparsedCritique,
    group_advantages,
    group_rewards,
    load_scorer,
)
from jrm_plugin.kernels import (
    check_reward_token_counts,
    group_ranking_loss,
    pool_reward_tokens,
    uncertainty_ranking_loss,
    win_probability,
)
from jrm_plugin.records.images import image_size, load_image, to_data_url

# --- records ----------------------------------------------------------------------------------------------------------

images: list[ImageLike] = ["cat.png", Path("cat.png"), b"PNG", Image.new("RGB", (8, 8)), np.zeros((8, 8), np.uint8)]
samples = [Sample.edit(image, "make the cat blue", "blue-cat.png") for image in images]
samples += [Sample.edit(["a.png", Path("b.png")], "join them", images[0]), Sample.edit(None, "a cat", images[1])]
samples += [Sample.generation("a cat", images[2]), Sample.text_response(None, "what is it?", "a cat")]
samples += [Sample([{"type": "text", "text": "a cat"}], [{"type": "image", "image": "cat.png"}])]
assert_type(samples, list[Sample])
assert_type(samples[0].prompt_images, tuple[str | bytes | Image.Image, ...])
assert_type(samples[0].prompt_text, str)
assert_type(samples[0].prompt_key(), str)
assert_type({sample.prompt_key(): sample for sample in samples}, dict[str, Sample])
assert_type(load_image(images[0], name="the cat"), Image.Image)
assert_type(image_size(images[0]), tuple[int, int])
assert_type(to_data_url(images[0]), str)

critique = Critique("<|bbox_0|> is blue", [EditRegion(0, "cat", (0, 0, 10, 10))])
assert_type(critique.plain_text(), str)
assert_type(Critique.parse(critique.to_json()), Critique)
assert_type(Critique.parse_leniently(critique.to_json()), Critique | UnparsedCritique)
pair = PreferencePair(samples[0], samples[0], {"overall": 1}, chosen_critiques={"visual_quality": critique})
assert_type(pair.chosen, Sample)
assert_type(CritiqueExample(samples[0], "fine").text, str)

# --- scores -----------------------------------------------------------------------------------------------------------

scorer = RewardScorer.from_pretrained("jrm-tiny", device="cpu", dtype=torch.float32)
assert_type(scorer, RewardScorer)
assert_type(scorer.score(samples), list[RewardScore])
assert_type(scorer.score(samples, on_error="raise", progress=True)[0].mu["overall"], float)
assert_type(scorer.score(samples, on_error="return"), list[RewardScore | JRMError])
assert_type(scorer.score(samples[0]), RewardScore)
assert_type(scorer.score(samples[0], on_error="return"), RewardScore | JRMError)
assert_type(scorer.score(("cat.png", "make the cat blue", Path("blue-cat.png"))), RewardScore)
assert_type(scorer.score((["a.png", "b.png"], "join them", images[0])), RewardScore)
assert_type(scorer.score(sample for sample in samples), list[RewardScore])
assert_type(scorer.score([("cat.png", "make the cat blue", "a.png"), (None, "a cat", images[0])]), list[RewardScore])
assert_type(scorer.rank([("cat.png", "make the cat blue", "a.png")], dimension="visual_quality"), list[Ranked])
scorer.score(["cat.png"])  # type: ignore[list-item]  # no sample
assert_type(scorer.rank(samples), list[Ranked])
assert_type(scorer.rank(samples)[0].position, int)
assert_type(scorer.rank(samples)[0].score, RewardScore)
assert_type(scorer.critique(samples, "visual_quality"), list[dict[str, Critique | UnparsedCritique]])
assert_type(scorer.dimensions, list[str])
assert_type(scorer.hidden_states(samples), torch.Tensor)

for result in scorer.score(samples, on_error="return"):
    if isinstance(result, JRMError):
        assert_type(str(result), str)
    else:
        assert_type(result.sigma["overall"], float)
for found in scorer.critique(samples)[0].values():
    text = found.text if isinstance(found, UnparsedCritique | RepairedCritique) else found.reasoning
    assert_type(text, str)

score = scorer.score(samples)[0]
assert_type(score.reward("lower_confidence_bound", k=2), float)
assert_type(score.reward("win_probability", against=[score]), float)
assert_type(score.to_dict(), dict[str, Any])
assert_type(score.to_columns(), dict[str, Any])
assert_type(RewardScore.from_columns(score.to_columns()), RewardScore)
assert_type(RewardScore.from_dict(score.to_dict()), RewardScore)
assert_type(RewardScore(**score.to_dict()), RewardScore)
assert_type(group_rewards([score, score], "win_rate"), list[float])
assert_type(group_advantages([0.0, 1.0]), list[float])
assert_type(group_advantages([0.0, 1.0], variances=[0.1, 0.2]), list[float])
assert_type(score.reward("entropic", beta=2.0, dimension="visual_quality"), float)
score.reward("median")  # type: ignore[arg-type]  # no such mode


class LengthScorer:
    """Another scorer: what is written against `Scorer` takes it."""

    dimensions = ["length"]

    def rank(self, samples: list[Sample], dimension: str = "length") -> list[Ranked]:
        return []


def best(scorer: Scorer, candidates: list[Sample]) -> Sample:
    return candidates[scorer.rank(candidates)[0].position]


assert_type(load_scorer("jrm-tiny", device="cpu", max_pixels=64 * 64), Scorer)
assert_type(load_scorer("jrm-tiny").score(samples), list[RewardScore])
assert_type(load_scorer("jrm-tiny").score(samples, on_error="return"), list[RewardScore | JRMError])
assert_type(best(scorer, samples), Sample)
best(LengthScorer(), samples)  # type: ignore[arg-type]  # it has no `score`

# --- kernels ----------------------------------------------------------------------------------------------------------

mu, log_sigma = torch.zeros(4, 2), torch.zeros(4, 2)
assert_type(uncertainty_ranking_loss(mu, log_sigma, mu, log_sigma), torch.Tensor)
assert_type(uncertainty_ranking_loss(mu, log_sigma, mu, log_sigma, margin=mu, weight=0.5, tie=mu > 0), torch.Tensor)
assert_type(win_probability(mu, log_sigma, mu, log_sigma, margin=0.1), torch.Tensor)
assert_type(group_ranking_loss(mu, log_sigma, torch.ones(4, 2), reduction="sum", objective="expected"), torch.Tensor)
uncertainty_ranking_loss(mu, log_sigma, mu, log_sigma, objective="mean")  # type: ignore[arg-type]  # no such objective
hidden, ids = torch.zeros(2, 8, 4), torch.zeros(2, 8, dtype=torch.long)
assert_type(pool_reward_tokens(hidden, ids, 0), torch.Tensor)
pooled, counts = pool_reward_tokens(hidden, ids, 0, return_counts=True, backend="torch")
assert_type(pooled, torch.Tensor)
check_reward_token_counts(counts, tokens_per_sequence=1)
