"""``engine=auto``: a CUDA graph, with custom kernels if they pass a check on this device.

The check compares each kernel with float64 at the shapes of the CIFAR family. It looks at no
network, and what it finds is kept with the sweep: twins must not differ in their engine, though
they may be trained by several processes, and on several days.
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn

from resexp.models.merges import drawn
from resexp.settings import Engine, Precision, Settings, UsageError
from resexp.train.device import device_name
from resexp.train.engine.graph import check_engine

WORTH = 1_000  # steps: a shorter run ends before the check and the kernels' compilation have paid
PATIENCE = 180.0  # seconds, with the compilation
SHAPES = ((128, 16, 32, 32), (128, 32, 16, 16), (128, 64, 8, 8))
LAYERS = ((False, False), (True, False), (True, True))  # with a skip; with a second reader
#: Largest error of a value, of the largest: sums of thousands in float32; a place of bfloat16.
BOUND = {Precision.fp32: 1e-5, Precision.tf32: 1e-5, Precision.bf16: 2**-7}
KEPT = "engine.json"  # in a sweep's folder
#: So near to 0 a ReLU may decide either way: there no gradient is sent back.
UNDECIDED = 0.05


def choose(
    settings: Settings, network: nn.Module, device: torch.device, folder: Path
) -> tuple[Engine, str]:
    """The engine of a run of the sweep in ``folder``, and why if ``auto`` chose it.

    ``auto`` is eager on a CPU, for short runs, for several ranks, and for networks that draw at
    random: none of them can be captured, or would gain by it.
    """
    if settings.engine is not Engine.auto:
        return settings.engine, ""
    ranks = settings.launch.ranks
    if device.type != "cuda" or ranks > 1 or settings.steps < WORTH or drawn(network):
        return Engine.eager, ""
    fault = fault_of_sweep(folder, settings.precision, device)
    return (Engine.graph, f"triton left out: {fault}") if fault else (Engine.triton, "kernels pass")


def fault_of_sweep(folder: Path, precision: Precision, device: torch.device) -> str:
    """``kernels_fault`` as the first run of a sweep on such a device found it."""
    of = f"{precision}, {device_name(device)}, torch {torch.__version__}"
    with FileLock(folder / f".{KEPT}.lock"):
        path = folder / KEPT
        found: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        if of not in found:
            found[of] = kernels_fault(precision, str(device))
            written = path.with_suffix(".tmp")
            written.write_text(json.dumps(found, indent=1) + "\n")
            written.replace(path)
    return found[of]


def kernels_fault(precision: Precision, device: str) -> str:
    """What keeps the kernels from being used, "" for nothing.

    In a child, for a fault in a kernel breaks the CUDA context of the process that it happens in.
    """
    try:
        check_engine(Settings(engine=Engine.triton, precision=precision), torch.device(device))
    except UsageError as refusal:
        return str(refusal)
    child = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    try:
        error = child.submit(worst_error, precision, device).result(PATIENCE)
    except Exception as failure:  # no compiler, no memory, a fault on the device, no answer
        return (str(failure) or type(failure).__name__).splitlines()[0]
    finally:
        for process in list((child._processes or {}).values()):  # one that hangs, too
            process.kill()
        child.shutdown(wait=False)
    return "" if error <= BOUND[precision] else f"its error is {error:.2g}"


def worst_error(precision: Precision, device: str) -> float:
    """The largest error of the kernels against float64, of the largest value; nan counts."""
    from resexp.train.engine import kernels

    kind = torch.bfloat16 if precision is Precision.bf16 else torch.float32
    errors = [
        error
        for shape in SHAPES
        for layer in LAYERS
        for error in errors_at(kernels, shape, *layer, kind, device)
    ]
    return float(torch.tensor(errors).max())  # max() of torch keeps a nan


def errors_at(
    kernels: Any, shape: tuple[int, ...], skipped: bool, twice: bool, kind: torch.dtype, device: str
) -> list[float]:
    """Errors of relu(norm(x) + skip), of its gradients for x, skip, scale and shift, and of the
    running averages; ``twice``: of an output that two others read.
    """
    generator = torch.Generator().manual_seed(0)
    x, *others = (torch.randn(shape, generator=generator) for _ in range(2 + skipped + twice))
    x = 3 * x + torch.linspace(-4, 4, shape[1]).view(1, -1, 1, 1)
    x, *others = (one.to(kind).double() for one in (x, *others))
    skip, dys = others[:skipped], others[skipped:]
    undecided = kernels.reference(x, nn.BatchNorm2d(shape[1]).double(), *skip, relu=False)
    for dy in dys:
        dy[undecided.abs() < UNDECIDED] = 0
    exact = result(kernels.reference, [x, *skip], dys)
    there = [one.to(device, kind, memory_format=torch.channels_last) for one in (x, *skip, *dys)]
    mine = result(kernels.norm_act, there[: 1 + skipped], there[1 + skipped :])
    pairs = zip(mine, exact, strict=True)
    return [float((a.cpu().double() - b).abs().max() / b.abs().max()) for a, b in pairs]


def result(layer: Any, inputs: list[Tensor], dys: list[Tensor]) -> list[Tensor]:
    """A layer's output, its gradients for inputs, scale and shift, and its running averages.

    Each of ``dys`` comes from another reader of the output.
    """
    x, *skip = inputs = [one.detach().requires_grad_() for one in inputs]
    norm = nn.BatchNorm2d(x.shape[1]).to(x.device, torch.promote_types(x.dtype, torch.float32))
    y = layer(x, norm, *skip, relu=True)
    outputs = [y, getattr(y, "again", y)][: len(dys)]
    gradients = torch.autograd.grad(outputs, [*inputs, norm.weight, norm.bias], dys)
    return [y.detach(), *gradients, norm.get_buffer("running_mean"), norm.get_buffer("running_var")]
