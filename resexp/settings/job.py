"""A job: settings and the names they go by; what of them decides a run's numbers."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import asdict, dataclass, field, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from resexp.settings.fields import Mark, UsageError, bare, checked, hints, leaves, said
from resexp.settings.schema import Arch, Settings

MARKS = {key: said(hint, Mark) for key, hint in leaves(Settings)}
LAUNCH = {key for key in MARKS if key.startswith("launch.")}
CIRCUMSTANCES = frozenset(LAUNCH | {key for key in MARKS if MARKS[key] is Mark.here})
LATER = frozenset(key for key in MARKS if MARKS[key] is Mark.later)

#: Options of merge rules that every arch had as settings of its own up to version 0.1, and their
#: defaults then. Runs go by these keys for ever (arch.gate_bias, not arch.options.gate_bias): in
#: their names, identities and digests, and in what readers of results ask for.
MOVED = {
    "arch.shortcut_scale": 1.0,
    "arch.branch_scale": 1.0,
    "arch.shortcut_dropout": 0.5,
    "arch.gate_bias": -2.0,
    "arch.branch_start": 0.0,
}


def earlier(key: str) -> str:
    """The key that runs go by for a setting: arch.gate_bias for arch.options.gate_bias."""
    moved = key.replace("arch.options.", "arch.")
    return moved if moved in MOVED else key


def circumstances(flat: dict[str, Any]) -> frozenset[str]:
    """CIRCUMSTANCES, and with ``bn_sync`` the number of ranks: it then changes the last bits alone.

    Without it the ranks decide how many images share normalisation statistics.
    """
    ranks = {"launch.ranks"}
    return CIRCUMSTANCES | ranks if flat["bn_sync"] else CIRCUMSTANCES - ranks


def as_dict(settings: Settings) -> dict[str, Any]:
    """Nested plain values, enums as their strings: what config.yaml and run.json hold."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return plain


T = TypeVar("T")


def from_dict(nested: dict[str, Any], kind: type[T] = Settings, prefix: str = "") -> T:  # type: ignore[assignment]
    """What ``as_dict`` wrote, as settings again; those absent are at their default.

    Raises UsageError for a setting that this version does not know, or a value that it refuses.
    """
    if not isinstance(nested, dict):
        raise UsageError(f"{prefix.rstrip('.')}={nested} must be names and values.")
    known, values = hints(kind), {}  # type: ignore[arg-type]
    for key, value in (moved(nested) if kind is Arch else nested).items():
        if key not in known:
            raise UsageError(f"this version of resexp knows no setting {prefix}{key}. Update it.")
        if is_dataclass(known[key]):
            values[key] = from_dict(value, known[key], f"{prefix}{key}.")
            continue
        try:
            values[key] = checked(prefix + key, known[key], value)
        except UsageError as error:
            raise UsageError(f"this version of resexp knows no such setting: {error}") from None
    return kind(**values)


def misfit(nested: dict[str, Any]) -> str:
    """A known setting whose value has another type than it may have, in words; "" for none.

    Values that came later or are out of range now may be read: they were trained with.
    """
    for key, hint in hints(Settings).items():
        if is_dataclass(hint) and not isinstance(nested.get(key, {}), dict):
            return f"settings.{key} must be names and values."
    flat = flatten(nested)
    for key, hint in leaves(Settings):
        kind = bare(hint)
        kind = str if isinstance(kind, type) and issubclass(kind, Enum) else kind
        try:
            if key in flat:
                checked(f"settings.{key}", kind, flat[key])
        except UsageError as error:
            return str(error)
    return ""


def moved(arch: dict[str, Any]) -> dict[str, Any]:
    """The settings of an arch as this version has them: those of MOVED among its options."""
    old = {key: arch[key] for key in arch if f"arch.{key}" in MOVED}
    told = {key: value for key, value in old.items() if value != MOVED[f"arch.{key}"]}
    if not old:
        return arch
    rest = {key: value for key, value in arch.items() if key not in old}
    return rest | {"options": told | rest.get("options", {})}


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"arch": {"order": ...}} as {"arch.order": ...}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


@cache
def defaults() -> dict[str, Any]:
    """Every setting at its default, flat."""
    return flatten(as_dict(Settings())) | MOVED


def complete(nested: dict[str, Any]) -> dict[str, Any]:
    """All settings of a run, flat, by the keys that runs go by; those absent at their default.

    An older run directory lacks the settings that came later: it was trained at their defaults.
    """
    flat = {}
    for key, value in flatten(nested).items():
        number = earlier(key) in MOVED and type(value) is int
        flat[earlier(key)] = float(value) if number else value
    return defaults() | flat


def identity(nested: dict[str, Any]) -> dict[str, Any]:
    """The settings that decide a run's numbers: those of ``complete`` but its circumstances."""
    flat = complete(nested)
    outside = circumstances(flat)
    return {key: flat[key] for key in sorted(flat) if key not in outside}


def digest(nested: dict[str, Any]) -> str:
    """Twelve hexadecimal digits that two runs share exactly if their identities are equal."""
    told = {
        key: value
        for key, value in identity(nested).items()
        if key not in LATER or value != defaults()[key]
    }
    text = json.dumps(told, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def run_name(arch: str, depth: int, seed: int, extras: dict[str, Any]) -> str:
    """A run's folder name, such as ``plain-56-s0,lr=0.01``: read by people, one to one, path-safe.

    ``extras`` are the settings in which this run differs from its experiment, in any order.
    """
    parts = [f"{arch}-{depth}-s{seed}"]
    parts += [f"{key}={_spell(extras[key])}" for key in sorted(extras)]
    name = ",".join(parts)
    if len(name) <= 180:
        return name
    return f"{name[:160]}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _spell(value: Any) -> str:
    """A value in the letters that every file system and shell takes, the rest as %XX."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(";", ":"))
    return quote(text, safe="+;")


@dataclass(kw_only=True, slots=True)
class Job:
    """One run to be done: its settings, and the names it goes by."""

    settings: Settings
    arch: str  # the arch chosen on the command line, such as preact
    extras: dict[str, Any]  # settings that its experiment lacks, but arch, depth, seed
    overrides: list[str]  # what was typed
    flags: list[str] = field(default_factory=list)  # what composing it again needs

    @property
    def run(self) -> str:
        """Its folder under results/<name>."""
        return run_name(self.arch, self.settings.depth, self.settings.seed, self.extras)

    @property
    def directory(self) -> Path:
        return Path(self.settings.results).expanduser() / self.settings.name / self.run

    @property
    def command(self) -> str:
        """What to type for this run alone."""
        return shlex.join(["resexp", "run", *self.flags, *self.overrides])
