"""The reference engine: for backbones of unknown structure, and what the other engine is compared with."""

import copy

import numpy as np
import pytest
import torch

from jrm_plugin.errors import JRMError
from jrm_plugin.model.modeling import JRMForRewardModeling
from jrm_plugin.records.samples import DIMENSIONS
from jrm_plugin.scoring.plain import PlainEngine
from jrm_plugin.scoring.scorer import RewardScorer


def table(scores):
    return np.array([[s.mu[d] for d in DIMENSIONS] + [s.sigma[d] for d in DIMENSIONS] for s in scores])


def test_it_scores_as_the_models_forward_pass(scorer_of, make_samples, family, sequences):
    scorer, samples = scorer_of(family, sequences=sequences), make_samples(9)
    plain = RewardScorer(scorer.model, scorer.processor, engine="plain")
    with torch.inference_mode():
        outputs = [scorer.model(**scorer.processor([sample])) for sample in samples]
    expected = np.array([torch.cat([o.mu_SD[0], o.log_sigma_SD[0].exp()]).tolist() for o in outputs])
    assert np.abs(table(plain.score(samples)) - expected).max() < 1e-5
    plain.engine.batch = 4  # padded
    assert np.abs(table(plain.score(samples)) - expected).max() < 1e-5


def test_it_writes_and_samples_what_the_other_engine_does(scorer_of, make_samples, sequences):
    scorer, samples = scorer_of("qwen2_vl", sequences=sequences), make_samples(4)
    plain = RewardScorer(scorer.model, scorer.processor, engine="plain")
    assert plain.critique(samples, max_new_tokens=8) == scorer.critique(samples, max_new_tokens=8)
    plain.engine.batch = 16  # as many draws at once as the other engine's
    options = {"max_new_tokens": 8, "temperature": 1.0, "top_p": 0.9}
    first = plain.critique(samples, seed=1, **options)
    assert first == scorer.critique(samples, seed=1, **options) != plain.critique(samples, seed=2, **options)


def test_an_unknown_structure_is_computed_plainly_and_said_so(make_scorer, make_samples, caplog):
    scorer, samples = make_scorer("qwen2_vl", sequences="per_dimension"), make_samples(3)
    config = copy.deepcopy(scorer.model.config)
    text = config.backbone_config.text_config
    text.use_sliding_window, text.sliding_window, text.layer_types = True, 8, ["sliding_attention"] * 2
    sliding = JRMForRewardModeling(config)
    sliding.load_state_dict(scorer.model.state_dict())
    plain = RewardScorer(sliding, scorer.processor)
    assert isinstance(plain.engine, PlainEngine)
    assert [record.message for record in caplog.records] == [
        "This backbone's structure is unknown: every sequence is computed whole, which is slower."
    ]
    together = table(plain.score(samples))
    assert np.abs(together - table([plain.score([sample])[0] for sample in samples])).max() < 1e-5
    assert np.abs(together - table(scorer.score(samples))).max() > 1e-3  # another attention, so other scores
    with pytest.raises(JRMError, match="this backbone's structure is unknown to the engine shared_prefix"):
        RewardScorer(sliding, scorer.processor, engine="shared_prefix")
    with pytest.raises(JRMError, match="engine must be shared_prefix or plain, not 'fast'"):
        RewardScorer(scorer.model, scorer.processor, engine="fast")
