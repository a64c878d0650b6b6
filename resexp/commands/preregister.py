"""``resexp preregister``: fix rule, depths, seeds, recipe and hypotheses before the runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from resexp.analysis.verdict import RULE
from resexp.analysis.verdict.select import reference
from resexp.runs import preregistration
from resexp.runs.provenance import checkout, package_version
from resexp.runs.records import Claim
from resexp.runs.run import now
from resexp.settings import Job, UsageError, as_dict, digest, identity


def preregister(
    jobs: Sequence[Job],
    claims: Sequence[Claim],
    check: Callable[[], None],
    hypotheses: Sequence[str],
    command: str,
) -> Path:
    """Write what the jobs are about to test into their experiment's folder.

    Raises UsageError if they are of several experiments or one depth, or if one of them has begun,
    and what ``check`` raises.
    """
    check()
    folders = {job.directory.parent for job in jobs}
    if len(folders) > 1:
        raise UsageError("a preregistration is of one experiment. Give results= and name= once.")
    for job, claim in zip(jobs, claims, strict=True):
        if claim is not Claim.new:
            raise UsageError(
                f"{job.directory} has begun: what is fixed now was not fixed before it. "
                "Choose seeds that were never run, or another name=..."
            )
    depths = {job.settings.depth for job in jobs}
    deep = max(depths)
    shallow = reference(depths - {deep})
    if shallow is None:
        raise UsageError("a verdict compares two depths. Give both, such as depth=20,56.")
    commit, dirty = checkout()
    fixed = preregistration.Preregistration(
        written=now(),
        resexp=package_version("resexp"),
        git_commit=commit,
        git_dirty=dirty,
        command=command,
        hypotheses=list(hypotheses),
        rule=RULE.splitlines(),
        shallow=shallow,
        deep=deep,
        settings=shared([identity(as_dict(job.settings)) for job in jobs]),
        runs={job.run: digest(as_dict(job.settings)) for job in jobs},
    )
    return preregistration.write(folders.pop(), fixed)


def shared(settings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    first, *others = settings
    return {key: value for key, value in first.items() if all(one[key] == value for one in others)}
