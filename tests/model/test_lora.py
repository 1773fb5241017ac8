"""LoRA: what is adapted and trained, and the same scores and critiques trained, loaded and merged."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from jrm_plugin.errors import JRMError
from jrm_plugin.model.lora import is_lora_folder, load_lora, lora_config
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


@pytest.mark.parametrize("family", ["qwen2_vl"])
def test_an_adapter_without_its_base(adapted, family, tmp_path):
    with pytest.raises(JRMError, match="does not name its base model"):
        load_lora(save(adapted, "", tmp_path / "nameless"))
    with pytest.raises(JRMError, match="moved-away"):
        load_lora(save(adapted, tmp_path / "moved-away", tmp_path / "homeless"))
