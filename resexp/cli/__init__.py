"""The command line. Commands are thin: each imports what it needs only when it runs."""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated

import typer

# In the order of resexp --help.
from resexp.cli import train, results, networks  # isort: skip
from resexp.cli.app import app
from resexp.console import folded, width
from resexp.files import printable
from resexp.runs.records import Unwritten
from resexp.runs.stop import exit_code, stop_signals
from resexp.settings import UsageError

__all__ = ["app", "main", "networks", "results", "train"]


def version(wanted: bool) -> None:
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
    code: int | None = None
    try:
        with stop_signals(at_once=True) as stop:
            try:
                check_folder()
                code = app(prog_name="resexp", standalone_mode=False)
                sys.stdout.flush()
                code = code if isinstance(code, int) else 0
            except Exception as error:
                code = refused(error)
            if stop.signum is not None:  # Typer says 130 whatever it was
                code = exit_code(stop.signum)
    except KeyboardInterrupt as error:  # another, while the first was being answered
        code = getattr(error, "exit_code", 130)
    sys.exit(code)


def check_folder() -> None:
    """Raise UsageError in a folder that was deleted: there torch ends the process as it loads."""
    try:
        os.getcwd()
    except OSError as error:
        raise UsageError("this folder was deleted or moved. Go to another: cd ~") from error


def refused(error: Exception) -> int:
    """Say in one line what went wrong; the exit code."""
    if isinstance(error, UsageError):
        return fail(str(error), 2)
    if hasattr(error, "format_message"):  # of Typer's own parser
        message = error.format_message()
        if not message:  # no command: the help was printed
            return 2
        context = getattr(error, "ctx", None)
        where = context.command_path if context else f"resexp {sys.argv[1]}"
        if "requires an argument" in message:
            message = f"{error.option_name} needs a value."  # type: ignore[attr-defined]
        return fail(f"{message} See {where} --help.", 2)
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    if isinstance(error, Unwritten):
        return fail(str(error), 1)
    if isinstance(error, OSError | MemoryError):
        return fail(of_machine(error), 1)
    first = (str(error).splitlines() or [""])[0]
    return fail(f"{type(error).__name__}: {first} (HYDRA_FULL_ERROR=1 shows the traceback)", 1)


def of_machine(error: OSError | MemoryError) -> str:
    """What the machine refused, of which no part of resexp knew more."""
    if isinstance(error, MemoryError):
        return "there is not enough memory for this. Choose fewer runs or a smaller network."
    reason, name = error.strerror or str(error), error.filename
    if name is None and error.errno in (errno.ENOSPC, errno.EPIPE, errno.EIO):
        nowhere = os.open(os.devnull, os.O_WRONLY)  # or Python would say it again at its end
        os.dup2(nowhere, 1)
        return f"the answer could not be written ({reason})."
    what = f"{name} cannot be used" if name else "a file or folder cannot be used"
    return f"{what} ({reason}). See resexp doctor."


def fail(message: str, code: int) -> int:
    """Say an error, which may name a hostile file, and hand on its exit code."""
    lines = "\n".join(map(printable, f"resexp: {message}".split("\n")))
    print(folded(lines, width(sys.stderr)), file=sys.stderr)
    return code
