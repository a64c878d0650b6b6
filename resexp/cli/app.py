"""The application, and what its commands share: the words they take and how they answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from resexp.analysis.export import is_pair
from resexp.console import folded, width
from resexp.runs.records import finite
from resexp.settings import UsageError
from resexp.settings.choices import complete

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="See, measure and explain the degradation problem: matched plain and residual networks at "
    "growing depth.",
    epilog="First steps:  [bold]resexp demo[/]  or  [bold]resexp run depth=56 arch=plain[/]",
)


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Settings, in any order: resexp list settings shows all.",
        autocompletion=complete,
    ),
]
Selection = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RESULTS] [KEY=VALUE]...",
        help="A results folder (default: results) and filters, such as arch=plain depth=20,56.",
    ),
]
ChosenOn = Annotated[
    str | None, typer.Option(metavar="SEEDS", help="Seeds it is chosen on, such as 90,91.")
]
Json = Annotated[bool, typer.Option("--json", help="Data as JSON on stdout.")]


def select(words: list[str] | None) -> tuple[Path, list[str]]:
    """A results folder and filters out of the words typed."""
    words = words or []
    places = [word for word in words if "=" not in word]
    if len(places) > 1:
        raise UsageError(f"two results folders, {places[0]} and {places[1]}: give one.")
    root = Path(places[0] if places else "results")
    if not root.is_dir() and not any(map(is_pair, root.parents[:2])):
        hint = "Train some runs first: resexp demo" if not places else "Give a results folder"
        raise UsageError(f"there is no folder {root}. {hint}.")
    return root, [word for word in words if "=" in word]


def numbers(text: str | None) -> list[int]:
    """Seeds out of 90,91."""
    try:
        return [int(part) for part in text.split(",")] if text else []
    except ValueError as error:
        raise UsageError(f"--chosen-on {text} must be seeds, such as 90,91.") from error


def say(found: Any, words: Callable[[], str], as_json: bool) -> None:
    """The answer on stdout: in words, or as JSON, in which what is not finite becomes null."""
    print(json.dumps(finite(found), indent=1) if as_json else folded(words(), width()))


@contextmanager
def stop_said() -> Iterator[None]:
    """Turn a signal that stops the body into words and an exit code."""
    from resexp.runs.stop import Interrupted

    try:
        yield
    except Interrupted as stop:
        typer.echo("stopped and saved: run the same command again to go on", err=True)
        raise typer.Exit(stop.exit_code) from stop
    except KeyboardInterrupt as stop:
        raise typer.Exit(130) from stop
