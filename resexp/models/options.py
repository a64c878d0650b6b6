"""What one family or one merge rule alone reads: ``arch.options``, checked against a dataclass.

A family and a rule each declare theirs as a frozen dataclass with a type for each option; a
number's range and an option's meaning stand in the type, as in
``growth: Annotated[int, Range(1, 1024), "channels that a layer adds"]``. The values themselves live
in configs/arch; a field without a default must be given there or by the user.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar

from resexp.settings import UsageError
from resexp.settings.choices import OPTIONS, nearest, own_options
from resexp.settings.fields import checked, hints

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NoOptions:
    """Of a family or a rule without options of its own."""


def read(kind: type[T], given: Mapping[str, Any]) -> T:
    """An instance of the dataclass ``kind`` from its part of the values of ``arch.options``.

    Raises UsageError, naming the option and what would do, for one that ``kind`` needs and
    ``given`` lacks, and a value of another type or out of range.
    """
    values = {}
    for field in fields(kind):  # type: ignore[arg-type]
        key = OPTIONS + field.name
        if field.name in given:
            values[field.name] = checked(key, hints(kind)[field.name], given[field.name])  # type: ignore[arg-type]
        elif field.default is MISSING and field.default_factory is MISSING:
            raise UsageError(f"{key} is missing. Write {key}=...")
    return kind(**values)


def check(given: Mapping[str, Any], *kinds: type) -> None:
    """Raise UsageError unless ``kinds`` together can be read from ``given``, with nothing left."""
    known = [name for kind in kinds for name in hints(kind)]
    for name in given:
        if name not in known:
            key, archs = OPTIONS + name, own_options().get(OPTIONS + name)
            if archs:
                raise UsageError(f"{key} is for arch={' or '.join(archs)}.")
            have = f"Choose from {', '.join(known)}." if known else "This arch has no options."
            raise UsageError(f"{key} is unknown.{nearest(name, known)} {have}")
    for kind in kinds:
        read(kind, given)
