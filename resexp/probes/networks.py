"""Networks and images for probes: which cases, at the start, on the way, trained; and batches."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from resexp import models
from resexp.data import Images, batches
from resexp.data.stream import Streamed
from resexp.probes import Case, Cell
from resexp.runs import checkpoint, run
from resexp.settings import Arch, Merge, Settings, Twin, UsageError, as_dict, digest
from resexp.train.device import choose_device
from resexp.train.evaluate import Score, evaluate, evaluation_mode, misses
from resexp.train.fit import begin, fit

DIVERGED = Score(math.nan, math.nan)


def places(
    cases: Sequence[Case], fits: Callable[[Case], bool], seeds: int
) -> dict[tuple[str, int, int], Case]:
    """The cases that fit, of their first ``seeds`` seeds, by (arch, depth, seed), in that order.

    Of several at one place, with other settings, the first.
    """
    known = {
        (case.arch, case.settings.depth, case.settings.seed): case
        for case in reversed(cases)
        if fits(case)
    }
    chosen = sorted({seed for _, _, seed in known})[:seeds]
    return {place: known[place] for place in sorted(known) if place[2] in chosen}


def as_in_the_paper(case: Case) -> bool:
    """Whether it is plain or residual, with batch normalisation, the blocks of He et al. 2015."""
    return (
        case.arch in ("plain", "residual")
        and case.settings.twin is Twin.none
        and case.settings.arch == Arch(merge=Merge(case.arch))
    )


def twins(cases: Sequence[Case], name: str, seeds: int) -> dict[tuple[str, int, int], Case]:
    """The plain and residual cases of the first ``seeds`` seeds, in order of (arch, depth, seed).

    Raises UsageError, on behalf of the probe ``name``, if either of the two is missing.
    """
    found = places(cases, as_in_the_paper, seeds)
    if {arch for arch, _, _ in places(cases, as_in_the_paper, len(cases))} != {"plain", "residual"}:
        raise UsageError(
            f"{name} compares plain and residual networks, both trained. "
            "Choose arch=plain,residual."
        )
    return found


def about(case: Case) -> dict[str, Cell]:
    """What rows say of a trained network: which it is, and the clean training error of its run."""
    assert case.run is not None
    settings, error = case.settings, case.run.endpoint("clean_train_error")
    which: dict[str, Cell] = {"arch": case.arch, "depth": settings.depth, "seed": settings.seed}
    return which | {"clean_error_percent": error}


def usual_depth(depths: Iterable[int]) -> int:
    """The smallest depth >= 20, or else the greatest."""
    return min(depths, key=lambda depth: (depth < 20, abs(depth - 20)))


def first_seeds(cases: Sequence[Case], depth: int, seeds: int) -> list[Case]:
    """The cases of this depth, the first of each seed, of the first ``seeds`` seeds."""
    found = {case.settings.seed: case for case in reversed(cases) if case.settings.depth == depth}
    return [found[seed] for seed in sorted(found)[:seeds]]


def load(settings: Settings) -> Images:
    """The images of ``settings``, on its device; kept for the next call."""
    return run.load(settings.data, choose_device(settings.device))


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
        saved = checkpoint.read(path)
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


def with_runs(wanted: Iterable[Case], cases: Sequence[Case]) -> list[Case]:
    """``wanted``, each with the run of its settings that kept its checkpoint, if one did."""
    kept = {digest(as_dict(one.settings)): one.run for one in cases if one.checkpoint is not None}
    return [replace(case, run=kept.get(digest(as_dict(case.settings)))) for case in wanted]


def ended(case: Case) -> nn.Module:
    """The network at its last step: from the case's checkpoint, or retrained."""
    data, settings = load(case.settings), case.settings
    if case.checkpoint is not None:
        return trained(case, data)
    return fitted(at_start(settings, data), settings)


def fitted(network: nn.Module, settings: Settings) -> nn.Module:
    """The network after ``settings.steps`` steps, or as it is once its loss is not finite."""
    state = begin(network, settings)
    for _ in fit(state, replace(settings, eval_every=settings.steps + 1), load(settings)):
        if not state.loss_sum.isfinite():
            break
    return state.network


def scores(settings: Settings, network: nn.Module) -> tuple[Score, Score]:
    """On the clean training set and on the test set, as a run's last row has them.

    All are nan where the network diverged: it still answers, but at random.
    """
    data = load(settings)
    statistics = batches.statistics(data.train_images, settings.normalise)

    def score(images: Tensor | Streamed, labels: Tensor) -> Score:
        return evaluate(network, images, labels, statistics, settings.precision)

    with evaluation_mode(network, settings, data, statistics):
        train = score(data.train_images, data.train_labels)
        test = score(data.test_images, data.test_labels)
    train, test = (score if math.isfinite(score.loss) else DIVERGED for score in (train, test))
    return train, test


def scored(settings: Settings, network: nn.Module) -> dict[str, Cell]:
    """Loss in nats on the training set, errors on it and on the test set."""
    train, test = scores(settings, network)
    return {
        "train_loss": train.loss,
        "train_error_percent": train.error,
        "test_error_percent": test.error,
    }


def error_percent(logits: Tensor, labels: Tensor) -> float:
    """The share of ``logits`` [N, K] whose greatest is not the label's."""
    return 100 * misses(logits, labels).item() / len(labels)


@contextmanager
def hooked(modules: Iterable[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    """Meanwhile ``hook(module, inputs, output)`` is called after each of ``modules``."""
    with ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_hook(hook))
        yield


def some_images(settings: Settings, data: Images, count: int) -> tuple[Tensor, Tensor]:
    """``count`` training images, evenly spaced in the set, and their labels; all if it has fewer.

    float32 [n, C, H, W], normalised as in training, not augmented, and int64 [n].
    """
    statistics = batches.statistics(data.train_images, settings.normalise)
    index = torch.linspace(0, len(data.train_labels) - 1, min(count, len(data.train_labels)))
    index = index.round().long().to(data.train_labels.device)
    return batches.prepare(data.train_images[index], statistics), data.train_labels[index]
