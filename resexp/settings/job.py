"""A job: settings and the names they go by; what of them decides a run's numbers."""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, get_type_hints
from urllib.parse import quote

from resexp.settings.schema import Launch, Settings, UsageError

#: Settings that say where and how a run is carried out. They are not part of its identity.
CIRCUMSTANCES = frozenset(
    [
        "name",
        "results",
        "device",
        "engine",
        "threads",
        "checkpoint_every",
        "keep_checkpoint",
        "overwrite",
        "fail_fast",
        "loggers",
    ]
) | {
    "data.root",
    "data.download",
    "data.cache",
    "data.stream",
    "data.workers",
    *(f"launch.{one.name}" for one in fields(Launch)),
}


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


def from_dict(nested: dict[str, Any], kind: type[T] = Settings) -> T:  # type: ignore[assignment]
    """What ``as_dict`` wrote, as settings again; those absent are at their default.

    Raises UsageError for a setting that this version does not know, or a value that it refuses.
    """
    hints, values = get_type_hints(kind), {}
    for key, value in nested.items():
        if key not in hints:
            raise UsageError(f"this version of resexp knows no setting {key}. Update resexp.")
        hint = hints[key]
        if is_dataclass(hint):
            value = from_dict(value, hint)  # type: ignore[arg-type]
        elif isinstance(hint, type) and issubclass(hint, Enum):
            if value not in [member.value for member in hint]:
                raise UsageError(f"this version of resexp knows no {key}={value}. Update resexp.")
            value = hint(value)
        values[key] = value
    return kind(**values)


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"arch": {"order": ...}} as {"arch.order": ...}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def identity(nested: dict[str, Any]) -> dict[str, Any]:
    """The settings that decide a run's numbers, flat; those absent at their default.

    An older run directory lacks the settings that came later: it was trained at their defaults.
    """
    flat = flatten(as_dict(Settings())) | flatten(nested)
    outside = circumstances(flat)
    return {key: flat[key] for key in sorted(flat) if key not in outside}


def digest(nested: dict[str, Any]) -> str:
    """Twelve hexadecimal digits that two runs share exactly if their identities are equal."""
    text = json.dumps(identity(nested), sort_keys=True)
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
    extras: dict[
        str, Any
    ]  # settings in which it differs from its experiment, but arch, depth, seed
    overrides: list[str]  # what was typed
    config: str  # the settings as YAML
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
