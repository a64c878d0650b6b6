"""Errors that others published for a network, with their sources and what these runs did else.

Only values of ``published.csv`` that someone read at their source are shown. What a source did is
stated where it is known; what it leaves open is said to be open, never guessed.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from resexp.analysis.results import Run, spell
from resexp.settings import Settings, as_dict

#: Values of published.csv's column ``verified`` that may be shown, best first.
VERIFIED = ("fulltext", "author_repo", "secondary")

#: Data names that are CIFAR-10, and in what the pictures differ from the original's.
CIFAR10 = {"cifar10": "", "cifar10-jpeg": "a JPEG re-encoding of CIFAR-10"}

#: Names in published.csv of networks, with {depth}: what they share with no other is said by the
#: settings of their arch that differ from those of the residual network.
PLAIN_NAMES = ("plain-{depth}", "ResNet-{depth}-noshort", "ResNet-{depth} shortcut 0 (plain)")
PREACTIVATED = {"order": "full_preactivation"}
RESIDUAL_NAMES = (
    "ResNet-{depth}",
    "ResNet-{depth} original",
    "ResNet-{depth} original (a)",
    "ResNet-{depth} vanilla",
)
VARIANTS: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({}, RESIDUAL_NAMES),
    ({"order": "bn_after_addition"}, ("ResNet-{depth} BN after addition (b)",)),
    ({"order": "relu_before_addition"}, ("ResNet-{depth} ReLU before addition (c)",)),
    ({"order": "relu_only_preactivation"}, ("ResNet-{depth} ReLU-only pre-activation (d)",)),
    (PREACTIVATED, ("ResNet-{depth} full pre-activation (e)", "ResNet-{depth} pre-act")),
    ({"skip_span": 1}, ("ResNet-{depth} 1-layer-skip original",)),
    ({"skip_span": 1} | PREACTIVATED, ("ResNet-{depth} 1-layer-skip pre-act",)),
    ({"shortcut": "C"}, (*RESIDUAL_NAMES, "ResNet-{depth} 1x1 conv shortcut")),
    (
        {"merge": "weighted", "shortcut_scale": 0.5, "branch_scale": 0.5},
        ("ResNet-{depth} const scaling shortcut 0.5, F 0.5",),
    ),
    ({"merge": "weighted", "shortcut_scale": 0.5}, ("ResNet-{depth} shortcut 0.5, F 1",)),
    ({"merge": "dropout"}, ("ResNet-{depth} dropout shortcut 0.5",)),
    ({"merge": "highway", "gate_bias": -6}, ("ResNet-{depth} exclusive gating bg=-6",)),
    ({"merge": "highway", "gate_bias": -7}, ("ResNet-{depth} exclusive gating bg=-7",)),
    ({"merge": "shortcut_gate", "gate_bias": 0}, ("ResNet-{depth} shortcut-only gating bg=0",)),
    ({"merge": "shortcut_gate", "gate_bias": -6}, ("ResNet-{depth} shortcut-only gating bg=-6",)),
    ({"survival": 0.5}, ("ResNet-{depth} p_L=0.5 linear",)),
    ({"se_ratio": 16}, ("SE-ResNet-{depth}",)),
    ({"se_ratio": 16} | PREACTIVATED, ("SE-ResNet-{depth}",)),
    ({"merge": "scaled"}, ("ResNet-{depth} ReZero",)),
    (
        {"merge": "scaled", "order": "fixup", "branch_start": 1, "scalar_lr": 0.1},
        ("ResNet-{depth} Fixup", "ResNet-{depth} no-norm Fixup"),
    ),
]

#: The arch settings of the residual network that names depend on; units share the names of theirs.
RESIDUAL = {
    key: value
    for key, value in (as_dict(Settings())["arch"] | {"merge": "residual"}).items()
    if key not in ("unit", "bottleneck_stride", "options")
}

#: Measures of a final test error: what it is over, and of how many runs (0: not said).
TEST_METRICS = {
    "test_error_pct_mean_of_5": ("mean of 5 runs", 5),
    "test_error_pct_mean5": ("mean of 5 runs", 5),
    "test_error_pct_median5": ("median of 5 runs", 5),
    "test_error_pct": ("1 run", 1),
    "final_valid_error_pct": ("1 run", 1),
    "test_error_pct_best_of_5": ("best of 5 runs", 5),
    "error_pct_lower_bound": ("failed", 0),
    "fail_test_error_gt_pct": ("failed", 0),
}
TRAIN_METRIC = "train_error_pct"
BOUNDS = {"error_pct_lower_bound": ">", "fail_test_error_gt_pct": ">"}

#: Settings that a footnote compares, and how a value is said.
PHRASES = {
    "arch.shortcut": "shortcut option {}",
    "data.split": "{}",
    "epochs": "{} epochs",
    "steps": "{} steps",
    "batch_size": "batch {}",
    "lr": "learning rate {}",
    "lr_drop": "rate times {} at each drop",
    "momentum": "momentum {}",
    "normalise": "pictures normalised by {}",
    "milestones": "drops at {} of the steps",
    "nesterov": "{}",
    "weight_decay": "weight decay {}",
    "crop_padding": "crop padding {}",
    "flip": "{}",
    "precision": "{}",
}
WORDS: dict[tuple[str, Any], str] = {
    ("data.split", "full"): "all 50,000 images trained on",
    ("data.split", "45k"): "45,000 of 50,000 images trained on",
    ("nesterov", True): "Nesterov momentum",
    ("nesterov", False): "momentum without Nesterov",
    ("flip", True): "mirrored images",
    ("flip", False): "no mirrored images",
    ("precision", "fp16"): "fp16 mixed precision",
    ("normalise", "pixel_mean"): "a mean picture subtracted",
}
NAMES = {
    "arch.shortcut": "shortcut option",
    "data.split": "training split",
    "nesterov": "Nesterov",
    "precision": "precision",
    "steps": "steps",
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
}


PART = "the rest of its recipe is not known here"

#: What else must be said of a source, by the same beginnings.
NOTES = {
    "independent replication README": PART,
    "tbachlechner/ReZero-examples README": PART,
}


@dataclass(kw_only=True, slots=True)
class Published:
    """One source's errors of one network. Errors in percent."""

    published_test_error: float | None
    published_test_error_sd: float | None  # over its runs
    published_bound: str  # "", or ">" where the value is only a bound
    published_runs: int | None  # None where not said
    published_statistic: str | None  # what the value is over, such as mean of 5 runs
    published_train_error: float | None
    published_source: str | None
    published_verified: str | None
    published_remark: str | None  # in what these runs differ, or why there is no value
    difference: float | None  # ours minus theirs, percent points, where theirs is no bound
    z: float | None  # the difference over its standard error, where both spreads are known


@cache
def published_rows() -> list[dict[str, str]]:
    """The rows of published.csv that were read at their source."""
    text = files("resexp.analysis").joinpath("published.csv").read_text(encoding="utf-8")
    table = csv.DictReader(io.StringIO(text))
    return [row for row in table if row["verified"] in VERIFIED]


def beside(
    run: Run, test_error: float | None, test_error_sd: float | None, seeds: int
) -> list[Published]:
    """Every published error of this run's network, the paper's first; one without values if none.

    ``test_error`` and its sd are the mean over ``seeds`` finished runs like this one.
    """
    data = str(run.record["data"].get("name"))
    if data not in CIFAR10:
        return [
            _nothing(f"no published error is shown: those are of CIFAR-10, these runs of {data}")
        ]
    found = [row for row in published_rows() if _is_network(row, run)]
    tested = [row for row in found if row["metric"] in TEST_METRICS]
    if not tested:
        return [_nothing("no error of this network was read at a source")]
    metrics = list(TEST_METRICS)
    tested.sort(key=lambda row: (*_rank(row), metrics.index(row["metric"])))
    # A paper repeats its number in several tables: once is enough.
    once = {(row["source"].split()[0], row["metric"], row["value"]): row for row in tested[::-1]}
    kept = [row for row in tested if row in once.values()]
    return [_compare(run, row, found, test_error, test_error_sd, seeds) for row in kept]


def _rank(row: dict[str, str]) -> tuple[int, int, str]:
    """The paper's own numbers first, then by how they were read."""
    ours = 0 if row["source"].startswith("He2015") else 1
    return (ours, VERIFIED.index(row["verified"]), row["source"])


def _nothing(why: str) -> Published:
    return Published(
        published_test_error=None,
        published_test_error_sd=None,
        published_bound="",
        published_runs=None,
        published_statistic=None,
        published_train_error=None,
        published_source=None,
        published_verified=None,
        published_remark=why,
        difference=None,
        z=None,
    )


def _compare(
    run: Run,
    row: dict[str, str],
    found: Sequence[dict[str, str]],
    test_error: float | None,
    test_error_sd: float | None,
    seeds: int,
) -> Published:
    value, bound = float(row["value"]), BOUNDS.get(row["metric"], "")
    sd = float(row["std"]) if row["std"] else None
    statistic, counted = TEST_METRICS[row["metric"]]
    if repeats := re.search(r"(\d+) seeds?\)$", row["network"]):
        counted = int(repeats[1])
        statistic = "1 run" if counted == 1 else f"mean of {counted} runs"
    train = [
        float(other["value"])
        for other in found
        if other["metric"] == TRAIN_METRIC
        and (other["network"], other["source"]) == (row["network"], row["source"])
    ]
    # A mean of all seeds is not to be measured by somebody's best, nor by a bound.
    comparable = test_error is not None and not bound and not statistic.startswith("best")
    return Published(
        published_test_error=value,
        published_test_error_sd=sd,
        published_bound=bound,
        published_runs=counted or None,
        published_statistic=statistic,
        published_train_error=train[0] if train else None,
        published_source=row["source"],
        published_verified=row["verified"],
        published_remark=remark(run, row) or None,
        difference=test_error - value if test_error is not None and comparable else None,
        z=z_value(test_error, test_error_sd, seeds, value, sd, counted) if comparable else None,
    )


def z_value(
    ours: float | None, our_sd: float | None, our_runs: int,
    theirs: float, their_sd: float | None, their_runs: int,
) -> float | None:  # fmt: skip
    """(ours - theirs) / sqrt(our_sd^2 / our_runs + their_sd^2 / their_runs).

    None where a spread or a number of runs is not known, or both spreads are zero.
    """
    if ours is None or our_sd is None or their_sd is None or not our_runs or not their_runs:
        return None
    error = math.sqrt(our_sd**2 / our_runs + their_sd**2 / their_runs)
    return (ours - theirs) / error if error > 0 else None


def short_source(source: str) -> str:
    """``He2015 Table 6`` of ``He2015 arXiv:1512.03385 Table 6``: what a table cell holds."""
    return re.sub(r" arXiv:\S+", "", re.split(r"; | \(", source)[0])


# --- which network a row is about


def _is_network(row: dict[str, str], run: Run) -> bool:
    """Whether a row of published.csv is of this run's network on augmented CIFAR-10."""
    if row["dataset"] != "cifar10+" or run.setting("width") != 16:
        return False
    if not row["params_millions"] and run.setting("arch.unit") != "basic":
        return False
    name = re.sub(r" \([^()]*\d+ seeds?\)$", "", row["network"])
    names = [pattern.format(depth=run.depth) for pattern in network_names(run)]
    return name in names and _same_size(row["params_millions"], run.record.get("parameters"))


def network_names(run: Run) -> tuple[str, ...]:
    """The names, with {depth}, that published.csv has for networks such as this run's.

    Bottlenecks share the names of deep networks, such as ResNet-164, with no basic one.
    """
    arch = {key: run.setting(f"arch.{key}") for key in RESIDUAL}
    told = {key: value for key, value in arch.items() if value != RESIDUAL[key]}
    if told.get("shortcut") == "B":  # named as A is
        del told["shortcut"]
    if run.skipless:
        return PLAIN_NAMES if set(told) <= {"merge", "order", "shortcut"} else ()
    return next((names for settings, names in VARIANTS if settings == told), ())


def _same_size(millions: str, parameters: int | None) -> bool:
    """Whether a rounded count, such as 0.85, may be of this network; unknown counts may.

    Projections add at most 7 % to what option A has; bottlenecks of a depth have far fewer.
    """
    if not millions or not parameters:
        return True
    return abs(float(millions) * 1e6 / parameters - 1) < 0.08


# --- in what these runs differ


def remark(run: Run, row: dict[str, str]) -> str:
    """Differences between this run's own settings and what the source says it did."""
    said = []
    if row["verified"] == "secondary":
        said.append("read at second hand")
    pictures = CIFAR10[str(run.record["data"].get("name"))]
    if pictures:
        said.append(f"published on CIFAR-10; these runs: {pictures}")
    did = source_facts(row)
    if did is None:
        return "; ".join([*said, "its recipe is not known here"])
    here = facts(run)
    differing = [
        key for key, value in did.items() if value is not None and not _same(key, value, here)
    ]
    if differing:
        theirs = ", ".join(spell_fact(key, did[key]) for key in differing)
        ours = ", ".join(spell_fact(key, here[key]) for key in differing)
        said.append(f"its runs: {theirs}; these: {ours}")
    also = [
        key for key in run.extras if key not in PHRASES and key not in ("arch.order", "arch.merge")
    ]
    if also:
        said.append(
            "these runs also: "
            + ", ".join(f"{key}={spell(run.extras[key])}" for key in sorted(also))
        )
    said += [note for name, note in NOTES.items() if row["source"].startswith(name)]
    if "-noshort" in row["network"]:
        said.append("its deep networks without shortcuts at learning rate 0.01")
    unsaid = [key for key, value in did.items() if value is None and key in NAMES]
    # A detail that it leaves open matters where this run took it from no default.
    unsaid = [key for key in unsaid if key == "data.split" or here[key] != USUAL[key]]
    if unsaid:
        ours = ", ".join(spell_fact(key, here[key]) for key in unsaid)
        said.append(f"{', '.join(NAMES[key] for key in unsaid)} not stated there; these: {ours}")
    return "; ".join(said)


#: Details that go without saying if a source is silent and these runs have them.
USUAL = {"arch.shortcut": "A", "nesterov": False, "precision": "fp32", "steps": 64_000}


def source_facts(row: dict[str, str]) -> dict[str, Any] | None:
    """What the source of a row did, None for what it does not say; None for an unknown source."""
    known = [did for name, did in SOURCES.items() if row["source"].startswith(name)]
    if not known:
        return None
    did = dict(known[0])
    if row["source"].startswith("independent replication") and row["network"].startswith(
        "plain-56"
    ):
        did["precision"] = "fp32"  # as it says: its fp16 run broke down
    if row["source"].startswith("Li2018") and row["network"].endswith("-noshort"):
        del did["lr"]  # 0.01 for the deep ones of these, by a rule that is not known here
    if row["family"] == "plain" or row["network"].endswith("(plain)"):  # no shortcut at all
        did.pop("arch.shortcut", None)
    if "1x1 conv shortcut" in row["network"]:
        did["arch.shortcut"] = "C"
    return did


def facts(run: Run) -> dict[str, Any]:
    """A run's own settings, and its epochs, by the keys of ``PHRASES``."""
    here = {key: run.setting(key) for key in PHRASES if key != "epochs"}
    images = run.record["data"].get("train")
    seen = here["steps"] * here["batch_size"]
    return here | {"epochs": round(seen / images) if images else None}


def _same(key: str, value: Any, here: dict[str, Any]) -> bool:
    if key == "milestones":
        return [round(share, 2) for share in here[key]] == [round(share, 2) for share in value]
    return bool(here[key] == value)


def spell_fact(key: str, value: Any) -> str:
    """A setting in words: ``64,000 steps``, ``shortcut option B``."""
    if not isinstance(value, list) and (key, value) in WORDS:
        return WORDS[key, value]
    if isinstance(value, list):
        value = ", ".join(f"{share:g}" for share in value)
    elif isinstance(value, int) and not isinstance(value, bool):
        value = f"{value:,}"
    return PHRASES[key].format(value)
