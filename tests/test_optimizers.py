"""resexp.train.optimizers: each rule against torch's own functions, or against slow references."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from resexp import models
from resexp.config import compose
from resexp.settings import Arch, Settings, Shortcut, UsageError, WeightDecayOn
from resexp.train import optimizers
from resexp.train.optimizers import NEWTON_SCHULZ, OPTIMIZERS, Muon, Optimizer, orthogonalised

SMALL = Settings(depth=8, width=4, momentum=0.9, weight_decay=0.01)
WEIGHTS = WeightDecayOn.weights
RATES = [0.1, 0.1, 0.05, 0.2, 0.01]  # a rate that changes tells the velocity's conventions apart
EVERY = pytest.mark.parametrize("name", OPTIMIZERS)


def made(network: nn.Module, settings: Settings) -> Optimizer:
    return OPTIMIZERS[settings.optimizer](network, settings)


def backward(network: nn.Module, step: int) -> None:
    """Gradients of the ``step``-th batch, in the network's own precision."""
    dtype = next(network.parameters()).dtype
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(8, 1, 8, 8, generator=generator).to(dtype)
    network.zero_grad()
    loss = cross_entropy(network(images), torch.arange(8))
    loss.backward()  # type: ignore[no-untyped-call]


def factors(rule: Optimizer, rate: float, step: int) -> Tensor:
    return torch.tensor(rule.rates(rate, step), dtype=rule.weights.dtype)


def descend(rule: Optimizer, network: nn.Module, step: int, rate: float) -> None:
    """One step of ours, on the ``step``-th batch."""
    backward(network, step)
    rule.collect([parameter.grad for parameter in rule.parameters])
    rule.step(factors(rule, rate, step))


# --- references


class Reference:
    """A step of a list of parameters, one after another, in their own shapes."""

    def __init__(self, network: nn.Module, settings: Settings) -> None:
        self.settings, self.parameters = settings, dict(network.named_parameters())
        zeros = [torch.zeros_like(one) for one in self.parameters.values()]
        self.states = [list(zeros), [one.clone() for one in zeros]]
        self.steps = [torch.tensor(0.0) for _ in zeros]
        self.hidden = Muon.own(network)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        of = self.settings
        for place, (name, one) in enumerate(self.parameters.items()):
            decays = of.weight_decay_on is WeightDecayOn.all or one.dim() > 1
            decay, gradient = of.weight_decay * decays, one.grad
            velocity, square = self.states[0][place], self.states[1][place]
            assert gradient is not None
            if of.optimizer == "adamw":
                state = ([one], [gradient], [velocity], [square], [], [self.steps[place]])
                betas = {"beta1": of.momentum, "beta2": 0.999, "eps": 1e-8}
                fixed = {"amsgrad": False, "maximize": False}
                adamw(*state, lr=rate, weight_decay=decay, **betas, **fixed)  # type: ignore[arg-type]
                continue
            if of.optimizer == "lars" and one.dim() > 1:
                gradient = lars(one, gradient, decay)
                decay = 0.0
            if of.optimizer == "muon" and name in self.hidden:
                one.mul_(1 - rate * decay)
                velocity.mul_(of.momentum).add_(gradient)
                if of.nesterov:
                    velocity = gradient + of.momentum * velocity
                one.sub_(rate * muon(velocity))
                continue
            rest = {"momentum": of.momentum, "nesterov": of.nesterov, "weight_decay": decay}
            fixed = {"dampening": 0, "maximize": False}
            sgd([one], [gradient], [velocity], lr=rate, **rest, **fixed)  # type: ignore[arg-type]


def lars(weight: Tensor, gradient: Tensor, decay: float) -> Tensor:
    """You et al. 2017, algorithm 1, with a trust coefficient of 1."""
    length, slope = float(weight.norm()), float(gradient.norm())
    return length / (slope + decay * length) * (gradient + decay * weight)


def muon(direction: Tensor) -> Tensor:
    """The polynomial of Newton-Schulz on the singular values, in float64."""
    matrix = direction.double().reshape(len(direction), -1)
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    values /= values.norm() + 1e-7
    a, b, c = NEWTON_SCHULZ
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    near = max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5 * (u * values) @ v
    return near.view(direction.shape).to(direction.dtype)


CASES = {
    "momentum": SMALL,
    "nesterov": replace(SMALL, nesterov=True),
    "no momentum": replace(SMALL, momentum=0.0),
    "no decay": replace(SMALL, weight_decay=0.0),
    "weights": replace(SMALL, weight_decay_on=WEIGHTS),
    "weights nesterov": replace(SMALL, weight_decay_on=WEIGHTS, nesterov=True),
    "adamw": replace(SMALL, optimizer="adamw"),
    "adamw weights": replace(SMALL, optimizer="adamw", weight_decay=1.0, weight_decay_on=WEIGHTS),
    "lars": replace(SMALL, optimizer="lars"),
    "lars weights": replace(SMALL, optimizer="lars", weight_decay_on=WEIGHTS, nesterov=True),
    "muon": replace(SMALL, optimizer="muon", nesterov=True),
    "muon decay": replace(SMALL, optimizer="muon", weight_decay=1.0),
    "muon C": replace(SMALL, optimizer="muon", arch=Arch(merge="residual", shortcut=Shortcut.C)),
}


@pytest.mark.process
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_five_steps_end_where_the_reference_does(settings: Settings, dtype: torch.dtype) -> None:
    mine = models.build(settings, 1, 10).to(dtype)
    its = copy.deepcopy(mine)
    start = copy.deepcopy(mine)
    ours, reference = made(mine, settings), Reference(its, settings)
    for step, rate in enumerate(RATES):
        backward(mine, step)
        for one, other in zip(mine.parameters(), its.parameters(), strict=True):
            assert one.grad is not None
            other.grad = one.grad.clone()
        ours.collect([parameter.grad for parameter in ours.parameters])
        ours.step(factors(ours, rate, step))
        reference.step(rate)
    rtol, atol = (1e-5, 2e-6) if dtype is torch.float32 else (1e-12, 1e-13)
    for one, other, first in zip(
        mine.parameters(), its.parameters(), start.parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)
        assert not torch.equal(one, first)


@pytest.mark.parametrize("shape", [(3, 8, 24), (2, 24, 8), (1, 5, 5)], ids=str)
def test_orthogonalising_is_a_polynomial_of_the_singular_values(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, dtype=torch.float64, generator=torch.manual_seed(1))
    found = orthogonalised(matrices)
    scale = max(1, shape[1] / shape[2]) ** 0.5
    for one, its in zip(matrices, found, strict=True):
        torch.testing.assert_close(scale * its, muon(one), rtol=1e-12, atol=1e-12)
    assert 0.3 < torch.linalg.svdvals(found).min() < torch.linalg.svdvals(found).max() < 1.2
    assert not orthogonalised(torch.zeros(shape)).any()


@pytest.mark.parametrize("size", [1e-6, 1e3])
def test_the_first_step_of_lars_is_the_rate_of_the_length_of_each_weight(size: float) -> None:
    settings = replace(SMALL, optimizer="lars", weight_decay=0.0)
    network = models.build(settings, 1, 10).double()
    nn.init.zeros_(network.get_parameter("classifier.weight"))
    start = copy.deepcopy(dict(network.named_parameters()))
    rule = made(network, settings)
    gradients = [size * torch.randn_like(one) for one in rule.parameters]
    gradients[1].zero_()  # a branch that was left out
    rule.collect(gradients)
    rule.step(factors(rule, 0.03, 0))
    for number, name in enumerate(rule.names):
        first, change = start[name].detach(), network.get_parameter(name).detach() - start[name]
        if number == 1:
            assert not change.any()
        elif first.dim() > 1 and first.any():
            assert float(change.detach().norm() / first.norm()) == pytest.approx(0.03, rel=1e-12)
        else:
            torch.testing.assert_close(change.detach(), -0.03 * gradients[number])


@pytest.mark.parametrize(
    ("words", "shut_out"),
    [
        (["depth=14"], ["stem"]),
        (["depth=14", "arch=highway"], ["stem", ".gate."]),
        (["depth=14", "arch=se", "se_ratio=2"], ["stem", ".se."]),
        (["experiment=blobs", "depth=13"], ["top.down.conv1", "classifier"]),
        (["arch=vgg", "depth=11"], ["stages.0.conv1"]),
    ],
    ids=["plain", "highway", "se", "unet", "vgg"],
)
def test_muon_takes_the_hidden_convolutions(words: list[str], shut_out: list[str]) -> None:
    settings = compose([*words, "width=4", "optimizer=muon"]).settings
    network = models.build(settings, 1, 10, (32, 32))
    kernels = [name for name, one in network.named_parameters() if one.dim() == 4]
    expected = {name for name in kernels if not any(part in name for part in shut_out)}
    assert set(Muon.own(network)) == expected != set(kernels)


def test_muon_has_one_batch_of_products_for_each_shape() -> None:
    settings = replace(SMALL, optimizer="muon", depth=20)
    rule = made(models.build(settings, 1, 10), settings)
    assert isinstance(rule, Muon)
    sizes = [size for size, _, _ in rule.stacks]
    assert sizes == [(6, 4, 36), (1, 8, 36), (5, 8, 72), (1, 16, 72), (5, 16, 144)]


# --- what every rule does


@EVERY
@pytest.mark.process
def test_decay_on_weights_leaves_norms_and_biases_alone(name: str) -> None:
    for on, kept in ((WeightDecayOn.all, 0), (WEIGHTS, 15)):
        settings = replace(SMALL, weight_decay_on=on, optimizer=name)
        network = models.build(settings, 1, 10)
        for parameter in network.parameters():
            nn.init.constant_(parameter, 2.0)
        rule = made(network, settings)
        rule.step(factors(rule, 0.5, 0))  # all gradients are 0
        unchanged = [p for p in network.parameters() if torch.equal(p, torch.full_like(p, 2.0))]
        assert len(unchanged) == kept  # 7 norms of two each, and the classifier's bias
        assert all(p.dim() == 1 for p in unchanged)
        shrunk = [p for p in network.parameters() if not torch.equal(p, torch.full_like(p, 2.0))]
        for parameter in shrunk:  # 2 - 0.5 x 0.01 x 2; all that LARS sees is decay, so 2 - 0.5 x 2
            left = 1.0 if name == "lars" and parameter.dim() > 1 else 1.99
            torch.testing.assert_close(parameter, torch.full_like(parameter, left))


@EVERY
def test_parameters_are_parts_of_one_tensor_that_stays_where_it_is(name: str) -> None:
    network = models.build(SMALL, 1, 10)
    before = copy.deepcopy(network.state_dict())
    rule = made(network, replace(SMALL, optimizer=name))
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
    rule = made(network, SMALL)
    start = rule.weights.clone()
    rule.gradient.fill_(7)  # of a step before
    one = torch.full_like(rule.parameters[0], 3)
    rule.collect([one, *[None] * (len(rule.parameters) - 1)])
    rule.step(factors(rule, 0.5, 0))
    gradients = [3, *[0] * (len(rule.parameters) - 1)]
    parts = zip(rule.views(rule.weights), rule.views(start), gradients, strict=True)
    for now, then, gradient in parts:
        torch.testing.assert_close(now, then - 0.5 * (gradient + 0.01 * then))


@EVERY
def test_states_start_at_zero_and_have_a_part_for_every_parameter(name: str) -> None:
    network = models.build(SMALL, 1, 10)
    states = made(network, replace(SMALL, optimizer=name)).state_dict()
    for rest in states.values():
        assert sum(one.numel() for one in rest) == models.count(network)
        assert not any(one.any() for one in rest)


def test_a_checkpoint_of_before_there_were_others_is_sgds() -> None:
    network = models.build(SMALL, 1, 10)
    rule = made(network, SMALL)
    named = sorted(network.named_parameters(), key=lambda pair: pair[1].dim() == 1)
    assert rule.names == [name for name, _ in named]
    rule.load_state_dict({"velocities": [torch.full_like(one, 3) for _, one in named]})
    assert all((one == 3).all() for one in rule.views(rule.states["velocities"]))


@EVERY
def test_a_saved_state_goes_on_as_if_it_had_never_stopped(name: str) -> None:
    settings = replace(SMALL, weight_decay_on=WEIGHTS, optimizer=name)
    network = models.build(settings, 1, 10)
    optimizer = made(network, settings)
    for step in range(2):
        descend(optimizer, network, step, 0.1)
    other = copy.deepcopy(network)
    again = made(other, settings)
    saved = copy.deepcopy(optimizer.state_dict())
    again.load_state_dict(saved)
    kept = copy.deepcopy(saved)
    for one, rule in ((network, optimizer), (other, again)):
        descend(rule, one, 2, 0.1)
    assert torch.equal(optimizer.weights, again.weights)
    for state, before in optimizer.states.items():
        assert torch.equal(before, again.states[state])
        assert before.any()
        assert all(map(torch.equal, saved[state], kept[state]))  # loading copied


@EVERY
def test_another_networks_states_are_refused(name: str) -> None:
    settings = replace(SMALL, optimizer=name)
    optimizer = made(models.build(settings, 1, 10), settings)
    for other in (replace(settings, depth=14), replace(settings, width=5)):
        with pytest.raises((ValueError, RuntimeError)):
            optimizer.load_state_dict(made(models.build(other, 1, 10), other).state_dict())
    states = optimizer.state_dict()
    with pytest.raises(ValueError, match="shorter"):
        optimizer.load_state_dict({state: views[:-1] for state, views in states.items()})
    with pytest.raises(KeyError):
        optimizer.load_state_dict({})


# --- the setting


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        ("", ("sgd", 0.02, 0.9, 1e-4)),
        ("optimizer=sgd experiment=blobs", ("sgd", 0.05, 0.9, 1e-4)),
        ("optimizer=adamw", ("adamw", 0.003, 0.9, 0.01)),
        ("optimizer=adamw experiment=he2015", ("adamw", 0.003, 0.9, 0.01)),
        ("lr=0.5 optimizer=adamw weight_decay=0.2", ("adamw", 0.5, 0.9, 0.2)),
        ("optimizer=lars experiment=cifar10_short", ("lars", 0.003, 0.9, 1e-4)),
        ("optimizer=muon momentum=0.6", ("muon", 0.02, 0.6, 0.0)),
    ],
)
def test_an_optimizer_brings_its_rate_and_what_is_typed_goes_first(
    words: str, numbers: tuple[object, ...]
) -> None:
    job = compose(words.split())
    of = job.settings
    assert (of.optimizer, of.lr, of.momentum, of.weight_decay) == numbers
    assert of.warmup_lr <= of.lr
    typed = [word.split("=") for word in words.split()]
    assert set(job.extras) == {key for key, _ in typed if key != "experiment"}


def test_what_no_step_could_use_is_refused() -> None:
    with pytest.raises(UsageError, match=r"optimizer=sdg is unknown.*lars"):
        optimizers.check(replace(SMALL, optimizer="sdg"))
    with pytest.raises(UsageError, match="nesterov=true"):
        optimizers.check(replace(SMALL, optimizer="adamw", nesterov=True))
    settings = compose(["arch=transformer", "depth=2", "optimizer=muon"]).settings
    network = models.build(settings, 1, 10, (8, 8))
    with pytest.raises(UsageError, match="optimizer=muon"):
        optimizers.check(settings, network)
    for name in OPTIMIZERS.keys() - {"muon"}:
        optimizers.check(replace(settings, optimizer=name, nesterov=False), network)


START = """
import sys
from dataclasses import replace
from resexp import data, models
from resexp.settings import Data, Settings
from resexp.train.fit import begin, fit
from resexp.train.optimizers import OPTIMIZERS
for name in OPTIMIZERS:
    settings = Settings(optimizer=name, depth=8, width=4, steps=1, batch_size=4)
    next(fit(begin(models.build(settings, 1, 10), settings), settings, data.load(Data())))
assert "torch._dynamo" not in sys.modules
"""


@pytest.mark.process
def test_no_step_imports_the_second_that_torchs_own_take() -> None:
    one = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", START], env=one, check=True)
