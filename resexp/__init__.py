"""resexp: see, measure and explain the degradation problem.

From Python and in notebooks: ``run`` trains one network or finds it done, ``sweep`` all
combinations; ``plot``, ``table``, ``verdict`` and ``load_results`` read what was trained.

    >>> import resexp
    >>> digits = resexp.sweep(depth=[20, 56], arch=["plain", "residual"], seed=range(3))
    >>> resexp.plot(digits)
    >>> resexp.verdict(digits)
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# GNU OpenMP reads it once, when torch is loaded: threads that wait for each other soon sleep, and
# leave the core they spun on to other work. A choice made outside stands.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
# Queues of a GPU, 8 by default: streams that share one wait for each other's work.
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")

if TYPE_CHECKING:
    from resexp.analysis.inline import plot, table, verdict
    from resexp.analysis.results import load_results
    from resexp.interactive import run, sweep

__all__ = ["load_results", "plot", "run", "sweep", "table", "verdict"]


def __getattr__(name: str) -> Any:
    """Import what stands behind a name when it is used: ``import resexp`` stays fast."""
    if name not in __all__:
        raise AttributeError(f"module 'resexp' has no attribute {name!r}")
    modules = {"run": "interactive", "sweep": "interactive", "load_results": "analysis.results"}
    return getattr(import_module(f"resexp.{modules.get(name, 'analysis.inline')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
