"""Stopping politely: the first Ctrl-C or SIGTERM stops after this step, the next at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: Ctrl-C, a polite end, a closed terminal, and what Slurm sends before a time limit or a
#: preemption, by custom one of two (sbatch --signal; submitit asks for USR2).
STOPPING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)


class Interrupted(KeyboardInterrupt):
    """A run was stopped and its state saved. Not an Exception: it ends a sweep, not only a job."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 75 (run again to go on) after any other signal."""
        return 130 if self.signum == signal.SIGINT else 75


class Stop:
    """Whether a signal asked this process to stop, and which."""

    def __init__(self, at_once: bool = False) -> None:
        self.signum: int | None = None
        self.at_once = at_once  # there is nothing to save: the first signal raises Interrupted
        self.later: list[int] = []  # what came after it

    def note(self, signum: int, frame: FrameType | None) -> None:
        """Remember the first signal; a second Ctrl-C quits at once."""
        if self.signum is None:
            self.signum = signum
            if self.at_once:
                raise Interrupted(signum)
        elif signum == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            self.later.append(signum)


@contextmanager
def stop_signals(at_once: bool = False) -> Iterator[Stop]:
    """Listen inside; the handlers before are put back on leaving.

    One that somebody wrote is then given the signals that came after the first: Slurm announces a
    preemption with SIGTERM, and submitit waits for the signal behind it.

    Only a process's main thread may listen: elsewhere nothing changes and no stop is ever asked.
    """
    stop = Stop(at_once)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {one: signal.getsignal(one) for one in STOPPING}
    if before.get(getattr(signal, "SIGHUP", None)) is signal.SIG_IGN:  # nohup
        del before[signal.SIGHUP]
    for one in before:
        signal.signal(one, stop.note)
    try:
        yield stop
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
        for one in stop.later:
            if callable(before.get(one)):
                signal.raise_signal(one)


def submitit_listens() -> bool:
    """Whether this process is a job of submitit's: it minds the signals that come."""
    handler = signal.getsignal(signal.SIGTERM)
    return str(getattr(handler, "__module__", "")).startswith("submitit.")
