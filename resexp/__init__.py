"""resexp: see, measure and explain the degradation problem.

From Python: ``resexp.run(depth=56, arch="plain")`` trains (or finds) one run,
``resexp.load_results("results")`` reads runs into a DataFrame.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# GNU OpenMP reads it once, when torch is loaded: threads that wait for each other soon sleep, and
# leave the core they spun on to other work. A choice made outside stands.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

if TYPE_CHECKING:
    from resexp.analysis.results import Run, load_results

__all__ = ["load_results", "run"]


def run(**settings: Any) -> Run:
    """Train one network as ``resexp run`` would, or find it if it is done; returns the run.

    Settings are those of the command line; ``arch__shortcut="B"`` is ``arch.shortcut=B``.
    Raises resexp.settings.UsageError if they cannot be run.
    """
    from resexp.analysis.results import Run
    from resexp.config import compose
    from resexp.launch.local import perform

    words = [f"{key.replace('__', '.')}={spell(value)}" for key, value in settings.items()]
    job = compose(words)
    perform(job)
    return Run.read(job.directory)


def spell(value: Any) -> str:
    """A Python value as an override's right-hand side."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(list(value)).replace(" ", "") if isinstance(value, (list, tuple)) else str(value)


def __getattr__(name: str) -> Any:
    """Import the reading half only when it is used: ``import resexp`` stays fast."""
    if name == "load_results":
        from resexp.analysis.results import load_results

        return load_results
    raise AttributeError(f"module 'resexp' has no attribute {name!r}")
