"""``resexp doctor``: what is wrong on this machine, or in a results folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from resexp.cli.app import Json, Overrides, app, say, select


@app.command(epilog="Examples:  resexp doctor   |   resexp doctor --results results")
def doctor(
    overrides: Overrides = None,
    results: Annotated[
        Path | None,
        typer.Option(
            "--results", metavar="DIR", help="Look through a results folder instead: what is wrong."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check this machine: devices, precision, data, results folder. Exit code 1 if one fails."""
    found: list[Any]
    if results is not None:
        from resexp.commands import doctor_results

        root, _ = select([str(results)])
        found = doctor_results.inspect(root)
        words = doctor_results.text(root, found)
    else:
        from resexp.commands import doctor as machine
        from resexp.config import compose

        found = machine.examine(compose(overrides or []).settings)
        words = machine.text(found)
    say([asdict(one) for one in found], lambda: words, as_json)
    raise typer.Exit(1 if any(one.level == "fail" for one in found) else 0)
