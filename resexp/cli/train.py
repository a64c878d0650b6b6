"""Commands that train, or fix what is to be trained."""

from __future__ import annotations

import shlex
from contextlib import suppress
from functools import partial
from typing import Annotated

import typer

from resexp.cli.app import Overrides, app, stop_said
from resexp.console import folded, width
from resexp.settings import UsageError

#: Hydra's flags, which resexp.config reads and completes as it stands here.
Several = Annotated[
    bool, typer.Option("-m", "--multirun", help="Train every combination of the values given.")
]
Cfg = Annotated[
    str | None,
    typer.Option(
        "--cfg",
        metavar="job|hydra|all",
        help="Print what would be composed, and train nothing.",
        autocompletion=lambda: ["job", "hydra", "all"],
    ),
]
ConfigDir = Annotated[
    str | None, typer.Option("--config-dir", metavar="DIR", help="Experiments of your own.")
]


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    epilog="""[bold]Examples[/]

resexp run depth=56 arch=plain

resexp run -m depth=8,20,32,56 arch=plain,residual seed=0,1,2

resexp run -m experiment=he2015 depth=20,56 arch=plain,residual --dry-run

resexp run arch=residual arch.shortcut=B depth=20 --cfg job

resexp run -m 'lr=tag(log,interval(0.001,0.1))' depth=56 hydra/sweeper=optuna

Finished runs are skipped and interrupted ones go on: run the same command again.
Optuna (pip install hydra-optuna-sweeper) goes by clean training error after the last step.
Hydra's other flags, such as --info, work too, anywhere.""",
)
def run(
    context: typer.Context,
    overrides: Overrides = None,
    several: Several = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be trained, and train nothing.")
    ] = False,
    cfg: Cfg = None,
    config_dir: ConfigDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="The plan of --dry-run as JSON.")] = False,
) -> None:
    """Train one network, or with [bold]-m[/] one for every combination of the values given."""
    with stop_said():
        from resexp.config import launch

        instead = None
        if dry_run:
            from resexp.launch.dry_run import show

            instead = partial(show, as_json=as_json)
        elif as_json:
            raise UsageError("--json goes with --dry-run. Finished runs: resexp list --json.")
        flags = ["--cfg", cfg] if cfg is not None else []
        flags += ["-m"] if several else []
        flags += ["--config-dir", config_dir] if config_dir is not None else []
        session = launch([*flags, *(overrides or []), *context.args], instead)
    summary = session.summary()
    if summary:
        print(folded(summary, width()))
    raise typer.Exit(session.exit_code)


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    epilog="""[bold]Examples[/]

resexp preregister depth=20,56 arch=plain,residual seed=10,11,12,13,14 name=mine

resexp preregister depth=20,56 arch=plain,residual lr=0.1 --hypothesis "plain-56 trains worse"

Then train with the same words: resexp run -m ... The verdict says whether it was fixed before.""",
)
def preregister(
    context: typer.Context,
    overrides: Overrides = None,
    hypotheses: Annotated[
        list[str] | None, typer.Option("--hypothesis", help="What you expect; again for more.")
    ] = None,
) -> None:
    """Fix rule, depths, seeds, recipe and hypotheses in a file, before the runs that test them."""
    with stop_said():
        from resexp.commands.preregister import preregister as fix
        from resexp.config import launch

        words = [*(overrides or []), *context.args]
        said = [word for text in hypotheses or [] for word in ("--hypothesis", text)]
        command = shlex.join(["resexp", "preregister", *words, *said])
        written = []
        launch(
            ["-m", *words],
            lambda jobs, claims, check: written.append(
                fix(jobs, claims, check, hypotheses or [], command)
            ),
        )
    then = shlex.join(["resexp", "run", "-m", *words])
    print(folded(f"{written[0]}\nnext: {then}", width()))


@app.command(
    context_settings={"ignore_unknown_options": True},
    epilog="Example:  resexp demo results=my-results seed=0,1,2,3,4",
)
def demo(overrides: Overrides = None) -> None:
    """Train plain and residual networks on the embedded digits, draw, tabulate and decide."""
    sweep = ["depth=8,20,32,56", "arch=plain,residual", "seed=0,1,2", "launch=processes"]
    sweep.append("keep_checkpoint=true")  # for resexp probe
    given = {word.partition("=")[0] for word in overrides or []}
    words = [word for word in sweep if word.partition("=")[0] not in given] + (overrides or [])
    with stop_said():
        from resexp.config import launch

        session = launch(["-m", *words])
    done = session.summary().splitlines()[0]
    print(folded(f"{done}: resexp run -m {' '.join(words)}", width()))
    if session.exit_code:
        raise typer.Exit(session.exit_code)
    from resexp.cli.results import plot, table, verdict

    folder = str(session.outcomes[0].job.directory.parent)
    for command in (plot, table, verdict):
        print(f"\nresexp {command.__name__} {folder}")
        with suppress(typer.Exit):  # the verdict's exit code is for scripts
            command([folder])
