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


#: What no family, rule or activation would read or could build, and what is said of it.
UNFIT = [
    # An option of others is refused with the archs that have it
    ("growth=12", "growth is for arch=dense or dense_bc or densenet."),
    ("gate_bias=-2", "gate_bias is for arch=highway or shortcut_gate."),
    ("arch=residual arch.branch_start=1", "arch=fixup or rezero or skipinit or transformer_rezero"),
    ("arch=highway arch.merge=dropout gate_bias=-2", "is for arch=highway or shortcut_gate."),
    ("arch=residual shortcut_scale=0.5", "shortcut_scale is for arch=scaled_shortcut."),
    ("arch=dense depth=40 arch.options.stem=small", "arch.options.stem is for arch=densenet or"),
    # Values of options
    ("arch=highway gate_bias=-101", "gate_bias=-101 is out of range"),
    ("arch=dropout_shortcut shortcut_dropout=1", "shortcut_dropout=1 is out of range"),
    ("arch=scaled_shortcut branch_scale=much", "branch_scale=much must be a number"),
    ("arch=fading fade_from=220", "fade_from=220 must be less than fade_to=220"),
    ("arch=resnet depth=18 stem=big", "arch.options.stem=big is none of imagenet, small."),
    ("arch=dense depth=40 growth=0", "arch.options.growth=0 is out of range."),
    ("arch=dense depth=40 compression=0", "arch.options.compression=0 is out of range."),
    ("experiment=blobs padding=vald", "arch.options.padding=vald is none of same, valid."),
    ("arch=transformer depth=2 heads=0", "heads=0 is out of range. Choose a value from 1 to 1,024"),
    ("arch=transformer depth=2 heads=two", "arch.options.heads=two must be a whole number."),
    (
        "arch=transformer depth=2 layer_norm=inside",
        "layer_norm=inside is none of before, after, around, scaled, none.",
    ),
    # Depths
    ("depth=21", "depth=21 is not 6n+2. Nearest: 20, 26."),
    ("depth=2", "depth=2 is not 6n+2. Nearest: 8."),
    ("arch=bottleneck depth=8", "depth=8 is not 9n+2. Nearest: 11."),
    ("arch=bottleneck depth=163", "depth=163 is not 9n+2. Nearest: 155, 164."),
    ("arch=residual depth=23 arch.skip_span=3", "depth=23 is not 9n+2. Nearest: 20, 29."),
    ("arch=resnet depth=20", "depth=20 is none of 18, 34, 50, 101, 152. Nearest: 18, 34."),
    ("arch=densenet depth=100", "depth=100 is none of 121, 161, 169, 201, 264. Nearest: 121."),
    ("arch=dense depth=41", "depth=41 is not 3n+4. Nearest: 40, 43."),
    ("arch=dense_bc depth=43", "depth=43 is not 6n+4. Nearest: 40, 46."),
    ("arch=dense depth=43 unit=bottleneck", "not 6n+4, as arch.unit=bottleneck needs. Nearest: 40"),
    ("experiment=blobs depth=20", "depth=20 is not 5n+3. Nearest: 18, 23."),
    # Settings and rules that a family does not read
    ("arch.merge=concatenate", "arch.merge=concatenate is not for cifar"),
    ("arch.merge=magic", "arch.merge=magic is not for cifar. Choose from plain, residual"),
    ("arch.family=layers", "arch.family=layers is unknown"),
    ("arch.family=../x", "arch.family=../x is unknown"),
    ("arch=resnet depth=18 arch.skip_span=3", "arch.skip_span means nothing to the imagenet"),
    ("arch=resnet depth=18 arch.merge=concatenate", "arch.merge=concatenate is not for imagenet."),
    ("arch=resnet depth=18 growth=2", "arch.options.growth is for arch=dense or "),
    ("arch=dense depth=40 arch.merge=residual", "arch.merge=residual is not for dense."),
    ("arch=dense depth=40 se_ratio=16", "arch.se_ratio means nothing to the dense family."),
    ("arch=dense depth=22 activation=crelu", "activation means nothing to the dense"),
    ("arch=dense depth=22 twin=matched", "twin=matched is not for dense"),
    ("experiment=blobs shortcut=B", "arch.shortcut means nothing to the unet family."),
    ("experiment=blobs arch.merge=highway", "arch.merge=highway is not for unet. Choose from conc"),
    ("experiment=blobs depth=8 width=2 twin=matched", "width=2 has no matched twin"),
    ("arch=transformer depth=2 arch.norm=group", "arch.norm means nothing to the transformer"),
    ("arch=transformer depth=2 arch.merge=highway", "arch.merge=highway is not for transformer."),
    ("arch=transformer depth=2 activation=tat", "activation means nothing to the transformer"),
    # What goes with one another
    ("arch=repvgg arch.skip_span=2", "arch.merge=repvgg needs arch.skip_span=1"),
    ("arch=repvgg se_ratio=4", "needs arch.se_ratio=0"),
    ("arch=diracnet survival=0.5", "arch.survival"),
    ("survival=0.5", "survival is for networks with skips"),
    ("arch=bottleneck arch.skip_span=1", "arch.skip_span is for arch.unit=basic"),
    *((f"arch=residual arch.skip_stages=[{some}]", "skip_stages") for some in ("0", "2,1", "1,1")),
    ("slope=0.2", "arch.slope=0.2 is for arch.activation=leaky_relu"),
    ("activation=tat slope=0.2", "is for arch.activation=leaky_relu"),
    ("activation=leaky_relu slope=2", "slope=2.0 is out of range"),
    ("activation=crelu arch.order=relu_before_addition", "Choose another order"),
    ("init=looks_linear", "looks_linear needs arch.activation=crelu"),
    ("arch=plain init=zero_gamma", "zero_gamma is for networks with skips"),
    ("arch=preact init=zero_gamma", "ends in normalisation"),
    ("arch=residual norm=none init=zero_gamma", "ends in normalisation"),
    ("arch=transformer depth=2 init=dirac", "init=dirac is for blocks of convolutions"),
    *(
        (f"{words} launch.ranks=2", "ranks=2 out")
        for words in ("arch=dropout_shortcut", "arch=vgg depth=11")
    ),
    # Images of 8 by 8
    (
        "arch=resnet depth=18",
        "five times: 8x8 pixels are too few, 32x32 the least. Choose arch.opt",
    ),
    ("arch=vgg depth=11", "arch=vgg halves images five times: 8x8 pixels are too few"),
    ("arch=transformer depth=2 patch=3", "patch=3 does not divide images of 8x8. Choose from 1, 2"),
]


@pytest.mark.parametrize(("words", "said"), UNFIT, ids=str)
def test_what_no_layer_would_read_or_make_is_refused(words: str, said: str) -> None:
    with pytest.raises(UsageError) as refusal:
        models.structure(config.compose(words.split()).settings, 1, 10, (8, 8))
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


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
            owners.setdefault(f"arch.options.{one.name}", set()).add(kind.__qualname__)
            hint = hints(kind)[one.name]
            assert isinstance(hint, type) or said(hint, str), one.name
    assert set(owners) == set(choices.own_options())
    shared = {key for key, its in owners.items() if its > {"Options"}}
    assert not shared  # a rule's option that a family also has would be read by both


def test_every_rule_is_that_of_some_arch() -> None:
    assert sorted(choices.merges()) == sorted(RULES) == sorted(choices.values("arch.merge"))
