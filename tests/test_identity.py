"""settings.job: what of a run's settings is its identity, and how records come back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_jobs import RECORD

from resexp import config
from resexp.runs import records
from resexp.runs.records import Claim
from resexp.settings import (
    Activation,
    Arch,
    BnEval,
    Data,
    Init,
    Normalise,
    Order,
    Precision,
    Settings,
    Shortcut,
    Split,
    Unit,
    UsageError,
    WeightDecayOn,
    as_dict,
    circumstances,
    complete,
    digest,
    flatten,
    from_dict,
    identity,
)
from resexp.settings.job import CIRCUMSTANCES, LATER, MOVED

#: Another value for the settings that have a list of them.
CHANGED: dict[str, Any] = {
    "arch.merge": "residual",
    "arch.shortcut": Shortcut.B,
    "arch.order": Order.full_preactivation,
    "arch.activation": Activation.tanh,
    "arch.unit": Unit.bottleneck,
    "arch.skip_stages": [1],
    "launch.address": "auto",
    "launch.partition": "long",
    "data.split": Split("45k"),
    "data.size": 16,
    **{f"seeds.{one}": 1 for one in ("weights", "batches", "augmentation")},
    "milestones": [0.5],
    "weight_decay_on": WeightDecayOn.weights,
    "normalise": Normalise.none,
    "init": Init.xavier,
    "bn_eval": BnEval.recalibrated,
    "precision": Precision.bf16,
}


def another(value: Any) -> Any:
    """A value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [*value, "x"]
    return f"{value}x" if isinstance(value, str) else value * 2 + 1


def changed(key: str) -> dict[str, Any]:
    """The default settings with ``key`` at another value."""
    nested = as_dict(Settings())
    flat = flatten(nested)
    value = CHANGED[key] if key in CHANGED else another(flat[key])
    assert value != flat[key]
    *groups, last = key.split(".")
    place = nested
    for group in groups:
        place = place[group]
    place[last] = value
    return nested


@pytest.mark.parametrize("key", sorted(flatten(as_dict(Settings()))))
def test_every_setting_is_either_identity_or_circumstance(key: str) -> None:
    default = as_dict(Settings())
    same = digest(changed(key)) == digest(default)
    apart = key in circumstances(flatten(default))
    assert same == apart
    assert (key in identity(default)) == (not apart)


def test_the_circumstances_are_where_and_how_not_what() -> None:
    where = "address cores gpus jobs minutes name partition ranks"
    how = "checkpoint_every device engine fail_fast keep_checkpoint loggers name overwrite remark"
    assert sorted(CIRCUMSTANCES) == sorted(
        [
            *(f"data.{one}" for one in ["cache", "download", "root", "stream", "workers"]),
            *(f"launch.{one}" for one in where.split()),
            *[*how.split(), "results", "threads"],
        ]
    )


def test_a_digest_is_twelve_digits_that_depend_on_no_order() -> None:
    nested = as_dict(Settings())
    backwards = dict(reversed(nested.items()))
    assert digest(backwards) == digest(nested) == digest({})
    assert len(digest(nested)) == 12
    assert int(digest(nested), 16) >= 0
    nested_twice = as_dict(Settings(arch=Arch(), data=Data()))
    assert digest(nested_twice) == digest(nested)


def test_settings_that_came_later_are_no_part_of_digests_at_their_default() -> None:
    for key in LATER:
        value = complete({})[key]
        assert digest(changed(key)) != digest({key: value}) == digest({})
        assert identity({})[key] == value


# Older runs


@pytest.mark.parametrize(
    ("words", "known"),
    [
        ("arch=plain", "3bbd7a55b08a"),
        ("arch=highway gate_bias=-6", "ae0bec5d53b6"),
        ("experiment=he2015 arch=residual depth=56 seed=3", "dcce0963021d"),
    ],
)
def test_settings_that_came_later_leave_digests_as_they_were(words: str, known: str) -> None:
    assert digest(as_dict(config.compose(words.split()).settings)) == known


def older(job_settings: Settings) -> dict[str, Any]:
    """What version 0.1 recorded: options of merge rules among the settings of every arch."""
    nested = as_dict(job_settings)
    options = nested["arch"].pop("options")
    flat = MOVED | {f"arch.{key}": float(value) for key, value in options.items()}
    nested["arch"] |= {key.removeprefix("arch."): value for key, value in flat.items()}
    return nested | {"arch": nested["arch"] | {"options": {}}}


OLDER = [
    ("arch=plain", "plain-20-s0"),
    ("arch=highway", "highway-20-s0"),
    ("arch=highway gate_bias=-6", "highway-20-s0,arch.gate_bias=-6.0"),
    ("arch=fixup", "fixup-20-s0"),
    ("arch=scaled_shortcut shortcut_scale=0.25", "scaled_shortcut-20-s0,arch.shortcut_scale=0.25"),
    (
        "arch=residual arch.merge=scaled arch.branch_start=1",
        "residual-20-s0,arch.branch_start=1.0,arch.merge=scaled",
    ),
]


@pytest.mark.parametrize(("words", "name"), OLDER)
def test_a_run_of_an_older_version_is_found_and_known_to_be_done(
    words: str, name: str, tmp_path: Path
) -> None:
    job = config.compose([*words.split(), f"results={tmp_path}"])
    record = older(job.settings)
    assert job.run == name
    job.directory.mkdir(parents=True)
    records.write_record(job.directory, RECORD | {"settings": record, "status": "ok"})
    assert records.look(job) is Claim.done
    assert digest(record) == digest(as_dict(job.settings))
    for key, value in complete(record).items():
        assert complete(as_dict(job.settings))[key] == value
    back = from_dict(record)
    assert digest(as_dict(back)) == digest(record)
    assert replace(back.arch, options={}) == replace(job.settings.arch, options={})
    with pytest.raises(UsageError, match=r"was trained with arch\.\w+="):
        records.look(replace(job, settings=replace(job.settings, arch=highway(-1.5))))


def highway(bias: float) -> Arch:
    return Arch(merge="highway", options={"gate_bias": bias})


def test_an_older_record_becomes_options_of_the_rule() -> None:
    settings = Settings(arch=highway(-6.0))
    assert from_dict(older(settings)) == settings
    assert from_dict(older(Settings())) == Settings()
    assert from_dict(json.loads(json.dumps(as_dict(settings)))) == settings


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"depth": "deep"}, "depth=deep must be a whole number"),
        ({"depth": [8]}, "must be a whole number"),
        ({"milestones": "early"}, "milestones=early must be a list"),
        ({"milestones": ["early"]}, "milestones=early must be a number"),
        ({"arch": None}, "arch=None must be names and values"),
        ({"arch": {"options": 3}}, "arch.options=3 must be names and values"),
        ({"arch": {"skip_stages": 1}}, "arch.skip_stages=1 must be a list"),
        ({"arch": {"order": "magic"}}, "arch.order=magic is none of original"),
        ({"data": {"size": "big"}}, "data.size=big must be a whole number"),
        ({"flip": 1}, "flip=1 must be true or false"),
        ({"speed": 1}, "knows no setting speed"),
        ({"lr": -1.0}, "lr=-1.0 is out of range"),
        ({"depth": 10**9}, "depth=1000000000 is out of range"),
    ],
    ids=str,
)
def test_a_record_that_no_version_wrote_is_refused_in_one_line(
    change: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError) as refusal:
        from_dict(as_dict(Settings()) | change)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)
