"""Stopping politely: the first Ctrl-C or SIGTERM stops after this step, the next at once.

All signals are taken here: ``take_signals`` from the first line of a command on, ``stop_signals``
where there is something to save.
"""

from __future__ import annotations

import atexit
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

#: Ctrl-C, a polite end, a closed terminal, and what Slurm sends before a time limit or a
#: preemption, by custom one of two (sbatch --signal; submitit asks for USR2).
STOPPING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
)


def take_signals() -> None:
    """Let every signal end this process without a word, until somebody listens.

    Nothing is to be saved before, and Python would print where it was in loading its modules.
    """
    handle(leave)
    sys.unraisablehook = unraised
    atexit.register(handle, signal.SIG_IGN)  # when Python ends it would put back what kills


def leave(signum: int, frame: FrameType | None = None) -> NoReturn:
    """End this process at once."""
    if os.isatty(2):
        with suppress(OSError):
            os.write(2, b"\x1b[?25h")  # a bar may have hidden the cursor
    os._exit(exit_code(signum))


def unraised(what: sys.UnraisableHookArgs) -> None:
    """End this process if what stops it came in a finalizer: there Python would report it and go
    on.
    """
    if isinstance(what.exc_value, KeyboardInterrupt):
        leave(getattr(what.exc_value, "signum", signal.SIGINT))
    sys.__unraisablehook__(what)


def exit_code(signum: int) -> int:
    """130 after Ctrl-C, 75 (run again to go on) after any other signal."""
    return 130 if signum == signal.SIGINT else 75


def handle(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> None:
    """Let every signal that is heard go to ``handler``."""
    for one in heard():
        signal.signal(one, handler)


def heard() -> list[int]:
    """The signals that stop this process: not what its parent has it ignore, as nohup does."""
    return [one for one in STOPPING if signal.getsignal(one) is not signal.SIG_IGN]


class Interrupted(KeyboardInterrupt):
    """A run was stopped and its state saved. Not an Exception: it ends a sweep, not only a job."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """What the process ends with."""
        return exit_code(self.signum)


class Stop:
    """Whether a signal asked this process to stop, and which."""

    def __init__(self, at_once: bool = False) -> None:
        self.signum: int | None = None
        self.at_once = at_once  # there is nothing to save: the first signal raises Interrupted
        self.later: list[int] = []  # what came after it

    def note(self, signum: int, frame: FrameType | None) -> None:
        """Remember the first signal; a second Ctrl-C quits at once."""
        if signum == getattr(signal, "SIGHUP", None):
            hush()
        if self.signum is None:
            self.signum = signum
            if self.at_once and importing(frame):  # torch would abort
                leave(signum)
            if self.at_once:
                raise Interrupted(signum)
        elif signum == signal.SIGINT and self.at_once:
            leave(signum)
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
    before = {one: signal.getsignal(one) for one in heard()}
    handle(stop.note)
    try:
        yield stop
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
        for one in stop.later:
            handler = before.get(one)
            if callable(handler) and handler.__module__ != __name__:
                signal.raise_signal(one)


def hush() -> None:
    """Say no more to a terminal that was closed: every word would be an error."""
    for file in (1, 2):
        if stat.S_ISCHR(os.fstat(file).st_mode):  # isatty says no of one that is gone
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, file)
            os.close(nowhere)


def importing(frame: FrameType | None) -> bool:
    """Whether a module is being loaded in this frame or one that called it."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


def submitit_listens() -> bool:
    """Whether this process is a job of submitit's: it minds the signals that come."""
    handler = signal.getsignal(signal.SIGTERM)
    return str(getattr(handler, "__module__", "")).startswith("submitit.")
