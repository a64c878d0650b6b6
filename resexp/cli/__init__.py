"""The command line. Commands are thin: each imports what it needs only when it runs."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

# In the order of resexp --help.
from resexp.cli import train, results, networks, doctor  # isort: skip
from resexp.cli.app import app
from resexp.runs.records import Unwritten
from resexp.settings import UsageError

__all__ = ["app", "doctor", "main", "networks", "results", "train"]


def version(wanted: bool) -> None:
    """Print versions and stop."""
    if wanted:
        from importlib.metadata import PackageNotFoundError
        from importlib.metadata import version as installed

        for name in ("resexp", "torch", "hydra-core"):
            try:
                print(f"{name} {installed(name)}")
            except PackageNotFoundError:
                print(f"{name} (not installed as a package)")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Show versions.")
    ] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    """The entry point: one line for an error, and the exit codes of the README."""
    try:
        code = app(prog_name="resexp", standalone_mode=False)
    except UsageError as error:
        fail(str(error), 2)
    except Unwritten as error:
        fail(str(error), 1)
    except KeyboardInterrupt:  # a second one, while the first was being answered
        sys.exit(130)
    except Exception as error:
        if hasattr(error, "format_message"):  # of Typer's own parser
            message = error.format_message()
            if not message:  # no command: the help was printed
                sys.exit(2)
            fail(f"{message} See resexp --help.", 2)
        if isinstance(error, typer.Abort):
            sys.exit(130)
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        first = (str(error).splitlines() or [""])[0]
        fail(f"{type(error).__name__}: {first} (HYDRA_FULL_ERROR=1 shows the traceback)", 1)
    sys.exit(code if isinstance(code, int) else 0)


def fail(message: str, code: int) -> None:
    """One line on stderr, and out."""
    print(f"resexp: {message}", file=sys.stderr)
    sys.exit(code)
