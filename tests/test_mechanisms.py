"""docs/mechanisms.md: the committed page is that of the committed findings, its numbers by hand."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from resexp.probes import names

ROOT = Path(__file__).parents[1]
COMMITTED = ROOT / "results" / "digits" / "mechanisms"
PAGE = ROOT / "docs" / "mechanisms.md"
Row = dict[str, object]


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mechanisms", ROOT / "scripts" / "mechanisms.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their annotations up there
    spec.loader.exec_module(module)
    return module


mechanisms = script()


# --- tiny findings, whose numbers are seen by eye; seeds 0 and 1, or more


def gradients() -> list[Row]:
    """Plain: 100 / 1 and 1000 / 1, residual 1 and 10, Xavier's first layer 1e-2 and 1e-8."""
    first = {("plain", 8): 9.0, ("residual", 8): 9.0, ("plain no norm xavier", 8): 1e-2}
    first |= {("plain", 56): 100.0, ("residual", 56): 1.0, ("plain no norm xavier", 56): 1e-8}
    steps = ("0", "end")  # the end is another matter
    return [
        {
            "arm": arm,
            "depth": depth,
            "seed": seed,
            "step": step,
            "layer": layer,
            "g": 7.0 if step == "end" else g * 10**seed if layer <= 3 else 1.0,
            "r": 7.0 if step == "0" else 0.1 if layer <= 3 else 1.0,
        }
        for ((arm, depth), g), step, seed, layer in product(
            first.items(), steps, (0, 1), range(1, 8)
        )
    ]


def highway() -> list[Row]:
    shares = [0.2, 0.6, 0.9]
    return [
        {
            "arm": arm,
            "depth": depth,
            "seed": seed,
            "when": when,
            "block": block,
            "shortcut_share": share + (0.1 * seed if when == "end" else -0.1),
            "identity_error": 1e-16 * (1 + seed),
        }
        for arm, depth, seed, when, (block, share) in product(
            ("residual", "preact"), (8, 56), (0, 1), ("start", "end"), enumerate(shares, start=1)
        )
        if (arm, when) != ("preact", "end")
    ]


def responses() -> list[Row]:
    """Second convolutions: plain 1.2, residual 1.0 deep and 1.1 shallow, 0.1 more in seed 1."""
    std = {("plain", 8): 1.1, ("plain", 56): 1.2, ("residual", 8): 1.1, ("residual", 56): 1.0}
    return [
        {
            "arch": arch,
            "depth": depth,
            "seed": seed,
            "decay": decay,
            "layer": layer,
            "of_block": 2 - layer % 2,
            "std": 5.0 if decay == "weights" or layer % 2 else one + 0.1 * seed,
            "branch_over_input": None if layer < 4 else 1.5 if arch == "plain" else 0.5,
        }
        for ((arch, depth), one), seed, decay, layer in product(
            std.items(), (0, 1), ("all", "weights"), range(1, 5)
        )
        if decay == "all" or arch == "residual"
    ]


def identity() -> list[Row]:
    parts = {("shallow", "plain", 8): 0.5, ("constructed", "plain", 20): 0.5}
    parts |= {("warm", "plain", 20): 0.4, ("scratch", "plain", 20): 0.75}
    learned = {"plain": 0.5, "residual": 0.001, "rezero": 0.0}
    return [
        {"part": part, "arch": arch, "depth": depth, "seed": seed, "loss": nats + 0.25 * seed}
        | {"relative_error": None}
        for ((part, arch, depth), nats), seed in product(parts.items(), (0, 1))
    ] + [
        {"part": "regression", "arch": arch, "depth": 20, "seed": seed, "loss": None}
        | {"relative_error": error}
        for (arch, error), seed in product(learned.items(), (0, 1))
    ]


def lesion() -> list[Row]:
    """Undamaged 10 and 20 percent; single deletions cost 1, 2 and 9, of plain networks 60 more."""
    rows: list[Row] = []
    for arch, (depth, blocks), seed in product(("plain", "residual"), ((8, 3), (56, 27)), (0, 1)):
        place: Row = {"arch": arch, "depth": depth, "seed": seed, "blocks": blocks}
        whole = 10.0 * (1 + seed)
        rows.append(place | {"kind": "whole", "block": None, "error_percent": whole})
        more = 60 if arch == "plain" else 40 if depth == 8 else 0
        for block, cost in enumerate((1, 9, 2), start=1):
            one: Row = {"kind": "delete", "block": block, "error_percent": whole + cost + more}
            rows.append(place | one)
        rows += [place | {"kind": "delete k", "block": None, "error_percent": 90.0}] * 2
    return rows


def paths() -> list[Row]:
    """Two blocks: by each branch times 0.1 trained and 2 at the start; all weight at length 0."""
    factors = {("start", "running"): 1.0, ("start", "batch"): 2.0}
    factors |= {("end", "running"): 0.3, ("end", "batch"): 0.1}
    rows: list[Row] = [
        {
            "arch": "residual",
            "depth": depth,
            "seed": seed,
            "when": when,
            "statistics": statistics,
            "blocks": 2,
            "k": k,
            "norm": (1 + seed) * factor**k,
            "weight": float(k == 0),
        }
        for depth, seed, ((when, statistics), factor), k in product(
            (20, 56), (0, 1), factors.items(), range(3)
        )
    ]
    again = [row | {"when": "trained", "norm": None, "weight": None} for row in rows[:2]]
    return rows + again


def landscape() -> list[Row]:
    """log10(1 + loss) is |a| in plain-56, roughness 2; else a + 1, a straight line, 0."""
    rows: list[Row] = []
    for arch, depth, seed in product(("plain", "residual"), (8, 56), (0, 1)):
        place: Row = {"arch": arch, "depth": depth, "seed": seed}
        for direction, a in product((0, 1, 2), (-1.0, 0.0, 1.0)):
            g = abs(a) if (arch, depth) == ("plain", 56) else a + 1
            one: Row = {"kind": "slice", "direction": direction, "a": a, "loss": 10**g - 1}
            rows.append(place | one)
        rows.append(place | {"kind": "curvature", "direction": None, "a": None, "loss": None})
    return rows


def shattering() -> list[Row]:
    lag_1 = {("plain centred", 24): 0.0, ("residual batch norm 0.1", 50): 0.75}
    lag_1 |= {("plain", 24): 0.5, ("plain", 50): 0.1}
    return [
        {"arm": arm, "depth": depth, "seed": seed, "lag": lag, "autocorrelation": one / lag}
        for ((arm, depth), one), seed, lag in product(lag_1.items(), (0, 1), (1, 2))
    ]


def rank() -> list[Row]:
    values = {("rank", "no skip pre-LN", 4): 1e-9, ("rank", "skip pre-LN", 12): 0.5}
    values |= {("gradient", "skip pre-LN", 2): 1.0, ("gradient", "skip post-LN", 2): 1.0}
    values |= {("gradient", "skip pre-LN", 32): 1.0, ("gradient", "skip post-LN", 32): 4.0}
    return [
        {"measured": measured, "arm": arm, "seed": seed, "layers": layers}
        | {"value": value * 4**seed if measured == "gradient" else value}
        for ((measured, arm, layers), value), seed in product(values.items(), (0, 1))
    ]


def where() -> list[Row]:
    nats = {"none": 1.0, "stage 1": 0.5, "stage 2": 0.5, "stage 3": 0.1, "all": 0.01}
    return [
        {"arm": arm, "depth": 20, "seed": seed, "step": 50, "loss": one * 2**seed}
        for (arm, one), seed in product(nats.items(), (0, 1))
    ]


def speed() -> list[Row]:
    """ReZero takes 2 and 8 times the steps, pre-activation half."""
    steps = {"plain": (60, 60), "residual": (20, 20), "rezero": (40, 160), "preact": (10, 10)}
    return [
        {"arm": arm, "depth": 20, "seed": seed, "step": step, "loss": 2.0}
        | {"steps_to_threshold": steps[arm][seed]}
        for arm, seed, step in product(steps, (0, 1), (10, 11, 12))
    ]


MADE = (gradients, highway, responses, identity, lesion, paths, landscape, shattering, rank)
FRAMES = {one.__name__: pd.DataFrame(one()) for one in (*MADE, where, speed)}


def lines(name: str, frame: pd.DataFrame | None = None) -> list[str]:
    """The measured cell of a probe, line by line."""
    headline = mechanisms.HEADLINES[name]
    found = headline.measure(FRAMES[name] if frame is None else frame)
    return [mechanisms.number(one) for one in found]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All tiny findings as resexp probe leaves them."""
    for name, frame in FRAMES.items():
        frame.to_csv(tmp_path / f"probe-{name}.csv", index=False)
        found = {
            "probe": name,
            "claim": f"The claim of {name}: |F| < [1].",
            "source": "somebody",
            "verdict": "not supported",
            "sentence": "it is 1 | 2.",
            "numbers": {},
            "conventions": ["seeds 0, 1"],
            "recipe": "data digits",
            "command": f"resexp probe {name}",
            "seconds": 1.5,
            "environment": {
                "git_commit": "0123456789",
                "git_dirty": name == "speed",
                "device_name": "a machine",
                "threads": 1,
                "torch": "2",
                "python": "3",
            },
        }
        (tmp_path / f"probe-{name}.json").write_text(json.dumps(found))
        (tmp_path / f"probe-{name}.png").write_bytes(b"")
    return tmp_path


# --- the committed page


def committed() -> Path:
    if not COMMITTED.exists():
        pytest.skip("results/digits/mechanisms is not here: ./scripts/mechanisms.sh makes it")
    return COMMITTED


def test_the_page_is_that_of_the_committed_findings() -> None:
    made = mechanisms.page(committed(), "../results/digits/mechanisms")
    assert PAGE.read_bytes() == made.encode(), "run: python scripts/mechanisms.py"


def test_every_link_of_the_committed_page_leads_somewhere() -> None:
    committed()
    text = PAGE.read_text()
    links = re.findall(r"[^\\]\]\(([^)#]+)\)", text)
    assert len(links) == 1 + 2 * len(names())
    assert [link for link in links if not (PAGE.parent / link).exists()] == []


#: The first number of a headline out of those that the probe made itself: added, taken away.
OWN = {
    "gradients": ("log10 rho, plain 56, step 0", None),
    "highway": ("median shortcut_share, residual 56, end", None),
    "responses": (
        "mean std of second convolutions, residual 56, decay on all",
        "mean std of second convolutions, plain 56, decay on all",
    ),
    "identity": ("nats, scratch", "nats, constructed"),
    "lesion": ("points, median of single deletions, plain-56", None),
    "paths": ("slope of log10 norm per block, end, batch statistics", None),
    "landscape": ("roughness, plain 56", "roughness, residual 56"),
    "shattering": ("lag 1, plain centred, 24 layers", None),
    "where": (None, "gain in decades, all"),
    "speed": ("log2 steps, rezero over residual", None),
}


@pytest.mark.parametrize("name", OWN)
def test_the_page_and_the_probe_agree_on_the_committed_rows(name: str) -> None:
    numbers = json.loads((committed() / f"probe-{name}.json").read_text())["numbers"] | {None: 0}
    more, less = OWN[name]
    frame = pd.read_csv(COMMITTED / f"probe-{name}.csv")
    one = mechanisms.HEADLINES[name].measure(frame)[0]
    scale = 100 if one.unit == "%" else 1
    assert one.mean == pytest.approx(scale * (numbers[more] - numbers[less]), rel=1e-4, abs=1e-5)


def test_git_takes_the_committed_folder_without_checkpoints() -> None:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout, or no git")

    def ignored(name: str) -> bool:
        path = f"results/digits/mechanisms/{name}"
        command = ["git", "-C", str(ROOT), "check-ignore", "--no-index", "-q", path]
        return subprocess.run(command).returncode == 0

    assert ignored("plain-8-s0/checkpoint.pt")
    assert not ignored("plain-8-s0/metrics.csv")
    assert not ignored("probe-gradients.csv")


def test_every_probe_has_a_headline() -> None:
    assert sorted(mechanisms.HEADLINES) == names()


# --- headlines, by hand: of two values the interval is the mean +- 12.706 * half their distance


def test_gradients_compare_first_and_last_layers_at_the_start() -> None:
    assert lines("gradients") == [
        "**+2.5 decades** (-3.9 to +8.9) plain-56 at the start, first over last layers",
        "**+0.5 decades** (-5.9 to +6.9) residual-56",
        "**-1.0 decades** (-1.0 to -1.0) plain-56 trained, in units of the weights",
        "**-6.0 decades** (-6.0 to -6.0) control, no normalisation, Xavier's weights, depth 56 "
        "over 8",
    ]


def test_the_highway_is_of_trained_networks_or_of_the_start_without_them() -> None:
    # Medians 0.6 and 0.7 trained; 0.5 at the start in both seeds.
    assert lines("highway") == [
        "**65 %** (1 to 129) by shortcuts, residual-56 trained",
        "**65 %** (1 to 129) by shortcuts, residual-8 trained",
        "**50 %** (50 to 50) by shortcuts, preact-56 at the start",
        "**1e-16 to 2e-16** (range) error of the equation",
    ]
    start = FRAMES["highway"][FRAMES["highway"]["when"] == "start"]
    assert (
        lines("highway", start)[0] == "**50 %** (50 to 50) by shortcuts, residual-56 at the start"
    )


def test_responses_are_of_second_convolutions_under_the_usual_decay() -> None:
    assert lines("responses") == [
        "**-0.200** (-0.200 to -0.200) standard deviation, residual-56 less plain-56",
        "**-0.100** (-0.100 to -0.100) residual-56 less residual-8",
        r"**-1.00** (-1.00 to -1.00) \|F(x)\|/\|x\|, residual-56 less plain-56",
    ]


def test_identity_pairs_the_losses_by_seed() -> None:
    assert lines("identity") == [
        "**+0.2500 nats** (+0.2500 to +0.2500) loss of plain-20, trained less constructed",
        "**0e+00 to 0e+00 nats** (range) constructed and shallow apart",
        "**0.500** (0.500 to 0.500) y = x, 20 layers, error: plain",
        "**0.001** (0.001 to 0.001) residual",
        "**0.000** (0.000 to 0.000) residual, branches that start at 0",
    ]


def test_lesions_are_over_the_undamaged_network() -> None:
    assert lines("lesion") == [
        "**+62.0 points** (+62.0 to +62.0) plain-56, one of 27 blocks (undamaged 15 %)",
        "**+2.0 points** (+2.0 to +2.0) residual-56",
        "**+9.0 points** (+9.0 to +9.0) its worst block",
    ]


def test_paths_fit_a_factor_a_branch() -> None:
    assert lines("paths") == [
        "**0.10 times** (0.10 to 0.10) residual-56 trained, a branch's factor",
        "**2.00 times** (2.00 to 2.00) at the start",
        "**-1.0 blocks** (-1.0 to -1.0) trained, mean length less half of all",
    ]


def test_landscapes_differ_by_their_kinks() -> None:
    assert lines("landscape") == [
        "**+2.00** (+2.00 to +2.00) roughness, plain-56 less residual-56",
        "**+0.00** (+0.00 to +0.00) roughness, plain-8 less residual-8",
    ]


def test_shattering_is_told_at_lag_one() -> None:
    assert [line.split()[0] for line in lines("shattering")] == [
        "**+0.00**",
        "**+0.75**",
        "**+0.50**",
    ]


def test_rank_tells_tokens_and_the_ratio_of_gradients() -> None:
    assert lines("rank") == [
        "**1e-09 to 1e-09** (range) tokens apart, 4 layers, no skips",
        "**0.50** (0.50 to 0.50) 12 layers, skips, pre-LN",
        "**4.0 times** (4.0 to 4.0) gradient, 32 layers, post-LN over pre-LN",
    ]


def test_where_compares_all_stages_with_none_and_the_best() -> None:
    assert lines("where") == [
        "**-2.00 decades** (-2.00 to -2.00) log10 loss, skips in all stages less none",
        "**-1.00 decades** (-1.00 to -1.00) all less the best alone, stage 3",
    ]


def test_speed_is_a_geometric_mean_of_ratios() -> None:
    # log2 of 2 and 8: mean 2, half their distance 1.
    low, high = 2 ** (2 - 12.706204736), 2 ** (2 + 12.706204736)
    assert lines("speed") == [
        f"**4.00 times** ({low:.2f} to {high:.2f}) steps, ReZero over residual",
        "**0.50 times** (0.50 to 0.50) pre-activation over residual",
    ]


def test_an_interval_of_three_seeds_is_that_of_t() -> None:
    # 1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.30265, over the root of 3: 2.48414.
    some = pd.Series([1.0, 2.0, 3.0])
    one = mechanisms.Measured("what", some, "units", ".3f")
    assert mechanisms.number(one) == "**2.000 units** (-0.484 to 4.484) what"


def test_one_seed_has_no_interval_and_a_lost_network_no_mean() -> None:
    one = mechanisms.Measured("what", pd.Series([1.0]), "", ".1f")
    assert mechanisms.number(one) == "**1.0** (no interval) what"
    lost = FRAMES["where"].copy()
    lost.loc[(lost["arm"] == "all") & (lost["seed"] == 1), "loss"] = math.nan
    assert lines("where", lost)[0].startswith("**not finite** in 1 of 2 seeds: ")


# --- how it is told


def judged(name: str, frame: pd.DataFrame | None = None) -> tuple[str, str]:
    word, why = mechanisms.HEADLINES[name].judged(FRAMES[name] if frame is None else frame)
    return word, why


def test_gradients_are_told_wrongly_where_they_explode_and_rightly_where_they_vanish() -> None:
    word, why = judged("gradients")
    assert word == "told wrongly"
    assert "plain networks explode towards the input at the start, by +2.5 decades" in why
    assert "of trained ones, in units of the weights, they vanish, by -1.0" in why
    assert "the first layer's vanish with depth, by -6.0 decades" in why
    vanishing = FRAMES["gradients"].copy()
    vanishing.loc[vanishing["layer"] <= 3, "g"] *= 1e-6
    word, why = judged("gradients", vanishing)
    assert word == "as told"
    assert "plain networks vanish towards the input" in why


def test_lesions_are_told_too_widely_where_few_blocks_are_fragile() -> None:
    word, why = judged("lesion")
    assert word == "told too widely"
    assert "by blocks: +42.0 with 3, +2.0 with 27. Plain ones: +62.0 with 3, +62.0 with 27;" in why
    deep = FRAMES["lesion"][FRAMES["lesion"]["depth"] == 56]
    assert judged("lesion", deep)[0] == "as told"


def test_decay_by_length_is_told_too_widely_where_it_comes_with_training() -> None:
    word, why = judged("paths")
    assert word == "told too widely"
    assert "0.10 trained, 2.00 at the start, 1.00 at the start with running" in why
    ended = FRAMES["paths"][FRAMES["paths"]["when"] == "end"]
    both = pd.concat([ended, ended.assign(when="start")])
    assert judged("paths", both)[0] == "as told"
    start = FRAMES["paths"][FRAMES["paths"]["when"] == "start"]
    neither = pd.concat([start, start.assign(when="end")])
    assert judged("paths", neither)[0] == "told wrongly"


# --- the page


def test_the_page_has_a_row_a_figure_and_a_section_for_every_probe(folder: Path) -> None:
    text = mechanisms.page(folder, "../here")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(names())
    for row in rows:  # a pipe within a cell is escaped
        assert len(re.findall(r"(?<!\\)\|", row)) == 6
    for name in names():
        assert f"\n## {name}\n" in text
        assert f"](../here/probe-{name}.png)\n" in text
    assert "commit 0123456; `resexp probe rank`; 2 s" in text
    assert "commit 0123456, uncommitted changes; `resexp probe speed`" in text
    assert r"\|F\| \< \[1\]." in text


def test_the_order_of_rows_does_not_matter(folder: Path) -> None:
    before = mechanisms.page(folder, "../here")
    for name, frame in FRAMES.items():
        frame.iloc[::-1].to_csv(folder / f"probe-{name}.csv", index=False)
    assert mechanisms.page(folder, "../here") == before


def test_rows_that_cannot_be_told_apart_are_refused() -> None:
    twice = pd.concat([FRAMES["shattering"], FRAMES["shattering"]])
    with pytest.raises(ValueError, match="several rows a seed"):
        lines("shattering", twice)
    with pytest.raises(ValueError, match="no rows a seed"):
        lines("shattering", twice[twice["lag"] == 2])


def test_a_missing_probe_is_refused_by_name(folder: Path) -> None:
    (folder / "probe-rank.json").unlink()
    with pytest.raises(ValueError, match="do not have the same probes: rank"):
        mechanisms.page(folder, "../here")


def test_the_script_writes_the_page_with_links_relative_to_it(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "docs" / "page.md"
    mechanisms.main(folder, target)
    assert "](../probe-rank.png)" in target.read_text().replace("/./", "/")
