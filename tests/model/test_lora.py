"""LoRA: what is adapted and trained, and the same scores and critiques trained, loaded and merged."""

import json
from shutil import copytree, rmtree

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from jrm_plugin.errors import JRMError
from jrm_plugin.model.lora import check_adapters_train_all, complete_lora_config, is_lora_folder, load_lora, lora_config
from jrm_plugin.model.modeling import JRMForRewardModeling
from jrm_plugin.scoring.scorer import RewardScorer


def outputs(model, batch):
    model.eval()
    with torch.no_grad():
        output = model(**batch)
    return output.mu_SD, output.log_sigma_SD, output.critique_loss_T


def assert_same(a, b, tolerance=2e-4):
    # Merged weights round differently; the perturbations below make scores and losses of the order of 1 to 10.
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, atol=tolerance, rtol=1e-4)


@pytest.fixture
def adapted(make_scorer, make_samples, critiques, family):
    """A peft model as training leaves one, everything trainable moved; its processor, and a batch with critiques."""
    scorer = make_scorer(family, config={"reward_head_widths": [32, 8], "log_sigma_bound": [0.0, 2.0]})
    batch = scorer.processor(make_samples(6), [critiques] * 6)
    before = outputs(scorer.model, batch)
    model = get_peft_model(scorer.model, lora_config(scorer.processor, r=4, lora_alpha=8))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    assert (outputs(model, batch)[0] - before[0]).abs().max() > 0.05
    return model, scorer.processor, batch


def save(adapted, base, folder):
    model, processor, _ = adapted
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(folder)
    model.get_base_model().config.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_every_linear_map_of_the_backbone_is_adapted_and_nothing_else(make_scorer, family):
    scorer = make_scorer(family)
    linear = {
        name for name, module in scorer.model.backbone.model.named_modules() if isinstance(module, nn.Linear | Conv1D)
    }
    assert any(name.startswith("visual.merger") for name in linear)
    assert any(name.startswith("visual.blocks.0.attn") for name in linear)
    model = get_peft_model(scorer.model, lora_config(scorer.processor))
    suffix = ".lora_A.default"
    prefix = "base_model.model.backbone.model."
    modules = [name for name, _ in model.named_modules() if name.endswith(suffix)]
    assert {name.removeprefix(prefix).removesuffix(suffix) for name in modules} == linear


def test_the_backbone_is_frozen_and_head_and_added_rows_are_not(adapted, family):
    model, processor, batch = adapted
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    output = model(**batch)
    (output.mu_SD.sum() + output.log_sigma_SD.sum() + output.critique_loss_T.mean()).backward()
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    kinds = ("lora_A", "lora_B", "trainable_tokens_delta", "reward_head.modules_to_save")
    assert all(any(kind in name for kind in kinds) for name in moved)
    assert all(any(kind in name for name in moved) for kind in kinds)
    # Every input to the score can learn: the reward token's own row among them.
    (rows,) = (p for n, p in model.named_parameters() if "embed_tokens.token_adapter.trainable_tokens_delta" in n)
    row = processor.added_token_ids.index(processor.reward_token_id)
    assert not torch.equal(rows[row], next(v for n, v in before.items() if "embed_tokens.token_adapter.tr" in n)[row])
    # With tied embeddings the language head follows them; otherwise it has rows of its own.
    heads = [name for name, _ in model.named_parameters() if "lm_head.token_adapter.trainable_tokens_delta" in name]
    assert len(heads) == (0 if model.get_base_model().config.tie_word_embeddings else 1)


def test_an_adapter_over_a_plain_backbone(adapted, backbone_folder, family, tmp_path):
    folder = save(adapted, backbone_folder(family), tmp_path)
    assert is_lora_folder(folder) and not is_lora_folder(backbone_folder(family))
    torch.manual_seed(99)  # the fresh head that the adapter's replaces does not matter
    scorer = RewardScorer.from_pretrained(folder, device="cpu")
    model, _, batch = adapted
    assert_same(outputs(scorer.model, batch), outputs(model, batch))


def test_an_adapter_over_a_trained_checkpoint(adapted, make_scorer, make_samples, family, tmp_path):
    base = make_scorer(family, config={"reward_head_widths": [32, 8], "log_sigma_bound": [0.0, 2.0]})
    base.model.save_pretrained(tmp_path / "base")
    base.processor.save_pretrained(tmp_path / "base")
    folder = save(adapted, tmp_path / "base", tmp_path / "lora")
    scorer = RewardScorer.from_pretrained(folder, device="cpu")
    model, _, batch = adapted
    assert_same(outputs(scorer.model, batch), outputs(model, batch))


def test_a_merged_model_is_a_plain_checkpoint(adapted, backbone_folder, make_samples, family, tmp_path):
    folder = save(adapted, backbone_folder(family), tmp_path / "lora")
    merged = load_lora(folder)
    assert type(merged) is JRMForRewardModeling
    assert not any("lora" in name or "token_adapter" in name for name, _ in merged.named_modules())
    merged.save_pretrained(tmp_path / "merged")
    adapted[1].save_pretrained(tmp_path / "merged")
    assert not is_lora_folder(tmp_path / "merged")
    scorer = RewardScorer.from_pretrained(tmp_path / "merged", device="cpu")
    _, _, batch = adapted
    for x, y in zip(outputs(scorer.model, batch), outputs(merged, batch), strict=True):
        assert torch.equal(x, y)
    assert scorer.critique(make_samples(2), max_new_tokens=8) == RewardScorer(merged, adapted[1]).critique(
        make_samples(2), max_new_tokens=8
    )


@pytest.mark.parametrize("family", ["qwen2_vl"])
def test_bfloat16_keeps_the_head_in_float32(adapted, backbone_folder, family, tmp_path):
    folder = save(adapted, backbone_folder(family), tmp_path)
    scorer = RewardScorer.from_pretrained(folder, device="cpu", dtype=torch.bfloat16)
    assert {p.dtype for p in scorer.model.reward_head.parameters()} == {torch.float32}
    assert scorer.model.backbone.dtype == torch.bfloat16
    head = adapted[0].get_base_model().reward_head.modules_to_save["default"].state_dict()
    assert all(torch.equal(head[name], value) for name, value in scorer.model.reward_head.state_dict().items())


@pytest.mark.parametrize("family", ["qwen2_vl"])
def test_training_goes_on_from_an_adapter(adapted, backbone_folder, make_scorer, family, tmp_path):
    folder = save(adapted, backbone_folder(family), tmp_path)
    model, _, batch = adapted
    base = make_scorer(family, config={"reward_head_widths": [32, 8], "log_sigma_bound": [0.0, 2.0]}).model
    again = PeftModel.from_pretrained(base, folder, is_trainable=True)
    for x, y in zip(outputs(again, batch), outputs(model, batch), strict=True):
        assert torch.equal(x, y)


# --- any config of peft -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])  # tied and untied embeddings
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"target_modules": "all-linear", "task_type": "SEQ_CLS"},
        {
            "target_modules": ["q_proj", "v_proj"],
            "modules_to_save": ["norm"],
            "use_rslora": True,
            "inference_mode": True,
        },
        {"target_modules": r".*\.(down|up)_proj", "trainable_token_indices": [3, 5], "use_dora": True},
    ],
)
def test_whatever_a_config_leaves_out_head_and_added_tokens_are_trained_saved_and_loaded(
    make_scorer, make_samples, critiques, backbone_folder, family, fields, tmp_path
):
    scorer = make_scorer(family, config={"reward_head_widths": [32, 8], "log_sigma_bound": [0.0, 2.0]})
    config = LoraConfig(r=4, **fields)
    before = config.to_dict()
    model = get_peft_model(scorer.model, complete_lora_config(config, scorer.processor))
    assert config.to_dict() == before
    check_adapters_train_all(model, scorer.processor)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    batch = scorer.processor(make_samples(4), [critiques] * 4)
    folder = save((model, scorer.processor, batch), backbone_folder(family), tmp_path)
    assert_same(outputs(RewardScorer.from_pretrained(folder, device="cpu").model, batch), outputs(model, batch))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (IA3Config(), "must be a peft.LoraConfig, not IA3Config"),
        (LoraConfig(modules_to_save=["embed_tokens"]), "leave embed_tokens out of modules_to_save"),
        (LoraConfig(init_lora_weights="pissa"), "'pissa' changes the base model"),
    ],
)
def test_a_config_that_cannot_be_completed_is_refused(scorer_of, config, message):
    with pytest.raises(JRMError, match=message):
        complete_lora_config(config, scorer_of().processor)


def plain_adapters(scorer, **fields):
    return get_peft_model(scorer.model, LoraConfig(r=2, target_modules=["q_proj"], **fields))


def test_adapters_that_lack_what_a_plain_backbone_has_not_are_refused(make_scorer, backbone_folder, tmp_path):
    scorer = make_scorer()
    model = plain_adapters(scorer)
    with pytest.raises(JRMError, match="does not train the reward head; make it with lora_config"):
        check_adapters_train_all(model, scorer.processor)
    folder = save((model, scorer.processor, None), backbone_folder("qwen3_vl"), tmp_path)
    with pytest.raises(JRMError, match="lack the reward head and the added tokens' rows of embed_tokens"):
        load_lora(folder)


def test_adapters_without_a_head_over_a_trained_checkpoint_score_with_its_head(make_scorer, make_samples, tmp_path):
    scorer = make_scorer()
    samples = make_samples(2)
    scorer.model.save_pretrained(tmp_path / "base")
    scorer.processor.save_pretrained(tmp_path / "base")
    scores = scorer.score(samples)
    folder = save((plain_adapters(scorer), scorer.processor, None), tmp_path / "base", tmp_path / "lora")
    for score, again in zip(scores, RewardScorer.from_pretrained(folder, device="cpu").score(samples), strict=True):
        assert again.mu == pytest.approx(score.mu, abs=1e-5)  # adapters begin as nothing


@pytest.mark.parametrize("family", ["qwen2_vl"])
def test_weights_that_are_missing_misshapen_or_pickled_are_named(adapted, backbone_folder, family, tmp_path):
    folder = save(adapted, backbone_folder(family), tmp_path)
    file = folder / "adapter_model.safetensors"
    weights = load(file.read_bytes())  # `load_file` would map the file that is written anew below
    head = "base_model.model.reward_head.heads.0.0.weight"
    save_file({name: weight for name, weight in weights.items() if name != head}, file)
    with pytest.raises(JRMError, match=f"missing: {head}"):
        load_lora(folder)
    save_file(weights | {head: weights[head][:1].clone()}, file)
    with pytest.raises(JRMError, match=f"mismatched: {head} "):
        load_lora(folder)
    file.rename(folder / "adapter_model.bin")
    with pytest.raises(JRMError, match="adapters are loaded from safetensors alone"):
        load_lora(folder)


@pytest.mark.parametrize("family", ["qwen2_vl"])
def test_the_base_is_found_where_it_was_moved_together_with_the_adapters(adapted, backbone_folder, family, tmp_path):
    copytree(backbone_folder(family), tmp_path / "new" / "base")
    folder = save(adapted, tmp_path / "old" / "base", tmp_path / "new" / "runs" / "lora")
    model, _, batch = adapted
    assert_same(outputs(load_lora(folder), batch), outputs(model, batch))
    rmtree(tmp_path / "new" / "base")
    with pytest.raises(JRMError, match="old/base of .* is not there; put it back, beside the adapters, or set"):
        load_lora(folder)


@pytest.mark.parametrize("family", ["qwen2_vl"])
def test_a_model_names_the_folder_that_it_was_made_of(backbone_folder, make_scorer, family, monkeypatch):
    folder = backbone_folder(family)
    monkeypatch.chdir(folder.parent)
    processor = make_scorer(family).processor
    model = JRMForRewardModeling.from_backbone(folder.name, processor=processor)
    assert get_peft_model(model, lora_config(processor)).peft_config["default"].base_model_name_or_path == str(folder)


@pytest.mark.parametrize("family", ["qwen2_vl"])
def test_a_loaded_lora_model_is_trained_whole_and_can_be_a_base_again(adapted, backbone_folder, family, tmp_path):
    model, processor, batch = adapted
    first = save(adapted, backbone_folder(family), tmp_path / "first")
    merged = load_lora(first)
    assert all(parameter.requires_grad for parameter in merged.parameters())
    again = get_peft_model(merged, lora_config(processor, r=2))
    assert again.peft_config["default"].base_model_name_or_path == str(first)
    second = save((again, processor, batch), first, tmp_path / "second")
    assert_same(outputs(load_lora(second), batch), outputs(model, batch))
    content = json.loads((second / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(second)}
    (second / "adapter_config.json").write_text(json.dumps(content))
    with pytest.raises(JRMError, match="a chain of others without an end"):
        load_lora(second)


@pytest.mark.parametrize("family", ["qwen2_vl"])
def test_an_adapter_without_its_base(adapted, family, tmp_path):
    with pytest.raises(JRMError, match="does not name its base model"):
        load_lora(save(adapted, "", tmp_path / "nameless"))
    with pytest.raises(JRMError, match="moved-away"):
        load_lora(save(adapted, tmp_path / "moved-away", tmp_path / "homeless"))
