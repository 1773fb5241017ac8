"""The model: what a folder keeps, what a score depends on, and where the gradient goes."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from jrm_plugin.errors import JRMError
from jrm_plugin.model.configuration import JRMConfig
from jrm_plugin.model.modeling import JRMForRewardModeling, RewardHead
from jrm_plugin.model.processing import JRMProcessor
from jrm_plugin.records.samples import DIMENSIONS, TASKS
from jrm_plugin.scoring.scorer import RewardScorer

KEY = "backbone.model.language_model.layers.0.input_layernorm.weight"


def save(scorer, folder):
    scorer.model.save_pretrained(folder)
    scorer.processor.save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(scorer_of, tmp_path):
    return save(scorer_of("qwen3_vl"), tmp_path)


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_folder_keeps_everything_bit_for_bit(make_scorer, make_samples, tmp_path, family, order, sequences):
    rubrics = {task: {name: f"judge the {task} by {name} – ≥ 1" for name in DIMENSIONS} for task in TASKS}
    fields = {"reward_head_widths": [24, 6], "reward_head_activation": "silu", "log_sigma_bound": [0.5, 2.0]}
    scorer = make_scorer(family, order, sequences, rubrics=rubrics, config=fields)
    loaded = RewardScorer.from_pretrained(save(scorer, tmp_path), device="cpu")

    weights, loaded_weights = scorer.model.state_dict(), loaded.model.state_dict()
    assert weights.keys() == loaded_weights.keys()
    assert all(torch.equal(weights[name], loaded_weights[name]) for name in weights)
    config, loaded_config = scorer.model.config.to_dict(), loaded.model.config.to_dict()
    assert config | {"_name_or_path": None} == loaded_config | {"_name_or_path": None}
    assert {name: loaded_config[name] for name in fields} == fields

    processor, loaded_processor = scorer.processor, loaded.processor
    assert loaded_processor.tokenizer.backend_tokenizer.to_str() == processor.tokenizer.backend_tokenizer.to_str()
    assert loaded_processor.tokenizer.chat_template == processor.tokenizer.chat_template
    assert loaded_processor.tokenizer.special_tokens_map == processor.tokenizer.special_tokens_map
    assert loaded_processor.image_processor.to_dict() == processor.image_processor.to_dict()
    assert (loaded_processor.order, loaded_processor.sequences) == (order, sequences)
    assert loaded_processor.rubrics == rubrics
    assert loaded_processor.dimensions == list(DIMENSIONS)
    assert loaded_processor.reward_token_id == processor.reward_token_id == loaded.model.config.reward_token_id

    samples = make_samples(6)
    assert loaded.score(samples) == scorer.score(samples)


def test_a_second_save_writes_the_same_weights(scorer_of, tmp_path, family):
    first = save(scorer_of(family), tmp_path / "first")
    JRMForRewardModeling.from_pretrained(first).save_pretrained(tmp_path / "second")
    assert (tmp_path / "second" / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()


def test_from_backbone_changes_nothing_but_the_added_rows(scorer_of, backbone_folder, family):
    scorer = scorer_of(family)
    saved = AutoModelForImageTextToText.from_pretrained(backbone_folder(family)).state_dict()
    weights = scorer.model.backbone.state_dict()
    ends = {name for name in saved if "embed_tokens" in name or name == "lm_head.weight"}
    assert all(torch.equal(saved[name], weights[name]) for name in saved.keys() - ends)
    added = scorer.processor.added_token_ids
    for name in ends:
        known = min(added)
        assert torch.equal(saved[name][:known], weights[name][:known])
        mean = saved[name][:known].mean(0)
        torch.testing.assert_close(weights[name][added], mean.expand(len(added), -1))


def test_the_vocabulary_grows_only_where_it_has_no_spare_rows(scorer_of, backbone_folder, family):
    rows = json.loads((backbone_folder(family) / "config.json").read_text())["text_config"]["vocab_size"]
    scorer = scorer_of(family)
    spare = {"qwen3_vl": True, "qwen2_5_vl": False, "qwen2_vl": False}[family]
    expected = rows if spare else len(scorer.processor.tokenizer)
    assert expected >= len(scorer.processor.tokenizer)
    ends = scorer.model.get_input_embeddings().weight, scorer.model.get_output_embeddings().weight
    assert [len(end) for end in ends] == [expected, expected]
    assert scorer.model.config.get_text_config().vocab_size == expected
    tied = {"qwen3_vl": True, "qwen2_5_vl": False, "qwen2_vl": True}[family]
    assert (ends[0] is ends[1]) == scorer.model.config.tie_word_embeddings == tied


def test_from_backbone_is_reproducible_by_its_seed(make_scorer):
    heads = [make_scorer("qwen2_vl").model.reward_head.state_dict() for _ in range(2)]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


def test_sampling_options_of_a_backbone_do_not_reach_greedy_critiques(
    backbone_folder, scorer_of, make_samples, tmp_path
):
    scorer = scorer_of("qwen2_vl")
    backbone = JRMForRewardModeling.from_backbone(backbone_folder("qwen2_vl"), processor=scorer.processor).backbone
    backbone.generation_config.update(repetition_penalty=50.0)
    backbone.save_pretrained(tmp_path)
    model = JRMForRewardModeling.from_backbone(tmp_path, processor=scorer.processor)
    samples = make_samples(3)
    critiques = RewardScorer(model, scorer.processor).critique(samples, max_new_tokens=12)
    assert critiques == scorer.critique(samples, max_new_tokens=12)


# --- what is refused --------------------------------------------------------------------------------------------------


def rewrite(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("key", [KEY, "reward_head.heads.1.3.bias", "backbone.model.visual.blocks.0.attn.qkv.weight"])
def test_a_missing_renamed_or_misshapen_weight_is_named(checkpoint, key):
    original = (checkpoint / "model.safetensors").read_bytes()
    rewrite(checkpoint, lambda weights: weights.pop(key))
    with pytest.raises(JRMError, match=f"missing: {key}"):
        JRMForRewardModeling.from_pretrained(checkpoint)
    (checkpoint / "model.safetensors").write_bytes(original)
    rewrite(checkpoint, lambda weights: weights.update({key + "_old": weights.pop(key)}))
    with pytest.raises(JRMError, match=f"missing: {key}; unexpected: {key}_old"):
        RewardScorer.from_pretrained(checkpoint)
    (checkpoint / "model.safetensors").write_bytes(original)
    rewrite(checkpoint, lambda weights: weights.update({key: torch.cat([weights[key]] * 2)}))
    with pytest.raises(JRMError, match=f"mismatched: {key} "):
        JRMForRewardModeling.from_pretrained(checkpoint)


def test_a_weight_that_is_not_in_the_backbone_folder_is_named(backbone_folder, scorer_of, tmp_path):
    backbone = scorer_of("qwen2_5_vl").model.backbone
    backbone.save_pretrained(tmp_path)
    rewrite(tmp_path, lambda weights: weights.pop(KEY.replace("backbone.model.language_model", "model")))
    with pytest.raises(JRMError, match="layers.0.input_layernorm.weight"):
        JRMForRewardModeling.from_backbone(tmp_path, processor=scorer_of("qwen2_5_vl").processor)


def test_a_file_that_is_written_over_changes_no_loaded_model(checkpoint, make_samples):
    scorer, samples = RewardScorer.from_pretrained(checkpoint, device="cpu"), make_samples(2)
    scores = scorer.score(samples)
    file = checkpoint / "model.safetensors"
    with file.open("r+b") as stream:  # in place, as `cp` writes
        stream.write(bytes(file.stat().st_size))
    assert scorer.score(samples) == scores
    with file.open("r+b") as stream:
        stream.truncate(100)
    assert scorer.score(samples) == scores


def test_a_truncated_file_is_one_sentence(checkpoint):
    data = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(JRMError, match="the weights of .* cannot be used: .*incomplete metadata"):
        JRMForRewardModeling.from_pretrained(checkpoint)


def test_a_plain_backbone_is_no_checkpoint(backbone_folder, family):
    with pytest.raises(JRMError, match=f"'{family}', not a JRM checkpoint"):
        RewardScorer.from_pretrained(backbone_folder(family))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no model"),
        ("{", "config.json, line 1: not valid JSON"),
        ('{"model_type": "no-such-type"}', "'no-such-type' is not supported"),
        ('{"model_type": "jrm", "backbone_config": {"model_type": "bert"}}', "type 'bert' is not supported"),
        ('{"model_type": "bert"}', "'bert' is not supported"),
    ],
)
def test_a_folder_that_holds_no_checkpoint(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(JRMError, match=message):
        RewardScorer.from_pretrained(tmp_path)


def test_a_checkpoint_without_its_processor(scorer_of, tmp_path):
    scorer_of("qwen2_vl").model.save_pretrained(tmp_path)
    with pytest.raises(JRMError, match="the tokenizer of .* cannot be used"):
        RewardScorer.from_pretrained(tmp_path)
    scorer_of("qwen2_vl").processor.tokenizer.save_pretrained(tmp_path)
    scorer_of("qwen2_vl").processor.image_processor.save_pretrained(tmp_path)
    with pytest.raises(JRMError, match="jrm_processor.json"):
        RewardScorer.from_pretrained(tmp_path)


def test_a_backbone_of_another_family_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(JRMError, match="'bert' is not supported"):
        JRMProcessor.from_backbone(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dimensions": ["beauty", "beauty"]}, "distinct names"),
        ({"dimensions": []}, "distinct names"),
        ({"reward_head_activation": "loud"}, "reward_head_activation must be one of .*relu.*: loud"),
        ({"log_sigma_bound": [1.0]}, "log_sigma_bound must be"),
        ({"log_sigma_bound": [1.0, 0.0]}, "log_sigma_bound must be"),
    ],
)
def test_a_config_that_cannot_be(fields, message):
    with pytest.raises(JRMError, match=message):
        JRMConfig(**fields)


# --- what a score depends on ------------------------------------------------------------------------------------------


@torch.no_grad()
def forward(scorer, *args):
    return scorer.model(**scorer.processor(*args))


def assert_same_scores(a, b):
    torch.testing.assert_close(a.mu_SD, b.mu_SD, atol=1e-5, rtol=0)
    torch.testing.assert_close(a.log_sigma_SD, b.log_sigma_SD, atol=1e-5, rtol=0)


def test_critique_text_does_not_change_the_score(scorer_of, make_samples, critiques, family, order, sequences):
    scorer, samples = scorer_of(family, order, sequences), make_samples(4)
    bare = forward(scorer, samples)
    assert bare.critique_loss_T is None
    written = forward(scorer, samples, [critiques] * 4)
    assert len(written.critique_loss_T) > 4 * 40
    assert_same_scores(bare, written)


@torch.no_grad()
def test_neither_padding_nor_the_batch_changes_the_score(scorer_of, make_samples, family):
    scorer = scorer_of(family)
    sequences = [sequence for sample in make_samples(6) for sequence in scorer.processor.encode(sample)]
    right = scorer.model(**scorer.processor.collate(sequences))
    left = scorer.model(**scorer.processor.collate(sequences, padding_side="left"))
    alone = [scorer.model(**scorer.processor.collate([sequence])) for sequence in sequences]
    assert_same_scores(right, left)
    for name in ("mu_SD", "log_sigma_SD"):
        torch.testing.assert_close(getattr(right, name), torch.cat([getattr(one, name) for one in alone]))
    assert right.mu_SD.std(0).min() > 1e-3  # the samples do differ


def test_each_sequence_is_scored_in_its_own_dimension(scorer_of, make_samples):
    scorer = scorer_of("qwen2_vl", sequences="per_dimension")
    output = forward(scorer, make_samples(3))
    assert output.hidden_BH.shape[0] == 6
    for k, head in enumerate(scorer.model.reward_head.heads):
        torch.testing.assert_close(head(output.hidden_BH[k::2])[:, 0], output.mu_SD[:, k])
        torch.testing.assert_close(head(output.hidden_BH[k::2])[:, 1], output.log_sigma_SD[:, k])


def test_dropout_acts_in_training_only(make_scorer, make_samples):
    scorer, samples = make_scorer("qwen2_vl", config={"reward_head_dropout": 0.5}), make_samples(2)
    assert torch.equal(forward(scorer, samples).mu_SD, forward(scorer, samples).mu_SD)
    scorer.model.train()
    assert not torch.equal(forward(scorer, samples).mu_SD, forward(scorer, samples).mu_SD)


def test_bfloat16_leaves_the_head_in_float32(scorer_of, make_samples, tmp_path, family):
    scorer = scorer_of(family)
    loaded = RewardScorer.from_pretrained(save(scorer, tmp_path), dtype=torch.bfloat16, device="cpu")
    assert {p.dtype for p in loaded.model.backbone.parameters()} == {torch.bfloat16}
    head, loaded_head = scorer.model.reward_head.state_dict(), loaded.model.reward_head.state_dict()
    assert all(torch.equal(head[name], loaded_head[name]) for name in head)  # not rounded on the way either
    output = forward(loaded, make_samples(4))
    assert output.mu_SD.dtype == output.log_sigma_SD.dtype == torch.float32
    torch.testing.assert_close(output.mu_SD, forward(scorer, make_samples(4)).mu_SD, atol=0.02, rtol=0)


def test_a_head_over_a_bfloat16_backbone_is_float32(backbone_folder, scorer_of, make_samples):
    processor = scorer_of("qwen2_vl").processor
    model = JRMForRewardModeling.from_backbone(backbone_folder("qwen2_vl"), processor=processor, dtype=torch.bfloat16)
    assert model.backbone.dtype == torch.bfloat16
    assert {p.dtype for p in model.reward_head.parameters()} == {torch.float32}
    assert forward(RewardScorer(model, processor), make_samples(2)).mu_SD.dtype == torch.float32


def test_attn_implementation_reaches_every_part(checkpoint):
    model = JRMForRewardModeling.from_pretrained(checkpoint, attn_implementation="eager")
    config = model.backbone.config
    parts = (config, config.text_config, config.vision_config)
    assert [part._attn_implementation for part in parts] == ["eager"] * 3


@given(
    centre=st.floats(-5, 5),
    half_range=st.floats(0.1, 10),
    scale=st.floats(0, 1e6),
    seed=st.integers(0, 2**16),
)
def test_log_sigma_stays_in_its_bound(centre, half_range, scale, seed):
    torch.manual_seed(seed)
    config = JRMConfig(reward_head_widths=[8], log_sigma_bound=[centre, half_range])
    hidden = scale * torch.randn(5, config.get_text_config().hidden_size)
    _, log_sigma = RewardHead(config).eval()(hidden)
    assert log_sigma.shape == (5, 2)
    assert ((log_sigma - centre).abs() <= half_range + 1e-5).all()


def test_log_sigma_is_free_without_a_bound():
    config = JRMConfig(reward_head_widths=[8])
    hidden = 1e4 * torch.randn(64, config.get_text_config().hidden_size, generator=torch.Generator().manual_seed(0))
    assert RewardHead(config).eval()(hidden)[1].abs().max() > 100


def test_a_sequence_must_hold_one_reward_token(scorer_of, make_samples):
    scorer = scorer_of("qwen2_vl")
    batch = scorer.processor(make_samples(2))
    reward = scorer.processor.reward_token_id
    for broken in (
        batch["input_ids"].masked_fill(batch["input_ids"] == reward, scorer.processor.tokenizer.eos_token_id),
        torch.cat([batch["input_ids"][:, :-1], torch.full((2, 1), reward)], 1),
    ):
        output = scorer.model(**batch | {"input_ids": broken})
        assert output.mu_SD.isnan().all() and output.log_sigma_SD.isnan().all()
        with pytest.raises(ValueError, match="sequence 0 of 2 holds [02] reward tokens instead of 1"):
            output.check()


# --- the language loss, and where the gradient goes -------------------------------------------------------------------


@torch.no_grad()
def test_critique_loss_is_the_cross_entropy_of_the_full_logits(scorer_of, make_samples, critiques, family, sequences):
    scorer = scorer_of(family, sequences=sequences)
    # Two critiques, one and none: rows with any number of labels.
    written = [critiques, {"visual_quality": critiques["visual_quality"]}, {}, critiques]
    batch = scorer.processor(make_samples(4), written)
    loss_T = scorer.model(**batch).critique_loss_T
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "dimension_ids")}
    types = (batch["input_ids"] == scorer.processor.image_token_id).int()
    logits_BLV = scorer.model.backbone(**inputs, mm_token_type_ids=types).logits
    expected_BL = torch.nn.functional.cross_entropy(
        logits_BLV[:, :-1].transpose(1, 2), batch["labels"][:, 1:], reduction="none"
    )
    kept = expected_BL[batch["labels"][:, 1:] != -100]
    assert len(kept) == (batch["labels"] != -100).sum() > 100
    torch.testing.assert_close(loss_T, kept, atol=1e-5, rtol=1e-5)


def gradients(scorer, loss):
    scorer.model.zero_grad()
    loss.backward()
    row = scorer.model.get_input_embeddings().weight.grad[scorer.processor.reward_token_id]
    head = [p.grad for p in scorer.model.reward_head.parameters()]
    vision = [p.grad for p in scorer.model.backbone.model.visual.parameters()]
    return row, head, vision


def test_the_score_moves_reward_token_head_and_vision(make_scorer, make_samples, family):
    scorer = make_scorer(family)
    output = scorer.model(**scorer.processor(make_samples(2)))
    row, head, vision = gradients(scorer, (output.mu_SD + output.log_sigma_SD).sum())
    assert row.abs().max() > 0
    assert all(grad is not None and grad.abs().max() > 0 for grad in head)
    assert sum(grad is not None and grad.abs().max() > 0 for grad in vision) > len(vision) / 2


def test_critiques_move_the_reward_token_and_not_the_head(make_scorer, make_samples, critiques, family):
    scorer = make_scorer(family)
    output = scorer.model(**scorer.processor(make_samples(2), [critiques] * 2))
    row, head, _ = gradients(scorer, output.critique_loss_T.sum())
    assert row.abs().max() > 0  # the critique reads the score's hidden state (paper section 3.2)
    assert all(grad is None for grad in head)
