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
HARDLY = 15.0  # points of error that a deleted block may cost and be called harmless

RIGHT, WIDE, WRONG = "as told", "told too widely", "told wrongly"


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
        return float(self.values.mean())


@dataclass(frozen=True, slots=True)
class Headline:
    """What is said of a mechanism, and which numbers of the probe's CSV stand against it."""

    told: str  # what textbooks and papers say
    measure: Callable[[pd.DataFrame], list[Measured]]
    #: How right the telling is, and why, where that is not what the finding says.
    judged: Callable[[pd.DataFrame], tuple[str, str]] | None = None


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
    """A number of each seed's values, in the order of the rows; nan where one of them is."""
    return rows.groupby("seed")[column].agg(
        lambda some: number(some) if some.notna().all() else math.nan
    )


def values(frame: pd.DataFrame, where: Mapping[str, object], column: str) -> pd.Series[float]:
    """The column of the only row of each seed."""
    return choose(frame, where).set_index("seed")[column]


def difference(one: pd.Series[float], other: pd.Series[float]) -> pd.Series[float]:
    """Paired by seed; seeds that one of them lacks are left out, values that are nan are not."""
    seeds = one.index.intersection(other.index)
    return one[seeds] - other[seeds]


def decades(some: pd.Series[float]) -> pd.Series[float]:
    """Their decimal logarithms."""
    return some.map(math.log10)


def depths_of(frame: pd.DataFrame, column: str, arms: Sequence[str]) -> list[int]:
    """The depths that all these arms have, from shallow to deep."""
    found = [set(frame.loc[frame[column] == arm, "depth"]) for arm in arms]
    return sorted(int(depth) for depth in set.intersection(*found))


# --- what each probe's rows say


def gradients(frame: pd.DataFrame) -> list[Measured]:
    frame = frame.assign(step=frame["step"].astype(str))
    start, end = frame[frame["step"] == "0"], frame[frame["step"] == "end"]
    shallow, *_, deep = depths_of(start, "arm", ["plain", "residual", "plain no norm xavier"])

    def first_layer(depth: int) -> pd.Series[float]:
        where = {"arm": "plain no norm xavier", "depth": depth, "layer": 1}
        return decades(values(start, where, "g"))

    def told(what: str, some: pd.Series[float]) -> Measured:
        return Measured(what, some, "decades", "+.1f")

    return [
        told(
            f"plain-{deep} at the start, first over last layers",
            first_over_last(start, "plain", deep, "g"),
        ),
        told(f"residual-{deep}", first_over_last(start, "residual", deep, "g")),
        told(
            f"plain-{deep} trained, in units of the weights",
            first_over_last(end, "plain", deep, "r"),
        ),
        told(
            f"control, no normalisation, Xavier's weights, depth {deep} over {shallow}",
            difference(first_layer(deep), first_layer(shallow)),
        ),
    ]


def first_over_last(frame: pd.DataFrame, arm: str, depth: int, column: str) -> pd.Series[float]:
    """log10 of the gradient of the first ENDS layers over that of the last ENDS, by seed."""
    rows = choose(frame, {"arm": arm, "depth": depth}, ["layer"])
    return by_seed(
        rows, column, lambda some: math.log10(some.iloc[:ENDS].sum() / some.iloc[-ENDS:].sum())
    )


def gradients_judged(frame: pd.DataFrame) -> tuple[str, str]:
    plain, residual, trained, control = (one.mean for one in gradients(frame))
    return (
        RIGHT if plain < -TWICE else WRONG,
        f"with batch normalisation the gradients of plain networks {direction(plain)} towards the "
        f"input at the start, by {plain:+.1f} decades from the last layers to the first (residual "
        f"{residual:+.1f}); of trained ones, in units of the weights, they {direction(trained)}, "
        f"by {trained:+.1f}. Without normalisation and from Xavier's weights the first layer's "
        f"{direction(control)} with depth, by {control:+.1f} decades.",
    )


def direction(decades: float) -> str:
    """What gradients do, by the sign."""
    if abs(decades) < TWICE:
        return "hardly change"
    return "explode" if decades > 0 else "vanish"


def highway(frame: pd.DataFrame) -> list[Measured]:
    when = "end" if (frame["when"] == "end").any() else "start"
    shallow, *_, deep = depths_of(frame, "arm", ["residual"])

    def share(arm: str, depth: int, moment: str) -> Measured:
        rows = choose(frame, {"arm": arm, "depth": depth, "when": moment}, ["block"])
        percent = 100 * by_seed(rows, "shortcut_share", pd.Series.median)
        moment = {"start": "at the start", "end": "trained"}[moment]
        return Measured(f"by shortcuts, {arm}-{depth} {moment}", percent, "%", ".0f")

    error = by_seed(frame, "identity_error", pd.Series.max)
    return [
        share("residual", deep, when),
        share("residual", shallow, when),
        share("preact", depths_of(frame, "arm", ["preact"])[-1], "start"),
        Measured("error of the equation", error, "", ".0e", interval=False),
    ]


def responses(frame: pd.DataFrame) -> list[Measured]:
    decay = frame.loc[frame["arch"] == "plain", "decay"].iloc[0]
    usual = frame[(frame["decay"] == decay) & (frame["of_block"] == 2)]
    shallow, *_, deep = depths_of(usual, "arch", ["plain", "residual"])

    def average(arch: str, depth: int, column: str) -> pd.Series[float]:
        rows = choose(usual, {"arch": arch, "depth": depth}, ["layer"])
        return by_seed(rows.dropna(subset=[column]), column, pd.Series.mean)

    def less(column: str) -> pd.Series[float]:
        return difference(average("residual", deep, column), average("plain", deep, column))

    deeper = difference(average("residual", deep, "std"), average("residual", shallow, "std"))
    return [
        Measured(
            f"standard deviation, residual-{deep} less plain-{deep}",
            less("std"),
            "",
            "+.3f",
        ),
        Measured(f"residual-{deep} less residual-{shallow}", deeper, "", "+.3f"),
        Measured(
            f"|F(x)|/|x|, residual-{deep} less plain-{deep}",
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
            f"loss of plain-{deep}, trained less constructed",
            difference(nats("scratch"), nats("constructed")),
            "nats",
            "+.4f",
        ),
        Measured(
            "constructed and shallow apart",
            difference(nats("constructed"), nats("shallow")).abs(),
            "nats",
            ".0e",
            interval=False,
        ),
        Measured(f"y = x, {layers} layers, error: plain", miss("plain"), "", ".3f"),
        Measured("residual", miss("residual"), "", ".3f"),
        Measured("residual, branches that start at 0", miss("rezero"), "", ".3f"),
    ]


def lesion(frame: pd.DataFrame) -> list[Measured]:
    deep = depths_of(frame, "arch", ["plain", "residual"])[-1]
    blocks = int(frame.loc[frame["depth"] == deep, "blocks"].iloc[0])
    intact = values(frame, {"arch": "plain", "depth": deep, "kind": "whole"}, "error_percent")
    return [
        Measured(
            f"plain-{deep}, one of {blocks} blocks (undamaged {intact.mean():.0f} %)",
            excess(frame, "plain", deep, pd.Series.median),
            "points",
            "+.1f",
        ),
        Measured(
            f"residual-{deep}", excess(frame, "residual", deep, pd.Series.median), "points", "+.1f"
        ),
        Measured(
            "its worst block",
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


def lesion_judged(frame: pd.DataFrame) -> tuple[str, str]:
    def costs(arch: str) -> dict[int, float]:
        """Points by the number of blocks."""
        found = {}
        for depth in depths_of(frame, "arch", [arch]):
            blocks = int(frame.loc[frame["depth"] == depth, "blocks"].iloc[0])
            found[blocks] = float(excess(frame, arch, depth, pd.Series.median).mean())
        return found

    residual, plain = (
        ", ".join(f"{points:+.1f} with {blocks}" for blocks, points in costs(arch).items())
        for arch in ("residual", "plain")
    )
    return (
        WIDE if max(costs("residual").values()) > HARDLY else RIGHT,
        "it is told of residual networks whatever their depth; deleting one block (the median one) "
        f"costs them these points of test error, by blocks: {residual}. Plain ones: {plain}; a "
        "network near chance has few to lose.",
    )


def paths(frame: pd.DataFrame) -> list[Measured]:
    depth, trained = unravelled(frame, "end", "batch")
    _, start = unravelled(frame, "start", "batch")
    length = (trained["k"] * trained["weight"]).groupby(trained["seed"]).sum()
    return [
        Measured(
            f"residual-{depth} trained, a branch's factor",
            slopes(trained),
            "times",
            ".2f",
            base=10,
        ),
        Measured("at the start", slopes(start), "times", ".2f", base=10),
        Measured(
            "trained, mean length less half of all",
            length - trained["k"].max() / 2,
            "blocks",
            "+.1f",
        ),
    ]


def paths_judged(frame: pd.DataFrame) -> tuple[str, str]:
    places = {
        "trained": ("end", "batch"),
        "at the start": ("start", "batch"),
        "at the start with running statistics, where normalisation does nothing": (
            "start",
            "running",
        ),
    }
    found = {
        words: paired_t(list(slopes(unravelled(frame, *at)[1]))) for words, at in places.items()
    }
    trained, *before = (one.high < 0 for one in found.values())
    word = WRONG if not trained else RIGHT if all(before) else WIDE
    said = {
        RIGHT: "longer paths carry less, trained and before training",
        WIDE: "longer paths carry less after training, but not in every case before",
        WRONG: "that longer paths carry less after training is not shown",
    }[word]
    factors = ", ".join(f"{10**one.mean:.2f} {words}" for words, one in found.items())
    return word, (
        f"it is told as a property of the architecture; {said}. Each branch on a path multiplies "
        f"its gradient by {factors}."
    )


def unravelled(frame: pd.DataFrame, when: str, statistics: str) -> tuple[int, pd.DataFrame]:
    """The rows of the deepest residual networks, and their depth."""
    some = frame[(frame["when"] == when) & (frame["statistics"] == statistics)]
    depth = depths_of(some, "arch", ["residual"])[-1]
    return depth, choose(some, {"arch": "residual", "depth": depth}, ["k"])


def slopes(rows: pd.DataFrame) -> pd.Series[float]:
    """log10 of what a branch multiplies a path's gradient by, by seed."""
    return pd.Series({seed: slope(one["k"], one["norm"]) for seed, one in rows.groupby("seed")})


def slope(x: pd.Series[float], y: pd.Series[float]) -> float:
    """Least squares of log10 y by x; nothing where y is 0."""
    some = y > 0
    return float(np.polyfit(x[some], np.log10(y[some]), 1)[0])


def landscape(frame: pd.DataFrame) -> list[Measured]:
    shallow, *_, deep = depths_of(frame, "arch", ["plain", "residual"])

    def rough(arch: str, depth: int) -> pd.Series[float]:
        where = {"arch": arch, "depth": depth, "kind": "slice"}
        slices = choose(frame, where, ["direction", "a"]).groupby(["seed", "direction"])["loss"]
        return by_seed(slices.agg(roughness).reset_index(), "loss", pd.Series.median)

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
        "plain centred": (24, "correlation, plain centred, 24 layers"),
        "residual batch norm 0.1": (50, "residual, branches x 0.1, 50 layers"),
        "plain": (24, "control, plain not centred, 24 layers"),
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
        return decades(values(frame, where, "value"))

    most = int(frame.loc[frame["measured"] == "gradient", "layers"].max())
    return [
        Measured(
            "tokens apart, 4 layers, no skips",
            apart("no skip pre-LN", 4),
            "",
            ".0e",
            interval=False,
        ),
        Measured("12 layers, skips, pre-LN", apart("skip pre-LN", 12), "", ".2f"),
        Measured(
            f"gradient, {most} layers, post-LN over pre-LN",
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
        arm: decades(values(here, {"arm": arm}, "loss"))
        for arm in ("none", "stage 1", "stage 2", "stage 3", "all")
    }
    best = min(("stage 1", "stage 2", "stage 3"), key=lambda arm: float(nats[arm].mean()))
    return [
        Measured(
            "log10 loss, skips in all stages less none",
            difference(nats["all"], nats["none"]),
            "decades",
            "+.2f",
        ),
        Measured(
            f"all less the best alone, {best}",
            difference(nats["all"], nats[best]),
            "decades",
            "+.2f",
        ),
    ]


def speed(frame: pd.DataFrame) -> list[Measured]:
    def steps(arm: str) -> pd.Series[float]:
        rows = choose(frame, {"arm": arm, "depth": depth}, ["step"])
        return by_seed(rows, "steps_to_threshold", pd.Series.max).map(math.log2)

    depth = depths_of(frame, "arm", ["rezero", "preact", "residual"])[0]
    return [
        Measured(what, difference(steps(arm), steps("residual")), "times", ".2f", base=2)
        for arm, what in (
            ("rezero", "steps, ReZero over residual"),
            ("preact", "pre-activation over residual"),
        )
    ]


#: In the order of the page.
HEADLINES = {
    "gradients": Headline(
        "Every layer shrinks the gradient, so the first layers of a deep network hardly learn.",
        gradients,
        gradients_judged,
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
        lesion_judged,
    ),
    "paths": Headline(
        "A path's gradient falls exponentially with its length; 5 to 17 of 54 blocks, 0.45 % of "
        "the paths, carry most.",
        paths,
        paths_judged,
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
        "ReZero: ResNet-56 faster to a threshold by 32 %. Pre-activation: 1001 layers optimise "
        "faster.",
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
    judged = {
        name: headline.judged(frames[name])
        for name, headline in HEADLINES.items()
        if headline.judged
    }
    parts = [
        "# Why skips work: what is told, and what was measured",
        "Made by `scripts/mechanisms.py` from the files that `resexp probe` left in "
        f"[{link.removeprefix('../')}]({link}); a test compares it with them. To measure all of it "
        "again: `./scripts/mechanisms.sh`.",
        "A finding is the word of a rule fixed before measuring, and holds under its recipe "
        f"({'; '.join(recipes)}), not in general. Numbers are means over n seeds (of differences "
        "and ratios paired by seed where two networks are compared; of ratios geometric) with 95 % "
        "intervals of Student's t, each by itself; where an interval makes no sense, the range. "
        "A decade is a factor of ten; errors are in percent.",
        "\n".join(table(found, frames, {name: word for name, (word, _) in judged.items()}, link)),
        "## How it is told",
        "\n".join(
            f"- [{name}](#{name}), **{word}**: {plain(why)}" for name, (word, why) in judged.items()
        ),
        *(section(one, link) for one in found.values()),
    ]
    return "\n\n".join(parts) + "\n"


def table(
    found: Mapping[str, dict[str, Any]],
    frames: Mapping[str, pd.DataFrame],
    words: Mapping[str, str],
    link: str,
) -> list[str]:
    """A row a probe; ``words`` say of some how right the telling is."""
    lines = [
        "| claim | probe | what textbooks say | what was measured (95 % interval) | finding |",
        "|---|---|---|---|---|",
    ]
    for name, headline in HEADLINES.items():
        one = found[name]
        measured = headline.measure(frames[name])
        finding = f"**{one['verdict']}**"
        if name in words:
            finding += f"; [{words[name]}](#how-it-is-told)"
        cells = [
            plain(one["claim"]),
            f"[{name}](#{name})",
            f"{plain(headline.told)} ({plain(one['source'])})",
            "<br>".join(
                [*map(number, measured), f"{seeds(measured)}, [figure]({link}/probe-{name}.png)"]
            ),
            finding,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def number(one: Measured) -> str:
    """``**+3.12 decades** (+2.90 to +3.34) plain-56``, in Markdown."""
    what, unit, n = plain(one.what), f" {one.unit}" if one.unit else "", len(one.values)
    bad = int((~np.isfinite(one.values)).sum())
    if bad:
        return f"**not finite** in {bad} of {n} seeds: {what}"

    def told(value: float) -> str:
        return format(one.base**value if one.base else value, one.form)

    if not one.interval:
        return f"**{told(one.values.min())} to {told(one.values.max())}{unit}** (range) {what}"
    known = paired_t(list(one.values))
    spread = f"{told(known.low)} to {told(known.high)}" if n > 1 else "no interval"
    return f"**{told(known.mean)}{unit}** ({spread}) {what}"


def seeds(measured: Sequence[Measured]) -> str:
    """Over how many seeds."""
    counts = sorted({len(one.values) for one in measured})
    return "n = " + " to ".join(map(str, counts))


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
                f"- {line}" for line in [*map(plain, found["conventions"]), circumstances(found)]
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
