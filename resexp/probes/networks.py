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
from resexp.probes import Case, Row
from resexp.runs import checkpoint, run
from resexp.settings import Settings, UsageError, as_dict, digest
from resexp.train.device import choose_device
from resexp.train.evaluate import Score, evaluate, evaluation_mode, misses
from resexp.train.fit import begin, fit

DIVERGED = Score(math.nan, math.nan)
Places = dict[tuple[str, int, int], Case]  # by arch, depth and seed, in that order


def places(cases: Sequence[Case], seeds: int) -> Places:
    """The cases of the first ``seeds`` seeds; of several at one place, the first."""
    known = {(case.arch, case.depth, case.seed): case for case in reversed(cases)}
    chosen = sorted({seed for _, _, seed in known})[:seeds]
    return {place: known[place] for place in sorted(known) if place[2] in chosen}


def bases(cases: Sequence[Case], seeds: int) -> list[Case]:
    """A case for each depth and seed, of the first ``seeds`` seeds, plain rather than residual."""
    found = reversed(places(cases, seeds).values())
    return list({(case.depth, case.seed): case for case in found}.values())


def chosen(cases: Sequence[Case], fits: Callable[[Case], Any], refusal: str) -> list[Case]:
    """The cases that fit. Raises UsageError with this sentence if there is none."""
    if found := [case for case in cases if fits(case)]:
        return found
    raise UsageError(refusal)


def twins(cases: Sequence[Case], name: str, seeds: int) -> Places:
    """The plain and residual cases, as in He et al. 2015, of the first ``seeds`` seeds.

    Raises UsageError, on behalf of the probe ``name``, if either of the two is missing.
    """
    fit = [case for case in cases if case.kind() == case.arch]
    if len({case.arch for case in fit}) < 2:
        raise UsageError(
            f"{name} compares plain and residual networks, both trained. "
            "Choose arch=plain,residual."
        )
    return places(fit, seeds)


def about(case: Case) -> Row:
    """What rows say of a trained network: which it is, and the clean training error of its run."""
    assert case.run is not None
    return case.place() | {"clean_error_percent": case.run.endpoint("clean_train_error")}


def usual_depth(depths: Iterable[int]) -> int:
    """The smallest depth >= 20, or else the greatest."""
    return min(depths, key=lambda depth: (depth < 20, abs(depth - 20)))


def first_seeds(cases: Sequence[Case], depth: int, seeds: int) -> list[Case]:
    """The cases of this depth, the first of each seed, of the first ``seeds`` seeds."""
    found = {case.seed: case for case in reversed(cases) if case.depth == depth}
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
    for _ in fit(state, replace(settings, eval_every=last + 1), data) if last else ():
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


def scores(settings: Settings, network: nn.Module) -> Row:
    """On the clean training set and on the test set, as a run's last row has them; loss in nats.

    All of a set are nan where the network diverged: it still answers, but at random.
    """
    data = load(settings)
    statistics = batches.statistics(data.train_images, settings.normalise)
    sets = (data.train_images, data.train_labels), (data.test_images, data.test_labels)
    with evaluation_mode(network, settings, data, statistics):
        found = [evaluate(network, *one, statistics, settings.precision) for one in sets]
    train, test = (one if math.isfinite(one.loss) else DIVERGED for one in found)
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


def some_images(
    settings: Settings, data: Images, count: int, test: bool = False
) -> tuple[Tensor, Tensor]:
    """``count`` training images, evenly spaced in the set, and their labels; all if it has fewer.

    float32 [n, C, H, W], normalised as in training, not augmented, and int64 [n]. ``test``: of the
    test set.
    """
    statistics = batches.statistics(data.train_images, settings.normalise)
    images, labels = data.train_images, data.train_labels
    if test:
        images, labels = data.test_images, data.test_labels
    index = torch.linspace(0, len(labels) - 1, min(count, len(labels))).round().long()
    index = index.to(labels.device)
    return batches.prepare(images[index], statistics), labels[index]
