"""The fused cross-entropy has the losses and gradients of the plain one."""

import pytest
import torch
from peft import get_peft_model
from torch import nn

from jrm_plugin.model.cross_entropy import (
    CHUNK,
    HAS_LINEAR_CROSS_ENTROPY,
    fused_token_losses,
    is_plain_matrix,
    token_losses,
    torchs_token_losses,
)
from jrm_plugin.model.lora import lora_config


def losses_and_gradients(losses, head, hidden_TH, target_T):
    hidden_TH = hidden_TH.clone().requires_grad_()
    weights = [hidden_TH, *(weight for weight in head.parameters() if weight.requires_grad)]
    loss_T = losses(head, hidden_TH, target_T)
    assert loss_T.dtype == torch.float32
    weight_T = torch.linspace(0.1, 1, len(loss_T))  # the tokens' losses have gradients of their own
    return [loss_T.detach(), *torch.autograd.grad((weight_T * loss_T).sum(), weights)]


both = pytest.mark.parametrize(
    "losses",
    [
        fused_token_losses,
        pytest.param(
            torchs_token_losses,
            marks=pytest.mark.skipif(not HAS_LINEAR_CROSS_ENTROPY, reason="this torch has none"),
        ),
    ],
)


@both
@pytest.mark.parametrize("tokens", [0, 1, CHUNK, 2 * CHUNK + 3])
def test_losses_and_gradients_are_the_plain_ones(losses, tokens):
    torch.manual_seed(0)
    head, hidden_TH, target_T = nn.Linear(16, 300, bias=False), torch.randn(tokens, 16), torch.randint(300, (tokens,))
    expected = losses_and_gradients(token_losses, head, hidden_TH, target_T)
    for value, plain in zip(losses_and_gradients(losses, head, hidden_TH, target_T), expected, strict=True):
        torch.testing.assert_close(value, plain, rtol=1e-5, atol=1e-5)


@both
def test_under_autocast_they_are_off_by_its_rounding(losses):
    torch.manual_seed(0)
    head, hidden_TH, target_T = nn.Linear(16, 300, bias=False), torch.randn(200, 16), torch.randint(300, (200,))
    exact = token_losses(head, hidden_TH, target_T)
    with torch.autocast("cpu", torch.bfloat16):
        assert (losses(head, hidden_TH, target_T) - exact).abs().max() < 0.05


def test_a_head_with_adapters_is_no_plain_matrix_and_trains_them(make_scorer, make_samples, critiques):
    """Of untied embeddings, the language head has rows of its own for the added tokens."""
    scorer = make_scorer("qwen2_5_vl")
    head = scorer.model.get_output_embeddings()
    assert is_plain_matrix(head)
    model = get_peft_model(scorer.model, lora_config(scorer.processor, r=2))
    assert not is_plain_matrix(model.get_base_model().get_output_embeddings())
    batch = scorer.processor(make_samples(3), [critiques] * 3)
    gradients = []
    for fused in (False, True):
        model.zero_grad()
        model(**batch, fused_cross_entropy=fused).critique_loss_T.mean().backward()
        gradients.append({name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None})
    assert any("lm_head" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-5)
