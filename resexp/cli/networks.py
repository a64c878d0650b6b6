"""Commands that look into networks, and into what they need of a machine and its results."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from resexp.cli.app import Json, Overrides, app, say, select
from resexp.console import folded, tell_if_deep, width


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
        job = compose(overrides)
        tell_if_deep(job.settings.depth)
        explanation = explaining.explain(job)
        found, words = explanation.as_dict(), explaining.text(explanation, full)
    say(found, lambda: words, as_json)


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
    tell_if_deep(job.settings.depth)
    checks = contract(job)
    say([asdict(check) for check in checks], lambda: text(job, checks), as_json)
    raise typer.Exit(0 if all(check.equal for check in checks) else 3)


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
        str | None, typer.Argument(metavar="[NAME|all]", help="A probe, or all of them.")
    ] = None,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUNS] [KEY=VALUE]...",
            help="A folder of trained runs and filters; or settings, for networks at their start.",
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
        say(claims, lambda: listing.text(claims), as_json)
        return
    words = words or []
    places = [word for word in words if "=" not in word]
    found = (
        probing.of_runs(name, *select(words)) if places else probing.of_words(name, words, compose)
    )
    results = probing.perform_all(found, shlex.join(["resexp", "probe", name, *words]))
    if as_json:
        say(list(results), str, as_json)
    for result in () if as_json else results:
        print(folded(probing.text(result), width()), flush=True)


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
    seconds: Annotated[float, typer.Option(min=0.001, help="For the timing of each loop.")] = 5.0,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Write the JSON to a file too."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Time the steps of training, against a baseline PyTorch loop and against the device."""
    from resexp.bench import steps as benchmark
    from resexp.config import compose

    words = overrides or []
    command = shlex.join(["resexp", "bench", *words, "--seconds", f"{seconds:g}"])
    found = benchmark.perform(words, compose, command, seconds, output)
    say(found, lambda: benchmark.text(found), as_json)
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
