"""Stopping politely: the first Ctrl-C or SIGTERM stops after this step, the next at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """A run was stopped and its state saved. Not an Exception: it ends a sweep, not only a job."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 75 (run again to go on) after SIGTERM."""
        return 130 if self.signum == signal.SIGINT else 75


class Stop:
    """Whether a signal asked this process to stop, and which."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def note(self, signum: int, frame: FrameType | None) -> None:
        """Remember the first signal; a second Ctrl-C quits at once."""
        if self.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Listen inside; the handlers before are put back on leaving.

    Only a process's main thread may listen: elsewhere nothing changes and no stop is ever asked.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {one: signal.signal(one, stop.note) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
