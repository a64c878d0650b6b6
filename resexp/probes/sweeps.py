"""What probes of whole sweeps share: the final errors of finished runs, and choosing on own seeds.

    python -m resexp.probes.sweeps FOLDER KEY

prints, for each network of FOLDER, the words that train it at the value of KEY that did best on the
seeds CHOICE: scripts/claims.sh trains the seeds that judge with them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from resexp.analysis.results import Run, require_runs, spell
from resexp.analysis.verdict.select import endpoint, of_arch

CHOICE = (90, 91)  # seeds that choose a setting, and do not judge


def words_of(run: Run, key: str) -> tuple[str, ...]:
    """What of a run's network was typed, but for ``key``."""
    typed = {name: value for name, value in run.extras.items() if of_arch(name) and name != key}
    words = [f"{name}={spell(value)}" for name, value in sorted(typed.items())]
    return (f"depth={run.depth}", f"arch={run.arch}", *words)


def best(runs: Sequence[Run], key: str) -> dict[tuple[str, ...], str]:
    """By network the value of ``key`` with the least mean clean training error over seeds CHOICE.

    Of equals the one of least mean log loss. Failures count at chance. Left out are networks
    without runs of these seeds, and values that some of these seeds lack.
    """
    found: dict[tuple[str, ...], dict[str, list[tuple[float, float]]]] = {}
    for run in runs:
        end = endpoint(run) if run.seed in CHOICE else None
        if end is not None:
            values = found.setdefault(words_of(run, key), {})
            ends = values.setdefault(spell(run.setting(key)), [])
            ends.append((end["train_error"], end["loss"]))
    means = {
        words: {
            value: tuple(map(sum, zip(*ends, strict=True)))
            for value, ends in values.items()
            if len(ends) == len(CHOICE)
        }
        for words, values in found.items()
    }
    return {words: min(of, key=lambda value: of[value]) for words, of in means.items() if of}


if __name__ == "__main__":
    folder, key = sys.argv[1:]
    for words, value in best(require_runs(Path(folder)), key).items():
        print(*words, f"{key}={value}")
