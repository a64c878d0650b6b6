"""What one family alone knows: ``arch.options``, checked against the family's own dataclass.

A family declares its options as a frozen dataclass ``Options`` with a type for each; a number's
range stands in the type, as in ``growth: Annotated[int, Range(1, 1024)]``. The values themselves
live in configs/arch; a field without a default must be given there or by the user.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from resexp.settings import UsageError
from resexp.settings.choices import nearest

T = TypeVar("T")

PREFIX = "arch.options."

#: What a value of each type is called.
NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers from ``least`` to ``most``, ``least`` itself left out if ``above``."""

    least: float
    most: float
    above: bool = False


@dataclass(frozen=True, slots=True)
class NoOptions:
    """A family without options of its own."""


def read(kind: type[T], given: Mapping[str, Any]) -> T:
    """An instance of the dataclass ``kind`` from the values of ``arch.options``.

    Fields are bool, int, float, str, an Enum, or a list of one of these. Raises UsageError, naming
    the option and what would do, for a name that ``kind`` lacks, one that it needs and ``given``
    lacks, and a value of another type or out of range.
    """
    known = {one.name: one for one in fields(kind)}  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            near = nearest(name, known)
            have = f"Choose from {', '.join(known)}." if known else "This family has no options."
            raise UsageError(f"{PREFIX}{name} is unknown.{near} {have}")
    hints = get_type_hints(kind, include_extras=True)
    for name, field in known.items():
        required = field.default is MISSING and field.default_factory is MISSING
        if required and name not in given:
            raise UsageError(f"{PREFIX}{name} is missing. Write {PREFIX}{name}=...")
    values = {name: checked(PREFIX + name, hints[name], value) for name, value in given.items()}
    return kind(**values)


def checked(key: str, hint: Any, value: Any) -> Any:
    """``value`` as the type that ``hint`` names, or a UsageError."""
    if get_origin(hint) is Annotated:
        kind, bounds = get_args(hint)
        number = checked(key, kind, value)
        in_range = bounds.least <= number <= bounds.most
        if not in_range or (bounds.above and number == bounds.least):
            first = f"above {bounds.least:,}, at most" if bounds.above else f"{bounds.least:,} to"
            raise UsageError(f"{key}={value} is out of range. Choose {first} {bounds.most:,}.")
        return number
    if get_origin(hint) is list:
        if not isinstance(value, list | tuple):
            raise UsageError(f"{key}={value} must be a list, such as '{key}=[1,2]'.")
        return [checked(key, get_args(hint)[0], one) for one in value]
    if issubclass(hint, Enum):
        members = {member.value: member for member in hint}
        if value not in list(members):  # a list would have no hash
            raise UsageError(f"{key}={value} is none of {', '.join(map(str, members))}.")
        return members[value]
    # True is an int to Python and a typing error to people; 1 is a fine float.
    fits = type(value) is hint or (hint is float and type(value) is int)
    if not fits:
        raise UsageError(f"{key}={value} must be {NAMES[hint]}.")
    return hint(value)
