"""What stands at a setting's field beside its default: its type, its range, what it means.

As in ``steps: Annotated[int, Range(1, 10**9), "optimizer steps"] = 220``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints


class UsageError(Exception):
    """Wrong usage or configuration: one sentence that says what to type next. Exit code 2."""


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers from ``least`` to ``most``."""

    least: float
    most: float

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most

    def __str__(self) -> str:
        return f"from {self.least:,} to {self.most:,}"


class Above(Range):
    """The same without ``least`` itself."""

    def __contains__(self, value: float) -> bool:
        return self.least < value <= self.most

    def __str__(self) -> str:
        return f"above {self.least:,}, at most {self.most:,}"


class Mark(Enum):
    """Of a setting: why it is no part of a run's identity, or not always of its digest."""

    here = "says where and how a run is carried out: no number of it depends on this"
    later = "had this default before there was a choice: only another value changes the digest"


#: What a value of each type is called.
NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


@cache
def hints(kind: Any) -> dict[str, Any]:
    """The fields of a dataclass and their types, with all that is said about them."""
    known = get_type_hints(kind, include_extras=True)
    return {field.name: known[field.name] for field in fields(kind)}


def leaves(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted key and the type of every setting in a dataclass and those inside it."""
    for name, hint in hints(kind).items():
        if is_dataclass(hint):
            yield from leaves(hint, f"{prefix}{name}.")
        else:
            yield prefix + name, hint


def bare(hint: Any) -> Any:
    """A type without what is said about it."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def said(hint: Any, kind: type) -> Any:
    """What of one ``kind`` is said about a type: its Range, Mark, meaning (str); or None."""
    extras = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((one for one in extras if isinstance(one, kind)), None)


def check_range(key: str, hint: Any, value: Any) -> None:
    """Raise UsageError for a number outside the range that stands at its field."""
    bounds = said(hint, Range)
    if bounds is not None and value is not None and value not in bounds:
        raise UsageError(f"{key}={value} is out of range. Choose a value {bounds}.")


def checked(key: str, hint: Any, value: Any) -> Any:
    """``value`` as the type that ``hint`` names. Raises UsageError if it is none, or out of range.

    Types are bool, int, float, str, an Enum, a dict, a list of one of these, or one or None.
    """
    kind = bare(hint)
    if isinstance(kind, UnionType):
        kind = next(one for one in get_args(kind) if one is not NoneType)
        if value is None:
            return None
    if get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise UsageError(f"{key}={value} must be names and values.")
        return value
    if get_origin(kind) is list:
        if not isinstance(value, list | tuple):
            raise UsageError(f"{key}={value} must be a list, such as '{key}=[1,2]'.")
        return [checked(key, get_args(kind)[0], one) for one in value]
    if issubclass(kind, Enum):
        members = {member.value: member for member in kind}
        if value not in list(members):  # a list would have no hash
            raise UsageError(f"{key}={value} is none of {', '.join(map(str, members))}.")
        return members[value]
    # True is an int to Python and a typing error to people; 1 is a fine float.
    if not (type(value) is kind or (kind is float and type(value) is int)):
        raise UsageError(f"{key}={value} must be {NAMES[kind]}.")
    check_range(key, hint, value)
    return kind(value)
