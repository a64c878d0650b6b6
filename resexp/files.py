"""What lies in a folder that anybody may have written: opened and read without waiting or filling
memory. Never imports torch.
"""

from __future__ import annotations

import io
import json
import math
import os
import stat
from pathlib import Path
from typing import Any

from resexp.settings.fields import UsageError

MOST_BYTES = 2**28  # of one file
MOST_JSON = 2**24  # of a JSON file: a record has a few thousand
MOST_DIGITS = 19  # of a whole number: of 64 bits
DEEPEST = 50  # lists and tables inside one another


#: A pipe keeps whoever opens it waiting for another process.
WITHOUT_WAITING = getattr(os, "O_NONBLOCK", 0)


class Unfit(UsageError, OSError):
    """What is no file to read: passed over as an OSError, or else a refusal."""


def open_regular(path: Path) -> io.BufferedReader:
    """A file for reading. Raises Unfit, at once, for a pipe or device: it may never end."""
    file = open(  # noqa: SIM115  handed on open
        path, "rb", opener=lambda name, flags: os.open(name, flags | WITHOUT_WAITING)
    )
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise Unfit(f"{path} is a pipe or device, not a file. Move it away.")
    return file


def no_link(path: str | Path, flags: int) -> int:
    """An opener of files to be written. Raises OSError for a link and a pipe that nobody reads."""
    return os.open(path, flags | WITHOUT_WAITING | getattr(os, "O_NOFOLLOW", 0), 0o666)


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """What a file holds. Raises Unfit if that is no regular file, or has more than ``most`` bytes;
    else OSError as reading does.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise Unfit(f"{path} has {size:,} bytes, and {most:,} are the most. Move it away.")
        return file.read(size)


def read_text(path: Path, errors: str = "strict") -> str:
    """``read_bytes`` as text, every end of a line as one character. Raises UnicodeDecodeError too,
    unless ``errors`` says otherwise.
    """
    return io.StringIO(read_bytes(path).decode(errors=errors), newline=None).getvalue()


def parse_json(text: str | bytes) -> Any:
    """What a JSON text spells. Raises ValueError, also for what no reader could go on with: nested
    too deep, or a number that no machine has.
    """
    try:
        found = json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_finite)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    level = [found]
    for _ in range(DEEPEST + 1):
        if not level:
            return found
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    raise ValueError("it is nested too deep")


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:9]} is no number")
    return value


def read_json(path: Path) -> Any:
    """What a JSON file holds, None if it holds none: anything may lie in a results folder."""
    try:
        return parse_json(read_bytes(path, MOST_JSON))
    except (OSError, ValueError):
        return None


def printable(text: str) -> str:
    """``text`` without the characters that would move a terminal's cursor or change its colours."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)
