"""resexp.models.options: what one family alone knows, checked before anything is built."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any

import pytest

from resexp.models.options import NoOptions, Range, read
from resexp.settings import UsageError

Stem = StrEnum("Stem", ["imagenet", "small"])


@dataclass(frozen=True, slots=True)
class Options:
    growth: Annotated[int, Range(1, 1024)]
    compression: Annotated[float, Range(0, 1, above=True)] = 1.0
    stem: Stem = Stem.small
    bias: bool = False
    title: str = ""
    stages: list[int] = field(default_factory=list)


def test_values_become_those_of_the_fields_types() -> None:
    given = {"growth": 12, "compression": 1, "stem": "imagenet", "bias": True, "stages": (1, 2)}
    options = read(Options, given)
    assert options == Options(12, 1.0, Stem.imagenet, True, "", [1, 2])
    assert type(options.compression) is float
    assert options.stem is Stem.imagenet


def test_options_left_out_are_at_their_defaults() -> None:
    assert read(Options, {"growth": 24}) == Options(growth=24)
    assert read(NoOptions, {}) == NoOptions()


REFUSALS: list[tuple[dict[str, Any], str]] = [
    (
        {"growth": 12, "grwth": 1},
        "arch.options.grwth is unknown. Did you mean arch.options.growth? "
        "Choose from growth, compression, stem, bias, title, stages.",
    ),
    ({}, "arch.options.growth is missing. Write arch.options.growth=..."),
    ({"growth": "many"}, "arch.options.growth=many must be a whole number."),
    ({"growth": 12.0}, "arch.options.growth=12.0 must be a whole number."),
    ({"growth": True}, "arch.options.growth=True must be a whole number."),
    ({"growth": None}, "arch.options.growth=None must be a whole number."),
    ({"growth": [12]}, "arch.options.growth=[12] must be a whole number."),
    ({"growth": 0}, "arch.options.growth=0 is out of range. Choose 1 to 1,024."),
    ({"growth": 1025}, "arch.options.growth=1025 is out of range. Choose 1 to 1,024."),
    (
        {"growth": 12, "compression": 0},
        "arch.options.compression=0 is out of range. Choose above 0, at most 1.",
    ),
    (
        {"growth": 12, "compression": math.nan},
        "arch.options.compression=nan is out of range. Choose above 0, at most 1.",
    ),
    ({"growth": 12, "compression": "half"}, "arch.options.compression=half must be a number."),
    ({"growth": 12, "stem": "big"}, "arch.options.stem=big is none of imagenet, small."),
    ({"growth": 12, "stem": ["small"]}, "arch.options.stem=['small'] is none of imagenet, small."),
    ({"growth": 12, "bias": 1}, "arch.options.bias=1 must be true or false."),
    ({"growth": 12, "title": 3}, "arch.options.title=3 must be a word."),
    ({"growth": 12, "stages": 3}, "arch.options.stages=3 must be a list, such as "),
    ({"growth": 12, "stages": [1, "2"]}, "arch.options.stages=2 must be a whole number."),
]


@pytest.mark.parametrize(("given", "sentence"), REFUSALS, ids=lambda value: str(value)[:40])
def test_what_does_not_fit_is_refused_in_one_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as refusal:
        read(Options, given)
    assert str(refusal.value).startswith(sentence)


def test_a_family_without_options_takes_none() -> None:
    with pytest.raises(UsageError) as refusal:
        read(NoOptions, {"growth": 12})
    assert str(refusal.value) == "arch.options.growth is unknown. This family has no options."
