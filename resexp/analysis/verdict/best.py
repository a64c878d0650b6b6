"""Each network at its own best value of a setting, such as its learning rate.

The value is chosen on seeds that are then left out: by the lowest mean log10 clean training loss,
capped at chance, of those values that all these seeds were trained at.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from resexp.analysis.formatting import aligned, signed
from resexp.analysis.results import Run, grouped, spell
from resexp.analysis.verdict.select import endpoint
from resexp.settings import UsageError, identity


@dataclass(slots=True)
class Choice:
    """The best value of one network at one recipe."""

    network: str  # plain-56,steps=660
    value: Any
    loss: float  # mean log10 clean training loss over the seeds chosen on
    tried: list[Any]
    run: Run  # one of those that it was chosen by

    @property
    def at_edge(self) -> bool:
        """Whether a better value may lie beyond those tried."""
        return len(self.tried) > 1 and self.value in (min(self.tried), max(self.tried))

    def as_dict(self) -> dict[str, Any]:
        kept = ("network", "value", "loss", "tried", "at_edge")
        return {key: getattr(self, key) for key in kept}


def choose(runs: Sequence[Run], setting: str, seeds: Sequence[int]) -> list[Choice]:
    """The best value of ``setting`` for every network that has several, chosen on ``seeds``.

    Raises UsageError where a network was not trained with all seeds at any value.
    """
    if not runs or setting not in identity(runs[0].record["settings"]):
        raise UsageError(f"{setting} is no setting that decides a run's numbers. Try lr.")
    held = [run.setting(setting) for run in runs]
    if not any(all(isinstance(one, kind) for one in held) for kind in (str, int | float)):
        raise UsageError(f"the values of {setting} have no order. Try lr.")
    choices = []
    for network, its in by_network(runs, setting).items():
        values = grouped(its, lambda run: run.setting(setting))
        means = {}
        for value, some in values.items():
            ends = {run.seed: end for run in some if (end := endpoint(run)) is not None}
            losses = [ends[seed]["loss"] for seed in sorted(set(seeds)) if seed in ends]
            if len(losses) == len(set(seeds)):
                means[value] = sum(losses) / len(losses)
        if means:
            best = min(means, key=means.__getitem__)
            run = next(run for run in values[best] if run.seed in seeds)
            choices.append(Choice(network, best, means[best], [*means], run))
        elif len(values) > 1:
            wanted = ",".join(map(str, seeds))
            raise UsageError(f"{network} was not trained with seed={wanted} at any {setting}.")
    return choices


def by_network(runs: Sequence[Run], setting: str) -> dict[str, list[Run]]:
    """Runs by network and recipe, whatever their seed and ``setting``.

    A recipe is named by the typed settings in which some of the runs differ.
    """
    keys = {key for run in runs for key in run.extras} - {setting}
    varied = [key for key in keys if len({spell(run.extras.get(key)) for run in runs}) > 1]
    return grouped(runs, lambda run: ",".join([f"{run.arch}-{run.depth}", *run.typed(varied)]))


def each_at_best(
    runs: Sequence[Run], setting: str, seeds: Sequence[int]
) -> tuple[list[Run], list[str]]:
    """The runs of all other seeds at the value chosen for their network, named without it.

    All those of a network that has one value. Also returns what was chosen, in a sentence.
    """
    choices = choose(runs, setting, seeds)
    chosen = {choice.network: choice.value for choice in choices}
    kept = {
        run.path
        for network, its in by_network(runs, setting).items()
        for run in its
        if run.setting(setting) == chosen.get(network, run.setting(setting))
    }
    fresh = [run for run in runs if run.seed not in seeds and run.path in kept]
    if not fresh:
        raise UsageError(
            f"no runs of other seeds than those that {setting} was chosen on. "
            f"See what to train: resexp best {runs[0].experiment} --setting {setting} "
            f"--chosen-on {','.join(map(str, seeds))}"
        )
    told = ", ".join(
        f"{choice.network} {spell(choice.value)}{' (the edge)' if choice.at_edge else ''}"
        for choice in choices
    )
    on = f"chosen on seeds {', '.join(map(str, seeds))} by clean training loss"
    judged = [without(run, [setting]) for run in fresh]
    return judged, [f"Each network at its best {setting}, {on}: {told}."]


def without(run: Run, settings: Sequence[str]) -> Run:
    """The run, named without these: so those that differ in them alone are of one kind."""
    extras = {key: value for key, value in run.extras.items() if key not in settings}
    return replace(run, record=run.record | {"extras": extras})


def commands(choices: Sequence[Choice], seeds: str) -> list[str]:
    """What trains every network at its best value with other ``seeds``, such as 10,11,12.

    Networks that differ in their depth alone, or in their arch, are of one command: it fills the
    machine.
    """
    lines: list[list[str]] = []
    for choice in choices:
        words = [str(word) for word in choice.run.record.get("overrides") or []]
        lines.append([word for word in words if not word.startswith(("seed=", "overwrite="))])
    lines = together("arch=", together("depth=", lines))
    return [shlex.join(["resexp", "run", "-m", *words, f"seed={seeds}"]) for words in lines]


def together(key: str, lines: Sequence[Sequence[str]]) -> list[list[str]]:
    """The same with one line for those that differ in the value of ``key`` alone: depth=20,56."""
    values: dict[tuple[str, ...], dict[str, None]] = {}
    for words in lines:
        rest = tuple(key if word.startswith(key) else word for word in words)
        held = [word.removeprefix(key) for word in words if word.startswith(key)]
        values.setdefault(rest, {}).update(dict.fromkeys(held))
    return [
        [key + ",".join(held) if word == key else word for word in rest]
        for rest, held in values.items()
    ]


def table(choices: Sequence[Choice], setting: str) -> list[str]:
    rows = []
    for choice in choices:
        tried = ", ".join(spell(value) for value in sorted(choice.tried))
        edge = "at the edge: try values beyond" if choice.at_edge else ""
        rows.append([choice.network, spell(choice.value), signed(choice.loss, 2), tried, edge])
    return aligned(["network", setting, "log10 clean loss", "tried", ""], rows)
