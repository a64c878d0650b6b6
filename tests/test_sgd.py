"""resexp.train.sgd: the update rule, against torch's own."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from resexp import models
from resexp.settings import Settings, WeightDecayOn
from resexp.train.sgd import Momentum

SMALL = Settings(depth=8, width=4, momentum=0.9, weight_decay=0.01)
RATES = [0.1, 0.1, 0.05, 0.2, 0.01]  # a rate that changes tells the velocity's conventions apart


def backward(network: nn.Module, step: int) -> None:
    """Gradients of the ``step``-th batch, in the network's own precision."""
    dtype = next(network.parameters()).dtype
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(8, 1, 8, 8, generator=generator).to(dtype)
    loss = cross_entropy(network(images), torch.arange(8))
    loss.backward()  # type: ignore[no-untyped-call]


def descend(rule: Momentum, network: nn.Module, step: int, rate: float) -> None:
    """One step of ours, on the ``step``-th batch."""
    backward(network, step)
    rule.collect([parameter.grad for parameter in rule.parameters])
    rule.step(torch.tensor(rule.rates(rate), dtype=rule.weights.dtype))
    network.zero_grad()


def theirs(network: nn.Module, settings: Settings) -> torch.optim.SGD:
    """torch's optimizer, with the groups that weight decay needs."""
    decayed: list[Tensor] = []
    others: list[Tensor] = []
    for parameter in network.parameters():
        everything = settings.weight_decay_on is WeightDecayOn.all
        (decayed if everything or parameter.dim() > 1 else others).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=1.0, momentum=settings.momentum, nesterov=settings.nesterov)


@pytest.mark.process
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "settings",
    [
        SMALL,
        replace(SMALL, nesterov=True),
        replace(SMALL, momentum=0.0),
        replace(SMALL, weight_decay=0.0),
        replace(SMALL, weight_decay_on=WeightDecayOn.weights),
        replace(SMALL, weight_decay_on=WeightDecayOn.weights, nesterov=True),
    ],
    ids=["momentum", "nesterov", "no momentum", "no decay", "weights", "weights nesterov"],
)
def test_five_steps_end_where_torchs_optimizer_does(settings: Settings, dtype: torch.dtype) -> None:
    mine = models.build(settings, 1, 10).to(dtype)
    its = copy.deepcopy(mine)
    start = copy.deepcopy(mine)
    ours, torchs = Momentum(mine, settings), theirs(its, settings)
    for step, rate in enumerate(RATES):
        descend(ours, mine, step, rate)
        torchs.zero_grad()
        backward(its, step)
        for group in torchs.param_groups:
            group["lr"] = rate
        torchs.step()
    rtol, atol = (1e-5, 1e-6) if dtype is torch.float32 else (1e-12, 1e-13)
    for one, other, first in zip(
        mine.parameters(), its.parameters(), start.parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)
        assert not torch.equal(one, first)


@pytest.mark.process
def test_decay_on_weights_leaves_norms_and_biases_alone() -> None:
    for on, kept in ((WeightDecayOn.all, 0), (WeightDecayOn.weights, 15)):
        settings = replace(SMALL, weight_decay_on=on)
        network = models.build(settings, 1, 10)
        for parameter in network.parameters():
            nn.init.constant_(parameter, 2.0)
        rule = Momentum(network, settings)
        rule.step(torch.tensor(rule.rates(0.5)))  # all gradients are 0
        unchanged = [p for p in network.parameters() if torch.equal(p, torch.full_like(p, 2.0))]
        assert len(unchanged) == kept  # 7 norms of two each, and the classifier's bias
        assert all(p.dim() == 1 for p in unchanged)
        shrunk = [p for p in network.parameters() if not torch.equal(p, torch.full_like(p, 2.0))]
        for parameter in shrunk:  # 2 - 0.5 x 0.01 x 2
            torch.testing.assert_close(parameter, torch.full_like(parameter, 1.99))


def test_parameters_are_parts_of_one_tensor_that_stays_where_it_is() -> None:
    network = models.build(SMALL, 1, 10)
    before = copy.deepcopy(network.state_dict())
    rule = Momentum(network, SMALL)
    where = rule.weights.data_ptr()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    ends = where + 4 * len(rule.weights)
    for parameter, view in zip(rule.parameters, rule.views(rule.weights), strict=True):
        assert parameter.data_ptr() == view.data_ptr()
        assert where <= parameter.data_ptr() < ends
        assert (parameter.data_ptr() - where) % 128 == 0
    descend(rule, network, 0, 0.1)
    assert rule.weights.data_ptr() == where
    assert not torch.equal(network.state_dict()["stem.conv1.weight"], before["stem.conv1.weight"])


def test_a_parameter_without_a_gradient_only_decays() -> None:
    network = models.build(SMALL, 1, 10)
    rule = Momentum(network, SMALL)
    start = rule.weights.clone()
    rule.gradient.fill_(7)  # of a step before
    one = torch.full_like(rule.parameters[0], 3)
    rule.collect([one, *[None] * (len(rule.parameters) - 1)])
    rule.step(torch.tensor(rule.rates(0.5)))
    gradients = [3, *[0] * (len(rule.parameters) - 1)]
    parts = zip(rule.views(rule.weights), rule.views(start), gradients, strict=True)
    for now, then, gradient in parts:
        torch.testing.assert_close(now, then - 0.5 * (gradient + 0.01 * then))


def velocities(optimizer: Momentum) -> list[Tensor]:
    return optimizer.state_dict()["velocities"]


def test_velocities_start_at_rest_and_one_stands_for_every_parameter() -> None:
    network = models.build(SMALL, 1, 10)
    rest = velocities(Momentum(network, SMALL))
    assert sum(v.numel() for v in rest) == models.count(network)
    assert not any(v.any() for v in rest)


def test_a_saved_state_goes_on_as_if_it_had_never_stopped() -> None:
    settings = replace(SMALL, weight_decay_on=WeightDecayOn.weights)
    network = models.build(settings, 1, 10)
    optimizer = Momentum(network, settings)
    for step in range(2):
        descend(optimizer, network, step, 0.1)
    other = copy.deepcopy(network)
    again = Momentum(other, settings)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, rule in ((network, optimizer), (other, again)):
        descend(rule, one, 2, 0.1)
    parameters = zip(network.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(mine, its) for mine, its in parameters)
    for before, after in zip(velocities(optimizer), velocities(again), strict=True):
        assert torch.equal(before, after)
        assert before.any()


def test_loading_copies_so_that_a_saved_state_stays_what_it_was() -> None:
    network = models.build(SMALL, 1, 10)
    optimizer = Momentum(network, SMALL)
    saved = {"velocities": [torch.ones_like(v) for v in velocities(optimizer)]}
    optimizer.load_state_dict(saved)
    descend(optimizer, network, 0, 0.1)
    assert all(bool((v == 1).all()) for v in saved["velocities"])


def test_another_networks_velocities_are_refused() -> None:
    optimizer = Momentum(models.build(SMALL, 1, 10), SMALL)
    deeper, wider = replace(SMALL, depth=14), replace(SMALL, width=5)
    with pytest.raises((ValueError, RuntimeError)):
        optimizer.load_state_dict(Momentum(models.build(deeper, 1, 10), deeper).state_dict())
    with pytest.raises(RuntimeError):
        optimizer.load_state_dict(Momentum(models.build(wider, 1, 10), wider).state_dict())
    whole = optimizer.state_dict()["velocities"]
    with pytest.raises(ValueError, match="shorter"):
        optimizer.load_state_dict({"velocities": whole[:-1]})
