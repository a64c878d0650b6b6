"""How a step is carried out: called as it is, or captured in a CUDA graph once and replayed.

An engine changes the way, not the step: the same function on the same memory (see fit.train_step).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import nn

from resexp.models.merges import drawn
from resexp.settings import Engine, Precision, Settings, UsageError

Step = Callable[[], None]

#: Steps of a run before its capture, carried out as they are: cuDNN chooses its kernels in them.
WARM = 3


def ready(engine: Engine, network: nn.Module, step: Step) -> Step:
    """The step as ``engine`` carries it out; with ``triton`` the network is given its kernels."""
    if engine is Engine.triton:
        from resexp.train.engine.kernels import use_kernels

        use_kernels(network)
    if engine is Engine.eager:
        return step
    return Captured(step, next(network.parameters()).device)


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

    def __init__(self, step: Step, device: torch.device) -> None:
        self.step = step
        # A stream of its own: graphs captured on one stream share cuBLAS's workspace, and those of
        # runs in lockstep are replayed at the same time.
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        self.calls += 1
        if self.calls <= WARM:
            self.step()
            return
        if self.graph is None:
            self.graph = self.capture()
        self.graph.replay()

    def capture(self) -> torch.cuda.CUDAGraph:
        """The step as a graph, its intermediate results in memory of its own."""
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU meanwhile: those that pin and copy streamed images.
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            self.step()
        return graph
