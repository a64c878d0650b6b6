"""commands.twin: two networks that differ in the skip connection and nothing else, or say so."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from resexp import models
from resexp.commands import twin
from resexp.models.blocks import Block, Stages
from resexp.models.merges import Drop
from resexp.settings import Arch, Job, Merge, Order, Settings, Shortcut, Twin, Unit
from resexp.train.fit import begin
from resexp.train.optimizers import OPTIMIZERS

RESIDUAL = Arch(merge=Merge.residual)
FIGURE = [replace(RESIDUAL, order=order) for order in Order if order is not Order.fixup]
PREACT = replace(RESIDUAL, order=Order.full_preactivation)
BOTTLENECK = replace(RESIDUAL, unit=Unit.bottleneck)
CLAUSES = ("parameters", "initial values", "FLOPs", "batches", "learning rate")


def job(arch: Arch, depth: int) -> Job:
    settings = Settings(arch=arch, depth=depth, lr=0.05)
    return Job(settings=settings, arch="residual", extras={}, overrides=[])


def equal(checks: list[twin.Check]) -> dict[str, bool]:
    return {check.clause: check.equal for check in checks}


@pytest.mark.parametrize(
    "arch", [*FIGURE, BOTTLENECK], ids=lambda arch: f"{arch.unit} {arch.order}"
)
def test_option_a_has_an_exact_plain_twin_in_every_order(arch: Arch) -> None:
    depth = 11 if arch is BOTTLENECK else 8
    assert equal(twin.contract(job(arch, depth))) == dict.fromkeys(CLAUSES, True)


@pytest.mark.parametrize(
    ("arch", "shortcut", "more", "block"),
    [
        # 1x1 projections 16 x 32 and 32 x 64, with their norms, at full and half resolution.
        (RESIDUAL, Shortcut.B, 2_752, 3),
        (PREACT, Shortcut.B, 2_560, 3),
        (RESIDUAL, Shortcut.C, 14_240, 0),
        (BOTTLENECK, Shortcut.B, 42_880, 0),
    ],
    ids=["B", "preact B", "C", "bottleneck B"],
)
def test_projections_are_named_and_counted(
    arch: Arch, shortcut: Shortcut, more: int, block: int
) -> None:
    checks = twin.contract(job(replace(arch, shortcut=shortcut), 20))
    # The initial values are those that both have.
    assert [clause for clause, same in equal(checks).items() if not same] == ["parameters", "FLOPs"]
    numbers, _, names = checks[0].detail.partition("; without a counterpart: ")
    mine, its = (int(number.replace(",", "")) for number in numbers.split(" and "))
    assert mine - its == more
    assert names.split(", ")[0] == f"blocks.{block}.merge.shortcut.conv1.weight"


def test_the_plain_twin_keeps_everything_but_the_skip_connections() -> None:
    settings = Settings(
        arch=replace(BOTTLENECK, order=Order.bn_after_addition, shortcut=Shortcut.C),
        depth=20,
        width=5,
        seed=3,
        lr=0.3,
    )
    built = models.build(replace(settings, twin=Twin.plain), 1, 10)
    direct = replace(settings, arch=replace(settings.arch, merge=Merge.plain))
    same = models.build(direct, 1, 10).state_dict()
    assert all(torch.equal(same[key], value) for key, value in built.state_dict().items())
    assert list(same) == list(built.state_dict())


def test_a_residual_network_without_its_additions_computes_what_its_plain_twin_does() -> None:
    for arch in FIGURE:
        settings = Settings(arch=arch, depth=14, width=4)
        residual = models.build(settings, 1, 10)
        plain = models.build(replace(settings, twin=Twin.plain), 1, 10)
        assert isinstance(residual, Stages)
        x, labels = torch.randn(6, 1, 8, 8), torch.arange(6)
        before = residual(x)
        for block in residual.blocks:
            assert isinstance(block, Block)
            block.merge = Drop()
        found = []
        for network in (residual, plain):
            logits = network(x)
            loss = cross_entropy(logits, labels)
            found.append([logits, *torch.autograd.grad(loss, list(network.parameters()))])
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
        assert not torch.equal(found[0][0], before)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("shortcut", [Shortcut.A, Shortcut.C])
def test_twins_begin_alike_and_take_the_same_step_of_the_same_gradients(
    optimizer: str, shortcut: Shortcut
) -> None:
    arch = replace(RESIDUAL, shortcut=shortcut)
    settings = Settings(arch=arch, depth=14, width=4, optimizer=optimizer, weight_decay=0.1)
    found = []
    for of in (settings, replace(settings, twin=Twin.plain)):
        network = models.build(of, 1, 10)
        rule = begin(network, of).optimizer
        start = {name: one.detach().clone() for name, one in network.named_parameters()}
        rule.collect([one.detach().cos() for one in rule.parameters])
        rule.step(torch.tensor(rule.rates(0.1, 0)))
        found.append((start, dict(network.named_parameters())))
    (start, end), (its_start, its_end) = found
    for name in its_end:
        assert torch.equal(start[name], its_start[name])
        assert torch.equal(end[name], its_end[name])
        assert not torch.equal(end[name], start[name])


def test_a_difference_in_any_clause_is_seen() -> None:
    settings = Settings(warmup_steps=5, warmup_depth=20)
    assert twin.same_batches(settings, settings, 1437).equal
    for change in ({"seed": 1}, {"crop_padding": 1}, {"flip": True}):
        assert not twin.same_batches(settings, replace(settings, **change), 1437).equal
    assert twin.same_rates(settings, settings).equal
    assert not twin.same_rates(settings, replace(settings, depth=14)).equal
    mine, its = (models.build(replace(settings, seed=seed), 1, 10) for seed in (0, 1))
    shared, only = twin.compare(mine, its)
    assert not only
    assert not all(torch.equal(one, other) for one, other in shared)


def test_parameters_of_another_shape_have_no_counterpart() -> None:
    mine, its = (models.build(Settings(depth=8, width=width), 1, 10) for width in (4, 5))
    shared, only = twin.compare(mine, its)
    # Only the classifier's bias has one shape at both widths.
    assert [one.shape for one, _ in shared] == [(10,)]
    assert len(only) == len(list(mine.parameters())) - 1
    assert only[0] == "stem.conv1.weight"


def test_the_text_says_what_was_compared_and_what_it_means() -> None:
    one = job(RESIDUAL, 8)
    exact = twin.text(one, twin.contract(one)).splitlines()
    assert [" ".join(line.split()) for line in exact] == [
        "residual-8 and its plain twin, seed 0",
        # 97,216 - 21,926 for 3 channels; the digits have one, and 288 weights fewer.
        "equal parameters 75,002 and 75,002",
        "equal initial values 23 shared tensors, 75,002 values",
        # 16 x 9 + 4,608 at 64 pixels, 4,608 + 9,216 at 16, 18,432 + 36,864 at 4, and 640.
        "equal FLOPs 1,494,272 and 1,494,272 an image, additions left out",
        "equal batches images, crops and mirrors of the first 50 steps",
        "equal learning rate 220 steps at 0.05, 0.005, 0.0005",
        "Exact twins: they differ in the skip connections alone.",
    ]
    other = job(replace(RESIDUAL, shortcut=Shortcut.B), 8)
    unequal = twin.text(other, twin.contract(other)).splitlines()
    assert " ".join(unequal[1].split()) == (
        "DIFFERS parameters 77,754 and 75,002; without a counterpart: "
        "blocks.1.merge.shortcut.conv1.weight, blocks.1.merge.shortcut.norm1.weight, "
        "blocks.1.merge.shortcut.norm1.bias ..."
    )
    assert unequal[-1] == ("Not exact twins: parameters, FLOPs differ; say so beside every result.")
