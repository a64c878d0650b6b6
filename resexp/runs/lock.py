"""One writer to a run directory: a lock of the file system, or where it has none a heartbeat.

With locks (flock) the kernel lets go for a process that dies. Without them (some network and FUSE
file systems) a process makes a claim file that only one can make, and touches it every ``BEAT``
seconds. A claim left untouched for ``STALE`` seconds is taken over, unless it moves while it is
watched. Its age is read off the file system's own clock, so no two machines need agree on the
time; and a claim is watched before it is taken, so a clock that is set cannot end a live one.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from resexp.files import no_link, open_regular, read_text

LOCK = ".lock"
CLAIM = ".claim."  # with a number: whoever takes over a claim makes the next, as only one can
CLOCK = ".clock."

BEAT = 5.0  # seconds between two touches of a claim
STALE = 60.0  # seconds without a touch after which a claim is watched
LOOK = 0.1  # seconds within which one that looks at a lock lets go of it
WATCH = 3 * BEAT  # seconds in which a watched claim must move to be left alone

#: What a file system answers that has no locks.
NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}

#: The claims that this process keeps alive, by directory.
_held: dict[Path, tuple[Path, str]] = {}


class ClaimLost(Exception):
    """Another process took a run directory over while this one slept."""


@contextmanager
def hold(directory: Path) -> Iterator[bool]:
    """Whether this process alone may write ``directory``, until the block ends.

    Raises OSError where no file can be made.
    """
    file = no_link(directory / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        locked = lock(file)
        if locked is False:  # perhaps by one that only looks (is_held): it lets go at once
            time.sleep(LOOK)
            locked = lock(file)
        if locked is not None:
            yield locked
            return
    finally:
        os.close(file)  # lets go
    with claimed(directory) as ours:
        yield ours


def is_held(directory: Path) -> bool:
    """Whether a process is at ``directory``, as far as can be told without waiting or writing."""
    if any(True for _ in claims(directory)):
        return True
    try:
        file = no_link(directory / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        return lock(file) is False
    except OSError:  # NFS locks nothing that was opened for reading: not to be told
        return True
    finally:
        os.close(file)


def lock(file: int) -> bool | None:
    """Whether the lock on an open file could be had; None where there are no locks."""
    try:
        from fcntl import LOCK_EX, LOCK_NB, flock
    except ImportError:
        return None
    try:
        flock(file, LOCK_EX | LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return None
    return True


def has_locks(folder: Path) -> bool:
    """Whether the file system of ``folder`` has locks. Raises OSError if it takes no file."""
    path = folder / f"{LOCK}.{secrets.token_hex(4)}"
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        return lock(file) is not None
    finally:
        os.close(file)
        path.unlink()


@contextmanager
def claimed(directory: Path) -> Iterator[bool]:
    """``hold`` without locks: whether the claim is ours, which is then kept alive."""
    claim = take(directory)
    if claim is None:
        yield False
        return
    over = threading.Event()
    heart = threading.Thread(target=beat, args=(claim, over), daemon=True)
    _held[directory] = claim, read_text(claim)
    heart.start()
    try:
        yield True
    finally:
        over.set()
        heart.join()
        del _held[directory]
        claim.unlink(missing_ok=True)


def take(directory: Path) -> Path | None:
    """A claim of our own, or None if another process has one that is alive.

    Making a file that must not exist is the one step that no two processes can both do. What was
    judged before it may have changed meanwhile: then it is taken back.
    """
    before = claims(directory)
    if not all(stale(directory / name) for name in before):
        return None
    number = max((int(name.removeprefix(CLAIM)) for name in before), default=0) + 1
    claim = directory / f"{CLAIM}{number}"
    text = f"{machine()}\n{os.getpid()}\n{secrets.token_hex(8)}\n"
    try:
        with claim.open("x") as file:
            file.write(text)
    except FileExistsError:
        return None
    if claims(directory) != {**before, claim.name: text}:
        claim.unlink(missing_ok=True)
        return None
    for name in before:
        (directory / name).unlink(missing_ok=True)
    return claim


def claims(directory: Path) -> dict[str, str]:
    """The claim files of a directory and who made each."""
    found = {}
    for path in directory.glob(f"{CLAIM}*"):
        if path.name.removeprefix(CLAIM).isdecimal():
            with suppress(FileNotFoundError):
                found[path.name] = read_text(path, errors="replace")
    return found


def beat(claim: Path, over: threading.Event) -> None:
    """Touch a claim until it is over. A server that is away for a moment is no reason to stop."""
    while not over.wait(BEAT):
        with suppress(OSError):
            os.utime(claim)  # the file system's time, not this machine's


def stale(claim: Path) -> bool:
    """Whether the process that made a claim is gone.

    At once if it ran on this machine and has ended. Else after a time without a touch: an age that
    is too great, or far below zero because a clock was set, is doubted until the claim was watched.
    """
    try:
        made_on, process, *_ = [*read_text(claim, errors="replace").splitlines(), "", ""]
        if made_on == machine() and process.isdecimal() and not alive(int(process)):
            return True
        touched = touch_time(claim)
        if abs(clock(claim.parent) - touched) <= STALE:
            return False
        watched = time.monotonic()
        while time.monotonic() - watched < WATCH:
            time.sleep(BEAT / 5)
            if touch_time(claim) != touched:
                return False
    except FileNotFoundError:
        return False  # let go just now: the next command will find it free
    return True


def touch_time(claim: Path) -> float:
    """When a claim was last touched. Opened first: that makes NFS ask its server."""
    with open_regular(claim) as file:
        return os.fstat(file.fileno()).st_mtime


def clock(directory: Path) -> float:
    """The time by the clock of the file system that ``directory`` lies on."""
    path = directory / f"{CLOCK}{secrets.token_hex(8)}"
    try:
        path.touch(exist_ok=False)
        return path.stat().st_mtime
    finally:
        path.unlink(missing_ok=True)


def alive(process: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def machine() -> str:
    """What tells this machine, since it was started, and its process numbers from all others.

    Two containers may share a host's name and number their processes alike.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {secrets.token_hex(8)}"  # like none: the heartbeat decides


def check_held(directory: Path) -> None:
    """Raise ClaimLost if a claim that this process had on ``directory`` went to another.

    It can: to the others, a process that was stopped for long looks as if it had died.
    """
    if directory not in _held:
        return
    claim, text = _held[directory]
    if claims(directory) != {claim.name: text}:
        raise ClaimLost(f"{directory} was taken over by another process while this one slept")
