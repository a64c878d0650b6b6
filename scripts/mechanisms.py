"""docs/mechanisms.md from the committed findings of resexp probe: claim, measurement, figure.

    python scripts/mechanisms.py [FOLDER [PAGE]]

Reads FOLDER/probe-*.json and probe-*.csv and nothing else, so the same files give the same page,
byte for byte (tests/test_mechanisms.py holds it to that). The words of a finding are the probe's,
by its own rule; the numbers in the table are computed here from the rows of the CSV, one a seed:
``HEADLINES`` says which.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from resexp.analysis.statistics import paired_t

FOLDER = Path("results/digits/mechanisms")
PAGE = Path("docs/mechanisms.md")
ENDS = 3  # layers at either end of a network that gradients compares
TWICE = math.log10(2)  # decades: less than a factor of two is called no change


@dataclass(slots=True)
class Measured:
    """One number of a headline, by seed, and how it is told."""

    what: str
    values: pd.Series[float]  # index: seed
    unit: str
    form: str  # of the number: a format, with + for differences and logarithms
    base: float | None = None  # of the logarithms that the values are, told as ratios
    interval: bool = True  # else the range: of rounding errors and the like

    @property
    def mean(self) -> float:
        return paired_t(list(self.values)).mean


@dataclass(frozen=True, slots=True)
class Headline:
    """What is said of a mechanism, and which numbers of the probe's CSV stand against it."""

    told: str  # what textbooks and papers say
    measure: Callable[[pd.DataFrame], list[Measured]]
    otherwise: Callable[[pd.DataFrame], str] | None = None  # how far it is told wrongly


# --- rows


def choose(
    frame: pd.DataFrame, where: Mapping[str, object], each: Sequence[str] = ()
) -> pd.DataFrame:
    """The rows with these values, in order of seed and of the columns ``each``.

    Raises ValueError if there are none, or several of one seed and place: then a column tells
    them apart that is not looked at here.
    """
    for column, value in where.items():
        frame = frame[frame[column] == value]
    place = ["seed", *each]
    if frame.empty or frame.duplicated(place).any():
        raise ValueError(f"{'no' if frame.empty else 'several'} rows a seed with {dict(where)}")
    return frame.sort_values(place)


def by_seed(
    rows: pd.DataFrame, column: str, number: Callable[[pd.Series[float]], float]
) -> pd.Series[float]:
    """A number of each seed's values, in the order of the rows."""
    return rows.groupby("seed")[column].agg(number)


def values(frame: pd.DataFrame, where: Mapping[str, object], column: str) -> pd.Series[float]:
    """The column of the only row of each seed."""
    return choose(frame, where).set_index("seed")[column]


def difference(one: pd.Series[float], other: pd.Series[float]) -> pd.Series[float]:
    """Paired by seed; seeds that one of them lacks are left out."""
    return (one - other).dropna()


def depths_of(frame: pd.DataFrame, column: str, arms: Sequence[str]) -> list[int]:
    """The depths that all these arms have, from shallow to deep."""
    found = [set(frame.loc[frame[column] == arm, "depth"]) for arm in arms]
    return sorted(int(depth) for depth in set.intersection(*found))


# --- what each probe's rows say


def gradients(frame: pd.DataFrame) -> list[Measured]:
    start = frame[frame["step"].astype(str) == "0"]
    *_, deep = depths = depths_of(start, "arm", ["plain", "residual", "plain no norm xavier"])

    def first_over_last(arm: str) -> pd.Series[float]:
        rows = choose(start, {"arm": arm, "depth": deep}, ["layer"])
        ends = [by_seed(rows, "g", end) for end in (lambda g: g[:ENDS].sum(), last)]
        return np.log10(ends[0] / ends[1])

    def last(g: pd.Series[float]) -> float:
        return float(g[-ENDS:].sum())

    def first_layer(depth: int) -> pd.Series[float]:
        where = {"arm": "plain no norm xavier", "depth": depth, "layer": 1}
        return np.log10(values(start, where, "g"))

    return [
        Measured(
            f"plain-{deep}, gradient of the first {ENDS} layers over the last {ENDS}, at the start",
            first_over_last("plain"),
            "decades",
            "+.2f",
        ),
        Measured(f"residual-{deep}", first_over_last("residual"), "decades", "+.2f"),
        Measured(
            f"control, no normalisation, Xavier's weights: first layer's gradient, plain-{deep} "
            f"over plain-{depths[0]}",
            difference(first_layer(deep), first_layer(depths[0])),
            "decades",
            "+.1f",
        ),
    ]


def gradients_otherwise(frame: pd.DataFrame) -> str:
    plain, residual, control = gradients(frame)
    depth = residual.what.partition("-")[2]
    return (
        f"told as vanishing. With batch normalisation the gradients of plain-{depth} "
        f"{direction(plain.mean)} towards the input at the start, by {plain.mean:+.1f} decades "
        f"(residual {residual.mean:+.1f}). Without normalisation and from Xavier's weights they "
        f"{direction(control.mean)} with depth, by {control.mean:+.1f} decades."
    )


def direction(decades: float) -> str:
    """What gradients do, by the sign."""
    if abs(decades) < TWICE:
        return "hardly change"
    return "explode" if decades > 0 else "vanish"


def highway(frame: pd.DataFrame) -> list[Measured]:
    when = "end" if (frame["when"] == "end").any() else "start"
    words = {"start": "at the start", "end": "trained"}
    found = []
    for arm, moment in (("residual", when), ("preact", "start")):
        some = frame[frame["when"] == moment]
        deep = depths_of(some, "arm", [arm])[-1]
        rows = choose(some, {"arm": arm, "depth": deep}, ["block"])
        share = by_seed(rows, "shortcut_share", pd.Series.median)
        what = f"{arm}-{deep} {words[moment]}, a block's gradient by its shortcut (median)"
        found.append(Measured(what, 100 * share, "%", ".0f"))
    error = by_seed(frame, "identity_error", pd.Series.max)
    return [*found, Measured("the identity, largest error", error, "", ".0e", interval=False)]


def responses(frame: pd.DataFrame) -> list[Measured]:
    decay = frame.loc[frame["arch"] == "plain", "decay"].iloc[0]
    usual = frame[(frame["decay"] == decay) & (frame["of_block"] == 2)]
    shallow, *_, deep = depths_of(usual, "arch", ["plain", "residual"])

    def average(arch: str, depth: int, column: str) -> pd.Series[float]:
        rows = choose(usual, {"arch": arch, "depth": depth}, ["layer"])
        return by_seed(rows, column, pd.Series.mean)

    def less(column: str) -> pd.Series[float]:
        return difference(average("residual", deep, column), average("plain", deep, column))

    deeper = difference(average("residual", deep, "std"), average("residual", shallow, "std"))
    return [
        Measured(f"response, residual-{deep} less plain-{deep}", less("std"), "(std)", "+.3f"),
        Measured(f"residual-{deep} less residual-{shallow}", deeper, "(std)", "+.3f"),
        Measured(
            f"size of F(x) over x, residual-{deep} less plain-{deep}",
            less("branch_over_input"),
            "",
            "+.2f",
        ),
    ]


def identity(frame: pd.DataFrame) -> list[Measured]:
    def nats(part: str) -> pd.Series[float]:
        return values(frame, {"part": part, "arch": "plain"}, "loss")

    def miss(arch: str) -> pd.Series[float]:
        return values(frame, {"part": "regression", "arch": arch}, "relative_error")

    deep = int(frame.loc[frame["part"] == "scratch", "depth"].max())
    layers = int(frame.loc[frame["part"] == "regression", "depth"].max())
    return [
        Measured(
            f"plain-{deep}, loss trained as usual less constructed",
            difference(nats("scratch"), nats("constructed")),
            "nats",
            "+.4f",
        ),
        Measured(
            "constructed and its shallow source apart",
            difference(nats("constructed"), nats("shallow")).abs(),
            "nats",
            ".0e",
            interval=False,
        ),
        Measured(f"y = x, {layers} layers, relative error: plain", miss("plain"), "", ".3f"),
        Measured("residual", miss("residual"), "", ".3f"),
    ]


def lesion(frame: pd.DataFrame) -> list[Measured]:
    deep = depths_of(frame, "arch", ["plain", "residual"])[-1]
    blocks = int(frame.loc[frame["depth"] == deep, "blocks"].iloc[0])
    return [
        Measured(
            f"one of {blocks} blocks deleted, plain-{deep}, test error (median block)",
            excess(frame, "plain", deep, pd.Series.median),
            "points",
            "+.1f",
        ),
        Measured(
            f"residual-{deep}", excess(frame, "residual", deep, pd.Series.median), "points", "+.1f"
        ),
        Measured(
            f"residual-{deep}, worst block",
            excess(frame, "residual", deep, pd.Series.max),
            "points",
            "+.1f",
        ),
    ]


def excess(
    frame: pd.DataFrame, arch: str, depth: int, number: Callable[[pd.Series[float]], float]
) -> pd.Series[float]:
    """Of single deletions: points of test error above the undamaged network's."""
    here = {"arch": arch, "depth": depth}
    deleted = choose(frame, here | {"kind": "delete"}, ["block"])
    whole = values(frame, here | {"kind": "whole"}, "error_percent")
    return difference(by_seed(deleted, "error_percent", number), whole)


def lesion_otherwise(frame: pd.DataFrame) -> str:
    told = []
    for depth in depths_of(frame, "arch", ["residual"]):
        rows = frame[(frame["arch"] == "residual") & (frame["depth"] == depth)]
        points = excess(frame, "residual", depth, pd.Series.median).mean()
        told.append(f"{points:+.1f} with {int(rows['blocks'].iloc[0])} blocks")
    return (
        "told of residual networks, whatever their depth. One deleted block (the median one) costs "
        f"points of test error: {', '.join(told)}."
    )


def paths(frame: pd.DataFrame) -> list[Measured]:
    residual = frame[(frame["arch"] == "residual") & (frame["statistics"] == "batch")]
    deep = depths_of(residual, "arch", ["residual"])[-1]
    found = {}
    for when in ("start", "end"):
        rows = choose(residual, {"depth": deep, "when": when}, ["k"])
        found[when] = {seed: slope(one["k"], one["norm"]) for seed, one in rows.groupby("seed")}
    beyond = (rows["k"] * rows["weight"]).groupby(rows["seed"]).sum() - rows["blocks"].max() / 2
    return [
        Measured(
            f"residual-{deep} trained, a path's gradient by each branch on it",
            pd.Series(found["end"]),
            "times",
            ".2f",
            base=10,
        ),
        Measured("at the start", pd.Series(found["start"]), "times", ".2f", base=10),
        Measured("trained, mean length by weight, from half of all", beyond, "blocks", "+.1f"),
    ]


def paths_otherwise(frame: pd.DataFrame) -> str:
    trained, start, _ = paths(frame)
    decays = {one.what: paired_t(list(one.values)).high < 0 for one in (trained, start)}
    said = {
        (True, False): "The decay with length appears only after training",
        (True, True): "The decay with length is there before training",
        (False, True): "The decay with length is there at the start and not after training",
        (False, False): "No decay with length is shown, before training or after",
    }[decays[trained.what], decays[start.what]]
    return (
        f"told as a property of the architecture. {said}: each branch on a path multiplies its "
        f"gradient by {10**start.mean:.2f} at the start and by {10**trained.mean:.2f} trained."
    )


def slope(x: pd.Series[float], y: pd.Series[float]) -> float:
    """Least squares of log10 y by x; nothing where y is 0."""
    some = y > 0
    return float(np.polyfit(x[some], np.log10(y[some]), 1)[0])


def landscape(frame: pd.DataFrame) -> list[Measured]:
    shallow, *_, deep = depths_of(frame, "arch", ["plain", "residual"])

    def rough(arch: str, depth: int) -> pd.Series[float]:
        where = {"arch": arch, "depth": depth, "kind": "slice"}
        rows = choose(frame, where, ["direction", "a"])
        return rows.groupby(["seed", "direction"])["loss"].agg(roughness).groupby("seed").median()

    return [
        Measured(
            f"roughness, plain-{depth} less residual-{depth}",
            difference(rough("plain", depth), rough("residual", depth)),
            "",
            "+.2f",
        )
        for depth in (deep, shallow)
    ]


def roughness(losses: pd.Series[float]) -> float:
    """Of one slice: the sum of |second differences| of log10(1 + loss) over its range."""
    g = np.log10(1 + losses.to_numpy())
    return float(np.abs(np.diff(g, 2)).sum() / np.ptp(g))


def shattering(frame: pd.DataFrame) -> list[Measured]:
    networks = {
        "plain centred": (24, "plain, centred, 24 layers: neighbouring gradients correlate"),
        "residual batch norm 0.1": (50, "residual, branches times 0.1, 50 layers"),
        "plain": (24, "control, plain, not centred, 24 layers"),
    }
    return [
        Measured(
            what,
            values(frame, {"arm": arm, "depth": depth, "lag": 1}, "autocorrelation"),
            "",
            "+.2f",
        )
        for arm, (depth, what) in networks.items()
    ]


def rank(frame: pd.DataFrame) -> list[Measured]:
    def apart(arm: str, layers: int) -> pd.Series[float]:
        return values(frame, {"measured": "rank", "arm": arm, "layers": layers}, "value")

    def gradient(arm: str, layers: int) -> pd.Series[float]:
        where = {"measured": "gradient", "arm": arm, "layers": layers}
        return np.log10(values(frame, where, "value"))

    most = int(frame.loc[frame["measured"] == "gradient", "layers"].max())
    return [
        Measured(
            "tokens apart after 4 layers without skips",
            apart("no skip pre-LN", 4),
            "",
            ".0e",
            interval=False,
        ),
        Measured("after 12 with skips, pre-LN", apart("skip pre-LN", 12), "", ".2f"),
        Measured(
            f"last layer's gradient at {most} layers, post-LN over pre-LN",
            difference(gradient("skip post-LN", most), gradient("skip pre-LN", most)),
            "times",
            ".1f",
            base=10,
        ),
    ]


def where(frame: pd.DataFrame) -> list[Measured]:
    depth, step = frame.sort_values(["depth", "step"])[["depth", "step"]].iloc[-1]
    here = frame[(frame["depth"] == depth) & (frame["step"] == step)]
    nats = {
        arm: np.log10(values(here, {"arm": arm}, "loss"))
        for arm in ("none", "stage 1", "stage 2", "stage 3", "all")
    }
    best = min(("stage 1", "stage 2", "stage 3"), key=lambda arm: float(nats[arm].mean()))
    return [
        Measured(
            f"depth {depth}, step {step}, log10 loss with skips in all stages less in none",
            difference(nats["all"], nats["none"]),
            "decades",
            "+.2f",
        ),
        Measured(
            f"in all less in the best single one, {best}",
            difference(nats["all"], nats[best]),
            "decades",
            "+.2f",
        ),
    ]


def speed(frame: pd.DataFrame) -> list[Measured]:
    def steps(arm: str) -> pd.Series[float]:
        rows = choose(frame, {"arm": arm, "depth": depth}, ["step"])
        return np.log2(by_seed(rows, "steps_to_threshold", pd.Series.max))

    depth = depths_of(frame, "arm", ["rezero", "preact", "residual"])[0]
    return [
        Measured(what, difference(steps(arm), steps("residual")), "times", ".2f", base=2)
        for arm, what in (
            ("rezero", f"depth {depth}, steps to the threshold, ReZero over residual"),
            ("preact", "pre-activation over residual"),
        )
    ]


#: In the order of the page.
HEADLINES = {
    "gradients": Headline(
        "Every layer shrinks the gradient, so the first layers of a deep network hardly learn.",
        gradients,
        gradients_otherwise,
    ),
    "highway": Headline(
        "dL/dx = dL/dy (dF/dx + 1): the 1 carries the gradient to any layer.",
        highway,
    ),
    "responses": Headline(
        "Residual functions are small corrections: weaker responses than plain layers, and "
        "ResNet-20 > 56 > 110.",
        responses,
    ),
    "identity": Headline(
        "Added layers could be identities, so a deeper network need not be worse; solvers do not "
        "find that.",
        identity,
    ),
    "lesion": Headline(
        "Without one layer VGG falls to chance; ResNet-110 without one block hardly changes.",
        lesion,
        lesion_otherwise,
    ),
    "paths": Headline(
        "A path's gradient falls exponentially with its length; 5 to 17 of 54 blocks, 0.45 % of "
        "the paths, carry most.",
        paths,
        paths_otherwise,
    ),
    "landscape": Headline(
        "At 56 layers chaotic without skips, smooth with them; at 20 hardly a difference.",
        landscape,
    ),
    "shattering": Headline(
        "Correlations of gradients decay exponentially with depth in plain networks, far slower "
        "in residual ones.",
        shattering,
    ),
    "rank": Headline(
        "Attention alone loses rank doubly exponentially with depth; skips prevent it.",
        rank,
    ),
    "where": Headline(
        "Nothing about single stages: all have skips.",
        where,
    ),
    "speed": Headline(
        "Both start faster than the original residual network.",
        speed,
    ),
}


# --- the page


def page(folder: Path, link: str) -> str:
    """The whole page from the files in ``folder``, which ``link`` leads to from the page.

    Raises ValueError if a probe has no files there or no headline here.
    """
    there = {path.stem.removeprefix("probe-") for path in folder.glob("probe-*.json")}
    if there != set(HEADLINES):
        names = ", ".join(sorted(there ^ set(HEADLINES)))
        raise ValueError(f"{folder} and HEADLINES do not have the same probes: {names}")
    found = {name: json.loads((folder / f"probe-{name}.json").read_text()) for name in HEADLINES}
    frames = {name: pd.read_csv(folder / f"probe-{name}.csv") for name in HEADLINES}
    recipes = dict.fromkeys(one["recipe"] for one in found.values())
    parts = [
        "# Why skips work: what is told, and what was measured",
        "Made by `scripts/mechanisms.py` from the files that `resexp probe` left in "
        f"[{link.removeprefix('../')}]({link}): not written by hand, and a test compares it with "
        "them. All of it again: `./scripts/mechanisms.sh`.",
        "A finding is the word of a rule that was fixed before measuring, and holds under its "
        f"recipe ({'; '.join(recipes)}), not in general. Numbers are means over n seeds, of "
        "differences paired by seed where two networks are compared, with 95 % intervals of "
        "Student's t (of ratios, geometric), each by itself; where an interval makes no sense, the "
        "range. Three seeds make wide intervals. A decade is a factor of ten.",
        "\n".join(table(found, frames, link)),
        "## Usually told otherwise",
        "\n".join(
            f"- [{name}](#{name}): {plain(headline.otherwise(frames[name]))}"
            for name, headline in HEADLINES.items()
            if headline.otherwise
        ),
        *(section(one, link) for one in found.values()),
    ]
    return "\n\n".join(parts) + "\n"


def table(
    found: Mapping[str, dict[str, Any]], frames: Mapping[str, pd.DataFrame], link: str
) -> list[str]:
    """A row a probe."""
    lines = [
        "| claim | probe | what textbooks say | what was measured | finding |",
        "|---|---|---|---|---|",
    ]
    for name, headline in HEADLINES.items():
        one = found[name]
        measured = [plain(number(each)) for each in headline.measure(frames[name])]
        finding = f"**{one['verdict']}**"
        if headline.otherwise:
            finding += "; [usually told otherwise](#usually-told-otherwise)"
        cells = [
            plain(one["claim"]),
            f"[{name}](#{name})",
            f"{plain(headline.told)} ({plain(one['source'])})",
            "<br>".join([*measured, f"[figure]({link}/probe-{name}.png)"]),
            finding,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def number(one: Measured) -> str:
    """``plain-56: +3.12 decades (95 % +2.90 to +3.34, n = 3)``."""
    unit = f" {one.unit}" if one.unit else ""
    n = len(one.values)
    bad = int((~np.isfinite(one.values)).sum())
    if bad:
        return f"{one.what}: not finite in {bad} of {n} seeds"

    def told(value: float) -> str:
        return format(one.base**value if one.base else value, one.form)

    if not one.interval:
        return f"{one.what}: {told(one.values.min())} to {told(one.values.max())}{unit} (n = {n})"
    known = paired_t(list(one.values))
    spread = f"95 % {told(known.low)} to {told(known.high)}, " if n > 1 else ""
    return f"{one.what}: {told(known.mean)}{unit} ({spread}n = {n})"


def section(found: Mapping[str, Any], link: str) -> str:
    """One probe: its sentence, figure, conventions, and how to measure it again."""
    name, verdict = found["probe"], found["verdict"]
    claim = plain(found["claim"]).replace("[", "(").replace("]", ")")
    return "\n\n".join(
        [
            f"## {name}",
            plain(found["claim"]),
            f"**{verdict.capitalize()}** under this recipe: {plain(found['sentence'])}",
            f"![{claim} {verdict.capitalize()}.]({link}/probe-{name}.png)",
            "\n".join(
                f"- {line}"
                for line in [*map(plain, found["conventions"]), circumstances(found)]
            ),
        ]
    )


def circumstances(found: Mapping[str, Any]) -> str:
    """Recipe, machine, code, command and time."""
    about = found["environment"]
    commit = (about["git_commit"] or "unknown")[:7]
    changes = {True: ", uncommitted changes", False: "", None: ""}[about["git_dirty"]]
    threads = "1 thread" if about["threads"] == 1 else f"{about['threads']} threads"
    return (
        f"{plain(found['recipe'])}; {about['device_name']}, {threads}, torch {about['torch']}, "
        f"Python {about['python']}; commit {commit}{changes}; `{found['command']}`; "
        f"{found['seconds']:.0f} s"
    )


def plain(text: str) -> str:
    """Text that Markdown shows as it is, in a cell too."""
    return "".join(f"\\{mark}" if mark in "\\|*<[]`" else mark for mark in text)


def main(folder: Path = FOLDER, target: Path = PAGE) -> None:
    link = Path(os.path.relpath(folder, target.parent)).as_posix()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(folder, link))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
