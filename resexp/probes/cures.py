"""What cures degradation without a skip? Optimizers, activations and initial weights.

Batch normalisation and ReLU multiply the backward signal of a plain network by
sqrt(pi / (pi - 1)) = 1.211 a layer (resexp.probes.steps), so at 56 layers the first ones take steps
some thousands of times larger, in units of their weights, than the last. The hypothesis: that is
degradation, so what makes relative steps even cures it, and what leaves them uneven does not. Even
they are under AdamW, LARS and Muon, whose steps do not follow the gradient's size, and with a leaky
ReLU of the slope that TAT solves for the depth (1.04 a layer); uneven they stay with
delta-orthogonal weights, before the same normalisation and ReLU. Of the others nothing is foretold.

Every network at the learning rate that did best on seeds of its own, from three. A cure's rise is
the clean training error of plain networks with it, the deepest depth less the shallowest of 20
layers or more. The rule (effect and none: resexp.probes.sweeps): no rise under each of the four
that make steps even, and a rise with the one that does not: supported. A rise under one of the
four, or none with the one: not supported. Else inconclusive. Written before the runs of seeds 30 to
34; pilots of single seeds (11, 90) had ended plain-56 at 0.4 % with TAT and at 11 to 55 % under the
three optimizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd

from resexp.analysis.statistics import paired_t
from resexp.probes import Account, Case, Figure, Finding, Needs, Verdict, sweeps
from resexp.settings import Activation, Init, Twin

CLAIM = "Degradation is uneven steps: what makes relative steps even cures it without a skip."
SOURCE = "this project's question; Yang et al. 2019 on the growth; Zhang et al. 2022 on TAT"
TEXTBOOK = "Skips cure degradation; whether the optimizer or the initial weights can is left open."
NEEDS = Needs.runs

EVEN = ["adamw", "lars", "muon", "tat"]
UNEVEN = "delta_orthogonal"
NONE = "none"
RISES, FLAT = "degrades", "does not"
FORETOLD = [f"plain, {one}" for one in (NONE, *EVEN, UNEVEN)]
HIDDEN = ("diracnet", "repvgg")  # archs: plain networks once folded, with skips while they train
SHALLOW = 20
#: Settings that a cure changes: by itself, or with its optimizer.
BROUGHT = ["optimizer", "init", "momentum", "nesterov", "weight_decay", "warmup_lr"]


def arm(case: Case) -> str | None:
    """``plain, muon`` or ``residual, tat + delta_orthogonal``; None if anything else differs."""
    if case.arch in HIDDEN:
        folded = cure(case) == NONE and case.settings.twin is Twin.none
        return plain(case.arch) if folded else None
    known = case.kind("activation", "slope") == case.arch
    return f"{case.arch}, {cure(case)}" if known else None


def cure(case: Case) -> str:
    """What differs from SGD, ReLU and He's weights; none if nothing does."""
    settings = case.settings
    usual = ("sgd", Activation.relu, Init.he_fan_out)
    held = (settings.optimizer, settings.arch.activation, settings.init)
    differs = [one for one, other in zip(held, usual, strict=True) if one != other]
    return " + ".join(map(str, differs)) or NONE


measure = partial(sweeps.ends, arm, FORETOLD, key="lr", apart=BROUGHT)


def plain(cure: str) -> str:
    return f"plain, {cure}"


def depths_of(rows: pd.DataFrame) -> tuple[int, int]:
    """The shallow and the deep depth that are compared."""
    depths = sweeps.common(rows, FORETOLD)
    return next((depth for depth in depths if depth >= SHALLOW), depths[0]), depths[-1]


def rise(rows: pd.DataFrame, arm: str, column: str = sweeps.ERROR) -> sweeps.Contrast:
    """How much higher the deep networks of an arm end than the shallow ones."""
    shallow, deep = depths_of(rows)
    return sweeps.contrast(rows, (arm, deep), (arm, shallow), column)


def rises(rows: pd.DataFrame, arch: str, column: str) -> dict[str, pd.Series[float]]:
    """By cure, the least mean first, how much higher the deep networks of an arch end, by seed."""
    arms = {one for one in rows["arm"] if one.startswith(f"{arch}, ")}
    found = {one.removeprefix(f"{arch}, "): rise(rows, one, column).points for one in arms}
    both = [(name, points) for name, points in found.items() if len(points)]
    return dict(sorted(both, key=lambda item: (item[1].mean(), item[0])))


def readings(rows: pd.DataFrame) -> dict[str, tuple[sweeps.Contrast, str]]:
    """By cure how much higher deeper plain networks end with it, and how the rule reads that.

    p by Holm over those of which something is foretold, and over the others.
    """
    foretold = [*EVEN, UNEVEN]
    others = [one for one in rises(rows, "plain", sweeps.ERROR) if one not in foretold]
    found = {}
    for family in foretold, others:
        risen = [rise(rows, plain(one)) for one in family]
        tests = zip(family, risen, sweeps.effects(risen), sweeps.none(risen), strict=True)
        for one, contrast, up, flat in tests:
            found[one] = contrast, RISES if up else FLAT if flat else "inconclusive"
    return found


def conclude(rows: pd.DataFrame) -> Finding:
    """Whether deeper plain networks end worse with each cure, by the rule in the docstring."""
    chosen, rows = rows, sweeps.judged(rows)
    _, deep = depths_of(rows)
    found = readings(rows)
    said = {one: found[one][1] for one in [*EVEN, UNEVEN]}
    supported = all(said[one] == FLAT for one in EVEN) and said[UNEVEN] == RISES
    refuted = any(said[one] == RISES for one in EVEN) or said[UNEVEN] == FLAT
    every = rises(rows, "plain", sweeps.ERROR)
    tried = [one for one in every if one != NONE]
    helped = [sweeps.contrast(rows, (plain(NONE), deep), (plain(one), deep)) for one in tried]
    better = [one for one, yes in zip(tried, sweeps.effects(helped), strict=True) if yes]
    names = ", ".join(one for one, word in said.items() if word == FLAT)
    why = f"without a skip, {names} trained 56 layers as well as 20."
    return sweeps.finding(
        rows,
        Verdict.of(supported, refuted),
        f"training error {sweeps.told(rows, [plain(one) for one in every], [deep])}; "
        f"better than without a cure: {', '.join(better) or 'none'}",
        [risen for risen, _ in found.values()],
        conventions=[
            sweeps.chosen_values(chosen, "rate"),
            "even steps foretold of " + ", ".join(EVEN) + f"; uneven of {UNEVEN}; the others told "
            "without a prediction, and tested apart",
            "diracnet and repvgg fold into plain networks, but train with skips inside a layer",
        ],
        account=(Account.overgeneralised, why) if names else None,
    )


def draw(rows: pd.DataFrame) -> Figure:
    """The rise in error and in loss by cure, the least of plain networks on top; and best rates."""
    from resexp.probes.drawing import COLOURS, GREY, finish, panels

    of = sweeps.judged(rows)
    columns = {sweeps.ERROR: "rise, points of error", sweeps.LOSS: "rise, decades of loss"}
    names = list(rises(of, "plain", sweeps.ERROR))
    figure, axes = panels(3, 30 + 7 * len(names), sharey=True)
    for axis, (column, label) in zip(axes, columns.items(), strict=False):
        for arch, colour in COLOURS.items():
            found = rises(of, arch, column)
            spread(axis, names, found, color=colour, marker="os"[arch == "residual"])
        axis.axvline(0, color=GREY, linewidth=0.8)
        axis.set_xlabel(label)
    rates(axes[2], names, sweeps.best(rows), depths_of(of))
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    lines = {arch: {"color": colour} for arch, colour in COLOURS.items()}
    lines |= {"as 1/depth": {"color": GREY, "marker": "|", "ls": ""}}
    lines |= {"as depth^-1.5": {"color": GREY, "marker": "x", "ls": ""}}
    shallow, deep = depths_of(of)
    title = f"From {shallow} to {deep} layers, each network at its best rate"
    return finish(figure, f"{title}: {of['seed'].nunique()} seeds", lines)


def spread(
    axis: Any, names: Sequence[str], found: dict[str, pd.Series[float]], **style: Any
) -> None:
    """The mean and 95 % interval of every cure that an arch was trained with."""
    for name, points in found.items():
        if name in names:
            mean = paired_t(list(points))
            at = names.index(name) + (0.16 if style["marker"] == "s" else -0.16)
            axis.plot([mean.low, mean.high], [at, at], color=style["color"], linewidth=1.2)
            axis.plot(mean.mean, at, ms=4, **style)


def rates(
    axis: Any, names: Sequence[str], chosen: dict[tuple[str, int], float], depths: tuple[int, int]
) -> None:
    """Best rates of plain networks: shallow (hollow), deep (full), and two theories of the deep."""
    from resexp.probes.drawing import GREY, PLAIN

    shallow, deep = depths
    for at, name in enumerate(names):
        rate, deeper = (chosen[plain(name), depth] for depth in depths)
        axis.plot([rate, deeper], [at, at], color=PLAIN, linewidth=1.2)
        axis.plot(rate, at, "o", color=PLAIN, mfc="white", ms=6)
        axis.plot(deeper, at, "o", color=PLAIN, ms=3.5)
        axis.plot(rate * shallow / deep, at, "|", color=GREY, ms=6)
        axis.plot(rate * (shallow / deep) ** 1.5, at, "x", color=GREY, ms=4)
    axis.set_xscale("log")
    axis.minorticks_off()
    ticks = [digit * 10**power for power in range(-5, 2) for digit in (1, 3)]
    low, high = axis.get_xlim()
    axis.set_xticks([tick for tick in ticks if low <= tick <= high])
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xlabel(f"best rate: {shallow} (hollow), {deep} layers")
