"""Muon and AdamW as one optimizer: each as its original, and exact resumption."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from jrm_plugin.training.optimization import MuonWithAdamW, muon_groups, orthogonalise

# Where Newton-Schulz leaves singular values of at least 0.002 of the Frobenius norm, and a little rounding.
LOW, HIGH = 0.68, 1.21


@given(
    rows=st.integers(1, 24),
    columns=st.integers(1, 24),
    count=st.integers(1, 4),
    scale=st.floats(1e-4, 1e4),
    seed=st.integers(0, 2**16),
)
def test_orthogonalise_puts_singular_values_near_one(rows, columns, count, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    rank = min(rows, columns)
    u, _ = torch.linalg.qr(torch.randn(count, rows, rank, generator=generator))
    v, _ = torch.linalg.qr(torch.randn(count, columns, rank, generator=generator))
    singular = 0.02 + torch.rand(count, rank, generator=generator)
    matrices = scale * (u * singular.unsqueeze(1)) @ v.mT
    result = orthogonalise(matrices)
    assert result.shape == matrices.shape
    values = torch.linalg.svdvals(result)
    assert values.min() > LOW - 0.01 and values.max() < HIGH + 0.01
    # The singular vectors stay: u' result v is diagonal, and positive.
    turned = u.mT @ result @ v
    torch.testing.assert_close(turned, torch.diag_embed(turned.diagonal(dim1=1, dim2=2)), atol=1e-3, rtol=0)
    assert (turned.diagonal(dim1=1, dim2=2) > 0).all()


def test_orthogonalise_of_zero_is_zero():
    assert torch.equal(orthogonalise(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def test_each_matrix_is_alone():
    matrices = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([orthogonalise(matrix.unsqueeze(0)) for matrix in matrices])
    torch.testing.assert_close(orthogonalise(matrices), alone)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(11, 8)
        self.tall, self.wide, self.square = nn.Linear(8, 20), nn.Linear(20, 8), nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.reward_head = nn.Linear(8, 2)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)

    def forward(self, ids):
        x = self.embed_tokens(ids)
        return self.reward_head(self.frozen(self.norm(self.square(self.wide(self.tall(x).tanh())))))


DECAYED = {"embed_tokens.weight", "tall.weight", "wide.weight", "square.weight", "reward_head.weight"}
MATRICES = {"tall.weight", "wide.weight", "square.weight"}


def batch(step):
    return torch.randint(0, 11, (16,), generator=torch.Generator().manual_seed(step))


def train(net, optimizer, steps, scheduler=None):
    for step in steps:
        optimizer.zero_grad()
        net(batch(step)).square().sum().backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def make_optimizer(net, **kwargs):
    groups = muon_groups(net, DECAYED, muon_lr=0.02, weight_decay=0.1)
    return MuonWithAdamW(groups, **{"lr": 3e-3, "weight_decay": 0.1} | kwargs)


def test_groups_hold_every_trainable_parameter_once():
    net = Net()
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    muon, adamw, undecayed = (
        {names[id(p)] for p in g["params"]} for g in muon_groups(net, DECAYED, muon_lr=1, weight_decay=0.1)
    )
    assert muon == MATRICES
    assert adamw == {"embed_tokens.weight", "reward_head.weight"}
    assert muon | adamw | undecayed == {name for name, p in net.named_parameters() if p.requires_grad}
    assert all(name.endswith("bias") or name.startswith("norm") for name in undecayed)


def test_adamw_groups_step_as_torch_adamw_exactly():
    ours, theirs = Net(), Net()
    groups = muon_groups(ours, DECAYED, muon_lr=0.02, weight_decay=0.1)
    for group in groups:  # AdamW for every group
        group["muon"], group["lr"] = False, 3e-3
    optimizer = MuonWithAdamW(groups, lr=3e-3, betas=(0.9, 0.95), eps=1e-8)
    names = {id(parameter): name for name, parameter in ours.named_parameters()}
    their_parameters = dict(theirs.named_parameters())
    reference = torch.optim.AdamW(
        [
            {"params": [their_parameters[names[id(p)]] for p in g["params"]], "weight_decay": g["weight_decay"]}
            for g in groups
        ],
        lr=3e-3,
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    train(ours, optimizer, range(5))
    train(theirs, reference, range(5))
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, their_parameters[name]), name
        assert torch.equal(parameter, dict(Net().named_parameters())[name]) != parameter.requires_grad, name


@pytest.mark.parametrize("shape", [(20, 8), (8, 20), (8, 8)])
def test_muon_groups_step_as_torch_muon(shape):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer = MuonWithAdamW([{"params": [ours], "muon": True, "weight_decay": 0.1}], lr=0.02, momentum=0.95)
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95)
    for _ in range(4):
        ours.grad = theirs.grad = torch.randn(shape, generator=generator)
        optimizer.step()
        reference.step()
    moved, expected = ours.detach() - start, theirs.detach() - start
    # torch's Newton-Schulz runs in bfloat16, of 8 bits.
    assert (moved - expected).norm() < 0.02 * expected.norm()


def test_parameters_without_gradient_stay():
    net = Net()
    optimizer = make_optimizer(net)
    net.square(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    moved = {n for n, p in net.named_parameters() if not torch.equal(p, dict(Net().named_parameters())[n])}
    assert moved == {"square.weight", "square.bias"}


def test_state_dict_continues_exactly():
    straight, stopped = Net(), Net()
    train(straight, make_optimizer(straight), range(8))

    optimizer = make_optimizer(stopped)
    train(stopped, optimizer, range(4))
    saved = copy.deepcopy({"net": stopped.state_dict(), "optimizer": optimizer.state_dict()})
    resumed = Net()
    resumed.load_state_dict(saved["net"])
    optimizer = make_optimizer(resumed, lr=123.0)  # the saved rates count
    optimizer.load_state_dict(saved["optimizer"])
    train(resumed, optimizer, range(4, 8))
    for name, parameter in straight.named_parameters():
        assert torch.equal(parameter, dict(resumed.named_parameters())[name]), name


def test_a_scheduler_moves_every_group():
    net, still = Net(), Net()
    optimizer = make_optimizer(net)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    train(net, optimizer, range(3), scheduler)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.02 / 8, 3e-3 / 8, 3e-3 / 8])
    # With a rate of zero nothing moves, not by weight decay either.
    optimizer = make_optimizer(still)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    train(still, optimizer, range(2))
    assert all(torch.equal(a, b) for a, b in zip(still.parameters(), Net().parameters(), strict=True))


def test_a_closure_gives_its_loss():
    net = Net()
    optimizer = make_optimizer(net)

    def closure():
        optimizer.zero_grad()
        loss = net(batch(0)).square().sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]
