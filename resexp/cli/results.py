"""Commands that read a results folder: figures, tables, verdicts, lists."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from resexp.analysis.figures import FIGURES
from resexp.cli.app import ChosenOn, Json, Selection, app, numbers, say, select
from resexp.console import folded, width
from resexp.settings import UsageError

Form = StrEnum("Form", "text markdown csv latex")  # of a table
Format = StrEnum("Format", "png svg pdf")  # of a figure's file
Style = StrEnum("Style", "screen paper slide")
Figure = StrEnum("Figure", {name: name for name in FIGURES})  # type: ignore[misc]
LISTINGS = ("runs", "archs", "data", "recipes", "optimizers", "experiments", "settings")

Baseline = Annotated[
    str | None,
    typer.Option(
        metavar="SERIES",
        help="Series tested for degradation; default: plain. A control: --baseline residual.",
    ),
]


@app.command(
    epilog="Examples:  resexp plot   |   resexp plot results/digits depth=20,56 --format pdf   |   "
    "resexp plot --width 8.5   |   resexp plot --style slide --show"
)
def plot(
    selection: Selection = None,
    form: Annotated[Format, typer.Option("--format", help="File format.")] = Format.png,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the figures; default: beside the runs.")
    ] = None,
    style: Annotated[
        Style,
        typer.Option(
            help="paper: curves as in figure 6 of He et al. 2015; slide: text of 14 pt or more."
        ),
    ] = Style.screen,
    width: Annotated[
        float | None,
        typer.Option(
            metavar="CM",
            min=6,
            max=100,
            help="Printed width, text of 7 pt or more: 8.5 is one column of a paper.",
        ),
    ] = None,
    dpi: Annotated[int, typer.Option(min=50, max=1200, help="Pixels an inch of a PNG.")] = 200,
    title: Annotated[str | None, typer.Option(help='Above the figure; "" for nothing.')] = None,
    which: Annotated[
        list[Figure] | None, typer.Option(help="A figure to draw; again for more.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Open them in a viewer.")] = False,
    as_json: Json = False,
) -> None:
    """Draw error against steps (curves) and depth, and what the skips change (difference)."""
    from resexp.analysis.figures.plot import plot as draw

    root, filters = select(selection)
    kinds = [kind.value for kind in which] if which else None
    drawn = draw(
        *(root, out, form.value, filters, style.value, kinds), width=width, dpi=dpi, title=title
    )
    paths = [str(path) for path in drawn]
    say(paths, lambda: "   ".join(paths), as_json)
    for path in paths if show else []:
        open_file(path)


def open_file(path: str) -> None:
    """Open a file in what this desktop has for it; where that fails, say so."""
    if typer.launch(path):
        typer.echo(f"{path} could not be opened: no viewer was found.", err=True)


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

    runs = results.require_runs(*select(selection))
    rows = tables.rows(runs, published=published)
    written = tables.render(rows, "json" if as_json else form.value)
    if form is Form.text and not as_json:
        common = ", ".join(runs[0].typed(runs[0].shared))
        written += f"\nAll runs: {common}." if common else ""
        written = folded(written, width())
    print(written)


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
    baseline: Baseline = None,
    best: Annotated[
        str | None,
        typer.Option(
            metavar="SETTING",
            help="Each network at its own best value of it, such as lr; see resexp best.",
        ),
    ] = None,
    chosen_on: ChosenOn = None,
    axis: Annotated[
        str | None,
        typer.Option(
            metavar="SETTINGS", help="A verdict for each value of it: optimizer, or optimizer,init."
        ),
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
        say([asdict(one) for one in found], lambda: by.text(found, axis), as_json)
        return
    decided = verdicts.decide(runs, **question)
    decided.notes += history.asked_again(decided, runs[0].experiment, filters)
    say(decided.as_dict(), lambda: verdicts.text(decided), as_json)
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
            metavar="SEEDS", help="Print the commands that train these seeds at the best values."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Choose each network's best learning rate, or other setting, on seeds that are left out."""
    from resexp.analysis import results
    from resexp.analysis.verdict import best as choosing

    seeds = numbers(chosen_on)
    if not seeds:
        raise UsageError("name the seeds to choose on: --chosen-on 90,91")
    choices = choosing.choose(results.require_runs(*select(selection)), setting, seeds)
    lines = choosing.commands(choices, then) if then else choosing.table(choices, setting)
    say([choice.as_dict() for choice in choices], lambda: "\n".join(lines), as_json)


@app.command(
    epilog="Examples:  resexp compare results/digits results/rates arch=plain   |   "
    "resexp compare results/digits/plain-56-s0 results/digits/residual-56-s0"
)
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A run or a folder of runs.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
    filters: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Filters for both.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What differs in settings, data and code, and what that did to the numbers."""
    from resexp.analysis import compare as comparison
    from resexp.analysis import results

    left, right = (results.require_runs(folder, filters or []) for folder in (a, b))
    found = comparison.compare(left, right, (str(a), str(b)))
    say(asdict(found), lambda: comparison.text(found), as_json)


@app.command(epilog="Examples:  resexp report   |   resexp report results/digits --out digits.html")
def report(
    selection: Selection = None,
    out: Annotated[
        Path | None, typer.Option(help="File or folder; default: beside the runs.")
    ] = None,
    baseline: Baseline = None,
    show: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
    as_json: Json = False,
) -> None:
    """Write one HTML file with everything: verdict, figures, table, runs, commands, CSV."""
    from resexp.analysis.report.page import write_report

    root, filters = select(selection)
    path = str(write_report(root, out, filters, baseline))
    say([path], lambda: path, as_json)
    if show:
        open_file(path)


@app.command(
    epilog="Examples:  resexp export results/digits   |   "
    "resexp export results/digits depth=20,56 --out for-the-paper"
)
def export(
    selection: Selection = None,
    out: Annotated[Path, typer.Option(help="Folder to write into.")] = Path("export"),
    unpack: Annotated[
        bool, typer.Option("--unpack", help="The other way: a pair's runs as folders beside it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write experiments as two CSV files, runs.csv and rows.csv, that every command reads."""
    from resexp.analysis import export as pairs
    from resexp.analysis import results

    root, filters = select(selection)
    exported = pairs.unpack(root) if unpack else [results.export_runs(root, filters, out)]
    written = [str(folder) for folder in exported]
    say(written, lambda: "   ".join(written), as_json)


@app.command(
    "list",
    epilog="Examples:  resexp list   |   resexp list arch=plain status=ok   |   resexp list archs",
)
def list_(
    what: Annotated[
        list[str] | None, typer.Argument(metavar=f"[{'|'.join(LISTINGS)}] [RESULTS] [KEY=VALUE]...")
    ] = None,
    as_json: Json = False,
) -> None:
    """List runs (with filters), or what can be chosen."""
    from resexp.commands import listing

    kind, *words = what if what and what[0] in LISTINGS else ["runs", *(what or [])]
    if kind == "runs":
        found = listing.runs(*select(words))
    elif kind == "settings":
        found = listing.settings(words)
    elif words:
        raise UsageError(f"resexp list {kind} takes no {words[0]}. Filters go with runs.")
    else:
        found = listing.options(kind)
    say(found, lambda: listing.text(found), as_json)


@app.command(epilog="Example:  resexp show results/digits/plain-56-s0")
def show(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or its name.")],
    as_json: Json = False,
) -> None:
    """Everything about one run: settings, machine, numbers, and the command that repeats it."""
    from resexp.commands import listing

    record = listing.find(run)
    say(record, lambda: listing.show(record), as_json)


@app.command(
    epilog="Examples:  resexp watch   |   resexp watch results/digits arch=plain   |   "
    "resexp watch --html sweep.html   |   resexp watch --once"
)
def watch(
    selection: Selection = None,
    once: Annotated[bool, typer.Option("--once", help="Show how things stand, and end.")] = False,
    page: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Keep a page that reloads itself, too."),
    ] = None,
) -> None:
    """Show the runs under way with their training error, whatever trains them, until they end."""
    from resexp.commands import watch as watching

    watching.watch(*select(selection), page, once)
