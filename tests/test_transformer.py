"""resexp.models.transformer: counts, parity with torch's own layer, twins, starts, training."""

from __future__ import annotations

import copy

import pytest
import torch
from families import pictures
from torch import Tensor, nn

from resexp import models
from resexp.config import compose
from resexp.models.transformer import Transformer, TransformerBlock
from resexp.settings import Settings

PRE, POST, REZERO = "transformer", "transformer_post", "transformer_rezero"
ARCHS = (PRE, POST, REZERO)
PERI, SCALED, SHAPED = "transformer_peri", "transformer_scaled", "transformer_shaped"


def settings(arch: str, *words: str) -> Settings:
    return compose([f"arch={arch}", "depth=2", *words]).settings


def built(arch: str, *words: str) -> Transformer:
    network = models.build(settings(arch, *words), 1, 10, (8, 8))
    assert isinstance(network, Transformer)
    return network


def first(network: Transformer) -> TransformerBlock:
    block = network.blocks[0]
    assert isinstance(block, TransformerBlock)
    return block


def tokens(dimension: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(3, 16, dimension, generator=generator, dtype=torch.float64)


def shaken(network: nn.Module) -> nn.Module:
    """Every parameter moved at random in float64, so that none is a neutral element."""
    generator = torch.Generator().manual_seed(5)
    for parameter in network.double().parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator).double()
    return network


# Counts


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ([], 49_984),  # 4 heads of 16: 64
        (["heads=8"], 198_272),  # 128
        (["heads=8", "width=64"], 3_152_384),  # 512
    ],
)
def test_a_block_has_12dd_and_13d_parameters(words: list[str], value: int) -> None:
    with torch.device("meta"):
        network = models.structure(settings(PRE, *words), 1, 10, (8, 8))
    assert isinstance(network, Transformer)
    assert models.count(first(network)) == value


@pytest.mark.process
def test_pre_ln_has_one_layer_norm_more_and_rezero_none_but_a_number_a_block() -> None:
    pre, post, rezero = (models.count(built(arch)) for arch in ARCHS)
    assert pre - post == 2 * 64
    assert post - rezero == 2 * (4 * 64 - 1)
    embedding, places, classifier = 4 * 64 + 64, 16 * 64, 64 * 10 + 10
    assert post == embedding + places + 2 * 49_984 + classifier


# What it computes


def torchs_own(block: TransformerBlock, norm_first: bool) -> nn.TransformerEncoderLayer:
    """torch's layer with the weights of ``block``."""
    layer = nn.TransformerEncoderLayer(
        64, 4, 256, 0.0, "relu", batch_first=True, norm_first=norm_first, dtype=torch.float64
    )
    here = block.state_dict()
    place = "branch" if norm_first else "after"
    names = {
        "self_attn.in_proj_": "attention.branch.inputs.",
        "self_attn.out_proj.": "attention.branch.output.",
        "linear1.": "feedforward.branch.first.",
        "linear2.": "feedforward.branch.second.",
        "norm1.": f"attention.{place}.norm.",
        "norm2.": f"feedforward.{place}.norm.",
    }
    layer.load_state_dict(
        {theirs + k: here[ours + k] for theirs, ours in names.items() for k in ("weight", "bias")}
    )
    return layer


@pytest.mark.parametrize(("arch", "norm_first"), [(PRE, True), (POST, False)])
def test_a_block_gives_the_outputs_and_gradients_of_torchs_own(arch: str, norm_first: bool) -> None:
    block = first(built(arch))
    shaken(block)
    theirs, x = torchs_own(block, norm_first), tokens()
    ours, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    torch.testing.assert_close(block(ours), theirs(other), rtol=1e-10, atol=1e-10)
    block(ours).square().sum().backward()
    theirs(other).square().sum().backward()
    torch.testing.assert_close(ours.grad, other.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.process
def test_the_plain_twin_is_the_same_layers_without_additions() -> None:
    block, x = first(built(PRE, "twin=plain")), tokens()
    shaken(block)
    by_hand = block.feedforward.branch(block.attention.branch(x))
    assert torch.equal(block(x), by_hand)
    skipping = first(built(PRE)).double()
    skipping.load_state_dict(block.state_dict())
    y = x + skipping.attention.branch(x)
    torch.testing.assert_close(skipping(x), y + skipping.feedforward.branch(y))


def test_peri_ln_normalises_what_branches_give_and_scaled_ln_divides_by_a_root() -> None:
    x = tokens()
    for arch in (PERI, SCALED):
        network = shaken(built(arch))
        for number, block in enumerate(network.blocks, 1):
            for one in (block.attention, block.feedforward):
                layers = dict(one.branch.named_children())
                before, after = layers.pop("norm"), layers.pop("norm_after", nn.Identity())
                y = before(x) / (number**0.5 if arch == SCALED else 1)
                layers.pop("scale", None)
                for layer in layers.values():
                    y = layer(y)
                torch.testing.assert_close(one(x), x + after(y))
                assert isinstance(after, nn.LayerNorm) is (arch == PERI)
    assert isinstance(built(PERI).opening, nn.LayerNorm)
    assert all(isinstance(built(one).end, nn.LayerNorm) for one in (PERI, SCALED))


def test_shaped_attention_is_its_formula_and_starts_as_an_isometry() -> None:
    attention, x = first(built(SHAPED)).attention.branch, tokens()
    x = nn.functional.layer_norm(x, x.shape[-1:])
    start = copy.deepcopy(attention).double()
    torch.testing.assert_close(start(x).norm(dim=-1), x.norm(dim=-1), rtol=1e-5, atol=0)
    one = shaken(attention)
    q, k, v = one.get_submodule("inputs")(x).chunk(3, dim=-1)
    mixed = []
    for head in range(4):
        here = slice(16 * head, 16 * head + 16)
        weights = torch.softmax(q[..., here] @ k[..., here].mT / 4, dim=-1)
        mixed.append((torch.eye(16) + weights - 1 / 16) @ v[..., here])
    torch.testing.assert_close(
        one.get_submodule("products")(torch.cat((q, k, v), -1)), torch.cat(mixed, -1)
    )


def test_rezero_starts_as_the_identity_and_shares_one_number_in_a_block() -> None:
    block, x = first(built(REZERO)).double(), tokens()
    assert torch.equal(block(x), x)
    numbers = [one for one in block.parameters() if one.numel() == 1]
    assert len(numbers) == 1
    numbers[0].data.fill_(0.5)
    y = x + 0.5 * block.attention.branch(x)
    torch.testing.assert_close(block(x), y + 0.5 * block.feedforward.branch(y))


def test_tokens_are_patches_in_rows_and_places_count() -> None:
    network, x = built(PRE), pictures()
    seen: list[Tensor] = []
    network.embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits = network(x)
    assert torch.equal(seen[0][:, 5], x[:, 0, 2:4, 2:4].flatten(1))  # second row, second patch
    assert not torch.allclose(network(x.flip(3)), logits)  # other patches in other places


def test_oblong_images_of_three_channels_go_through() -> None:
    network = models.build(settings(PRE, "patch=4"), 3, 7, (8, 12))
    assert network(torch.zeros(2, 3, 8, 12)).shape == (2, 7)


def test_skips_keep_tokens_apart_where_plain_blocks_make_them_equal() -> None:
    # Dong et al. 2021: attention without skips collapses tokens to one.
    apart = {}
    for twin in ("none", "plain"):
        network = built(PRE, "depth=6", f"twin={twin}").double()
        y = network.blocks(tokens())
        apart[twin] = ((y - y.mean(1, keepdim=True)).norm() / y.norm()).item()
    assert apart["none"] > 0.3
    assert apart["plain"] < 1e-3


# Twins and starts


@pytest.mark.process
def test_the_three_kinds_start_at_the_same_weights() -> None:
    networks = [dict(built(arch).named_parameters()) for arch in ARCHS]
    drawn = [name for name, value in networks[2].items() if value.dim() > 1]
    assert len(drawn) == 2 * 4 + 3
    for name in drawn:
        assert torch.equal(networks[0][name], networks[1][name])
        assert torch.equal(networks[0][name], networks[2][name])


def test_weights_of_blocks_start_with_the_variance_of_glorot() -> None:
    start = dict(built(PRE).named_parameters())
    for name, fans in (
        ("attention.branch.inputs", 64 + 64),
        ("attention.branch.output", 64 + 64),
        ("feedforward.branch.first", 64 + 256),
        ("feedforward.branch.second", 64 + 256),
    ):
        weight = start[f"blocks.1.{name}.weight"]
        assert weight.var().item() == pytest.approx(2 / fans, rel=0.06)  # 4,096 values or more
        assert weight.abs().max() <= (6 / fans) ** 0.5
    assert start["positions.weight"].std().item() == pytest.approx(0.5, rel=0.1)
