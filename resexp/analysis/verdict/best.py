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
from resexp.analysis.results import Run, spell
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
        """Plain values for JSON."""
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
    found: dict[str, dict[Any, dict[int, float]]] = {}
    of: dict[tuple[str, Any], Run] = {}
    varied = varying(runs, setting)
    for run in runs:
        network, value, end = name(run, varied), run.setting(setting), endpoint(run)
        losses = found.setdefault(network, {}).setdefault(value, {})
        if run.seed in seeds and end is not None:
            losses[run.seed] = end["loss"]
            of.setdefault((network, value), run)
    choices = []
    for network, values in found.items():
        means = {
            value: sum(losses.values()) / len(losses)
            for value, losses in values.items()
            if len(losses) == len(set(seeds))
        }
        if len(values) == 1 and not means:
            continue  # there is nothing to choose
        if not means:
            wanted = ",".join(map(str, seeds))
            raise UsageError(f"{network} was not trained with seed={wanted} at any {setting}.")
        best = min(means, key=lambda value: means[value])
        choices.append(Choice(network, best, means[best], [*means], of[network, best]))
    return choices


def varying(runs: Sequence[Run], setting: str) -> set[str]:
    """The typed settings, but ``setting``, in which some of the runs differ."""
    keys = {key for run in runs for key in run.extras} - {setting}
    return {key for key in keys if len({spell(run.extras.get(key)) for run in runs}) > 1}


def name(run: Run, varied: set[str]) -> str:
    """A network and its recipe, whatever its seed and the setting that is chosen."""
    words = [f"{key}={spell(run.extras[key])}" for key in sorted(run.extras) if key in varied]
    return ",".join([f"{run.arch}-{run.depth}", *words])


def at_best(
    runs: Sequence[Run], choices: Sequence[Choice], setting: str, seeds: Sequence[int]
) -> list[Run]:
    """The runs of all other seeds at the value chosen for their network, named without it.

    All those of a network that has one value.
    """
    chosen = {choice.network: choice.value for choice in choices}
    varied = varying(runs, setting)
    fresh = [
        without(run, setting)
        for run in runs
        if run.seed not in seeds
        and run.setting(setting) == chosen.get(name(run, varied), run.setting(setting))
    ]
    if not fresh:
        raise UsageError(
            f"no runs of other seeds than those that {setting} was chosen on. "
            f"See what to train: resexp best {runs[0].experiment} --setting {setting} "
            f"--chosen-on {','.join(map(str, seeds))}"
        )
    return fresh


def each_at_best(
    runs: Sequence[Run], setting: str, seeds: Sequence[int]
) -> tuple[Sequence[Run], list[str]]:
    """The runs of all other seeds, each network at its best value, and what was chosen."""
    choices = choose(runs, setting, seeds)
    return at_best(runs, choices, setting, seeds), [sentence(choices, setting, seeds)]


def without(run: Run, setting: str) -> Run:
    """The run, named without a setting: so those that differ in it alone are of one kind."""
    extras = {key: value for key, value in run.extras.items() if key != setting}
    return replace(run, record=run.record | {"extras": extras})


def commands(choices: Sequence[Choice], seeds: str) -> list[str]:
    """What trains every network at its best value with other ``seeds``, such as 10,11,12."""
    lines = []
    for choice in choices:
        words = [str(word) for word in choice.run.record.get("overrides") or []]
        kept = [word for word in words if not word.startswith(("seed=", "overwrite="))]
        lines.append(shlex.join(["resexp", "run", "-m", *kept, f"seed={seeds}"]))
    return lines


def table(choices: Sequence[Choice], setting: str) -> list[str]:
    """The choices as aligned lines."""
    rows = []
    for choice in choices:
        tried = ", ".join(spell(value) for value in sorted(choice.tried))
        edge = "at the edge: try values beyond" if choice.at_edge else ""
        rows.append([choice.network, spell(choice.value), signed(choice.loss, 2), tried, edge])
    return aligned(["network", setting, "log10 clean loss", "tried", ""], rows)


def sentence(choices: Sequence[Choice], setting: str, seeds: Sequence[int]) -> str:
    """Which value each network was judged at."""
    told = ", ".join(
        f"{choice.network} {spell(choice.value)}{' (the edge)' if choice.at_edge else ''}"
        for choice in choices
    )
    chosen = f"chosen on seeds {', '.join(map(str, seeds))} by clean training loss"
    return f"Each network at its best {setting}, {chosen}: {told}."
