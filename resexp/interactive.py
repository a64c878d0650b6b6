"""Training from Python: a run or a sweep. Imports torch, and Hydra, only to train."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing, suppress
from typing import Any

from resexp.analysis.results import Run, Sweep
from resexp.settings import Settings, UsageError
from resexp.settings.choices import full_key
from resexp.settings.fields import bare, leaves


def run(**settings: Any) -> Run:
    """Train one network as ``resexp run`` would, or find it if it is done; returns the run.

    Settings are those of the command line; ``arch__shortcut="B"`` is ``arch.shortcut=B``.

        >>> resexp.run(depth=56, arch="plain", seed=1)

    Raises resexp.settings.UsageError if they cannot be run.
    """
    from resexp.config import compose
    from resexp.launch.local import perform
    from resexp.launch.progress import Display
    from resexp.runs.messages import Step

    job = compose([f"{key_of(name)}={spell(value)}" for name, value in settings.items()])
    with closing(Display([job])) as display:
        perform(job, lambda record, step, row: display.step(Step(record, step, row)))
    return Run.read(job.directory)


def sweep(**settings: Any) -> Sweep:
    """Train every combination of the values given, as ``resexp run -m`` would; returns the runs.

    Several values are a list or any other iterable; for a setting that is a list itself, such as
    ``milestones``, a list of lists. A run that fails leaves the others alone: it is said, and it is
    among the runs if it was begun.

        >>> resexp.sweep(depth=[20, 56], arch=["plain", "residual"], seed=range(3))

    Raises resexp.settings.UsageError, with nothing trained, if any of them cannot be run.
    """
    from resexp.config import launch
    from resexp.console import console

    words = [f"{key_of(name)}={spell_axis(name, value)}" for name, value in settings.items()]
    session = launch(["-m", *words])
    console.print("\n".join(session.tally()))
    runs = Sweep()
    for directory in dict.fromkeys(job.directory for job in session.jobs):
        with suppress(UsageError):  # it failed before it had a record
            runs.append(Run.read(directory))
    return runs


def key_of(name: str) -> str:
    """A setting's key: Python's names have no dots."""
    return name.replace("__", ".")


def spell(value: Any) -> str:
    """A Python value as an override's right-hand side."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(list(value)).replace(" ", "") if isinstance(value, (list, tuple)) else str(value)


def spell_axis(name: str, value: Any) -> str:
    """One value, or several with commas between."""
    several = isinstance(value, Iterable) and not isinstance(value, str)
    if several and "list[" in str(bare(dict(leaves(Settings)).get(full_key(key_of(name))))):
        value = list(value)
        several = bool(value) and isinstance(value[0], list | tuple)
    return ",".join(map(spell, value)) if several else spell(value)
