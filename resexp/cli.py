"""The command line. Commands are thin: each imports what it needs only when it runs."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from resexp.analysis.export import is_pair
from resexp.analysis.figures import FIGURES
from resexp.runs.records import Unwritten
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


class Form(StrEnum):
    """How a table is printed."""

    text = "text"
    markdown = "markdown"
    csv = "csv"
    latex = "latex"


class Figure(StrEnum):
    """File format of a figure."""

    png = "png"
    svg = "svg"
    pdf = "pdf"


class Style(StrEnum):
    """Layout of the curves."""

    screen = "screen"
    paper = "paper"


#: A figure that ``resexp plot`` can draw.
Kind = StrEnum("Kind", {name: name for name in FIGURES})  # type: ignore[misc]


class Listing(StrEnum):
    """What ``resexp list`` lists."""

    runs = "runs"
    archs = "archs"
    data = "data"
    recipes = "recipes"
    optimizers = "optimizers"
    experiments = "experiments"
    settings = "settings"


def completer(incomplete: str) -> list[str]:
    """Offer settings and their values on TAB."""
    return complete(incomplete)


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Settings, in any order: resexp list settings shows all.",
        autocompletion=completer,
        show_default=False,
    ),
]
Selection = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RESULTS] [KEY=VALUE]...",
        help="A results folder (default: results) and filters, such as arch=plain depth=20,56.",
        show_default=False,
    ),
]
ChosenOn = Annotated[
    str | None,
    typer.Option(metavar="SEEDS", help="Seeds it is chosen on, such as 90,91.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Data as JSON on stdout.")]


def select(words: list[str] | None) -> tuple[Path, list[str]]:
    """A results folder and filters out of the words typed."""
    words = words or []
    places = [word for word in words if "=" not in word]
    if len(places) > 1:
        raise UsageError(f"two results folders, {places[0]} and {places[1]}: give one.")
    root = Path(places[0] if places else "results")
    if not root.is_dir() and not is_pair(root.parent):
        hint = "Train some runs first: resexp demo" if not places else "Give a results folder"
        raise UsageError(f"there is no folder {root}. {hint}.")
    return root, [word for word in words if "=" in word]


def numbers(text: str | None) -> list[int]:
    """Seeds out of 90,91."""
    try:
        return [int(part) for part in text.split(",")] if text else []
    except ValueError as error:
        raise UsageError(f"--chosen-on {text} must be seeds, such as 90,91.") from error


def emit(value: Any) -> None:
    """JSON on stdout; what is not finite becomes null, which JSON has."""
    from resexp.runs.records import finite

    print(json.dumps(finite(value), indent=1))


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


@contextmanager
def stop_said() -> Iterator[None]:
    """Turn a signal that stops the body, from its first line on, into words and an exit code."""
    from resexp.runs.stop import Interrupted, stop_signals

    try:
        with stop_signals(at_once=True):
            yield
    except Interrupted as stop:
        typer.echo("stopped and saved: run the same command again to go on", err=True)
        raise typer.Exit(stop.exit_code) from stop
    except KeyboardInterrupt as stop:
        raise typer.Exit(130) from stop


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Show versions.")
    ] = False,
) -> None:
    """Options before the command."""


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    epilog="""[bold]Examples[/]

resexp run depth=56 arch=plain

resexp run -m depth=8,20,32,56 arch=plain,residual seed=0,1,2

resexp run -m experiment=he2015 depth=20,56 arch=plain,residual --dry-run

resexp run arch=residual arch.shortcut=B depth=20 --cfg job

Finished runs are skipped and interrupted ones go on: run the same command again.
Hydra's flags -m, --cfg job, --info, --config-dir DIR work too, anywhere.""",
)
def run(
    context: typer.Context,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be trained, and train nothing.")
    ] = False,
) -> None:
    """Train one network, or with [bold]-m[/] one for every combination of the values given."""
    with stop_said():
        from resexp.config import launch

        show = None
        if dry_run:
            from resexp.launch.dry_run import show
        session = launch([*(overrides or []), *context.args], show)
    summary = session.summary()
    if summary:
        print(summary)
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
        list[str] | None,
        typer.Option("--hypothesis", help="What you expect; again for more.", show_default=False),
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
            lambda jobs, claims: written.append(fix(jobs, claims, hypotheses or [], command)),
        )
    print(f"{written[0]}\nnext: {shlex.join(['resexp', 'run', '-m', *words])}")


@app.command(
    epilog="Examples:  resexp plot   |   resexp plot results/digits depth=20,56 --format pdf"
)
def plot(
    selection: Selection = None,
    form: Annotated[Figure, typer.Option("--format", help="File format.")] = Figure.png,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the figures; default: beside the runs.")
    ] = None,
    style: Annotated[
        Style, typer.Option("--style", help="paper: the layout of He et al. 2015, figure 6.")
    ] = Style.screen,
    which: Annotated[
        list[Kind] | None,
        typer.Option("--which", help="A figure to draw; again for more.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw error against steps (curves) and depth, and what the skips change (difference)."""
    from resexp.analysis.figures.plot import plot as draw

    root, filters = select(selection)
    kinds = [kind.value for kind in which] if which else None
    drawn = draw(root, out, form.value, filters, style=style.value, which=kinds)
    paths = [str(path) for path in drawn]
    if as_json:
        emit(paths)
    else:
        print("   ".join(paths))


@app.command(epilog="Examples:  resexp table   |   resexp table --format latex > table.tex")
def table(
    selection: Selection = None,
    form: Annotated[Form, typer.Option("--format", help="How to print it.")] = Form.text,
    published: Annotated[
        bool, typer.Option("--published", help="Beside all published errors, differences noted.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Parameters and errors of every network, mean and spread over seeds, beside the paper's."""
    from resexp.analysis import results
    from resexp.analysis import table as tables

    root, filters = select(selection)
    rows = tables.rows(results.require_runs(root, filters), published=published)
    print(tables.render(rows, "json" if as_json else form.value))


@app.command(
    epilog="Exit code: 0 degrades, and all other arms are cured; 3 does not degrade; "
    "4 inconclusive; 5 degrades, but some other arm is not shown to be cured.\n\n"
    "Examples:  resexp verdict   |   resexp verdict results/digits --deep 56 --shallow 20"
)
def verdict(
    selection: Selection = None,
    deep: Annotated[int | None, typer.Option(help="The deeper network; default: deepest.")] = None,
    shallow: Annotated[
        int | None, typer.Option(help="The shallower; default: smallest depth >= 20.")
    ] = None,
    mixed: Annotated[
        bool, typer.Option("--mixed", help="Compare runs of unlike settings, data or code.")
    ] = False,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="SERIES",
            help="Series tested for degradation; default: plain. A control: --baseline residual.",
            show_default=False,
        ),
    ] = None,
    best: Annotated[
        str | None,
        typer.Option(
            metavar="SETTING",
            help="Each network at its own best value of it, such as lr; see resexp best.",
            show_default=False,
        ),
    ] = None,
    chosen_on: ChosenOn = None,
    axis: Annotated[
        str | None,
        typer.Option(metavar="SETTING", help="A verdict for each value of it.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Decide whether deeper plain networks trained worse, and whether the skips cured it."""
    from resexp.analysis import results
    from resexp.analysis import verdict as verdicts
    from resexp.analysis.verdict import history

    root, filters = select(selection)
    runs = results.require_runs(root, filters)
    if bool(best) != bool(chosen_on):
        raise UsageError("--best and --chosen-on go together: --best lr --chosen-on 90,91")
    question: dict[str, Any] = {"deep": deep, "shallow": shallow, "allow_mixed": mixed}
    question |= {"baseline": baseline, "best": best, "chosen_on": numbers(chosen_on)}
    if axis:
        from resexp.analysis.verdict import axis as by

        found = by.by_value(runs, axis, **question)
        if as_json:
            emit([one.as_dict() for one in found])
        else:
            print(by.text(found, axis))
        return
    decided = verdicts.decide(runs, **question)
    decided.notes += history.asked_again(decided, runs[0].experiment, filters)
    if as_json:
        emit(decided.as_dict())
    else:
        print(verdicts.text(decided))
    raise typer.Exit(decided.exit_code)


@app.command(
    epilog="""[bold]Examples[/]

resexp run -m depth=20,56 arch=plain,residual lr=0.005,0.01,0.02 seed=90,91 name=rates

resexp best results/rates --setting lr --chosen-on 90,91

resexp best results/rates --setting lr --chosen-on 90,91 --then 0,1,2,3,4 | bash

resexp verdict results/rates --best lr --chosen-on 90,91"""
)
def best(
    selection: Selection = None,
    setting: Annotated[str, typer.Option(help="The setting that was varied.")] = "lr",
    chosen_on: ChosenOn = None,
    then: Annotated[
        str | None,
        typer.Option(
            metavar="SEEDS",
            help="Print the commands that train these seeds at the best values.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Choose each network's best learning rate, or other setting, on seeds that are left out."""
    from resexp.analysis import results
    from resexp.analysis.verdict import best as choosing

    root, filters = select(selection)
    seeds = numbers(chosen_on)
    if not seeds:
        raise UsageError("name the seeds to choose on: --chosen-on 90,91")
    choices = choosing.choose(results.require_runs(root, filters), setting, seeds)
    if as_json:
        emit([choice.as_dict() for choice in choices])
    else:
        lines = choosing.commands(choices, then) if then else choosing.table(choices, setting)
        print("\n".join(lines))


@app.command(
    epilog="Examples:  resexp compare results/digits results/rates arch=plain   |   "
    "resexp compare results/digits/plain-56-s0 results/digits/residual-56-s0"
)
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A run or a folder of runs.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
    filters: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Filters for both.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """What differs in settings, data and code, and what that did to the numbers."""
    from resexp.analysis import compare as comparison
    from resexp.analysis import results

    left, right = (results.require_runs(folder, filters or []) for folder in (a, b))
    found = comparison.compare(left, right, (str(a), str(b)))
    if as_json:
        emit(found.as_dict())
    else:
        print(comparison.text(found))


@app.command(epilog="Examples:  resexp report   |   resexp report results/digits --out digits.html")
def report(
    selection: Selection = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="File or folder; default: beside the runs.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one HTML file with everything: verdict, figures, table, runs, commands, CSV."""
    from resexp.analysis.report.page import write_report

    root, filters = select(selection)
    path = str(write_report(root, out, filters))
    if as_json:
        emit([path])
    else:
        print(path)


@app.command(
    epilog="Examples:  resexp export results/digits   |   "
    "resexp export results/digits depth=20,56 --out for-the-paper"
)
def export(
    selection: Selection = None,
    out: Annotated[Path, typer.Option("--out", help="Folder to write into.")] = Path("export"),
    unpack: Annotated[
        bool, typer.Option("--unpack", help="The other way: a pair's runs as folders beside it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write each experiment as two CSV files, runs.csv and rows.csv, that every command reads."""
    from resexp.analysis import export as pairs
    from resexp.analysis import results

    root, filters = select(selection)
    exported = pairs.unpack(root) if unpack else results.export_runs(root, filters, out)
    written = [str(folder) for folder in exported]
    if as_json:
        emit(written)
    else:
        print("   ".join(written))


@app.command(
    "list",
    epilog="Examples:  resexp list   |   resexp list arch=plain status=ok   |   resexp list archs",
)
def list_(
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar=f"[{'|'.join(Listing)}] [RESULTS] [KEY=VALUE]...",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List runs (with filters), or what can be chosen."""
    from resexp.commands import listing

    words = what or []
    kind = Listing(words[0]) if words and words[0] in list(Listing) else None
    if kind in (None, Listing.runs):
        found = listing.runs(*select(words if kind is None else words[1:]))
    elif kind is Listing.settings:
        found = listing.settings(words[1:])
    elif words[1:]:
        raise UsageError(f"resexp list {kind} takes no {words[1]}. Filters go with runs.")
    else:
        found = listing.options(kind.value)
    if as_json:
        emit(found)
    else:
        print(listing.text(found))


@app.command(epilog="Example:  resexp show results/digits/plain-56-s0")
def show(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or its name.")],
    as_json: Json = False,
) -> None:
    """Everything about one run: settings, machine, numbers, and the command that repeats it."""
    from resexp.commands import listing

    record = listing.find(run)
    if as_json:
        emit(record)
    else:
        print(listing.show(record))


@app.command(
    context_settings={"ignore_unknown_options": True},
    epilog="Examples:  resexp twin depth=56   |   resexp twin depth=110 arch=preact",
)
def twin(overrides: Overrides = None, as_json: Json = False) -> None:
    """Check that a network and its plain twin differ in the skip connection and nothing else."""
    from resexp.commands.twin import contract, text
    from resexp.config import compose

    words = overrides or []
    job = compose(words)
    if job.arch == "plain" and "arch=plain" not in words:  # nothing was chosen
        job = compose(["arch=residual", *words])
    checks = contract(job)
    if as_json:
        emit([check.as_dict() for check in checks])
    else:
        print(text(job, checks))
    raise typer.Exit(0 if all(check.equal for check in checks) else 3)


@app.command(
    context_settings={"ignore_unknown_options": True},
    epilog="Examples:  resexp explain   |   resexp explain arch=preact depth=20   |   "
    "resexp explain arch=residual depth=110 data=cifar10",
)
def explain(
    overrides: Overrides = None,
    full: Annotated[
        bool, typer.Option("--full", help="Every layer and every kind of block.")
    ] = False,
    as_json: Json = False,
) -> None:
    """What a residual block computes, by an example; with settings, any network layer by layer."""
    from resexp.commands import explain as explaining
    from resexp.config import compose

    if not overrides:
        found = explaining.example()
        words = explaining.example_text(found)
    else:
        explanation = explaining.explain(compose(overrides))
        found, words = explanation.as_dict(), explaining.text(explanation, full)
    if as_json:
        emit(found)
    else:
        print(words)


@app.command(
    context_settings={"ignore_unknown_options": True},
    epilog="""[bold]Examples[/]

resexp probe   (all probes, and the claim that each puts to the test)

resexp probe gradients depth=20,56

resexp run -m depth=8,20,32 arch=plain,residual seed=0,1,2 keep_checkpoint=true

resexp probe all results/digits""",
)
def probe(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME|all]", help="A probe, or all of them.", show_default=False),
    ] = None,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUNS] [KEY=VALUE]...",
            help="A folder of trained runs and filters; or settings, for networks at their start.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a mechanism that is said to explain why skips work; see what it supports."""
    from resexp.commands import listing
    from resexp.config import compose
    from resexp.probes import run as probing

    if name is None:
        claims = probing.claims()
        emit(claims) if as_json else print(listing.text(claims))
        return
    words = words or []
    places = [word for word in words if "=" not in word]
    found = (
        probing.of_runs(name, *select(words)) if places else probing.of_words(name, words, compose)
    )
    results = probing.perform_all(found, shlex.join(["resexp", "probe", name, *words]))
    if as_json:
        emit(list(results))
    else:
        for result in results:
            print(probing.text(result), flush=True)


@app.command(
    context_settings={"ignore_unknown_options": True},
    epilog="""[bold]Examples[/]

resexp bench

resexp bench depth=20,32,44,56,110 arch=plain,residual engine=graph,triton precision=bf16

resexp bench depth=20 threads=1,2 --seconds 30

resexp bench data=digits recipe=digits depth=8,56 --json > digits.json

What is not typed is as in He et al. 2015: batches of 128 images of 32x32, cropped and mirrored.""",
)
def bench(
    overrides: Overrides = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.001, help="For the timing of each loop.")
    ] = 5.0,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE.json", help="Write the JSON to a file too."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Time the steps of training, against a baseline PyTorch loop and against the device."""
    from resexp.bench import steps as benchmark
    from resexp.config import compose

    words = overrides or []
    command = shlex.join(["resexp", "bench", *words, "--seconds", f"{seconds:g}"])
    found = benchmark.perform(words, compose, command, seconds, output)
    if as_json:
        emit(found)
    else:
        print(benchmark.text(found))
    raise typer.Exit(1 if found["failed"] else 0)


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
    if as_json:
        emit([finding.as_dict() for finding in findings])
    else:
        print(text(findings))
    raise typer.Exit(1 if any(finding.level == "fail" for finding in findings) else 0)


def doctor_results(folder: Path, as_json: bool) -> None:
    """Say what is wrong in a results folder, and leave."""
    from resexp.commands import doctor_results as inspection

    root, _ = select([str(folder)])
    found = inspection.inspect(root)
    if as_json:
        emit([one.as_dict() for one in found])
    else:
        print(inspection.text(root, found))
    raise typer.Exit(1 if any(one.level == "fail" for one in found) else 0)


@app.command(
    context_settings={"ignore_unknown_options": True},
    epilog="Example:  resexp demo results=my-results seed=0,1,2,3,4",
)
def demo(overrides: Overrides = None) -> None:
    """Train plain and residual networks on the embedded digits, draw, tabulate and decide."""
    sweep = ["depth=8,20,32,56", "arch=plain,residual", "seed=0,1,2", "launch=processes"]
    given = {word.partition("=")[0] for word in overrides or []}
    words = [word for word in sweep if word.partition("=")[0] not in given] + (overrides or [])
    with stop_said():
        from resexp.config import launch

        session = launch(["-m", *words])
    print(f"{session.summary().splitlines()[0]}: resexp run -m {' '.join(words)}")
    if session.exit_code:
        raise typer.Exit(session.exit_code)
    folder = str(session.outcomes[0].job.directory.parent)
    for command in (plot, table, verdict):
        print(f"\nresexp {command.__name__} {folder}")
        with suppress(typer.Exit):  # the verdict's exit code is for scripts
            command([folder])


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
