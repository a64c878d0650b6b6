"""What can be chosen: config groups, their options, settings and their values. Fast, no Hydra."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from resexp.settings.fields import bare, leaves, said
from resexp.settings.schema import Settings

OPTIONS = "arch.options."


def config_folder() -> Path:
    """The shipped configs: inside an installed package, beside it in a checkout."""
    inside = Path(__file__).parents[1] / "configs"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "configs"


def groups() -> list[str]:
    """The groups of alternatives: arch, data, experiment, recipe."""
    return sorted(path.name for path in config_folder().iterdir() if any(path.glob("*.yaml")))


def options(group: str) -> list[str]:
    """The options of a group, such as plain, residual and the others of arch."""
    return ordered(path.stem for path in (config_folder() / group).glob("*.yaml"))


def ordered(names: Iterable[str]) -> list[str]:
    """Names of options by the alphabet, but plain and residual first."""
    return sorted(names, key=lambda name: (name not in ("plain", "residual"), name))


def text_of(group: str, option: str) -> str:
    return (config_folder() / group / f"{option}.yaml").read_text()


def describe(group: str, option: str) -> str:
    """The first comment of an option's file that says what it is, to its end."""
    lines = text_of(group, option).splitlines()
    comments = [line[1:].strip() for line in lines if line.startswith("#")]
    said = ""
    for comment in comments:
        if not comment.startswith("@"):
            said = f"{said} {comment}".strip()
            if not said.endswith((",", ":")):
                break
    return said


def facts(group: str, option: str) -> dict[str, str]:
    """What the comments of an option's file say: its first line, then ``source: ...`` and so on."""
    others = re.findall(r"^# (source|twin|use): (.*)", text_of(group, option), re.MULTILINE)
    return {"what it is": describe(group, option), **dict(others)}


def own_options() -> dict[str, list[str]]:
    """The settings that some families or merge rules alone have, and the archs that state them.

    They are arch.options.growth and so on.
    """
    found: dict[str, list[str]] = {}
    for option in options("arch"):
        text = text_of("arch", option)
        if inner := re.search(r"^options:\n((?: +.*\n?)+)", text, re.MULTILINE):
            for name in re.findall(r"^ +(\w+):", inner[1], re.MULTILINE):
                found.setdefault(f"{OPTIONS}{name}", []).append(option)
    return found


def merges() -> list[str]:
    """The merge rules that some arch states, without a look at their code, which needs torch."""
    texts = (text_of("arch", option) for option in options("arch"))
    return ordered({one for text in texts for one in re.findall(r"^merge: (\w+)", text, re.M)})


def full_key(key: str) -> str:
    """The setting that ``key`` is the last part of, if there is one alone: shortcut, norm, root."""
    if key in settings() or key in groups():
        return key
    known = [*settings(), *own_options()]
    if (option := key.replace("arch.", OPTIONS)) in known:
        return option
    hits = [one for one in known if one.rpartition(".")[2] == key]
    return hits[0] if len(hits) == 1 else key


@cache
def settings() -> dict[str, Any]:
    """Every setting's dotted key and its type."""
    return {key: bare(hint) for key, hint in leaves(Settings)}


def described() -> dict[str, str]:
    """What each setting is, with its unit; of an option, whose it is."""
    meant = {key: said(hint, str) for key, hint in leaves(Settings) if key != OPTIONS[:-1]}
    return meant | {key: f"of arch={', '.join(archs)}" for key, archs in own_options().items()}


def values(key: str) -> list[str]:
    """The values a setting or group can take, where they can be listed."""
    if key in groups():
        return options(key)
    if key == "arch.merge":
        return merges()
    hint = settings().get(key)
    if hint is bool:
        return ["true", "false"]
    if isinstance(hint, type) and issubclass(hint, Enum):
        return [member.value for member in hint]
    return {"device": ["auto", "cpu", "cuda"]}.get(key, [])


def keys() -> list[str]:
    """Everything that may stand before an equals sign."""
    return sorted({*groups(), *settings(), *own_options()})


def alternatives(word: str) -> list[str]:
    """``depth=20,56`` as depth=20 and depth=56; a word with brackets or quotes stays whole."""
    key, equals, values = word.partition("=")
    if not equals or any(mark in values for mark in "[{('\""):
        return [word]
    return [f"{key}={value}" for value in values.split(",")]


def nearest(word: str, known: Iterable[str]) -> str:
    """`` Did you mean depth?`` if a known word is close, by itself or by its last part."""
    known = list(known)
    by_leaf = {key.rsplit(".", 1)[-1]: key for key in known}
    hits = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    leaf = word.rsplit(".", 1)[-1]
    hits = hits or [by_leaf[hit] for hit in difflib.get_close_matches(leaf, by_leaf, n=1)]
    return f" Did you mean {hits[0]}?" if hits else ""


def complete(incomplete: str) -> list[str]:
    """Completions of one override: its key, or its value, or the last of several values.

    Bash breaks words at ``=`` and hands over only what follows; the other shells do not.
    """
    words = os.environ.get("COMP_WORDS", "").split()
    position = int(os.environ.get("COMP_CWORD", "0"))
    if words and position < len(words) + 1 and not incomplete.startswith("-"):
        current = words[position] if position < len(words) else ""
        if current == "=":
            return _values_of(words[position - 1], "")
        if position >= 2 and words[position - 1] == "=":
            return _values_of(words[position - 2], current)
    if "=" in incomplete:
        key, _, value = incomplete.partition("=")
        return [f"{key}={one}" for one in _values_of(key, value)]
    offers = [f"{key}=" for key in keys() if key.startswith(incomplete)]
    if len(offers) == 1:  # offer the values at once, so that no space is put behind the equals sign
        key = offers[0][:-1]
        return [f"{key}={value}" for value in values(key)] or offers
    return offers


def _values_of(key: str, typed: str) -> list[str]:
    done, comma, last = typed.rpartition(",")
    return [f"{done}{comma}{value}" for value in values(key) if value.startswith(last)]
