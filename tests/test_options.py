"""models.options and settings.fields: values are checked against a dataclass before all else."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import pytest

from resexp import config, models
from resexp.models.merges import RULES
from resexp.models.options import NoOptions, check, read
from resexp.settings import Above, Range, UsageError, choices
from resexp.settings.fields import hints, said

Stem = StrEnum("Stem", ["imagenet", "small"])


@dataclass(frozen=True, slots=True)
class Options:
    growth: Annotated[int, Range(1, 1024), "channels"]
    compression: Annotated[float, Above(0, 1)] = 1.0
    stem: Stem = Stem.small
    bias: bool = False
    title: str = ""
    stages: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Others:
    gate: float = 0.0


def test_values_become_those_of_the_fields_types_and_others_are_left_alone() -> None:
    given = {"growth": 12, "compression": 1, "stem": "imagenet", "bias": True, "stages": (1, 2)}
    options = read(Options, given | {"gate": 2})
    assert options == Options(12, 1.0, Stem.imagenet, True, "", [1, 2])
    assert type(options.compression) is float
    assert options.stem is Stem.imagenet
    assert read(Others, given | {"gate": 2}) == Others(2.0)
    assert read(Options, {"growth": 24}) == Options(growth=24)
    check(given | {"gate": 2}, Options, Others)
    check({}, NoOptions)


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"growth": 12, "grwth": 1}, "grwth is unknown. Did you mean growth? Choose from growth, com"),
    ({}, "growth is missing. Write arch.options.growth=..."),
    ({"growth": "many"}, "growth=many must be a whole number."),
    ({"growth": 12.0}, "growth=12.0 must be a whole number."),
    ({"growth": True}, "growth=True must be a whole number."),
    ({"growth": None}, "growth=None must be a whole number."),
    ({"growth": [12]}, "growth=[12] must be a whole number."),
    ({"growth": 0}, "growth=0 is out of range. Choose a value from 1 to 1,024."),
    ({"growth": 1025}, "growth=1025 is out of range. Choose a value from 1 to 1,024."),
    ({"growth": 12, "compression": 0}, "compression=0 is out of range. Choose a value above 0, at"),
    ({"growth": 12, "compression": math.nan}, "compression=nan is out of range."),
    ({"growth": 12, "compression": "half"}, "compression=half must be a number."),
    ({"growth": 12, "stem": "big"}, "stem=big is none of imagenet, small."),
    ({"growth": 12, "stem": ["small"]}, "stem=['small'] is none of imagenet, small."),
    ({"growth": 12, "bias": 1}, "bias=1 must be true or false."),
    ({"growth": 12, "title": 3}, "title=3 must be a word."),
    ({"growth": 12, "stages": 3}, "stages=3 must be a list, such as "),
    ({"growth": 12, "stages": [1, "2"]}, "stages=2 must be a whole number."),
    ({"growth": 12, "gate_bias": -2}, "gate_bias is for arch=highway or shortcut_gate."),
]


@pytest.mark.parametrize(("given", "sentence"), REFUSALS, ids=lambda value: str(value)[:40])
def test_what_does_not_fit_is_refused_in_one_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as refusal:
        check(given, Options, Others)
    assert str(refusal.value).startswith(f"arch.options.{sentence}")


def test_an_arch_without_options_takes_none() -> None:
    with pytest.raises(UsageError, match=r"arch.options.x is unknown. This arch has no options"):
        check({"x": 12}, NoOptions)


@pytest.mark.parametrize(
    ("words", "archs"),
    [
        ("arch=plain growth=12", "dense or dense_bc or densenet"),
        ("arch=plain gate_bias=-2", "highway or shortcut_gate"),
        ("arch=residual arch.branch_start=1", "fixup or rezero or skipinit or transformer_rezero"),
        ("arch=highway arch.merge=dropout gate_bias=-2", "highway or shortcut_gate"),
    ],
)
def test_an_option_of_others_is_refused_with_the_archs_that_have_it(words: str, archs: str) -> None:
    with pytest.raises(UsageError, match=rf"^arch.options.\w+ is for arch={archs}\.$"):
        models.check(config.compose(words.split()).settings)


@pytest.mark.parametrize("key", ["gate_bias", "arch.gate_bias", "arch.options.gate_bias"])
@pytest.mark.parametrize("arch", [["arch=highway"], ["arch=residual", "arch.merge=highway"]])
def test_an_option_is_typed_in_short_or_in_full_and_names_its_run_alike(
    arch: list[str], key: str
) -> None:
    job = config.compose([*arch, f"{key}=-6"])
    assert job.settings.arch.options == {"gate_bias": -6}
    assert job.extras["arch.gate_bias"] == -6.0
    assert ",arch.gate_bias=-6.0" in job.run  # as before it was an option
    models.check(job.settings)
    assert config.compose(job.overrides).settings == job.settings


def test_an_option_of_a_family_keeps_those_left_out() -> None:
    options = config.compose(["arch=dense", "depth=22", "growth=5"]).settings.arch.options
    assert options == {"growth": 5, "compression": 1.0, "stem_channels": 16}


def test_every_option_is_stated_by_an_arch_has_a_meaning_and_one_owner() -> None:
    """What no file of configs/arch states cannot be typed."""
    names = [path.stem for path in Path(models.__file__).parent.glob("[a-z]*.py")]
    found = [import_module(f"resexp.models.{name}") for name in names]
    kinds = {one.Options for one in (*found, *RULES.values()) if hasattr(one, "Options")}
    owners: dict[str, set[str]] = {}
    for kind in kinds:
        for one in fields(kind):
            owners.setdefault(f"arch.options.{one.name}", set()).add(kind.__name__)
            hint = hints(kind)[one.name]
            assert isinstance(hint, type) or said(hint, str), one.name
    assert set(owners) == set(choices.own_options())
    shared = {key for key, its in owners.items() if its > {"Options"}}
    assert not shared  # a rule's option that a family also has would be read by both


def test_every_rule_is_that_of_some_arch() -> None:
    assert sorted(choices.merges()) == sorted(RULES) == sorted(choices.values("arch.merge"))
