"""The rank probe: its acceptance; attention, gradient and rel(X) by other ways."""

from __future__ import annotations

import math
from statistics import mean

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from resexp.probes import Verdict, rank
from resexp.probes.networks import at_start, load, some_images
from resexp.probes.rank import ARMS, apart, attention, last_gradient, own_ranks, ranks
from resexp.settings import Arch, Merge, Settings, Twin

SEEDS = (0, 1, 2)


@pytest.mark.process
def test_tokens_become_one_without_skips_and_stay_apart_with_them() -> None:
    layers = {name: [ranks(ARMS[name], seed, 12) for seed in SEEDS] for name in ARMS}
    without = [mean([one[4] for one in layers[name]]) for name in list(ARMS)[:2]]
    kept = mean([one[12] for one in layers["skip pre-LN"]])
    assert max(without) < 1e-3
    assert kept > 0.3
    assert rank.judge(without, kept) is Verdict.supported


@pytest.mark.process
def test_the_packages_own_transformers_do_the_same_on_digits() -> None:
    layers = {name: [own_ranks(name, seed) for seed in SEEDS] for name in rank.OWN}
    assert all(len(one) == 13 for some in layers.values() for one in some)
    assert mean([one[4] for one in layers["no skip pre-LN"]]) < 1e-3
    assert mean([one[4] for one in layers["no skip post-LN"]]) < 1e-3
    assert mean([one[12] for one in layers["skip pre-LN"]]) > 0.25
    assert min(one[12] for name in ("skip pre-LN", "skip post-LN") for one in layers[name]) > 0.01


def test_own_ranks_are_of_the_transformer_run_block_by_block() -> None:
    options = {"patch": 2, "heads": 4, "layer_norm": "after"}
    arch = Arch(family="transformer", depths="n", merge=Merge.residual, options=options)
    settings = Settings(arch=arch, twin=Twin.plain, depth=12, seed=1)
    data = load(settings)
    network = at_start(settings, data).double()
    images = some_images(settings, data, rank.IMAGES)[0].double()
    rows = torch.nn.functional.unfold(images, 2, stride=2).transpose(1, 2)
    found = own_ranks("no skip post-LN", 1)
    with torch.no_grad():
        x = network.get_submodule("positions")(network.get_submodule("embedding")(rows))
        for expected, block in zip(found, network.get_submodule("blocks").children(), strict=False):
            centred = x - x.mean(1, keepdim=True)
            values = centred.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
            assert values.mean().item() == pytest.approx(expected, rel=1e-6, abs=1e-14)
            x = block(x)


@pytest.mark.process
def test_the_last_gradient_grows_from_pre_to_post_with_depth() -> None:
    ratios = []
    for layers in (2, 8, 32):
        post, pre = (
            mean([last_gradient(ARMS[name], seed, layers) for seed in SEEDS])
            for name in ("skip post-LN", "skip pre-LN")
        )
        ratios.append(post / pre)
    assert ratios == sorted(ratios)
    assert ratios[-1] >= 3


def test_the_verdict_has_two_sides() -> None:
    assert rank.judge([1e-9, 1e-9], 1e-5) is Verdict.not_supported
    assert rank.judge([0.6, 0.9], 0.9) is Verdict.not_supported
    assert rank.judge([1e-2, 1e-9], 0.9) is Verdict.inconclusive


def test_attention_is_torchs_own() -> None:
    generator = rank.draws(0)
    x, weights = rank.tokens(generator, 2), rank.weights(generator)
    heads = [
        (x @ matrix).view(2, rank.TOKENS, rank.HEADS, -1).transpose(1, 2)
        for matrix in (weights.query, weights.key, weights.value)
    ]
    mixed = scaled_dot_product_attention(*heads).transpose(1, 2).reshape(x.shape)
    assert torch.allclose(attention(x, weights), mixed @ weights.out, atol=1e-12)


def test_apart_is_what_a_mean_leaves() -> None:
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert apart(x) == pytest.approx(math.sqrt(0.5))
    assert apart(torch.ones(1, 5, 3)) == 0


def test_tokens_of_pure_attention_are_mixed_towards_one() -> None:
    """Each head's output is an average of values: with equal tokens nothing is left apart."""
    generator = rank.draws(0)
    same = rank.tokens(generator, 1)[:, :1].expand(1, rank.TOKENS, rank.WIDTH)
    assert apart(attention(same, rank.weights(generator))) < 1e-12


def test_the_gradient_is_the_slope_of_the_loss() -> None:
    """The loss moves by its norm along its direction: central differences in the last matrix."""
    arm, generator = ARMS["skip post-LN"], rank.draws(0)
    x = rank.tokens(generator, rank.SEQUENCES)
    labels = torch.randint(rank.CLASSES, (rank.SEQUENCES,), generator=generator)
    readout = rank.normal(generator, rank.WIDTH, rank.CLASSES)
    x, last = rank.layer(arm, x, rank.weights(generator)), rank.weights(generator)
    start = last.second.clone().requires_grad_()

    def loss(matrix: Tensor) -> Tensor:
        last.second = matrix
        return cross_entropy(rank.layer(arm, x, last).mean(1) @ readout, labels)

    (direction,) = torch.autograd.grad(loss(start), start)
    step = 1e-5 * direction / direction.norm()
    slope = (loss(start + step) - loss(start - step)).item() / 2e-5
    assert slope == pytest.approx(last_gradient(arm, 0, 2), rel=1e-5)
