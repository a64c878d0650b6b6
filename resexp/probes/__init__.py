"""Probes: each measures one mechanism that is said to explain why skip connections work.

How to write one. A probe is one file, ``resexp/probes/<name>.py``, and its test,
``tests/test_probe_<name>.py``; nothing else is touched. The module offers what ``Probe`` says.

torch and pandas are imported at the top; ``resexp.probes.drawing``, and with it matplotlib, inside
of ``draw`` alone: ``resexp probe`` lists all claims without it.

``measure`` is given cases, one per network, in order of arch, depth and seed. With NEEDS
``trained`` each has a run with a checkpoint, with ``settings`` a case may have one or not
(``case.checkpoint``), with ``runs`` each has a run (or a line of an exported pair), which may have
failed: resexp.probes.sweeps has what such probes share. resexp.probes.networks has what makes
networks of them: ``trained(case, data)``, ``at_start(settings, data)``, ``snapshots(settings, data,
steps)``, which trains; ``load(settings)`` gives the images, on the device, and ``some_images`` a
fixed subset, ready for a network. Cases are whatever the user has: choose the plain and residual
ones and the first few seeds (``places``, ``twins``), and raise UsageError (one sentence: what is
missing and what to type) if those needed are not there. ``for one in tell(work)`` shows progress:
work in small pieces. Networks are the probe's own: alter them, but build them one at a time and
remove hooks.

It gives tidy rows: one measurement per row, the same keys in each, numbers in SI or in the unit
that the key names; None where not measured, nan where the network diverged. They are written as
probe-<name>.csv (seven digits), and ``conclude`` and ``draw`` are given what a reader of that file
has: numbers as numbers, NaN for None, whole numbers with gaps as floats (resexp.probes.rows has
what they share, resexp.probes.drawing what the figures do).

A Finding has the verdict word, one ``sentence`` with the numbers that decide (written after
"<verdict> under this recipe:", so no capital needed), the ``numbers`` behind it by name,
``conventions``: sign, units, seeds, which images, whatever a reader needs to repeat or doubt it,
and ``headlines``: the few numbers, by seed, that docs/mechanisms.md tells; ``account`` where the
textbook says more, or less, than the verdict tells. The rule that makes the word is fixed in the
module before measuring, at least three seeds, better five, and is in the docstring; nan decides
nothing, nor does a network that does not train, beside one that does (``matched_depth``). A probe
takes a few minutes of one core at most for the digits: subsets are stated in conventions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from resexp.analysis.results import Run
from resexp.runs import checkpoint
from resexp.settings import Arch, Merge, Settings, Twin, UsageError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as Figure
else:
    Figure = Any  # the claims are listed without matplotlib

Row = dict[str, Any]  # numbers and text by column, None where not measured
T = TypeVar("T")


class Needs(StrEnum):
    """What a probe measures."""

    trained = "trained"  # networks of finished runs that kept their checkpoint
    runs = "runs"  # final numbers of runs, failed ones too; checkpoints or not
    settings = "settings"  # networks that it builds, and may train, from settings
    nothing = "nothing"  # small networks of its own


class Verdict(StrEnum):
    """What a measurement says about a claim, under the recipe it was made with."""

    supported = "supported"
    not_supported = "not supported"
    inconclusive = "inconclusive"

    @classmethod
    def of(cls, supported: bool, refuted: bool) -> Verdict:
        """Where a rule says neither, inconclusive."""
        return cls.supported if supported else cls.not_supported if refuted else cls.inconclusive


@dataclass(frozen=True, slots=True)
class Case:
    """One network: how it is built and, if it was trained, its run."""

    arch: str  # as chosen on the command line
    settings: Settings
    run: Run | None = None

    def __str__(self) -> str:
        return f"{self.arch} {self.depth}, seed {self.seed}"

    @property
    def depth(self) -> int:
        return self.settings.depth

    @property
    def seed(self) -> int:
        return self.settings.seed

    @property
    def checkpoint(self) -> Path | None:
        """The file that holds its trained weights, if it kept one."""
        path = self.run.path / checkpoint.NAME if self.run is not None else None
        return path if path is not None and path.exists() else None

    def place(self, arch: str = "arch") -> Row:
        """What a row begins with; ``arch`` names the first column."""
        return {arch: self.arch, "depth": self.depth, "seed": self.seed}

    def kind(self, *but: str) -> str | None:
        """plain or residual, if it is a network of He et al. 2015; else None.

        Whatever the settings ``but`` of its arch.
        """
        arch = replace(self.settings.arch, **{key: getattr(Arch(), key) for key in but})
        for merge in (Merge.plain, Merge.residual):
            if arch == Arch(merge=merge) and self.settings.twin is Twin.none:
                return merge.value
        return None


@dataclass(slots=True)
class Headline:
    """A number that the page of mechanisms tells: the mean over seeds and its 95 % interval."""

    what: str
    values: pd.Series[float]  # index: seed
    unit: str = ""
    form: str = ".2f"  # of the number: a format, with + for differences and logarithms
    base: float | None = None  # of the logarithms that the values are, told as ratios
    interval: bool = True  # else the range: of rounding errors and the like


class Account(StrEnum):
    """How right the textbook is, where the verdict alone does not say it."""

    right = "as stated"
    overgeneralised = "overgeneralised"
    contradicted = "contradicted"


@dataclass(slots=True)
class Finding:
    """What a probe found: see the module's docstring."""

    verdict: Verdict
    sentence: str
    numbers: dict[str, float] = field(default_factory=dict)
    conventions: list[str] = field(default_factory=list)
    headlines: list[Headline] = field(default_factory=list)
    account: tuple[Account, str] | None = None  # and why


class Tell(Protocol):
    """Goes through the pieces of a work and shows how far it is; ``iter`` shows nothing."""

    def __call__(self, work: Collection[T], /) -> Iterator[T]: ...


class Probe(Protocol):
    """What a module of this package offers."""

    CLAIM: str  # what is usually said, one sentence that a measurement can contradict
    SOURCE: str  # who says it: paper and section
    TEXTBOOK: str  # what textbooks and papers say, as the page of mechanisms quotes it
    NEEDS: Needs  # what it is given: trained runs, settings to build or train from, or nothing
    USUAL: list[str]  # what makes its cases where nothing is typed; not of a probe of runs

    def measure(self, cases: Sequence[Case], tell: Tell) -> Iterable[Row]: ...

    def conclude(self, rows: pd.DataFrame) -> Finding: ...

    def draw(self, rows: pd.DataFrame) -> Figure: ...


#: Modules of this package that are no probes.
SHARED = {"run", "networks", "rows", "drawing", "sweeps"}


def names() -> list[str]:
    """All probes."""
    found = {path.stem for path in Path(__file__).parent.glob("[a-z]*.py")}
    return sorted(found - SHARED)


def probe(name: str) -> Probe:
    """The probe of this name. Raises UsageError if there is none."""
    if name not in names():
        raise UsageError(f"there is no probe {name}. Choose all or one of {', '.join(names())}.")
    return cast(Probe, import_module(f"{__name__}.{name}"))
