"""resexp.models.merges and blocks: what each rule computes, and what it is where it degenerates."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from families import blocks, pictures
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from resexp import models
from resexp.config import compose
from resexp.data import Images
from resexp.models import merges
from resexp.models.blocks import Block, RandomBlock, Stages, fixup_start
from resexp.models.initialise import initialise
from resexp.models.layers import Bias, Convolution, Norm, SqueezeExcitation, ZeroPad
from resexp.models.merges import RULES, Place, Rule
from resexp.models.options import read
from resexp.models.streams import sinkhorn
from resexp.settings import (
    Arch,
    Init,
    Merge,
    Normalisation,
    Order,
    Settings,
    Shortcut,
    Twin,
    UsageError,
)
from resexp.train.fit import begin, fit

RESIDUAL = Arch(merge=Merge.residual)


def joined(merge: str, **others: Any) -> Arch:
    """Blocks joined by a rule, with its options and settings of the arch."""
    known = {key: others.pop(key) for key in list(others) if key not in Arch.__slots__}
    return Arch(merge=merge, options=known, **others)


def made(name: str, shortcut: nn.Module | None = None, channels: int = 4, **options: Any) -> Rule:
    """A rule by itself, with its initial values."""
    kind = RULES[name]
    rule = kind(shortcut or nn.Identity(), channels, read(kind.Options, options))
    initialise(rule, 0, Init.he_fan_out)
    return rule


def build(arch: Arch, depth: int = 8, width: int = 4, twin: Twin = Twin.none) -> Stages:
    network = models.build(Settings(arch=arch, depth=depth, width=width, twin=twin), 1, 10)
    assert isinstance(network, Stages)
    return network


def triple(x: Tensor) -> Tensor:
    """A branch whose output is known."""
    return 3 * x


def settled(rule: Rule, bias: float) -> Rule:
    """``rule`` with a gate that says the same everywhere."""
    assert isinstance(rule, merges.Highway)
    nn.init.zeros_(rule.gate.conv.weight)
    nn.init.constant_(rule.gate.bias.bias, bias)
    return rule


# What a rule computes


@pytest.mark.process
def test_each_rule_is_its_formula() -> None:
    x = pictures(5, 4)
    assert torch.equal(made("plain")(x, triple), 3 * x)
    assert torch.equal(made("residual")(x, triple), 3 * x + x)
    weighted = made("weighted", shortcut_scale=0.5, branch_scale=0.25)
    torch.testing.assert_close(weighted(x, triple), 1.25 * x)
    assert weighted.formula == "0.5 S(x) + 0.25 F(x)"
    torch.testing.assert_close(made("scaled", branch_start=-2)(x, triple), x - 6 * x)
    assert torch.equal(made("concatenate")(x, triple), torch.cat((x, 3 * x), 1))
    scaled = made("layer_scale", scale_start=0.5)
    scaled.scale.data[1] = 2  # type: ignore[operator, union-attr]
    factors = torch.tensor([2.5, 7, 2.5, 2.5])
    torch.testing.assert_close(scaled(x, triple), x * factors.view(-1, 1, 1))
    deep, decayed = made("depth_scaled", depth_scale=0.5), made("decayed", least_identity=0.6)
    deep.place = decayed.place = Place(3, 9)
    torch.testing.assert_close(deep(x, triple), x + 0.5 * 3 * x / 3)
    torch.testing.assert_close(decayed(x, triple), (1 - 0.4 * 2 / 8) * x + 3 * x)
    quarter = math.log(1 / 3)  # T = 0.25
    gated = {"highway": 0.75 + 0.25 * 3, "shortcut_gate": 0.75 + 3}
    for name, factor in gated.items():
        torch.testing.assert_close(settled(made(name), quarter)(x, triple), factor * x)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_says_in_its_formula_and_attributes_what_it_does(name: str) -> None:
    rule, x = made(name).eval(), pictures(5, 4)
    y = rule(x, triple)
    assert y.shape == (x.shape if rule.sums else (5, 8, 8, 8))
    assert rule.sums is (name in merges.SUMS)
    assert "F(x)" in rule.formula or name == "streams"
    assert ("S(x)" in rule.formula) is isinstance(rule, merges.Add)
    counts = name == "fading"  # its draws are steps, not noise
    assert rule.whole_batch is (hasattr(rule, "draw") and not counts)


def test_a_parameter_without_a_start_is_refused() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.number = nn.Parameter(torch.empty(1))

    with pytest.raises(TypeError, match="inner: a Bare needs an attribute start"):
        initialise(nn.ModuleDict({"inner": Bare()}), 0, Init.he_fan_out)


def test_a_gate_reads_every_channel_of_a_pixel() -> None:
    x = pictures(5, 4)
    gate = merges.Gate(4, 0.0)
    nn.init.normal_(gate.conv.weight, generator=torch.Generator().manual_seed(1))
    nn.init.constant_(gate.bias.bias, 0.5)
    mixed = torch.einsum("oc,nchw->nohw", gate.conv.weight[:, :, 0, 0], x) + 0.5
    torch.testing.assert_close(gate(x), 1 / (1 + torch.exp(-mixed)))


@pytest.mark.process
def test_gates_start_near_the_sigmoid_of_their_bias_and_read_the_shortcuts_output() -> None:
    network = build(joined("highway", gate_bias=-6))
    for block in blocks(network):
        assert isinstance(block.merge, merges.Highway)
        assert block.merge.gate.bias.bias.tolist() == [-6.0] * block.merge.gate.conv.in_channels
    assert [b.merge.gate.conv.in_channels for b in blocks(network)] == [4, 8, 16]  # type: ignore[union-attr]


def test_a_dropout_shortcut_keeps_the_mean_and_falls_with_its_share() -> None:
    rule = made("dropout", shortcut_dropout=0.25).train()
    x = torch.ones(64, 8, 16, 16)
    assert isinstance(rule, merges.DropoutAdd)
    rule.draw(2**63 + 5)
    y = rule(x, torch.zeros_like)
    assert y.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert (y == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert torch.equal(y, rule(x, torch.zeros_like))  # until the next draw
    rule.draw(2**63 + 7)
    assert not torch.equal(y, rule(x, torch.zeros_like))
    assert torch.equal(rule.eval()(x, torch.zeros_like), x)


def test_squeeze_excitation_is_its_slow_reference_and_halves_at_zero() -> None:
    layer = SqueezeExcitation(32, 16)
    x = pictures(5, 32)
    weights = []
    for image in x:
        means = torch.stack([channel.mean() for channel in image])
        hidden = (layer.squeeze.weight @ means + layer.squeeze.bias).clamp(min=0)
        weights.append(1 / (1 + torch.exp(-(layer.excite.weight @ hidden + layer.excite.bias))))
    torch.testing.assert_close(layer(x), x * torch.stack(weights)[:, :, None, None])
    assert layer.squeeze.out_features == 2
    nn.init.zeros_(layer.excite.weight)
    nn.init.zeros_(layer.excite.bias)
    assert torch.equal(layer(x), x / 2)


def test_squeeze_excitation_weighs_the_branch_before_the_addition() -> None:
    network = build(replace(RESIDUAL, se_ratio=4)).eval()
    block = blocks(network)[0]
    assert isinstance(block.branch[-1], SqueezeExcitation)  # type: ignore[index]
    for name in ("weight", "bias"):
        nn.init.zeros_(getattr(block.branch[-1].excite, name))  # type: ignore[index]
    x = pictures(5, 4)
    bare = block.branch[:-1]  # type: ignore[index]
    torch.testing.assert_close(block(x), torch.relu(x + bare(x) / 2))


# What networks are where a rule degenerates


@pytest.mark.parametrize("order", [Order.original, Order.full_preactivation])
def test_rezero_starts_as_the_identity_between_changes_of_shape(order: Order) -> None:
    network = build(replace(RESIDUAL, merge="scaled", order=order), 20).eval()
    x = torch.relu(pictures(5, 16))
    block = blocks(network)[8]
    assert torch.equal(block(x), x)


@pytest.mark.parametrize("norm", list(Normalisation))
@pytest.mark.parametrize("merge", ["plain", "residual"])
def test_every_norm_goes_with_plain_and_residual(norm: Normalisation, merge: str) -> None:
    network = build(Arch(merge=merge, norm=norm))
    loss = cross_entropy(network(pictures(5)), torch.arange(5))
    assert torch.autograd.grad(loss, list(network.parameters()))[0].any()  # it reaches the stem
    kinds = {type(module) for module in network.modules()} & {nn.BatchNorm2d, nn.GroupNorm, Bias}
    assert kinds == {{"batch": nn.BatchNorm2d, "none": Bias}.get(norm, nn.GroupNorm)}


def test_norms_are_over_the_groups_that_they_say() -> None:
    x = 5 + 3 * pictures(5, 16)
    for kind, groups in (("group", 8), ("layer", 1)):
        y = Norm(1e-5, 0.1, Normalisation(kind))(16)(x).reshape(5, groups, -1)
        torch.testing.assert_close(y.mean(2), torch.zeros(5, groups), atol=1e-5, rtol=0)
        torch.testing.assert_close(y.var(2, correction=0), torch.ones(5, groups), atol=1e-3, rtol=0)
    assert Norm(1e-5, 0.1, Normalisation.group)(12).num_groups == 4


def test_rules_that_go_by_depth_know_where_their_blocks_stand() -> None:
    for merge in ("depth_scaled", "decayed"):
        places = [block.merge.place for block in blocks(build(joined(merge), 20))]
        assert places == [Place(i + 1, 9, i // 3 + 1) for i in range(9)]
    network = models.build(families.settings("transformer", 3, merge="decayed"), 1, 10)
    found = [one.place for one in network.modules() if isinstance(one, merges.DecayedAdd)]
    assert found == [Place(i, 6) for i in range(1, 7)]


@pytest.mark.process
def test_where_rules_degenerate_they_are_residual() -> None:
    of = [("layer_scale", "scale_start", 1.0), ("decayed", "least_identity", 1.0)]
    of += [("depth_scaled", "depth_scale", 9**0.5), ("streams", "streams", 3)]
    of += [("weighted", "branch_scale", 1.0)]
    for merge, option, value in of:
        x, network = pictures(5), build(joined(merge, **{option: value}), 20)
        torch.testing.assert_close(network(x), build(RESIDUAL, 20)(x))
    of_tokens = families.settings("transformer", 3, merge="layer_scale")
    of_tokens.arch.options["scale_start"] = 1.0
    network = models.build(of_tokens, 1, 10, (8, 8))
    same = models.build(families.settings("transformer", 3), 1, 10, (8, 8))
    torch.testing.assert_close(network(pictures(5)), same(pictures(5)))
    scales = [value for name, value in network.named_parameters() if name.endswith("scale")]
    assert [len(one) for one in scales] == 6 * [64]


def test_a_fading_shortcut_is_residual_then_plain() -> None:
    rule = made("fading", fade_from=2, fade_to=6)
    x, shares = pictures(5, 4), []
    for _ in range(8):
        merges.draw([rule], 0, 0)
        shares.append(float(rule.share))
        torch.testing.assert_close(rule(x, triple), 3 * x + shares[-1] * x)
    assert shares == [1, 1, 1, 0.75, 0.5, 0.25, 0, 0]
    network, plain = build(joined("fading", fade_to=1, fade_from=0), 8), build(Arch(), 8)
    assert torch.equal(network(pictures(5)), build(RESIDUAL, 8)(pictures(5)))
    for step in range(2):
        merges.draw(merges.drawn(network), 0, step)
    assert torch.equal(network(pictures(5)), plain(pictures(5)))
    with pytest.raises(UsageError, match="fade_from=6"):
        made("fading", fade_from=6, fade_to=6)


def test_streams_are_mixed_read_and_written_by_hand() -> None:
    rule = made("streams", streams=2)
    rule.place = Place(2, 3)  # neither made nor averaged here; it reads the second stream at first
    rule.mix.data = torch.tensor([[0.0, 0.5], [0.0, 1.0]])
    rule.read.data, rule.write.data = torch.tensor([0.25, 0.0]), torch.tensor([1.0, -1.0])
    x = pictures(5, 4)
    first, second = x[:2], x[2:4]
    written = triple(0.25 * first + second)
    expected = torch.cat((first + 0.5 * second + 2 * written, 2 * second))
    torch.testing.assert_close(rule(x[:4], triple), expected)


def test_a_product_of_doubly_stochastic_squares_grows_no_stream() -> None:
    logs = torch.randn(30, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    squares = [sinkhorn(one) for one in logs]
    product = torch.linalg.multi_dot(squares)
    for sums in (product.sum(0), product.sum(1)):
        torch.testing.assert_close(sums, torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-5)
    assert abs(torch.linalg.matrix_norm(product, 2) - 1) < 1e-5
    rule = made("streams", streams=4, doubly_stochastic=True)
    torch.testing.assert_close(rule.square, torch.eye(4), rtol=0, atol=4 * math.exp(-8))


# Where the skips are


@pytest.mark.parametrize(("span", "blocks_a_stage"), [(1, 6), (2, 3), (3, 2)])
def test_a_skip_jumps_over_the_convolutions_it_says(span: int, blocks_a_stage: int) -> None:
    network = build(replace(RESIDUAL, skip_span=span), 20)
    assert len(blocks(network)) == 3 * blocks_a_stage
    for block in blocks(network):
        assert sum(isinstance(m, nn.Conv2d) for m in block.branch.modules()) == span
    plain = build(replace(RESIDUAL, skip_span=span), 20, twin=Twin.plain)
    assert models.count(plain) == models.count(network) == models.count(build(RESIDUAL, 20))


@pytest.mark.parametrize("stages", [[], [1], [2, 3], [1, 2, 3]])
def test_skips_stand_in_the_stages_that_were_named(stages: list[int]) -> None:
    network = build(replace(RESIDUAL, skip_stages=stages), 14)
    found = [isinstance(block.merge, merges.Add) for block in blocks(network)]
    assert found == [stage in stages for stage in (1, 1, 2, 2, 3, 3)]
    x = pictures(5)
    same = {(): Twin.plain, (1, 2, 3): Twin.none}.get(tuple(stages))
    if same is not None:
        assert torch.equal(network(x), build(RESIDUAL, 14, twin=same)(x))


# Stochastic depth


def random_blocks(survival: float, depth: int = 110) -> list[RandomBlock]:
    with torch.device("meta"):
        arch = replace(RESIDUAL, survival=survival)
        network = models.structure(Settings(arch=arch, depth=depth, width=4), 1, 10)
    return [module for module in network.modules() if isinstance(module, RandomBlock)]


def test_survival_falls_linearly_to_the_last_block() -> None:
    found = [block.survival for block in random_blocks(0.5)]
    assert len(found) == 54
    assert found[0] == pytest.approx(1 - 0.5 / 54)
    assert found[-1] == 0.5
    assert sum(found) == pytest.approx(40.25)  # the paper's expected number of blocks


def test_blocks_survive_as_often_as_they_should() -> None:
    some = random_blocks(0.5, 20)
    steps = 2000
    alive = torch.zeros(len(some))
    for step in range(steps):
        merges.draw(some, 7, step)
        alive += torch.tensor([block.survives for block in some])
    wanted = torch.tensor([block.survival for block in some])
    error = (wanted * (1 - wanted) / steps).sqrt()
    assert ((alive / steps - wanted).abs() < 4 * error).all()


@pytest.mark.process
def test_draws_are_functions_of_seed_and_step() -> None:
    some = random_blocks(0.5)

    def pattern(seed: int, step: int) -> list[bool]:
        merges.draw(some, seed, step)
        return [block.survives for block in some]

    assert pattern(3, 5) == pattern(3, 5)
    assert len({tuple(pattern(seed, step)) for seed in (0, 1) for step in range(20)}) == 40


def test_a_branch_that_is_left_out_is_not_computed_and_gets_no_gradient() -> None:
    network = build(replace(RESIDUAL, survival=0.5))
    block = blocks(network)[-1]
    assert isinstance(block, RandomBlock)
    calls: list[int] = []
    block.branch.register_forward_hook(lambda *_: calls.append(1))
    block.survives = False
    x = pictures(5, 8)
    carried = ZeroPad(8, 16, 2)(x)
    assert torch.equal(block(x), torch.relu(carried))
    assert calls == []
    block.survives = True
    bare = copy.deepcopy(block)
    assert torch.equal(block(x), torch.relu(bare.branch(x) + carried))
    bare = copy.deepcopy(block).eval()
    expected = torch.relu(0.5 * bare.branch(x) + carried)
    torch.testing.assert_close(block.eval()(x), expected)


def test_stochastic_depth_resumes_and_decays_what_it_left_out(few_digits: Images) -> None:
    arch = replace(RESIDUAL, survival=0.5)
    settings = Settings(arch=arch, depth=8, width=4, steps=6, batch_size=8, eval_every=3)

    def trained(stop: int) -> Stages:
        network = build(arch)
        state = begin(network, settings)
        turns = fit(state, settings, few_digits)
        while state.step < stop:
            next(turns)
        saved = copy.deepcopy(state.state_dict())
        fresh = begin(build(arch), settings)
        fresh.load_state_dict(saved)
        for _ in fit(fresh, settings, few_digits):
            pass
        assert isinstance(fresh.network, Stages)
        return fresh.network

    one, other = trained(2).state_dict(), trained(5).state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)


# Fixup


def test_fixup_scales_the_first_convolutions_and_zeroes_the_last() -> None:
    convs = fixup_start([Convolution(16, 3), Convolution(16, 3)], 54)
    assert [conv.gain for conv in convs] == [54**-0.5, 0.0]
    convs = fixup_start([Convolution(16, 1), Convolution(16, 3), Convolution(64, 1)], 54)
    assert [conv.gain for conv in convs] == [54**-0.25, 54**-0.25, 0.0]


def fixup() -> Settings:
    return compose(["arch=fixup", "depth=20", "width=4"]).settings


def test_fixup_starts_with_silent_branches_and_one_answer() -> None:
    network = models.build(fixup(), 1, 10)
    he = dict(build(RESIDUAL, 20).named_parameters())
    for name, value in network.named_parameters():
        if name.endswith("branch.conv1.weight"):
            torch.testing.assert_close(value, he[name] * 9**-0.5)
        elif name.endswith("branch.conv2.weight") or name.startswith("classifier"):
            assert not value.any()
        elif name.endswith("scale"):
            assert value.tolist() == [1.0]
        elif "bias" in name:
            assert value.tolist() == [0.0]
    assert not network(pictures(5)).any()


def test_fixup_is_its_papers_block() -> None:
    """Zhang et al. 2019, figure 1: biases before each convolution and ReLU, a multiplier."""
    network = models.build(fixup(), 1, 10)
    block = next(m for m in network.modules() if isinstance(m, Block))
    values = iter(torch.linspace(-0.3, 0.4, 5))
    branch, merge, after = block.branch, block.merge, block.after
    b1, b2, b3, scale, b4 = (
        branch.bias1.bias, branch.bias2.bias, branch.bias3.bias, merge.scale, after.bias1.bias,
    )  # fmt: skip
    for parameter in (b1, b2, b3, scale, b4):
        nn.init.constant_(parameter, next(values).item())  # type: ignore[arg-type]
    nn.init.normal_(branch.conv2.weight, generator=torch.Generator().manual_seed(1))  # type: ignore[union-attr, arg-type]
    x = pictures(5, 4)
    f = branch.conv1(x + b1) + b2  # type: ignore[operator, union-attr]
    f = branch.conv2(torch.relu(f) + b3)  # type: ignore[operator, union-attr]
    torch.testing.assert_close(block(x), torch.relu(x + scale * f + b4))


@pytest.mark.process
def test_single_numbers_learn_at_their_share_of_the_rate(few_digits: Images) -> None:
    settings = replace(fixup(), steps=1, batch_size=8, weight_decay=0.0, momentum=0.0)
    moved = {}
    for share in (1.0, 0.1):
        one = replace(settings, arch=replace(settings.arch, scalar_lr=share))
        network = models.build(one, 1, 10)
        network.classifier.weight.data.fill_(0.1)  # type: ignore[union-attr, operator]
        network.classifier.weight.data[3:] *= -1  # type: ignore[index, union-attr]
        before = copy.deepcopy(dict(network.named_parameters()))
        for _ in fit(begin(network, one), one, few_digits):
            pass
        moved[share] = {k: (v - before[k]).abs().sum() for k, v in network.named_parameters()}
    for name, full in moved[1.0].items():
        single = name.endswith("scale") or (".bias" in name and "classifier" not in name)
        rate = 0.1 if single else 1.0
        torch.testing.assert_close(moved[0.1][name], full * rate, rtol=1e-4, atol=1e-7)
    assert moved[1.0]["end.bias1.bias"] > 0


def test_code_compares_rules_by_their_names() -> None:
    """A rule's name in settings is text, so ``is Merge.plain`` would be false in silence."""
    for path in Path(models.__file__).parents[1].rglob("*.py"):
        assert not re.search(r"\bis (not )?Merge\.", path.read_text()), path


def test_projections_of_a_network_without_normalisation_have_biases() -> None:
    network = build(replace(RESIDUAL, shortcut=Shortcut.B, norm=Normalisation.none))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    assert any("merge.shortcut.norm1.bias" in name for name, _ in network.named_parameters())
