"""resexp.train.engine.graph: what a captured step may rely on, and how an engine is chosen."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from resexp import models
from resexp.data import Images, batches
from resexp.settings import (
    Arch,
    Engine,
    Launch,
    Merge,
    Normalisation,
    Order,
    Precision,
    Settings,
    UsageError,
)
from resexp.train import fit as fitting
from resexp.train.engine import choose as trial
from resexp.train.engine.graph import WARM, check_engine, check_repeats
from resexp.train.fit import begin, fit

SMALL = Settings(
    arch=Arch(merge=Merge.residual),
    depth=8,
    width=4,
    steps=12,
    eval_every=5,
    batch_size=16,
    crop_padding=1,
    flip=True,
    warmup_steps=2,
    warmup_depth=8,
)


class Recorder(TorchDispatchMode):
    """What a CUDA graph does, on a CPU: the operations of one step, repeated on the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = [one for one in tree_leaves(result) if isinstance(one, Tensor)]
        self.calls.append((func, args, kwargs or {}, outputs))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, before in self.calls:
            after = [one for one in tree_leaves(func(*args, **kwargs)) if isinstance(one, Tensor)]
            for old, new in zip(before, after, strict=True):
                if old.data_ptr() != new.data_ptr():  # not a view, nor in place
                    old.copy_(new)


class Replayed:
    """The third step is recorded and all that follow are its repetitions."""

    def __init__(self, step: Any) -> None:
        self.step, self.calls, self.recorder = step, 0, Recorder()

    def __call__(self) -> None:
        self.calls += 1
        if self.calls > 3:
            self.recorder.replay()
        elif self.calls == 3:
            with self.recorder:
                self.step()
        else:
            self.step()


ARCHS = {
    "plain": Arch(),
    "residual": Arch(merge=Merge.residual),
    "preact": Arch(merge=Merge.residual, order=Order.full_preactivation),
    "highway": Arch(merge=Merge.highway),
    "group": Arch(merge=Merge.residual, norm=Normalisation.group),
    "fixup": Arch(merge=Merge.scaled, order=Order.fixup, branch_start=1.0, scalar_lr=0.1),
}


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("precision", list(Precision))
def test_one_recorded_step_repeated_is_every_step(
    arch: str, precision: Precision, few_digits: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that changes is a Python number or lies in new memory: a graph can hold the step."""
    settings = replace(SMALL, arch=ARCHS[arch], precision=precision)
    found = []
    for ready in (lambda _engine, _network, step: step, lambda _e, _n, step: Replayed(step)):
        monkeypatch.setattr(fitting, "ready", ready)
        state = begin(models.build(settings, 1, 10), settings)
        rows = [row for row in fit(state, settings, few_digits) if row is not None]
        buffers = dict(state.network.named_buffers())
        found.append((state.optimizer.weights, state.optimizer.velocity, buffers, rows))
    (weights, velocity, buffers, rows), (again, speed, others, its) = found
    assert torch.equal(weights, again)
    assert torch.equal(velocity, speed)
    assert all(torch.equal(buffers[name], others[name]) for name in buffers)
    assert [row.train_loss for row in rows] == [row.train_loss for row in its]
    assert [row.test_loss for row in rows] == [row.test_loss for row in its]


def test_how_many_steps_the_tables_hold_changes_nothing(
    few_digits: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for most in (1_000_000, 50, 1):  # images: all steps, three, one
        monkeypatch.setattr("resexp.train.step_inputs.MOST", most)
        state = begin(models.build(SMALL, 1, 10), SMALL)
        losses = [row.train_loss for row in fit(state, SMALL, few_digits) if row is not None]
        found.append((losses, state.optimizer.weights))
    for losses, weights in found[1:]:
        assert losses == found[0][0]
        assert torch.equal(weights, found[0][1])


def test_float64_is_the_reference_that_fp32_comes_near(few_digits: Images) -> None:
    network = models.build(SMALL, 1, 10)
    fp32, fp64 = (
        trial.first_step(replace(SMALL, precision=precision), few_digits, network)[0]
        for precision in (Precision.fp32, Precision.fp64)
    )
    assert {one.dtype for one in (*fp32, *fp64)} == {torch.float64}
    apart = [trial.distance(one, true) for one, true in zip(fp32, fp64, strict=True)]
    assert 0 < max(apart) < 1e-3


def test_the_step_of_a_trial_is_the_one_from_the_initial_weights(few_digits: Images) -> None:
    """One step by hand: with no momentum yet it is the rate times gradient and decay."""
    settings = replace(SMALL, warmup_steps=0, precision=Precision.fp64)
    network = models.build(settings, 1, 10).double()
    changes, _ = trial.first_step(settings, few_digits, network)
    state = begin(copy.deepcopy(network), settings)
    stats = batches.statistics(few_digits.train_images, settings.normalise).to(torch.double)
    plan = batches.plan(
        seed=0,
        start=WARM,
        stop=WARM + 1,
        images=len(few_digits.train_labels),
        batch_size=16,
        crop_padding=1,
        flip=True,
    )
    crop = plan.dy[0], plan.dx[0], plan.mirror[0], 1
    images = batches.batch(few_digits.train_images, stats, plan.index[0], *crop)
    loss = cross_entropy(state.network(images), few_digits.train_labels[plan.index[0]])
    parameters = state.optimizer.parameters
    for change, parameter, gradient in zip(
        changes, parameters, torch.autograd.grad(loss, parameters), strict=True
    ):
        expected = -settings.lr * (gradient + settings.weight_decay * parameter)
        torch.testing.assert_close(change, expected.detach(), rtol=1e-6, atol=1e-12)


def test_an_engine_that_needs_a_gpu_is_refused_without_one() -> None:
    cpu = torch.device("cpu")
    for engine in (Engine.graph, Engine.triton):
        with pytest.raises(UsageError, match=rf"engine={engine} needs a GPU.*engine=eager"):
            check_engine(replace(SMALL, engine=engine), cpu)
    check_engine(replace(SMALL, engine=Engine.auto), cpu)
    check_engine(SMALL, cpu)


def test_a_graph_is_of_one_process_and_triton_of_two_precisions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = torch.device("cuda")
    two = replace(SMALL, engine=Engine.graph, launch=Launch(ranks=2))
    with pytest.raises(UsageError, match=r"one process.*launch\.ranks=1"):
        check_engine(two, gpu)
    double = replace(SMALL, engine=Engine.triton, precision=Precision.fp64)
    monkeypatch.setattr("resexp.train.engine.graph.find_spec", lambda name: object())
    with pytest.raises(UsageError, match=r"precision=fp64.*engine=graph"):
        check_engine(double, gpu)
    monkeypatch.setattr("resexp.train.engine.graph.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="package triton"):
        check_engine(replace(SMALL, engine=Engine.triton), gpu)


def test_a_network_whose_steps_differ_is_refused_by_a_graph() -> None:
    random = models.build(replace(SMALL, arch=Arch(merge=Merge.residual, survival=0.5)), 1, 10)
    with pytest.raises(UsageError, match=r"arch=stochastic_depth.*engine=eager"):
        check_repeats(Engine.graph, "stochastic_depth", random)
    check_repeats(Engine.auto, "stochastic_depth", random)
    check_repeats(Engine.graph, "residual", models.build(SMALL, 1, 10))


def test_auto_is_eager_on_a_cpu_and_tries_nothing(few_digits: Images) -> None:
    network = models.build(SMALL, 1, 10)
    assert trial.choose(replace(SMALL, steps=64_000), few_digits, network) == (Engine.eager, [])


def test_a_trial_leaves_the_network_as_it_was(few_digits: Images) -> None:
    network = models.build(SMALL, 1, 10)
    before = [one.clone() for one in network.parameters()]
    (eager,) = trial.tried(SMALL, few_digits, network)  # a CPU has no other
    assert eager.engine is Engine.eager
    assert eager.right
    assert eager.milliseconds > 0
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_an_engine_that_fails_costs_the_trial_nothing_else(
    few_digits: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trial.first_step

    def first_step(settings: Settings, data: Images, network: Any, *rest: Any, **more: Any) -> Any:
        if rest and rest[0] is Engine.triton:
            raise RuntimeError("no C compiler\nand more")
        return real(settings, data, network)  # eager stands in for a graph

    monkeypatch.setattr(trial, "first_step", first_step)
    monkeypatch.setattr(trial, "check_engine", lambda settings, device: None)
    eager, graph, triton = trial.tried(SMALL, few_digits, models.build(SMALL, 1, 10))
    assert (eager.right, graph.right, triton.right) == (True, True, False)
    assert graph.error == pytest.approx(1)
    assert "no C compiler" in str(triton.failed)
    assert "more" not in str(triton.failed)


def test_the_fastest_of_those_that_are_right_is_chosen(
    few_digits: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [
        trial.Trial(Engine.eager, 9.0, 1.0),
        trial.Trial(Engine.graph, 3.0, 1.5),
        trial.Trial(Engine.triton, 1.0, 50.0),
    ]
    monkeypatch.setattr(trial, "tried", lambda *_: found)
    monkeypatch.setattr(trial, "GPU", "cpu")
    network = models.build(SMALL, 1, 10)
    long = replace(SMALL, steps=64_000)
    assert trial.choose(long, few_digits, network) == (Engine.graph, found)
    assert trial.choose(SMALL, few_digits, network) == (Engine.eager, [])  # too short
    random = models.build(replace(SMALL, arch=Arch(merge=Merge.residual, survival=0.5)), 1, 10)
    assert trial.choose(long, few_digits, random) == (Engine.eager, [])


def test_an_engine_that_errs_in_one_weight_is_not_right() -> None:
    truth = [torch.ones(50, dtype=torch.float64), torch.full((9,), 2.0, dtype=torch.float64)]
    eager = [truth[0] * (1 + 1e-5), truth[1] * (1 - 1e-5)]

    def error(*change: Tensor) -> float:
        return trial.excess(change, eager, truth, Precision.fp32)

    assert error(*eager) == pytest.approx(1)
    assert error(truth[0], truth[1] * (1 + 3e-5)) == pytest.approx(3)
    assert error(truth[0], torch.zeros(9, dtype=torch.float64)) == pytest.approx(1e5)
    assert error(truth[0], truth[1] * math.nan) == math.inf
    assert trial.Trial(Engine.graph, 1.0, math.inf).right is False


def test_what_rounding_leaves_undetermined_decides_nothing() -> None:
    truth = [torch.ones(50, dtype=torch.float64), torch.ones(9, dtype=torch.float64)]
    eager = [truth[0] * 1.0001, truth[1] * 1.5]
    change = [truth[0] * 1.0001, truth[1] * 7]
    assert trial.excess(change, eager, truth, Precision.fp32) == pytest.approx(1)
    assert trial.excess(change[1:], eager[1:], truth[1:], Precision.fp32) == math.inf
