"""Networks: built from settings, counted, initialised. Knows neither data nor training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import nn

from resexp.models.foldable import fold as fold  # and its rules enter themselves
from resexp.models.initialise import initialise
from resexp.models.layers import NORMS
from resexp.models.merges import RULES, Drop
from resexp.models.options import NoOptions
from resexp.models.options import check as check_options
from resexp.models.streams import Streams as Streams  # likewise
from resexp.models.trace import Call, one_pass
from resexp.settings import Activation, Arch, Init, Normalisation, Order, Settings, Twin, UsageError
from resexp.settings.schema import check_depth

#: Settings of an arch that concern every family.
EVERY_FAMILY = ("family", "depths", "merge", "options")


@dataclass(frozen=True, slots=True)
class Size:
    """What a network costs. Published counts mix both conventions, so both are here."""

    parameters: int  # batch normalisation's scales and shifts included
    parameters_without_norm: int
    flops: int  # of one image forward, two for a multiply-add; convolutions and classifier


class Family(Protocol):
    """What a module of this package that stacks branches offers.

    Beside these, ``Options``, a dataclass of its own settings, if it has any; ``TASK``, if it is
    not classification; ``MATCHED_TWIN = True``, if the plain twin has other parameters and there is
    one as wide as it takes; ``WHOLE_BATCH = True``, if it draws noise for whole batches; and
    ``check``, a function of settings and size (None: not known yet) that raises UsageError for
    what it cannot build, if there is any such thing.
    """

    MERGES: Sequence[str]  # the rules it knows
    READS: Sequence[str]  # the settings of an arch that it reads, beside its options

    def network(
        self, settings: Settings, channels: int, classes: int, size: tuple[int, int]
    ) -> nn.Module: ...


@cache
def family(name: str) -> Family:
    """The family's module. Raises UsageError if there is none of that name."""
    known = sorted(path.stem for path in Path(__file__).parent.glob("*.py"))
    module = import_module(f"{__name__}.{name}") if name in known else None
    if not hasattr(module, "network"):
        raise UsageError(f"arch.family={name} is unknown. Choose an arch: resexp list archs.")
    return cast(Family, module)


def task(name: str) -> str:
    """What a family's networks learn: classification or segmentation."""
    return str(getattr(family(name), "TASK", "classification"))


def check(settings: Settings, size: tuple[int, int] | None = None) -> None:
    """Raise UsageError for settings of an arch that its family would not read or cannot build.

    ``size`` is the images' height and width, once they are known.
    """
    check_depth(settings.depth, settings.arch)
    arch, default = settings.arch, Arch()
    module = family(arch.family)
    if arch.merge not in module.MERGES:
        known = ", ".join(module.MERGES)
        raise UsageError(f"arch.merge={arch.merge} is not for {arch.family}. Choose from {known}.")
    check_init(settings)
    if settings.twin is Twin.matched and not hasattr(module, "MATCHED_TWIN"):
        raise UsageError(f"twin=matched is not for {arch.family}. Use twin=plain.")
    for field in fields(Arch):
        changed = getattr(arch, field.name) != getattr(default, field.name)
        if changed and field.name not in (*EVERY_FAMILY, *module.READS):
            raise UsageError(f"arch.{field.name} means nothing to the {arch.family} family.")
    rule = RULES[arch.merge]
    for key, value in rule.NEEDS.items():
        if getattr(arch, key) != value:
            raise UsageError(f"arch.merge={arch.merge} needs arch.{key}={value}.")
    if arch.survival < 1 and issubclass(rule, Drop):
        raise UsageError(
            f"arch.survival is for skips beside a branch, not arch.merge={arch.merge}."
        )
    check_options(arch.options, getattr(module, "Options", NoOptions), rule.Options)
    if settings.launch.ranks > 1 and (rule.whole_batch or hasattr(module, "WHOLE_BATCH")):
        raise UsageError(
            "this network has dropout, whose noise is drawn for whole batches. Leave "
            f"launch.ranks={settings.launch.ranks} out."
        )
    if hasattr(module, "check"):
        module.check(settings, size)


def check_init(settings: Settings) -> None:
    """Raise UsageError for initial values that make no sense in the arch."""
    arch, init = settings.arch, settings.init
    if init in (Init.he_fan_out, Init.he_fan_in, Init.xavier):
        return
    if "activation" not in family(arch.family).READS:
        raise UsageError(f"init={init} is for blocks of convolutions, not for {arch.family}.")
    if init is Init.looks_linear and arch.activation is not Activation.crelu:
        raise UsageError("init=looks_linear needs arch.activation=crelu, which it undoes.")
    if init is not Init.zero_gamma:
        return
    if issubclass(RULES[arch.merge], Drop):
        raise UsageError(
            f"init=zero_gamma is for networks with skips: arch.merge={arch.merge} would start "
            "dead. Choose arch=residual."
        )
    ends = (Order.original, Order.relu_only_preactivation)
    if arch.order not in ends or arch.norm is Normalisation.none:
        raise UsageError(
            f"init=zero_gamma needs a branch that ends in normalisation: arch.order={ends[0]} or "
            f"{ends[1]}, and arch.norm other than none."
        )


def structure(
    settings: Settings, channels: int, classes: int, size: tuple[int, int] = (32, 32)
) -> nn.Module:
    """The network with torch's own initial weights, on torch's current default device.

    ``size`` is the images' height and width; families of convolutions take any.
    """
    check(settings, size)
    return family(settings.arch.family).network(settings, channels, classes, size)


def build(
    settings: Settings, channels: int, classes: int, size: tuple[int, int] = (32, 32)
) -> nn.Module:
    """The network with its initial weights, on the CPU, in channels-last layout."""
    network = structure(settings, channels, classes, size)
    initialise(network, settings.seed_of("weights"), settings.init)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def measure(network: nn.Module, channels: int, size: tuple[int, int]) -> Size:
    """Parameters and FLOPs for images of ``size`` pixels, from one pass of one image."""
    return measured(network, one_pass(network, channels, size))


def measured(network: nn.Module, whole: Call) -> Size:
    """The same from a pass that was made.

    FLOPs are counted as published ones are, two for each multiply-add of a weight and of attention.
    """
    products = sum(call.multiply_adds for call in whole.walk())
    norms = (module for module in network.modules() if isinstance(module, NORMS))
    return Size(parameters := count(network), parameters - sum(map(count, norms)), 2 * products)


def count(module: nn.Module) -> int:
    """Parameters of a module, buffers left out."""
    return sum(parameter.numel() for parameter in module.parameters())
