"""``resexp doctor``: what is wrong on this machine, or in a results folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

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
    if results is not None:
        doctor_results(results, as_json)
    from resexp.commands.doctor import examine, text
    from resexp.config import compose

    findings = examine(compose(overrides or []).settings)
    say([asdict(finding) for finding in findings], lambda: text(findings), as_json)
    raise typer.Exit(1 if any(finding.level == "fail" for finding in findings) else 0)


def doctor_results(folder: Path, as_json: bool) -> None:
    """Say what is wrong in a results folder, and leave."""
    from resexp.commands import doctor_results as inspection

    root, _ = select([str(folder)])
    found = inspection.inspect(root)
    say([asdict(one) for one in found], lambda: inspection.text(root, found), as_json)
    raise typer.Exit(1 if any(one.level == "fail" for one in found) else 0)
