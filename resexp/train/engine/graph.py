"""How a step is carried out: called as it is, or captured in a CUDA graph once and replayed.

An engine changes the way, not the step: the same function on the same memory (see fit.train_step).
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from resexp.models.merges import drawn
from resexp.settings import Engine, Precision, Settings, UsageError

Step = Callable[[], None]
Pool = Any  # torch's handle of memory that graphs take turns to use

#: Steps of a run before its capture, carried out as they are: cuDNN chooses its kernels in them.
WARM = 3


def ready(engine: Engine, step: Step, pool: Pool | None) -> Step:
    """What is repeated often, as ``engine`` carries it out; the graphs of a run share its pool."""
    return step if engine is Engine.eager else Captured(step, pool)


class NativeNorm(nn.BatchNorm2d):
    """By torch's kernels. Blocks of cuDNN's wait for each other, which may stall networks at once.

    (Its persistent kernel, for float32 that lies channels-last; pytorch issue 80259 has a case.)
    """

    def forward(self, x: Tensor) -> Tensor:
        vectors = self.weight, self.bias, self.running_mean, self.running_var
        momentum = self.momentum or 0.0
        return torch.batch_norm(x, *vectors, self.training, momentum, self.eps, cudnn_enabled=False)


def use_native_norms(network: nn.Module) -> None:
    """Let every batch normalisation of a network be one of :class:`NativeNorm`."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = NativeNorm


def check_engine(settings: Settings, device: torch.device) -> None:
    """Raise UsageError for an engine that cannot carry out this run, before anything is written."""
    engine = settings.engine
    if engine in (Engine.auto, Engine.eager):
        return
    if device.type != "cuda":
        raise UsageError(f"engine={engine} needs a GPU, and this is {device}. Use engine=eager.")
    if settings.launch.ranks > 1:
        raise UsageError(
            f"engine={engine} is single-process only. Use engine=eager, or launch.ranks=1."
        )
    if engine is Engine.triton and find_spec("triton") is None:
        raise UsageError("engine=triton needs the package triton. Install it, or use engine=graph.")
    if engine is Engine.triton and settings.precision is Precision.fp64:
        raise UsageError("engine=triton has no precision=fp64. Use engine=graph.")


def check_repeats(engine: Engine, arch: str, network: nn.Module) -> None:
    """Raise UsageError if an engine that replays one step gets a network whose steps differ."""
    if engine not in (Engine.auto, Engine.eager) and drawn(network):
        raise UsageError(
            f"arch={arch} draws at random which parts take part in a step, and engine={engine} "
            "replays one. Use engine=eager."
        )


class Captured:
    """A step that is recorded once and then replayed: one launch in place of hundreds.

    The first calls are made as they are, real steps of the run. Capturing carries out nothing.
    """

    def __init__(self, step: Step, pool: Pool | None = None) -> None:
        self.step = step
        self.pool = pool
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == 1:
            torch.cuda.synchronize()  # cuDNN times its kernels in this call: nothing else beside it
        if self.calls <= WARM:
            self.step()
            return
        if self.graph is None:
            self.graph = self.capture()
        self.graph.replay()

    def capture(self) -> torch.cuda.CUDAGraph:
        """The step as a graph, its intermediate results in memory of its own.

        So is what cuBLAS works in: it belongs to a stream, and 32 streams are all there are, so
        that graphs replayed at the same time might share it.
        """
        graph = torch.cuda.CUDAGraph()
        gc.collect()  # what a finaliser does to the device has no place in a graph
        torch._C._cuda_clearCublasWorkspaces()  # type: ignore[attr-defined]
        # Other threads may use the GPU meanwhile: those that pin and copy streamed images.
        with torch.cuda.graph(graph, self.pool, capture_error_mode="thread_local"):
            self.step()
        torch._C._cuda_clearCublasWorkspaces()  # type: ignore[attr-defined]
        return graph
