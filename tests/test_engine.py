"""resexp.train.engine.graph: what a captured step may rely on, and how an engine is chosen."""

from __future__ import annotations

import copy
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from resexp import models
from resexp.data import Images
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
from resexp.train.engine import choose
from resexp.train.engine.graph import check_engine, check_repeats, use_native_norms
from resexp.train.fit import begin, fit
from resexp.train.optimizers import OPTIMIZERS

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
    "highway": Arch(merge="highway"),
    "group": Arch(merge=Merge.residual, norm=Normalisation.group),
    "fixup": Arch(
        merge=Merge.scaled, order=Order.fixup, options={"branch_start": 1.0}, scalar_lr=0.1
    ),
}


@pytest.mark.process
@pytest.mark.parametrize(
    ("arch", "optimizer"),
    [*((arch, "sgd") for arch in ARCHS), *(("fixup", one) for one in OPTIMIZERS if one != "sgd")],
)
@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16, Precision.fp64])
def test_one_recorded_step_repeated_is_every_step(
    arch: str,
    optimizer: str,
    precision: Precision,
    few_digits: Images,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing that changes is a Python number or lies in new memory: a graph can hold the step."""
    settings = replace(SMALL, arch=ARCHS[arch], precision=precision, optimizer=optimizer)
    found = []
    for ready in (lambda _engine, step, pool: step, lambda _engine, step, pool: Replayed(step)):
        monkeypatch.setattr(fitting, "ready", ready)
        state = begin(models.build(settings, 1, 10), settings)
        rows = [row for row in fit(state, settings, few_digits) if row is not None]
        buffers = dict(state.network.named_buffers())
        found.append((state.optimizer.weights, state.optimizer.states, buffers, rows))
    (weights, states, buffers, rows), (again, its_states, others, its) = found
    assert torch.equal(weights, again)
    assert all(torch.equal(states[name], its_states[name]) for name in states)
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


def first_change(settings: Settings, data: Images, network: nn.Module) -> list[Tensor]:
    """How the first step changes each weight, in float64."""
    state = begin(copy.deepcopy(network), settings)
    before = state.optimizer.weights.to(torch.float64, copy=True)
    next(fit(state, settings, data))
    return state.optimizer.views(state.optimizer.weights.double() - before)


def test_float64_is_the_reference_that_fp32_comes_near(few_digits: Images) -> None:
    network = models.build(SMALL, 1, 10)
    fp32, fp64 = (
        first_change(replace(SMALL, precision=precision), few_digits, network)
        for precision in (Precision.fp32, Precision.fp64)
    )
    apart = [float((a - b).norm() / b.norm()) for a, b in zip(fp32, fp64, strict=True)]
    assert 0 < max(apart) < 1e-3


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
    with pytest.raises(UsageError, match=r"single-process.*launch\.ranks=1"):
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


def test_a_gpus_normalisations_are_never_cudnns(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = models.build(SMALL, 1, 10), torch.randn(4, 1, 8, 8)
    before, asked = copy.deepcopy(network), []
    native = torch.batch_norm

    def watched(*words: Any, cudnn_enabled: bool) -> Tensor:
        asked.append(cudnn_enabled)
        return native(*words, cudnn_enabled=cudnn_enabled)

    use_native_norms(network)
    for training in (True, False):
        expected = before.train(training)(x)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "batch_norm", watched)
            assert torch.equal(network.train(training)(x), expected)
    assert asked == [False] * 2 * 7
    assert all(map(torch.equal, network.buffers(), before.buffers()))


def test_auto_is_eager_where_nothing_can_be_captured(tmp_path: Path) -> None:
    network, long = models.build(SMALL, 1, 10), replace(SMALL, steps=64_000)
    random = models.build(replace(SMALL, arch=Arch(merge=Merge.residual, survival=0.5)), 1, 10)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert choose.choose(long, network, cpu, tmp_path) == (Engine.eager, "")
    assert choose.choose(SMALL, network, gpu, tmp_path) == (Engine.eager, "")  # too short
    assert choose.choose(long, random, gpu, tmp_path) == (Engine.eager, "")
    typed = replace(SMALL, engine=Engine.graph)
    assert choose.choose(typed, network, gpu, tmp_path)[0] is Engine.graph


@pytest.mark.parametrize(("fault", "engine"), [("", Engine.triton), ("no gcc", Engine.graph)])
def test_auto_takes_the_kernels_unless_something_is_wrong_with_them_once_for_a_sweep(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str, engine: Engine
) -> None:
    """What the first run finds holds for all, in other processes and later, too."""
    long, network = replace(SMALL, steps=64_000), models.build(SMALL, 1, 10)
    monkeypatch.setattr(choose, "device_name", lambda device: "a GPU")
    for found in (fault, "" if fault else "no memory left"):
        monkeypatch.setattr(choose, "kernels_fault", lambda precision, device, it=found: it)
        chosen, reason = choose.choose(long, network, torch.device("cuda"), tmp_path)
        assert chosen is engine
        assert fault in reason
    half = replace(long, precision=Precision.bf16)  # of which nothing is known yet
    other = Engine.graph if engine is Engine.triton else Engine.triton
    assert choose.choose(half, network, torch.device("cuda"), tmp_path)[0] is other


def test_a_check_that_fails_or_dies_in_its_process_costs_the_kernels_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choose, "check_engine", lambda settings, device: None)
    monkeypatch.setattr(choose, "worst_error", os.abort)  # as a fault of a device does
    assert choose.kernels_fault(Precision.fp32, "cpu") != ""


def right(precision: Precision, device: str) -> float:
    return choose.BOUND[precision] / 2


def wrong(precision: Precision, device: str) -> float:
    return math.nan


@pytest.mark.process
@pytest.mark.parametrize(("found", "passes"), [(right, True), (wrong, False)])
def test_the_error_that_the_check_finds_decides(
    monkeypatch: pytest.MonkeyPatch, found: Any, passes: bool
) -> None:
    monkeypatch.setattr(choose, "check_engine", lambda settings, device: None)
    monkeypatch.setattr(choose, "worst_error", found)
    assert (choose.kernels_fault(Precision.fp32, "cpu") == "") == passes


WRONG = ["nothing", "output", "gradient", "nan", "forgets the skip"]
WRONG += ["running averages", "second reader"]


class Sloppy:
    """A stand-in for the kernels, with one thing wrong."""

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    @staticmethod
    def reference(x: Tensor, norm: nn.BatchNorm2d, *skip: Tensor, relu: bool) -> Tensor:
        y = nn.BatchNorm2d.forward(norm, x) + sum(skip)
        return y.relu() if relu else y

    def norm_act(self, x: Tensor, norm: nn.BatchNorm2d, *skip: Tensor, relu: bool) -> Tensor:
        y = self.reference(x, norm, *skip, relu=relu)
        match self.wrong:
            case "output":
                return y * 1.0001
            case "gradient":  # right forward, wrong backward
                return y.detach() + (y - y.detach()) * 1.0001
            case "nan":
                return y.detach() + (y - y.detach()) * math.nan
            case "forgets the skip" if skip:
                return self.reference(x, norm, relu=relu) + 0 * sum(skip)
            case "running averages":
                norm.get_buffer("running_var").data.mul_(1.0001)
            case "second reader":
                y.again = y.detach() + 0 * y  # type: ignore[attr-defined]
        return y


@pytest.mark.parametrize("wrong", WRONG)
def test_the_check_convicts_wrong_kernels_and_no_right_ones(wrong: str) -> None:
    errors = [
        error
        for layer in choose.LAYERS
        for error in choose.errors_at(Sloppy(wrong), (8, 16, 6, 6), *layer, torch.float32, "cpu")
    ]
    right = all(error <= choose.BOUND[Precision.fp32] for error in errors)
    assert right == (wrong == "nothing")
