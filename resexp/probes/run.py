"""``resexp probe``: what is probed, and what a finding leaves behind.

``probe-<name>.csv`` (tidy rows), ``probe-<name>.json`` (claim, verdict, numbers, conventions) and
``probe-<name>.png``, beside the runs. The probes are modules of resexp.probes.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resexp.analysis.results import Run, require_runs
from resexp.console import bar_of, duration, tell
from resexp.probes import Case, Finding, Needs, Row, T, names, probe, rows
from resexp.runs.provenance import environment
from resexp.runs.records import finite, write_atomically
from resexp.runs.run import load, now
from resexp.settings import Job, Settings, UsageError, from_dict
from resexp.settings.choices import alternatives
from resexp.train.device import choose_device, prepare, threads_for

ALL = "all"


@dataclass(slots=True)
class Measurement:
    """One probe to be carried out: on what, and where its files go."""

    name: str
    folder: Path
    cases: list[Case]


def claims() -> list[dict[str, Any]]:
    """Every probe, the claim that it puts to the test, and what it needs."""
    found = {name: probe(name) for name in names()}
    return [
        {"probe": name, "claim": one.CLAIM, "needs": one.NEEDS.value} for name, one in found.items()
    ]


def of_runs(name: str, root: Path, filters: Sequence[str]) -> list[Measurement]:
    """The probe, or all, on the runs under ``root`` that it can read.

    Raises UsageError if there are none, or several experiments.
    """
    if name != ALL:
        probe(name)  # there is one
    runs = require_runs(root, filters)
    folders = sorted({run.experiment for run in runs})
    if len(folders) > 1:
        raise UsageError(f"{root} holds {len(folders)} experiments. Give one: {folders[0]}")
    folder = root if runs[0].path == root else folders[0]
    wanted = names() if name == ALL else [name]
    found = [Measurement(one, folder, cases_of(runs, probe(one).NEEDS)) for one in wanted]
    if not any(one.cases for one in found):
        raise UsageError(f"no run in {root} is finished and finite. See resexp list.")
    return [one for one in found if one.cases]


def cases_of(runs: Sequence[Run], needs: Needs) -> list[Case]:
    """The runs that are finished and did not diverge; or all that ended, in whatever way."""

    def fits(run: Run) -> bool:
        if needs is Needs.runs:
            return run.finished or run.status == "failed"
        return run.finished and run.status != "diverged"

    return [Case(run.arch, from_dict(run.record["settings"]), run) for run in runs if fits(run)]


def of_words(
    name: str, words: Sequence[str], compose: Callable[[Sequence[str]], Job]
) -> list[Measurement]:
    """The probe, or all that need no trained runs, on the networks that settings describe.

    Several values of a setting make a case each: depth=20,56 arch=plain,residual seed=0,1,2. What
    is left open is as usual for the probe. Raises UsageError where it needs trained runs.
    """
    if name == ALL:
        able = [one for one in names() if probe(one).NEEDS not in (Needs.trained, Needs.runs)]
        return [of_words(one, words, compose)[0] for one in able]
    one = probe(name)
    if one.NEEDS is Needs.runs:
        raise UsageError(
            f"{name} reads finished runs. Give their folder, resexp probe {name} RESULTS, or train "
            f"them: CLAIMS={name} scripts/claims.sh"
        )
    if one.NEEDS is Needs.trained:
        raise UsageError(
            f"{name} measures trained networks. Give their folder: resexp probe {name} "
            "results/digits (train them with keep_checkpoint=true)."
        )
    given = {word.partition("=")[0] for word in words}
    whole = [word for word in one.USUAL if word.partition("=")[0] not in given] + list(words)
    jobs = [compose(choice) for choice in itertools.product(*map(alternatives, whole))]
    return [
        Measurement(name, jobs[0].directory.parent, [Case(job.arch, job.settings) for job in jobs])
    ]


def perform_all(measurements: Sequence[Measurement], command: str) -> Iterator[dict[str, Any]]:
    """The findings, one after another. Among several, a probe that cannot be done is left out.

    Raises UsageError, as ``perform`` does, if none can.
    """
    refusals: list[str] = []
    for one in measurements:
        try:
            yield perform(one, command)
        except UsageError as refusal:
            if len(refusals) == len(measurements) - 1:
                raise
            refusals.append(one.name)
            tell(f"left out: {refusal}")


def perform(wanted: Measurement, command: str) -> dict[str, Any]:
    """Measure, write the three files, and return what probe-<name>.json holds, and the folder.

    Raises UsageError if the cases are not what the probe needs, or the folder takes no files.
    """
    from resexp.probes import drawing

    name, folder = wanted.name, wanted.folder
    table, about = measured(wanted, command)
    one, path, read = probe(name), folder / f"probe-{name}.csv", rows.read(table)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, table)
        result = as_record(name, one.conclude(read)) | about
        drawing.write(one, read, path.with_suffix(".png"))
        text = json.dumps(finite(result), indent=1) + "\n"
        write_atomically(path.with_suffix(".json"), text)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written ({error.strerror}).") from error
    return {"folder": str(folder), **result}


def measured(wanted: Measurement, command: str) -> tuple[str, dict[str, Any]]:
    """The CSV, and what probe-<name>.json says of the measurement."""
    name, cases, needs = wanted.name, wanted.cases, probe(wanted.name).NEEDS
    if needs is Needs.trained:
        cases = with_checkpoints(name, cases)
    ran_on = of_first(cases) if needs is Needs.runs else prepared(cases[0].settings)
    started = time.monotonic()
    table = rows.as_csv(measure(name, cases))
    return table, {
        "recipe": recipe(needs, cases),
        "command": command,
        "seconds": round(time.monotonic() - started, 1),
        "measured": now(),
        "environment": ran_on,
    }


def prepared(settings: Settings) -> dict[str, Any]:
    """What this process measures on, made ready."""
    device = choose_device(settings.device)
    size = load(settings.data, device).size
    threads = prepare(threads_for(settings, size), settings, device)
    return environment(settings, device, threads)


def of_first(cases: Sequence[Case]) -> dict[str, Any]:
    """What the first run was trained on; with uncommitted changes if any of them was."""
    told = [case.run.environment for case in cases if case.run is not None]
    return told[0] | {"git_dirty": any(one.get("git_dirty") for one in told)}


def with_checkpoints(name: str, cases: Sequence[Case]) -> list[Case]:
    """The cases whose trained weights are there. Raises UsageError if there is none."""
    found = [case for case in cases if case.checkpoint is not None]
    if not found:
        raise UsageError(
            f"{name} needs trained networks, and no run here kept its checkpoint. Train again "
            "with keep_checkpoint=true overwrite=true."
        )
    return found


def measure(name: str, cases: Sequence[Case]) -> list[Row]:
    """The rows, with a bar on a terminal while they are measured."""
    with bar_of(name) as progress:
        bar = progress.add_task("", total=1)

        def tell(work: Collection[T]) -> Iterator[T]:
            for done, one in enumerate(work):
                what = ", ".join(map(str, one if isinstance(one, tuple) else [one]))
                progress.update(bar, completed=done, total=len(work), description=what)
                yield one

        return list(probe(name).measure(cases, tell))


def recipe(needs: Needs, cases: Sequence[Case]) -> str:
    """Under what a verdict holds: the first case, or all that are compared as runs."""
    if needs is Needs.nothing:
        return "networks of the probe's own"
    rates: dict[str, set[float]] = {}
    for settings in (case.settings for case in (cases if needs is Needs.runs else cases[:1])):
        other = "" if settings.optimizer == Settings().optimizer else f" of {settings.optimizer}"
        under = (
            f"data {settings.data.name}, recipe {settings.recipe}, {settings.steps:,} steps of "
            f"{settings.batch_size}, rate{other} "
        )
        rates.setdefault(under, set()).add(settings.lr)
    found = (
        under + " or ".join(f"{rate:g}" for rate in sorted(some)) for under, some in rates.items()
    )
    return "; ".join(found)


def as_record(name: str, finding: Finding) -> dict[str, Any]:
    """A finding as probe-<name>.json has it."""
    one, account = probe(name), finding.account
    return {
        "probe": name,
        "claim": one.CLAIM,
        "source": one.SOURCE,
        "textbook": one.TEXTBOOK,
        "verdict": finding.verdict.value,
        "sentence": finding.sentence,
        "numbers": finding.numbers,
        "headlines": [
            asdict(headline) | {"values": {str(seed): float(v) for seed, v in values.items()}}
            for headline in finding.headlines
            if len(values := headline.values)
        ],
        "account": {"word": account[0].value, "why": account[1]} if account else None,
        "conventions": finding.conventions,
    }


def text(result: dict[str, Any]) -> str:
    """A finding for people."""
    table = Path(result["folder"]) / f"probe-{result['probe']}.csv"
    return (
        f"{result['probe']}: {result['claim']}\n"
        f"  {result['verdict']} under this recipe: {result['sentence']}\n"
        f"  {result['recipe']}; {duration(result['seconds'])}\n"
        f"  {table}   {table.with_suffix('.png')}"
    )
