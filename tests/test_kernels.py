"""The Triton kernels against float64, in Triton's interpreter and, where there is one, on a GPU.

The interpreter cuts bfloat16 off where a GPU rounds it, so its results in bfloat16 are up to one
place (2**-7) away, a GPU's half of that.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from families import settings
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from resexp import models
from resexp.data import Images, batches
from resexp.settings import (
    Engine,
    Normalisation,
    Normalise,
    Order,
    Precision,
    Settings,
    Shortcut,
    WeightDecayOn,
)
from resexp.train import engine
from resexp.train.device import prepare
from resexp.train.engine import choose
from resexp.train.evaluate import misses
from resexp.train.fit import begin, fit
from resexp.train.ranks import ALONE, synchronise
from resexp.train.step_inputs import StepInputs

triton = pytest.importorskip("triton", reason="Triton is not installed")

MODULES = ("kernels", "fused", "step_kernels")  # of the engine
EPS = 2**-24  # what rounding to float32 may change, of a value
FP32 = 5e-6  # largest error allowed, of the largest value: sums of some thousand values
BF16 = 2**-7
#: Relative error allowed of what is written in each precision.
BOUND = {torch.float32: FP32, torch.bfloat16: BF16}

on_gpu = pytest.mark.parametrize(
    "kernels", [pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True
)
without_running = pytest.mark.parametrize("kernels", ["cuda"], indirect=True)


@pytest.fixture(scope="module", params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def kernels(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The module: as it is, or a second copy that Triton's interpreter runs on the CPU.

    What runs a kernel is settled when it is decorated, Triton's own ones (tl.sum) too, and running
    one leaves Triton changed. So the interpreter gets a Triton of its own, for this fixture's time.
    """
    if request.param == "cuda":
        yield importlib.import_module(f"{engine.__name__}.kernels")
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        others = take_away()
        for name in MODULES:
            spec = importlib.util.find_spec(f"{engine.__name__}.{name}")
            assert spec and spec.loader
            module = importlib.util.module_from_spec(spec)
            patch.setitem(sys.modules, spec.name, module)
            patch.setattr(engine, name, module, raising=False)
            spec.loader.exec_module(module)
        yield engine.kernels
    # Under other names Python still clears these at its end; else Triton's binding tells of leaks.
    sys.modules.update({f"interpreted {name}": one for name, one in take_away().items()})
    sys.modules.update(others)


@pytest.fixture
def fused(kernels: ModuleType) -> ModuleType:
    return importlib.import_module(f"{engine.__name__}.fused")


@pytest.fixture
def step_kernels(kernels: ModuleType) -> ModuleType:
    return importlib.import_module(f"{engine.__name__}.step_kernels")


def take_away() -> dict[str, ModuleType]:
    """Let Triton be imported again, but for its compiled part, which stays as it is."""
    names = [name for name in sys.modules if f"{name}.".startswith("triton.")]
    return {name: sys.modules.pop(name) for name in names if not name.startswith("triton._C")}


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that nobody has written yet holds nothing that could be taken for a result."""

    def poisoned(make: Any, *args: Any, **kwargs: Any) -> Tensor:
        tensor: Tensor = make(*args, **kwargs)
        return tensor.fill_(math.nan) if tensor.is_floating_point() else tensor

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, partial(poisoned, getattr(torch, name)))


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers, [N, C, H, W] channels-last."""
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if len(shape) == 4:
        numbers = numbers.contiguous(memory_format=torch.channels_last)
    return numbers.to(dtype)


def normalisation(channels: int, device: str, momentum: float = 0.1) -> nn.BatchNorm2d:
    """One whose parameters and running statistics are none of 0 and 1."""
    norm = nn.BatchNorm2d(channels, momentum=momentum)
    generator = torch.Generator().manual_seed(channels)
    for vector in norm.state_dict().values():
        if vector.dim():
            vector.copy_(torch.rand(channels, generator=generator) + 0.2)
    return norm.to(device)


def error(value: Tensor, oracle: Tensor) -> float:
    """The largest difference, in units of the oracle's largest value."""
    assert value.shape == oracle.shape
    value, oracle = value.detach().cpu().double(), oracle.detach()
    return float((value - oracle).abs().max() / oracle.abs().max())


def check(
    kernels: ModuleType,
    x: Tensor,
    skip: Tensor | None,
    *,
    relu: bool,
    written: float,
    summed: float = FP32,
) -> None:
    """Compare values, gradients and running statistics with torch's in float64.

    ``written`` bounds the error of activations, ``summed`` that of vectors.
    """
    channels = x.shape[1]
    norm = normalisation(channels, kernels.DEVICE, momentum=0.3)
    dy = random(*x.shape, seed=99, dtype=x.dtype)
    given = [one for one in (x, skip) if one is not None]
    inputs = [one.clone().to(kernels.DEVICE).requires_grad_() for one in given]
    oracle = copy.deepcopy(norm).cpu().double()
    exact = [one.double().requires_grad_() for one in given]

    y = kernels.norm_act(inputs[0], norm, *inputs[1:], relu=relu)
    assert "Activated" in y.grad_fn.name()
    y.backward(dy.to(kernels.DEVICE))
    expected = kernels.reference(exact[0], oracle, *exact[1:], relu=False)
    # Of a million values some lie so near 0 that rounding decides about their gradient.
    expected.backward(dy.double() * (y > 0).cpu() if relu else dy.double())
    expected = expected.relu() if relu else expected

    assert y.dtype == x.dtype and y.is_contiguous(memory_format=torch.channels_last)
    assert error(y, expected) < written
    for mine, theirs in zip(inputs, exact, strict=True):
        assert mine.grad is not None and theirs.grad is not None
        assert mine.grad.dtype == mine.dtype
        assert error(mine.grad, theirs.grad) < written
    pairs: list[tuple[Tensor | None, Tensor | None]] = [
        (norm.weight.grad, oracle.weight.grad),
        (norm.bias.grad, oracle.bias.grad),
        (norm.running_mean, oracle.running_mean),
        (norm.running_var, oracle.running_var),
    ]
    for value, expected in pairs:
        assert value is not None and expected is not None
        assert error(value, expected) < summed
    assert norm.num_batches_tracked == 1


@pytest.mark.process
@pytest.mark.parametrize("relu", [False, True], ids=["", "relu"])
@pytest.mark.parametrize("skipped", [False, True], ids=["", "skip"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 3, 3, 5), torch.float32),  # less than a tile
        ((3, 33, 5, 7), torch.float32),  # the last of three blocks of channels has but one
        ((3, 33, 5, 7), torch.bfloat16),
        ((4, 16, 8, 8), torch.float32),
        ((4, 16, 8, 8), torch.bfloat16),
        ((1, 64, 9, 4), torch.float32),
    ],
    ids=str,
)
def test_kernels_compute_what_float64_does(
    kernels: ModuleType,
    poison: None,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    skipped: bool,
    relu: bool,
) -> None:
    skip = random(*shape, seed=2, dtype=dtype) if skipped else None
    x = random(*shape, seed=1, dtype=dtype)
    check(kernels, x, skip, relu=relu, written=BOUND[dtype])


@pytest.mark.process
def test_programs_may_loop_over_ragged_rows(
    kernels: ModuleType, poison: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "PROGRAMS", 6)
    monkeypatch.setattr(kernels, "TILE", 1024)
    shape = (5, 18, 17, 11)
    how = kernels.tiling(5 * 17 * 11, 18)
    assert (how.tiles, how.parts, how.blocks) == (10, 3, 2)
    check(kernels, random(*shape, seed=3), random(*shape, seed=4), relu=True, written=FP32)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", BOUND, ids=str)
@pytest.mark.parametrize("shape", [(128, 16, 32, 32), (128, 32, 16, 16), (128, 64, 8, 8)])
def test_kernels_compute_what_float64_does_at_the_size_of_figure_6(
    kernels: ModuleType, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = random(*shape, seed=5, dtype=dtype)
    check(kernels, x, random(*shape, seed=6, dtype=dtype), relu=True, written=BOUND[dtype])
    check(kernels, x, None, relu=False, written=BOUND[dtype])


@on_gpu
def test_activations_may_have_more_than_2_to_the_31_values(kernels: ModuleType) -> None:
    if torch.cuda.mem_get_info()[0] < 24e9:
        pytest.skip("needs 24 GB of free GPU memory")
    x = torch.randn(2049, 65536, 16, device="cuda", dtype=torch.bfloat16)
    x = x.view(2049, 256, 256, 16).permute(0, 3, 1, 2)
    assert x.numel() > 2**31
    norm = nn.BatchNorm2d(16, device="cuda")
    with torch.no_grad():
        y = kernels.norm_act(x, norm, relu=True)
    assert error(y[-1], x[-1].cpu().double().relu()) < 2 * BF16


@pytest.mark.process
def test_a_large_mean_costs_no_more_than_it_must(kernels: ModuleType, poison: None) -> None:
    x = 100 + 0.1 * random(4, 16, 8, 8, seed=7)
    naive = (x.square().mean((0, 2, 3)) - x.mean((0, 2, 3)).square()) / 0.01
    assert (naive - 1).abs().max() > 0.05  # what E[x^2] - E[x]^2 makes of the variance
    skip = random(4, 16, 8, 8, seed=8)
    # A mean of 100 is rounded by 100 EPS, which is 1000 EPS of the standard deviation.
    check(kernels, x, skip, relu=False, written=4000 * EPS, summed=4000 * EPS)


def test_the_gradient_is_0_where_the_relu_met_0(kernels: ModuleType, poison: None) -> None:
    levels = torch.tensor([-1.0, 0.0, 1.0, 0.0]).repeat(2 * 4 * 16)
    x = levels.view(2, 16, 4, 4).contiguous(memory_format=torch.channels_last)
    norm = nn.BatchNorm2d(16, device=kernels.DEVICE)
    y = kernels.norm_act(x.to(kernels.DEVICE), norm, relu=True)
    assert torch.equal(y.cpu() > 0, x > 0)
    y.sum().backward()
    assert norm.bias.grad is not None
    assert norm.bias.grad.tolist() == [2 * 4] * 16
    # And with a shortcut that takes away all there is.
    x = random(2, 16, 4, 4, seed=9).to(kernels.DEVICE)
    norm = normalisation(16, kernels.DEVICE)
    skip = (-kernels.norm_act(x, norm, relu=False)).detach().requires_grad_()
    y = kernels.norm_act(x.requires_grad_(), norm, skip, relu=True)
    y.backward(torch.ones_like(y))
    for one in (y, skip.grad, x.grad, norm.weight.grad, norm.bias.grad):
        assert one is not None and not one.count_nonzero()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_what_is_not_a_number_passes_the_relu(kernels: ModuleType) -> None:
    x = random(2, 16, 4, 4, seed=10)
    x[1, 3, 2, 2] = math.nan
    y = kernels.norm_act(x.to(kernels.DEVICE), normalisation(16, kernels.DEVICE), relu=True)
    assert y.isnan().all((0, 2, 3)).tolist() == [channel == 3 for channel in range(16)]
    assert y.isnan().any((0, 2, 3)).sum() == 1


def once(kernels: ModuleType, inputs: list[Tensor], dy: Tensor) -> list[Tensor]:
    """All that one forward and backward pass compute."""
    norm = normalisation(inputs[0].shape[1], kernels.DEVICE)
    inputs = [one.detach().requires_grad_() for one in inputs]
    y = kernels.norm_act(inputs[0], norm, inputs[1], relu=True)
    gradients = torch.autograd.grad(y, [*inputs, norm.weight, norm.bias], dy)
    assert norm.running_mean is not None and norm.running_var is not None
    return [y.detach(), *gradients, norm.running_mean, norm.running_var]


@pytest.mark.process
def test_two_runs_are_equal_to_the_bit(kernels: ModuleType) -> None:
    shape = (128, 16, 32, 32) if kernels.DEVICE == "cuda" else (4, 16, 9, 9)
    x, skip, dy = (random(*shape, seed=seed).to(kernels.DEVICE) for seed in (11, 12, 13))
    first = once(kernels, [x, skip], dy)
    assert all(map(torch.equal, first, once(kernels, [x, skip], dy)))


def trained(
    few_digits: Images, precision: Precision, steps: int, kernels: ModuleType | None = None
) -> tuple[float, Tensor]:
    """The last row's loss, and by how much some steps change a small network's weights."""
    of = replace(settings("residual", 8, width=4), precision=precision, steps=steps, batch_size=16)
    network = models.build(of, few_digits.channels, 10)
    device = torch.device("cpu" if kernels is None else kernels.DEVICE)
    prepare(1, of, device)
    state = begin(network.to(device), of)
    how = Engine.eager if kernels is None else Engine.triton
    before = state.optimizer.weights.clone()
    *_, row = fit(state, of, few_digits.to(device), engine=how, capture=False)
    assert row is not None
    return row.train_loss, (state.optimizer.weights - before).cpu().double()


@pytest.fixture
def only_kernels(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training no normalisation is torch's."""
    torchs = kernels.reference

    def in_evaluation(x: Tensor, norm: nn.BatchNorm2d, *skip: Tensor, relu: bool) -> Tensor:
        assert not norm.training
        y: Tensor = torchs(x, norm, *skip, relu=relu)
        return y

    monkeypatch.setattr(kernels, "reference", in_evaluation)
    monkeypatch.setattr(kernels, "PROGRAMS", 2)  # each costs the interpreter 10 ms


@on_gpu
def test_a_captured_graph_replays_to_the_same_bits(kernels: ModuleType) -> None:
    tensors = [random(64, 32, 16, 16, seed=seed, dtype=torch.bfloat16) for seed in (14, 15, 16)]
    x, skip, dy = (one.cuda() for one in tensors)
    expected = once(kernels, [x, skip], dy)
    norm = normalisation(32, "cuda")
    before = copy.deepcopy(norm.state_dict())
    inputs = [torch.zeros_like(x).requires_grad_(), torch.zeros_like(skip).requires_grad_()]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = kernels.norm_act(inputs[0], norm, inputs[1], relu=True)
        gradients = torch.autograd.grad(y, [*inputs, norm.weight, norm.bias], dy)
    with torch.no_grad():
        inputs[0].copy_(x)
        inputs[1].copy_(skip)
    for _ in range(2):
        norm.load_state_dict(before)
        graph.replay()
        assert norm.running_mean is not None and norm.running_var is not None
        replayed = [y.detach(), *gradients, norm.running_mean, norm.running_var]
        assert all(map(torch.equal, replayed, expected))
        assert norm.num_batches_tracked == 1


@on_gpu
def test_nothing_waits_for_the_device(kernels: ModuleType) -> None:
    x, skip, dy = (random(8, 16, 8, 8, seed=seed).cuda() for seed in (17, 18, 19))
    once(kernels, [x, skip], dy)
    norm = normalisation(16, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        y = kernels.norm_act(x, norm, skip.requires_grad_(), relu=True)
        torch.autograd.grad(y, [skip, norm.weight], dy)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.process
def test_a_network_trains_as_in_float64(
    kernels: ModuleType, only_kernels: None, few_digits: Images
) -> None:
    loss, change = trained(few_digits, Precision.fp32, 3, kernels)
    exact_loss, exact = trained(few_digits, Precision.fp64, 3)
    assert loss == pytest.approx(exact_loss, rel=1e-6)
    assert error(change, exact) < 1e-4


@pytest.mark.process
def test_bf16_is_as_far_from_float64_as_torchs_own(
    kernels: ModuleType, only_kernels: None, few_digits: Images
) -> None:
    _, change = trained(few_digits, Precision.bf16, 1, kernels)
    _, torchs = trained(few_digits, Precision.bf16, 1)
    _, exact = trained(few_digits, Precision.fp64, 1)
    assert error(change, exact) < 2 * error(torchs, exact)


NETWORKS: dict[str, tuple[Settings, int]] = {
    # The settings, and how many blocks end in one operation.
    "plain": (settings("plain", 14, width=4), 6),
    "residual": (settings("residual", 14, width=4), 6),
    "projection": (settings("residual", 14, width=4, shortcut=Shortcut.B), 6),
    "bottleneck": (settings("bottleneck", 11, width=4), 3),
    "preact": (settings("preact", 14, width=4), 0),
    "bn_after_addition": (settings("residual", 14, width=4, order=Order.bn_after_addition), 0),
    "scaled": (settings("scaled_shortcut", 14, width=4), 0),
    "stochastic_depth": (settings("stochastic_depth", 14, width=4), 0),
    "se": (settings("se", 14, width=4), 0),
    "dense": (settings("dense", 13), 0),
    "resnet": (settings("resnet", 18, width=4), 8),
    "rezero": (settings("rezero", 14, width=4), 0),
    "fixup": (settings("fixup", 14, width=4), 0),
    "group": (settings("residual", 14, width=4, norm=Normalisation.group), 0),
}


@without_running
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_stays_the_same_but_for_its_kernels(fused: ModuleType, name: str) -> None:
    of, blocks = NETWORKS[name]
    network = models.build(of, 3, 10)
    before = copy.deepcopy(network)
    tensors = [*network.named_parameters(), *network.named_buffers()]
    norms = sum(type(module) is nn.BatchNorm2d for module in network.modules())
    assert fused.use_kernels(network) == norms
    assert (norms == 0) == (name in ("fixup", "group"))

    assert list(network.state_dict()) == list(before.state_dict())
    after = [*network.named_parameters(), *network.named_buffers()]
    assert [(key, id(value)) for key, value in after] == [(key, id(one)) for key, one in tensors]
    kinds = [type(module) for module in network.modules()]
    assert kinds.count(fused.FusedNorm) == norms
    assert kinds.count(fused.FusedBlock) == blocks
    assert nn.BatchNorm2d not in kinds
    assert fused.use_kernels(network) == 0

    x = random(2, 3, 32, 32, seed=21)
    for training in (True, False):  # on the CPU both take torch's operations
        network.train(training)
        before.train(training)
        assert torch.equal(network(x), before(x))
    before.load_state_dict(network.state_dict())
    network.load_state_dict(before.state_dict())


@without_running
def test_synchronised_normalisations_stay(fused: ModuleType) -> None:
    network = models.build(settings("residual", 8, width=4), 3, 10)
    synchronise(network)
    assert fused.use_kernels(network) == 0


def test_evaluation_and_other_inputs_are_torchs_own(kernels: ModuleType) -> None:
    x = random(4, 16, 8, 8, seed=22).to(kernels.DEVICE)
    norm = normalisation(16, kernels.DEVICE)
    skip = x.flip(0).contiguous(memory_format=torch.channels_last)
    twin = copy.deepcopy(norm)
    assert torch.equal(
        kernels.norm_act(x, norm.eval(), skip, relu=True), (twin.eval()(x) + skip).relu()
    )
    norm.train()
    twin.train()
    assert kernels.suits(x, norm, skip)
    assert not kernels.suits(x.contiguous(), norm, skip)
    assert not kernels.suits(x.double(), norm, skip)
    assert not kernels.suits(x, norm, skip[:1])
    assert not kernels.suits(x, nn.BatchNorm2d(16, momentum=None), skip)
    assert not kernels.suits(x, nn.BatchNorm2d(16, affine=False), skip)
    y = kernels.norm_act(x.contiguous(), norm, skip, relu=False)
    assert torch.equal(y, twin(x.contiguous()) + skip)
    assert all(map(torch.equal, norm.state_dict().values(), twin.state_dict().values()))
    with pytest.raises(ValueError, match="more than 1 value"):
        kernels.norm_act(x[:1, :, :1, :1].contiguous(), norm, relu=True)


def test_a_sum_has_the_wider_type_of_its_parts(kernels: ModuleType, poison: None) -> None:
    x = random(2, 16, 4, 4, seed=24, dtype=torch.bfloat16).to(kernels.DEVICE).requires_grad_()
    skip = random(2, 16, 4, 4, seed=25).contiguous().to(kernels.DEVICE).requires_grad_()
    norm = normalisation(16, kernels.DEVICE)
    exact = kernels.reference(x.double(), copy.deepcopy(norm).double(), skip.double(), relu=True)
    y = kernels.norm_act(x, norm, skip, relu=True)
    assert y.dtype == torch.float32
    assert error(y, exact.cpu()) < FP32
    y.sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.bfloat16
    assert skip.grad is not None and torch.equal(skip.grad, (y > 0).float())


def test_a_normalisation_need_not_keep_averages(
    kernels: ModuleType, fused: ModuleType, poison: None
) -> None:
    x = random(4, 16, 4, 4, seed=23)
    norm = nn.BatchNorm2d(16, track_running_stats=False)
    expected = kernels.reference(x.double(), copy.deepcopy(norm).double(), relu=True)
    network = nn.Sequential(norm, nn.ReLU()).to(kernels.DEVICE)
    assert fused.use_kernels(network) == 1
    assert error(network(x.to(kernels.DEVICE)), expected) < FP32


@without_running
@pytest.mark.parametrize("count", [1, 31, 32, 33, 5000, 8192, 32768, 131072, 401408, 2**33 + 1])
@pytest.mark.parametrize("channels", [1, 3, 16, 33, 64, 2048, 4096])
def test_every_value_has_one_program(kernels: ModuleType, count: int, channels: int) -> None:
    how = kernels.tiling(count, channels)
    part = how.tiles * how.rows
    assert (how.parts - 1) * part < count <= how.parts * part
    assert (how.blocks - 1) * how.columns < channels <= how.blocks * how.columns
    assert how.parts == 1 or how.parts * how.blocks <= kernels.PROGRAMS
    assert how.rows * how.columns <= kernels.TILE


@pytest.mark.slow
@without_running
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
@pytest.mark.parametrize(("count", "channels"), [(131072, 16), (32768, 32), (8192, 64)])
def test_the_kernels_compile_for_an_h200_and_spill_nothing(
    kernels: ModuleType,
    step_kernels: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    channels: int,
    kind: str,
) -> None:
    """As a GPU gets them: memory and counts are multiples of 16, as Triton finds at a launch."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # the default; Triton 3.9 warns without
    how = kernels.tiling(count, channels)
    constants = {"C": channels, "ROWS": how.rows, "TILES": how.tiles, "COLUMNS": how.columns}
    constants |= {"PARTS": triton.next_power_of_2(how.parts), "RELU": True}
    for name in ("moments", "normalise", "sums", "gradient"):
        compiled(getattr(kernels, f"{name}_kernel"), constants, kind, how.warps, tmp_path)
    if channels > 16:
        return
    image = {"H": 32, "W": 32, "C": 3, "PADDING": 4, "EACH_PIXEL": True, "RATES": 1, "SOME": 1}
    compiled(step_kernels.batch_kernel, image | {"BLOCK": 1024}, kind, 4, tmp_path)
    logits = {"K": 10, "ROWS": 128, "COLUMNS": 16}
    compiled(step_kernels.loss_kernel, logits, kind, 4, tmp_path)
    update = {"NESTEROV": False, "BLOCK": 1024}
    compiled(step_kernels.sgd_kernel, update, kind, 4, tmp_path)


def compiled(kernel: Any, constants: dict[str, Any], kind: str, warps: int, folder: Path) -> None:
    """Compile a kernel for an H200 and look at what the code needs."""
    kinds = dict.fromkeys(constants, "constexpr") | dict.fromkeys(("eps", "momentum"), "fp32")
    kinds |= dict.fromkeys(("decay", "unit"), "fp32") | dict.fromkeys(("M", "B", "size"), "i32")
    activations = ["x", "y", "skip", "dy", "more", "g", "dx", "logits", "slope"]
    kinds |= {f"{name}_ptr": f"*{kind}" for name in activations}
    kinds |= {"images_ptr": "*u8", "loss_ptr": "*fp64"}
    kinds |= {
        f"{name}_ptr": "*i64" for name in ["labels", "answers", "table", "turn", "wrong", "counted"]
    }
    signature = {name: kinds.get(name, "*fp32") for name in kernel.arg_names}
    places = {name: (place,) for place, name in enumerate(kernel.arg_names)}
    values = {places[name]: value for name, value in constants.items() if name in places}
    whole = [name for name, one in signature.items() if one.startswith(("*", "i"))]
    attributes = {places[name]: [["tt.divisibility", 16]] for name in whole}
    source = triton.compiler.ASTSource(kernel, signature, values, attributes)
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    code = triton.compile(source, target=target, options={"num_warps": warps}).asm["cubin"]
    (folder / "cubin").write_bytes(code)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    words = [tool, "-res-usage", folder / "cubin"]
    usage = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert re.search(r"STACK:0 .*LOCAL:0 ", usage), f"{kernel.__name__} {signature}: {usage}"


@pytest.mark.parametrize("layer", choose.LAYERS)
@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16])
def test_they_pass_the_check_of_auto(
    kernels: ModuleType, precision: Precision, layer: tuple[bool, bool]
) -> None:
    kind = torch.bfloat16 if precision is Precision.bf16 else torch.float32
    errors = choose.errors_at(kernels, (4, 16, 6, 6), *layer, kind, kernels.DEVICE)
    assert len(errors) == 6 + layer[0]
    assert max(errors) <= choose.BOUND[precision]


# What a step does beside the network


@pytest.mark.process
@pytest.mark.parametrize("padding", [0, 4])
@pytest.mark.parametrize("normalise", [Normalise.pixel_mean, Normalise.channel_std])
@pytest.mark.parametrize("size", [(7, 25, 17), pytest.param((128, 32, 32), marks=pytest.mark.slow)])
def test_a_batch_is_the_one_that_torch_makes_to_the_bit(
    step_kernels: ModuleType,
    kernels: ModuleType,
    padding: int,
    normalise: Normalise,
    size: tuple[int, int, int],
) -> None:
    generator = torch.Generator().manual_seed(1)
    batch_size, height, width = size
    shape = 300, height, width, 3
    pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    labels = torch.randint(5, (300,), generator=generator)
    images = Images("noise", pixels, labels, pixels, labels, list("abcde")).to(kernels.DEVICE)
    of = Settings(
        batch_size=batch_size,
        steps=9,
        eval_every=2,
        crop_padding=padding,
        flip=True,
        normalise=normalise,
        milestones=[0.2, 0.5],
    )
    statistics = batches.statistics(images.train_images, normalise)
    rates = lambda rate, step: [[rate, step + 1.0], [2 * rate, 0.5]]  # noqa: E731
    mine, torchs = (StepInputs(of, images, statistics, ALONE, rates) for _ in range(2))
    for step in range(5):
        mine.prepare(step)
        torchs.prepare(step)
        for one, other in zip(step_kernels.batch(mine), torchs.next(), strict=True):
            assert one.stride() == other.stride()
            assert torch.equal(one, other)


@pytest.mark.process
@pytest.mark.parametrize("kind", BOUND, ids=str)
@pytest.mark.parametrize(("count", "classes"), [(5, 3), (70, 10), (9, 1000)])
def test_loss_gradient_and_errors_are_those_of_float64(
    step_kernels: ModuleType, kernels: ModuleType, count: int, classes: int, kind: torch.dtype
) -> None:
    logits = (4 * random(count, classes, seed=31)).contiguous().to(kind)
    labels = torch.arange(count) % classes
    exact = logits.double().requires_grad_()
    loss = cross_entropy(exact, labels)
    loss.backward()
    sums = [torch.tensor(start, device=kernels.DEVICE) for start in (0.5, 3, 4)]
    sums[0] = sums[0].double()
    state = SimpleNamespace(**dict(zip(("loss_sum", "wrong", "counted"), sums, strict=True)))
    slope = step_kernels.scored(logits.to(kernels.DEVICE), labels.to(kernels.DEVICE), state)
    assert slope.dtype == kind and exact.grad is not None
    assert error(slope, exact.grad) < BOUND[kind]
    assert sums[0].item() == pytest.approx(0.5 + loss.item(), rel=1e-6)
    assert sums[1] == 3 + misses(exact, labels)
    assert sums[2] == 4 + count


@pytest.mark.process
@pytest.mark.parametrize("nesterov", [False, True])
def test_an_update_is_that_of_sgd(
    step_kernels: ModuleType, kernels: ModuleType, nesterov: bool
) -> None:
    of = replace(
        settings("residual", 8, width=4),
        nesterov=nesterov,
        weight_decay=0.1,
        weight_decay_on=WeightDecayOn.weights,
    )
    network = models.build(of, 1, 10)
    mine = begin(copy.deepcopy(network).to(kernels.DEVICE), of).optimizer
    exact = begin(network.double(), replace(of, precision=Precision.fp64)).optimizer
    assert len(mine.groups) == 2
    for step in range(3):
        gradient = torch.randn(len(exact.weights), generator=torch.Generator().manual_seed(step))
        mine.gradient.copy_(gradient)
        exact.gradient.copy_(gradient)
        rates = torch.tensor([[0.1], [0.2]])
        step_kernels.update(mine, rates.to(kernels.DEVICE))
        exact.step(rates.double())
    assert error(mine.weights, exact.weights) < FP32
    assert error(mine.states["velocities"], exact.states["velocities"]) < FP32
