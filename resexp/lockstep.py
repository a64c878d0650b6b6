"""Several runs at a time in one process on one device: a step of each in turn.

They share the images and nothing else. A run that fails leaves the others alone; a signal saves
all of them. For a sweep of small networks on one GPU, whose images and libraries are then in its
memory once; on a CPU the runs wait for each other and gain no time.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Generator
from contextlib import suppress

from resexp.pool import Message
from resexp.settings import Job
from resexp.signals import Interrupted, stop_signals
from resexp.task import Turns, Watch, steps

AT_MOST = 64  # runs at a time unless launch.jobs says otherwise: each has a file open, or several


def run_all(
    jobs: list[Job], at_a_time: int, watch: Watch
) -> Generator[tuple[Job, Message], None, None]:
    """Carry out ``jobs``, some at a time, the next as soon as one ends; yields how each ended.

    Raises Interrupted, once every run at work has been saved, if this process is asked to stop.
    They are saved, too, if this generator is closed.
    """
    waiting = deque(jobs)
    working: list[tuple[Job, Turns]] = []
    with stop_signals() as stop:
        try:
            while waiting or working:
                while waiting and len(working) < at_a_time:
                    job = waiting.popleft()
                    working.append((job, steps(job, watch)))
                for job, turns in list(working):
                    if stop.signum is not None:
                        raise Interrupted(stop.signum)
                    if (end := advance(turns)) is not None:
                        working.remove((job, turns))
                        yield job, end
        except (Interrupted, GeneratorExit):
            for _, turns in working:
                with suppress(Interrupted, Exception):  # one that cannot be saved says so itself
                    turns.throw(Interrupted(stop.signum or signal.SIGTERM))
            raise
        finally:
            for _, turns in working:
                turns.close()


def advance(turns: Turns) -> Message | None:
    """Give a run its turn; how it ended, if it did.

    On a GPU this is the place for a stream of the run's own: nothing in a step waits for the
    device, so the kernels of small networks could overlap. Without one they queue up, correctly.
    """
    try:
        next(turns)
    except StopIteration as end:
        return ("over", end.value)
    except (Exception, SystemExit) as error:
        return ("failed", error)
    return None
