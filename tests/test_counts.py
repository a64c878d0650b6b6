"""What networks cost: each row of counts.csv, torch's own counter, sums by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import computed, settings

from resexp import models
from resexp.models.layers import NORMS
from resexp.settings import BottleneckStride, Normalisation, Shortcut, Twin

PAPER: dict[str, Any] = {"width": 64}
UNET: dict[str, Any] = {**PAPER, "norm": Normalisation.none, "options": {"padding": "valid"}}
MIDDLE = {"bottleneck_stride": BottleneckStride.middle}
#: What the rows of counts.csv call the networks that this package builds. Of the CIFAR
#: family they stride in a bottleneck's 3x3 convolution; the paper, and the default, in its 1x1.
NETWORKS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "plain/resnet A": [("plain", {}), ("residual", {})],
    "resnet A": [("residual", {})],
    "resnet B": [("residual", {"shortcut": Shortcut.B})],
    "resnet C": [("residual", {"shortcut": Shortcut.C})],
    "preact basic A": [("preact", {"shortcut": Shortcut.A})],
    "preact basic B (bare 1x1)": [("preact", {"shortcut": Shortcut.B})],
    "bottleneck B": [("bottleneck", {})],
    "bottleneck plain twin": [("bottleneck", {"twin": Twin.plain})],
    "preact bottleneck": [("preact_bottleneck", {})],
    "SE-resnet A r16": [("se", {})],
    "SE-resnet B r16": [("se", {"shortcut": Shortcut.B})],
    "SE-bottleneck B r16": [("bottleneck", {"se_ratio": 16})],
    "SE-preact-bottleneck r16": [("preact_bottleneck", {"se_ratio": 16})],
    "Fixup ResNet (authors layout, 5 scalars/block + 2)": [("fixup", {})],
    "ReZero ResNet A with BN (1 scalar/block)": [("rezero", {})],
    "DenseNet k12 stem16 theta1": [("dense", {"options": {"growth": 12}})],
    "DenseNet k24 stem16 theta1": [("dense", {"options": {"growth": 24}})],
    "DenseNet-BC k12": [("dense_bc", {"options": {"growth": 12}})],
    "DenseNet-BC k24": [("dense_bc", {"options": {"growth": 24}})],
    "DenseNet-BC k40": [("dense_bc", {"options": {"growth": 40}})],
    "torchvision densenet121": [("densenet", {})],
    **{f"torchvision vgg{depth}": [("vgg", PAPER)] for depth in (16, 19)},
    "torchvision vgg19_bn": [("vgg", PAPER | {"norm": Normalisation.batch})],
    **{f"torchvision resnet{depth}": [("resnet", PAPER)] for depth in (18, 34)},
    **{
        f"torchvision resnet{depth} (stride on 3x3)": [("resnet", PAPER | MIDDLE)]
        for depth in (50, 101, 152)
    },
    **{f"resnet{depth} stride on first 1x1": [("resnet", PAPER)] for depth in (50, 101, 152)},
    **{
        f"plain-{depth} / ResNet-{depth} A": [
            ("resnet", PAPER | {"shortcut": Shortcut.A}),
            ("resnet", PAPER | {"twin": Twin.plain}),
        ]
        for depth in (18, 34)
    },
    **{f"ResNet-{depth} C": [("resnet", PAPER | {"shortcut": Shortcut.C})] for depth in (18, 34)},
    "SE-ResNet-50 r16 (FC biases)": [("resnet", PAPER | {"se_ratio": 16})],
    "U-Net 1->2 ch, valid conv, biases": [("unet", UNET)],
    "U-Net without concatenation": [("unet_add", UNET), ("unet", UNET | {"twin": Twin.plain})],
}
WITHOUT_NORM = " without BN params"


@pytest.mark.process
@pytest.mark.parametrize(("name", "depth"), computed("params_exact"))
def test_parameters_and_flops_are_the_computed_ones(name: str, depth: int) -> None:
    for arch, how in NETWORKS[name.removesuffix(WITHOUT_NORM)]:
        of = settings(arch, depth, **how)
        if of.arch.family == "cifar":
            of.arch.bottleneck_stride = BottleneckStride.middle
        channels, classes, pixels = {"imagenet": (3, 1000, 224), "unet": (1, 2, 64)}.get(
            of.arch.family.removeprefix("dense_").replace("vgg", "imagenet"), (3, 10, 32)
        )
        macs = computed(f"macs_exact_{pixels}x{pixels}").get((name, depth))
        with torch.device("meta"):
            network = models.structure(of, channels, classes, (pixels, pixels))
            norms = sum(models.count(one) for one in network.modules() if isinstance(one, NORMS))
            without = name.endswith(WITHOUT_NORM)
            counted = models.count(network) - (norms if without else 0)
            assert counted == computed("params_exact")[name, depth]
            if macs is not None:
                size = models.measure(network, channels, (pixels, pixels))
                assert size.flops == 2 * macs
                assert (size.parameters, size.parameters_without_norm) == (counted, counted - norms)


def test_the_oracle_names_no_network_that_is_not_here() -> None:
    rows = computed("params_exact")
    assert {name.removesuffix(WITHOUT_NORM) for name, _ in rows} == set(NETWORKS)
    others = computed("macs_exact_32x32") | computed("macs_exact_224x224")
    assert others.keys() <= rows.keys() and (len(rows), len(others)) == (69, 45)


def test_a_bottleneck_that_strides_first_saves_what_its_convolutions_would_read() -> None:
    network = models.structure(settings("bottleneck", 164), 3, 10)
    # Two first 1x1 convolutions at a quarter of 2,097,152 multiply-adds each.
    assert models.measure(network, 3, (32, 32)).flops == 2 * (247_646_720 - 3_145_728)


# torch imports its own counter through a module that warns of its own deprecation.
@pytest.mark.process
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("arch", "depth", "size"),
    [
        ("plain", 8, (13, 10)),
        ("bottleneck", 11, (13, 10)),
        ("unet", 8, (8, 8)),
        *((f"transformer{kind}", 2, (8, 8)) for kind in ("", "_post", "_rezero")),
    ],
)
def test_flops_agree_with_torchs_own_counter(arch: str, depth: int, size: tuple[int, int]) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    network = models.structure(settings(arch, depth, width=4), 3, 10, size).eval()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(torch.zeros(1, 3, *size))
    assert models.measure(network, 3, size).flops == counter.get_total_flops()
