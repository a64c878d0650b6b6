"""What a job tells whoever watches it: the same from this process, another one, or a cluster."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable, Generator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from resexp.runs.records import Claim, first_line
from resexp.settings import Job, UsageError
from resexp.train.row import Row

SHOW_EVERY = 0.2  # seconds between two messages about the steps of one run


@dataclass(slots=True)
class Outcome:
    """The job is done, or need not or cannot be done now: see what its directory said to it.

    ``record`` is its run.json afterwards.
    """

    job: Job
    claim: Claim
    record: dict[str, Any]
    warnings: list[str]


@dataclass(frozen=True, slots=True)
class Step:
    """So many steps are done, 0 or those of a checkpoint before the first one here."""

    record: dict[str, Any]  # as it stands: more is written into it later
    step: int
    row: Row | None = None  # if this step had one


@dataclass(frozen=True, slots=True)
class Failed:
    """The job ended with an error, which its directory records."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Stopped:
    """The job's process was asked to stop: it saved, and goes on when it is run again."""

    signum: int = signal.SIGTERM


Message = Step | Outcome | Failed | Stopped

#: What every launcher's ``run_all`` is: the messages of some jobs, as they come.
Messages = Generator[tuple[Job, Message], None, None]


class WorkerDied(Exception):
    """A process ended in the middle of a job."""


def sender(pipe: Connection) -> Callable[[Message], None]:
    """A function that sends a job's messages, steps not more often than a person can see."""
    sent = -SHOW_EVERY

    def send(message: Message) -> None:
        nonlocal sent
        now = time.monotonic()
        if isinstance(message, Step) and message.row is None and now - sent < SHOW_EVERY:
            return
        sent = now
        try:
            pipe.send(message)
        except OSError:  # the command was killed: save and stop
            os.kill(os.getpid(), signal.SIGTERM)

    return send


def sendable(error: BaseException, where: str) -> Exception:
    """An error that survives the way to another process, its traceback as a note."""
    refused = isinstance(error, UsageError)
    copy = UsageError(f"{error}") if refused else RuntimeError(first_line(error))
    copy.add_note(f"in {where}:\n" + "".join(traceback.format_exception(error)))
    return copy
