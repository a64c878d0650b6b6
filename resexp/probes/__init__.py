"""Probes: each measures one mechanism that is said to explain why skip connections work.

How to write one. A probe is three files of the same name and nothing else is touched:

``resexp/probes/<name>.py`` (torch; no pandas, matplotlib, typer, hydra) offers

    CLAIM: str      what is usually told, one sentence that a measurement can contradict
    SOURCE: str     who told it: paper and section
    NEEDS: Needs    what it is given: trained runs, settings to build or train from, or nothing
    USUAL: list     the words that make its cases where none are typed: ["depth=20", "seed=0,1,2"]
    measure(cases: Sequence[Case], tell: Tell) -> Finding

``resexp/analysis/probe_figures/<name>.py`` (no torch) offers ``draw(rows) -> Figure``, from the CSV
alone: plain against residual in the project's colours, units on the axes.

``tests/test_probe_<name>.py`` holds its acceptance at a small size (that of trained networks is in
``tests/test_probes_as_stated.py``) and one cross-check of its numbers against an independent
computation.

What ``measure`` is given. Cases: one a network, in order of arch, depth and seed. With NEEDS
``trained`` each has a run with a checkpoint: ``trained(case, data)`` is its network. With
``settings`` a case may have one or not (``case.checkpoint``): ``at_start(settings, data)`` builds
it, ``snapshots(settings, data, steps)`` trains it. Cases are whatever the user has: choose the
plain and residual ones and the first few seeds, and raise UsageError (one sentence: what is missing
and what to type) if those needed are not there. ``load(settings)`` gives the images, on the device;
``some_images`` a fixed subset, ready for a network. ``tell(done, of, what)`` shows progress: call
it often. Networks are the probe's own: alter them, but build them one at a time and remove hooks.

What it returns. A Finding: tidy ``rows`` for the CSV (one measurement a row, the same keys in each,
numbers in SI or in the unit that the key names; None or nan where not measured), the verdict word,
one ``sentence`` with the numbers that decide (written after "<verdict> under this recipe:", so no
capital needed), the ``numbers`` behind it by name, and ``conventions``: sign, units, seeds, which
images, whatever a reader needs to repeat or doubt it. The rule that makes the word is fixed in
the module before measuring, at least three seeds, and is in the docstring; nan decides nothing.
A probe takes about half a minute on two cores for the digits: subsets are stated in conventions.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from resexp import models
from resexp.analysis.results import Run
from resexp.data import Images, batches
from resexp.data.stream import Streamed
from resexp.runs import checkpoint
from resexp.runs import run as task
from resexp.settings import Arch, Merge, Settings, Twin, UsageError
from resexp.train.device import choose_device
from resexp.train.evaluate import Score, evaluate, evaluation_mode
from resexp.train.fit import begin, fit


class Needs(StrEnum):
    """What a probe measures."""

    trained = "trained"  # networks of finished runs that kept their checkpoint
    settings = "settings"  # networks that it builds, and may train, from settings
    nothing = "nothing"  # small networks of its own


class Verdict(StrEnum):
    """What a measurement says about a claim, under the recipe it was made with."""

    supported = "supported"
    not_supported = "not supported"
    inconclusive = "inconclusive"


@dataclass(frozen=True, slots=True)
class Case:
    """One network: how it is built and, if it was trained, its run."""

    arch: str  # as chosen on the command line
    settings: Settings
    run: Run | None = None

    @property
    def checkpoint(self) -> Path | None:
        """The file that holds its trained weights, if it kept one."""
        path = self.run.path / checkpoint.NAME if self.run is not None else None
        return path if path is not None and path.exists() else None


Cell = str | int | float | None


@dataclass(slots=True)
class Finding:
    """What a probe found: see the module's docstring."""

    verdict: Verdict
    sentence: str
    rows: Sequence[dict[str, Cell]]
    numbers: dict[str, float] = field(default_factory=dict)
    conventions: list[str] = field(default_factory=list)


#: Called with the pieces of work done, all of them, and a few words about the present one.
Tell = Callable[[int, int, str], None]


class Probe(Protocol):
    """What a module of this package offers."""

    CLAIM: str
    SOURCE: str
    NEEDS: Needs
    USUAL: list[str]

    def measure(self, cases: Sequence[Case], tell: Tell) -> Finding: ...


def names() -> list[str]:
    """All probes."""
    return sorted(
        path.stem for path in Path(__file__).parent.glob("[a-z]*.py") if path.stem != "run"
    )


def probe(name: str) -> Probe:
    """The probe of this name. Raises UsageError if there is none."""
    if name not in names():
        raise UsageError(f"there is no probe {name}. Choose all or one of {', '.join(names())}.")
    return cast(Probe, import_module(f"{__name__}.{name}"))


# --- networks and images


def twins(cases: Sequence[Case], name: str, seeds: int) -> dict[tuple[str, int, int], Case]:
    """The plain and residual cases of the first ``seeds`` seeds, in order of (arch, depth, seed).

    With batch normalisation and the blocks of He et al. 2015 only. Raises UsageError, on behalf of
    the probe ``name``, if either of the two is missing.
    """
    known = {
        (case.arch, case.settings.depth, case.settings.seed): case
        for case in reversed(cases)  # so that the first of several with other settings stays
        if case.arch in ("plain", "residual")
        and case.settings.twin is Twin.none
        and case.settings.arch == Arch(merge=Merge(case.arch))
    }
    chosen = sorted({seed for _, _, seed in known})[:seeds]
    if {arch for arch, _, _ in known} != {"plain", "residual"}:
        raise UsageError(
            f"{name} compares plain and residual networks, both trained. "
            "Choose arch=plain,residual."
        )
    return {place: known[place] for place in sorted(known) if place[2] in chosen}


def load(settings: Settings) -> Images:
    """The images of ``settings``, on its device; kept for the next call."""
    return task.load(settings.data, choose_device(settings.device))


def at_start(settings: Settings, data: Images) -> nn.Module:
    """The network with its initial weights, on the device of ``data``, in training mode."""
    network = models.build(settings, data.channels, len(data.classes), data.size)
    return network.to(data.train_images.device)


def trained(case: Case, data: Images) -> nn.Module:
    """The network as its run left it. Raises UsageError if its checkpoint cannot be used."""
    assert case.run is not None
    path = case.run.path / checkpoint.NAME
    network = at_start(case.settings, data)
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if saved["digest"] != case.run.record["digest"]:
            raise ValueError("it belongs to a run with other settings")
        network.load_state_dict(saved["network"])
    except Exception as error:  # torn and foreign files fail in many ways
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise UsageError(
            f"{path} cannot be used ({reason}). Train {case.run.run} again with "
            "keep_checkpoint=true overwrite=true."
        ) from error
    return network


def snapshots(
    settings: Settings, data: Images, steps: Sequence[int]
) -> Iterator[tuple[int, nn.Module]]:
    """Train from the start and give a copy of the network after each of ``steps``, 0 included.

    The same numbers as the run's own on the same machine: batches and initial weights are functions
    of the seed. So no run needs to keep checkpoints for the sake of a probe. Nothing is evaluated
    on the way. Ends early if the loss is no longer finite.
    """
    last = max(steps)
    if last > settings.steps:
        raise UsageError(f"step {last} was asked for, but steps={settings.steps}. Choose more.")
    state = begin(at_start(settings, data), settings)
    if 0 in steps:
        yield 0, copy.deepcopy(state.network)
    for _ in fit(state, replace(settings, eval_every=last + 1), data):
        if state.step in steps:
            yield state.step, copy.deepcopy(state.network)
        if state.step == last or not state.loss_sum.isfinite():
            return


def ended(case: Case) -> nn.Module:
    """The network at its last step: from the case's checkpoint, or trained anew."""
    data = load(case.settings)
    if case.checkpoint is not None:
        return trained(case, data)
    return list(snapshots(case.settings, data, [case.settings.steps]))[-1][1]


def scored(settings: Settings, network: nn.Module) -> dict[str, Cell]:
    """Loss in nats on the training set and error on the test set, as a run's last row has them."""
    data = load(settings)
    statistics = batches.statistics(data.train_images, settings.normalise)

    def score(images: Tensor | Streamed, labels: Tensor) -> Score:
        return evaluate(network, images, labels, statistics, settings.precision)

    with evaluation_mode(network, settings, data, statistics):
        train = score(data.train_images, data.train_labels)
        test = score(data.test_images, data.test_labels)
    return {"train_loss": train.loss, "test_error_percent": test.error}


def some_images(settings: Settings, data: Images, count: int) -> tuple[Tensor, Tensor]:
    """``count`` training images, evenly spaced in the set, and their labels; all if it has fewer.

    float32 [n, C, H, W], normalised as in training, not augmented, and int64 [n].
    """
    statistics = batches.statistics(data.train_images, settings.normalise)
    index = torch.linspace(0, len(data.train_labels) - 1, min(count, len(data.train_labels)))
    index = index.round().long().to(data.train_labels.device)
    return batches.prepare(data.train_images[index], statistics), data.train_labels[index]
