"""What the tests of several families share: an arch as its file has it, and computed counts."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from resexp import data, models
from resexp.models.blocks import Block, Stages
from resexp.settings import (
    Arch,
    Settings,
    Twin,
    UsageError,
    choices,
    convolutions_per_block,
    nearest_depths,
)
from resexp.settings.choices import config_folder


def file(name: str) -> DictConfig:
    """What configs/arch says of an arch, with what it says it shares with another."""
    own = cast(DictConfig, OmegaConf.load(config_folder() / "arch" / f"{name}.yaml"))
    others = [one for one in own.pop("defaults", []) if one != "_self_"]
    return cast(DictConfig, OmegaConf.merge(*map(file, others), own))


def archs(family: str = "cifar") -> list[str]:
    """The archs of one family."""
    return [one for one in choices.options("arch") if settings(one).arch.family == family]


def settings(
    name: str,
    depth: int | None = None,
    *,
    width: int = 16,
    twin: Twin = Twin.none,
    options: dict[str, Any] | None = None,
    **changes: Any,
) -> Settings:
    """The settings of ``arch=name``, some of the arch's own changed; at its least depth from 8."""
    merged = OmegaConf.merge(OmegaConf.structured(Arch), file(name))
    arch = cast(Arch, OmegaConf.to_object(merged))
    arch = replace(arch, options=arch.options | (options or {}), **changes)
    return Settings(arch=arch, depth=depth or depths(arch)[0], width=width, twin=twin)


def depths(arch: Arch) -> list[int]:
    """The depths that an arch's file lists, or the two least of its rule from 8 on."""
    rule = arch.depths or f"{3 * convolutions_per_block(arch)}n+2"
    if "n" not in rule:
        return [int(word) for word in rule.split()]
    return [one for one in range(8, 24) if one in nearest_depths(rule, one)][:2]


def least(of: Settings) -> tuple[int, int]:
    """The smallest images, 8x8 or four times as large, that the network takes."""
    try:
        models.check(of, (8, 8))
    except UsageError:
        return 32, 32
    return 8, 8


def pictures(count: int = 6, channels: int = 1, height: int = 8, width: int = 8) -> Tensor:
    """Normal numbers, the same ones every time."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, channels, height, width, generator=generator)


def norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def blocks(network: nn.Module) -> list[Block]:
    """The blocks of a network of stages."""
    assert isinstance(network, Stages)
    return [block for block in network.blocks if isinstance(block, Block)]  # type: ignore[union-attr]


def computed(metric: str) -> dict[tuple[str, int], int]:
    """Counts of published networks, computed apart from this package: {(network, depth): value}."""
    with (Path(__file__).parent / "counts.csv").open(newline="") as file:
        return {
            (row["network"], int(row["depth"])): int(row["value"])
            for row in csv.DictReader(file)
            if row["metric"] == metric
        }


def size(of: Settings, pixels: int, classes: int, channels: int = 3) -> models.Size:
    """What a network costs, found without memory for its values."""
    with torch.device("meta"):
        network = models.structure(of, channels, classes, (pixels, pixels))
        return models.measure(network, channels, (pixels, pixels))


def enlarged(images: data.Images, times: int) -> data.Images:
    """Every pixel repeated ``times`` times across and down."""
    return replace(
        images,
        **{
            name: getattr(images, name).repeat_interleave(times, 1).repeat_interleave(times, 2)
            for name in ("train_images", "test_images")
        },
    )
