"""The twin contract, checked: two networks that differ in the skip connection and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from resexp import data as images
from resexp import models
from resexp.data import batches
from resexp.settings import Job, Settings, Twin
from resexp.train.schedule import learning_rate

STEPS_CHECKED = 50  # batches compared


@dataclass(slots=True)
class Check:
    """One clause of the contract: what was compared, whether it is equal, and the numbers."""

    clause: str
    equal: bool
    detail: str


def contract(job: Job) -> list[Check]:
    """Compare ``job``'s network and training with its plain twin's, by building both."""
    data = images.load(job.settings.data)
    settings, twin = job.settings, replace(job.settings, twin=Twin.plain)
    pair = [
        models.build(one, data.channels, len(data.classes), data.size) for one in (settings, twin)
    ]
    sizes = [models.measure(network, data.channels, data.size) for network in pair]
    shared, only = compare(*pair)
    few = ", ".join(only[:3]) + (" ..." if only[3:] else "")
    counts = " and ".join(f"{one.parameters:,}" for one in sizes)
    values = f"{len(shared)} shared tensors, {sum(one.numel() for one, _ in shared):,} values"
    flops = " and ".join(f"{one.flops:,}" for one in sizes)
    alike = sizes[0].parameters == sizes[1].parameters and not only
    start_alike = all(torch.equal(one, other) for one, other in shared)
    cost_alike = sizes[0].flops == sizes[1].flops
    return [
        Check("parameters", alike, counts + (f"; without a counterpart: {few}" if only else "")),
        Check("initial values", start_alike, values),
        Check("FLOPs", cost_alike, f"{flops} an image, additions left out"),
        same_batches(settings, twin, len(data.train_labels)),
        same_rates(settings, twin),
    ]


def compare(network: nn.Module, twin: nn.Module) -> tuple[list[tuple[Tensor, Tensor]], list[str]]:
    """The parameters that both have in one shape, and the names of those that only one has."""
    mine, theirs = dict(network.named_parameters()), dict(twin.named_parameters())
    shared = [name for name in mine if name in theirs and mine[name].shape == theirs[name].shape]
    only = [name for name in {**mine, **theirs} if name not in shared]
    return [(mine[name], theirs[name]) for name in shared], only


def same_batches(settings: Settings, twin: Settings, count: int) -> Check:
    steps = min(STEPS_CHECKED, settings.steps)
    plans = [batches.planned(one, 0, steps, count) for one in (settings, twin)]
    parts = ("index", "dy", "dx", "mirror")
    equal = all(torch.equal(getattr(plans[0], one), getattr(plans[1], one)) for one in parts)
    return Check("batches", equal, f"images, crops and mirrors of the first {steps} steps")


def same_rates(settings: Settings, twin: Settings) -> Check:
    traces = [[learning_rate(one, step) for step in range(one.steps)] for one in (settings, twin)]
    levels = ", ".join(f"{level:g}" for level in sorted(set(traces[0]), reverse=True))
    detail = f"{settings.steps:,} steps at {levels}"
    return Check("learning rate", traces[0] == traces[1], detail)


def text(job: Job, checks: list[Check]) -> str:
    """The checks as lines, and what they mean."""
    settings = job.settings
    lines = [f"{job.arch}-{settings.depth} and its plain twin, seed {settings.seed}"]
    for check in checks:
        word = "equal" if check.equal else "DIFFERS"
        lines.append(f"  {word:<8} {check.clause:<15} {check.detail}")
    unequal = ", ".join(check.clause for check in checks if not check.equal)
    end = f"Not exact twins: {unequal} differ; say so beside every result."
    return "\n".join(
        [*lines, end if unequal else "Exact twins: they differ in the skip connections alone."]
    )
