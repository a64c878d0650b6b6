"""Errors that others published for a network, with their sources and what these runs did else.

``published.csv`` holds errors on augmented CIFAR-10 that someone read at their source. Its column
``settings`` names the network of a row by its arch's settings, ``did`` what the source did in that
row otherwise than in others. What a source did is stated where it is known; what it leaves open is
said to be open, never guessed.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from resexp.analysis import export
from resexp.analysis.results import Run, spell
from resexp.settings import complete

#: What published.csv's column ``verified`` says of the source, best first.
VERIFIED = ("fulltext", "author_repo", "secondary")

#: Data names that are CIFAR-10, and in what the pictures differ from the original's.
CIFAR10 = {"cifar10": "", "cifar10-jpeg": "a JPEG re-encoding of CIFAR-10"}

#: The arch settings that tell networks apart, of the residual network; units share names.
RESIDUAL = {
    key.removeprefix("arch."): value
    for key, value in (complete({}) | {"arch.merge": "residual"}).items()
    if key.startswith("arch.") and key not in ("arch.unit", "arch.bottleneck_stride")
}
#: Published counts are rounded, and projections add at most 7 % to what option A has; the
#: bottlenecks of a depth have far fewer.
TOLERANCE = 0.08

#: Measures of a final test error, best first: what it is over, of how many runs (0: not said), and
#: ">" where it is only a bound.
TEST_METRICS = {
    "test_error_pct_mean_of_5": ("mean of 5 runs", 5, ""),
    "test_error_pct_median5": ("median of 5 runs", 5, ""),
    "test_error_pct": ("1 run", 1, ""),
    "final_valid_error_pct": ("1 run", 1, ""),
    "test_error_pct_best_of_5": ("best of 5 runs", 5, ""),
    "fail_test_error_gt_pct": ("failed", 0, ">"),
}
TRAIN_METRIC = "train_error_pct"

#: Settings that a footnote compares, and how a value is said: in a phrase, or in words of its own.
PHRASES: dict[str, str | dict[Any, str]] = {
    "arch.shortcut": "shortcut option {}",
    "data.split": {
        "full": "all 50,000 images trained on",
        "45k": "45,000 of 50,000 images trained on",
    },
    "epochs": "{} epochs",
    "steps": "{} steps",
    "batch_size": "batch {}",
    "lr": "learning rate {}",
    "lr_drop": "rate times {} at each drop",
    "momentum": "momentum {}",
    "normalise": {
        "pixel_mean": "a mean picture subtracted",
        "channel_std": "channels normalised",
        "none": "pictures normalised by none",
    },
    "milestones": "drops at {} of the steps",
    "nesterov": {True: "Nesterov momentum", False: "momentum without Nesterov"},
    "weight_decay": "weight decay {}",
    "crop_padding": "crop padding {}",
    "flip": {True: "mirrored images", False: "no mirrored images"},
    "precision": {"fp16": "fp16 mixed precision"},
}
#: Details that are told if a source is silent, but for the value that goes without saying.
UNSAID = {
    "arch.shortcut": ("shortcut option", "A"),
    "data.split": ("training split", None),
    "steps": ("steps", 64_000),
    "nesterov": ("Nesterov", False),
    "precision": ("precision", "fp32"),
}

#: What He et al. 2015, section 4.2 says of its CIFAR-10 runs. Open: which split the final runs
#: trained on, the kind of momentum and the precision.
HE2015: dict[str, Any] = {
    "arch.shortcut": "A",
    "data.split": None,
    "steps": 64_000,
    "batch_size": 128,
    "lr": 0.1,
    "lr_drop": 0.1,
    "momentum": 0.9,
    "normalise": "pixel_mean",
    "milestones": [0.5, 0.75],
    "nesterov": None,
    "weight_decay": 1e-4,
    "crop_padding": 4,
    "flip": True,
    "precision": None,
}

#: Repositories that trained plain networks too by the recipe of He et al. 2015, and what they say
#: beyond it. Open in each: the kind of momentum and the precision.
REPLICATIONS: dict[str, dict[str, Any]] = {
    "nabla0001/resnet": {"data.split": "45k", "normalise": "channel_std"},
    "a-martyn/resnet": {"data.split": "full", "steps": None, "normalise": "channel_std"},
    "wooyeolBaek/deep-residual-learning": {"data.split": "45k", "precision": "fp16"},
    "robertkoller/ResNet-Reproduction": {"data.split": "45k"},
    "hhhhuangggg/resnet-cifar10-reproducti": {},
    "samitmohan/deep-residual-learning-pytorch": {
        "steps": None,
        "epochs": 160,
        "normalise": "channel_std",
    },
}

#: What each source did, by the beginning of its name in published.csv.
SOURCES: dict[str, dict[str, Any]] = {
    "He2015": HE2015,
    "He2016": HE2015,  # "same schedule"; its warm-up is that of 110 layers
    "Li2018": {
        "arch.shortcut": None,
        "data.split": None,
        "epochs": 300,
        "batch_size": 128,
        "lr": 0.1,
        "milestones": [0.5, 0.75, 0.917],  # epochs 150, 225, 275
        "nesterov": True,
        "weight_decay": 5e-4,
        "precision": None,
    },
    "independent replication README": {"data.split": None, "precision": "fp16"},
    "tbachlechner/ReZero-examples README": {"data.split": None, "steps": None, "precision": None},
    **{name: HE2015 | did for name, did in REPLICATIONS.items()},
}
#: Sources that trained by the recipe of He et al. 2015.
BY_HE2015 = ("He2015", "He2016", "independent replication README", *REPLICATIONS)

#: What a row has of a published error; the difference is ours minus theirs, in points.
COLUMNS = (
    *("published_test_error", "published_test_error_sd", "published_bound", "published_runs"),
    *("published_statistic", "published_train_error", "published_source", "published_verified"),
    *("published_remark", "difference", "z"),
)


@cache
def published_rows() -> list[dict[str, str]]:
    """The rows of published.csv."""
    text = files("resexp.analysis").joinpath("published.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text)))


# --- which rows are of a network


def matching(run: Run) -> list[dict[str, str]]:
    """The rows of published.csv that are of this run's network on augmented CIFAR-10."""
    network = network_settings(run)
    if run.data not in CIFAR10 or run.setting("width") != 16 or network is None:
        return []
    return [
        row
        for row in published_rows()
        if row["depth"] == str(run.depth)
        and any(_is_network(typed(one), network) for one in row["settings"].split(";"))
        and _has_size(row["params_millions"], run)
    ]


def network_settings(run: Run) -> dict[str, Any] | None:
    """The arch settings in which a run's network differs from the residual one; None: unnamed.

    Networks without skips are plain whatever their order, and nothing else if more is changed.
    """
    arch = {key: run.setting(f"arch.{key}") for key in RESIDUAL}
    told = {key: value for key, value in arch.items() if value != RESIDUAL[key]}
    if not run.skipless:
        return told
    return {"merge": "plain"} if told.keys() <= {"merge", "order", "shortcut"} else None


def _is_network(named: dict[str, Any], network: dict[str, Any]) -> bool:
    """Whether a row's settings are a network's. One that names no shortcut is of each option."""
    shortcut = named.get("shortcut", network.get("shortcut", "A"))
    return RESIDUAL | named | {"shortcut": shortcut} == RESIDUAL | network


def _has_size(millions: str, run: Run) -> bool:
    """Whether a rounded count, such as 0.85, may be of this network.

    Unknown counts may, of basic units: bottlenecks share the names of deep networks.
    """
    if not millions:
        return bool(run.setting("arch.unit") == "basic")
    parameters = run.record.get("parameters")
    return not parameters or abs(float(millions) * 1e6 / parameters - 1) < TOLERANCE


def typed(text: str) -> dict[str, Any]:
    """``merge=plain gate_bias=-6`` as settings."""
    pairs = (word.partition("=") for word in text.split())
    return {key: export.value(spelled) for key, _, spelled in pairs}


# --- what stands beside a network


def published_beside(run: Run) -> dict[str, Any]:
    """The best known test error by the recipe of He et al. 2015, its source, and what these runs do
    otherwise; None for none, and for a run of another recipe or with more changed than its steps.
    """
    found = dict.fromkeys(("published_test_error", "published_source", "published_remark"))
    usable = list(TEST_METRICS)[:3]  # of runs that did not fail, on the test set
    rows = [
        row
        for row in matching(run)
        if row["metric"] in usable and row["source"].startswith(BY_HE2015)
    ]
    if not rows or run.setting("recipe") != "he2015" or set(run.extras) - {"steps"}:
        return found
    best = min(rows, key=lambda row: (VERIFIED.index(row["verified"]), usable.index(row["metric"])))
    remarks = []
    if run.data == "cifar10-jpeg":
        remarks.append("published on CIFAR-10; these runs used a JPEG re-encoding of it")
    if (steps := run.setting("steps")) != HE2015["steps"]:
        remarks.append(f"published after {HE2015['steps']:,} steps; these runs took {steps:,}")
    source = f"{best['source']}, {TEST_METRICS[best['metric']][0]}"
    return dict(zip(found, (float(best["value"]), source, "; ".join(remarks) or None), strict=True))


def beside(run: Run, ours: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every published error of this run's network as ``COLUMNS``, the paper's first.

    One without values, but a remark, if there is none. Errors in percent; ``ours`` are the numbers
    of the finished runs like this one, as ``table.line`` has them.
    """
    found, metrics = matching(run), list(TEST_METRICS)
    tested = sorted(
        (row for row in found if row["metric"] in metrics),
        key=lambda row: (
            not row["source"].startswith("He2015"),  # the paper's own numbers first
            VERIFIED.index(row["verified"]),
            row["source"],
            metrics.index(row["metric"]),
        ),
    )
    if not tested:
        why = "no error of this network was read at a source"
        if run.data not in CIFAR10:
            why = f"no published error is shown: those are of CIFAR-10, these runs of {run.data}"
        return [dict.fromkeys(COLUMNS) | {"published_bound": "", "published_remark": why}]
    train = {
        (row["network"], row["source"]): float(row["value"])
        for row in found[::-1]
        if row["metric"] == TRAIN_METRIC
    }
    once: dict[tuple[str, ...], dict[str, str]] = {}  # a paper repeats its number in its tables
    for row in tested:
        once.setdefault((row["source"].split()[0], row["metric"], row["value"]), row)
    published = []
    for row in once.values():
        value, sd = float(row["value"]), float(row["std"]) if row["std"] else None
        statistic, runs, bound = TEST_METRICS[row["metric"]]
        difference = z = None
        # A mean of all seeds is not to be measured by somebody's best, nor by a bound.
        alike = not bound and not statistic.startswith("best") and comparable(run)
        if ours["test_error"] is not None and alike:
            difference = ours["test_error"] - value
            z = z_value(difference, ours["test_error_sd"], ours["seeds"], sd, runs)
        its_train, source = train.get((row["network"], row["source"])), row["source"]
        held = (value, sd, bound, runs or None, statistic, its_train, source, row["verified"])
        differs = remark(run, row) or None
        published.append(dict(zip(COLUMNS, (*held, differs, difference, z), strict=True)))
    return published


def comparable(run: Run) -> bool:
    """Whether errors of this run can be set against published ones.

    They are of CIFAR-10 itself, after some 64,000 steps; half as many will do.
    """
    return not CIFAR10[run.data] and 2 * run.setting("steps") >= HE2015["steps"]


def z_value(
    difference: float, our_sd: float | None, our_runs: int, their_sd: float | None, their_runs: int
) -> float | None:
    """(ours - theirs) / sqrt(our_sd^2 / our_runs + their_sd^2 / their_runs).

    None where a spread or a number of runs is not known, or both spreads are zero.
    """
    if our_sd is None or their_sd is None or not our_runs or not their_runs:
        return None
    error = math.sqrt(our_sd**2 / our_runs + their_sd**2 / their_runs)
    return difference / error if error > 0 else None


def short_source(source: str) -> str:
    """``He2015 Table 6`` of ``He2015 arXiv:1512.03385 Table 6``: what a table cell holds.

    Of a repository its owner, without the commit and the file that was read.
    """
    return re.sub(r" arXiv:\S+|/\S+ [0-9a-f]{7} \w+$", "", re.split(r"; | \(", source)[0])


# --- in what these runs differ


def remark(run: Run, row: dict[str, str]) -> str:
    """Differences between this run's own settings and what the source says it did."""
    said = [] if comparable(run) else ["not compared"]
    said += ["read at second hand"] if row["verified"] == "secondary" else []
    if CIFAR10[run.data]:
        said.append(f"published on CIFAR-10; these runs: {CIFAR10[run.data]}")
    did, here = source_facts(row), facts(run)
    if did is None:
        return "; ".join([*said, "its recipe is not known here"])
    stated = {key: value for key, value in did.items() if value is not None}
    differing = [key for key, value in stated.items() if rounded(value) != rounded(here[key])]
    if differing:
        said.append(f"its runs: {_spelled(differing, did)}; these: {_spelled(differing, here)}")
    shown = (*PHRASES, "arch.order", "arch.merge")
    also = [f"{key}={spell(run.extras[key])}" for key in sorted(run.extras) if key not in shown]
    said += [f"these runs also: {', '.join(also)}"] if also else []
    said += [row["remark"]] if row["remark"] else []
    unsaid = [key for key in UNSAID if did.get(key, "") is None and here[key] != UNSAID[key][1]]
    if unsaid:
        named = ", ".join(UNSAID[key][0] for key in unsaid)
        said.append(f"{named} not stated there; these: {_spelled(unsaid, here)}")
    return "; ".join(said)


def source_facts(row: dict[str, str]) -> dict[str, Any] | None:
    """What the source of a row did, None for what it does not say; None for an unknown source."""
    known = [did for name, did in SOURCES.items() if row["source"].startswith(name)]
    if not known:
        return None
    did, network = known[0] | typed(row["did"]), typed(row["settings"])
    if network["merge"] == "plain":  # no shortcut at all
        did.pop("arch.shortcut", None)
    elif "shortcut" in network:
        did["arch.shortcut"] = network["shortcut"]
    return did


def facts(run: Run) -> dict[str, Any]:
    """A run's own settings, and its epochs, by the keys of ``PHRASES``."""
    here = {key: run.setting(key) for key in PHRASES if key != "epochs"}
    images = run.record["data"].get("train")
    seen = here["steps"] * here["batch_size"]
    return here | {"epochs": round(seen / images) if images else None}


def rounded(value: Any) -> Any:
    """Milestones to the hundredth, which is all that their sources tell."""
    return [round(share, 2) for share in value] if isinstance(value, list) else value


def _spelled(keys: Sequence[str], settings: dict[str, Any]) -> str:
    """Settings in words: ``64,000 steps, shortcut option B``."""
    return ", ".join(_said(key, settings[key]) for key in keys)


def _said(key: str, value: Any) -> str:
    phrase = PHRASES[key]
    if isinstance(phrase, dict):
        return phrase.get(value, str(value))
    if isinstance(value, list):
        value = ", ".join(f"{share:g}" for share in value)
    return phrase.format(f"{value:,}" if type(value) is int else value)
