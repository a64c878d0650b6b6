"""How Hydra's multirun hands its jobs to resexp: its sweeper and its launcher."""

import math
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper

from resexp.settings import UsageError

store = ConfigStore.instance().store
node = {"_target_": "hydra_plugins.resexp_sweeps.CheckedSweeper"}
store(group="hydra/sweeper", name="checked", node=node, provider="resexp")
node = {"_target_": "hydra_plugins.resexp_sweeps.TogetherLauncher"}
store(group="hydra/launcher", name="together", node=node, provider="resexp")

#: The sweepers that make a grid; others, packages of Hydra's, search.
OWN = ("checked", "basic")

#: Runs of one sweep: composing more would take minutes before the first could start.
MOST_JOBS = 10_000


def check_count(overrides: Sequence[Override]) -> None:
    """Raise UsageError for more combinations of values than one sweep may have, or none."""
    grids = [one for one in overrides if one.is_choice_sweep() or one.is_range_sweep()]
    counts = [sum(1 for _ in islice(one.sweep_iterator(), MOST_JOBS + 1)) for one in grids]
    words = " ".join(str(one.input_line) for one in grids)
    if 0 in counts:
        raise UsageError(f"{words} has no values. Give some, as in seed=range(3).")
    if math.prod(counts) > MOST_JOBS:
        raise UsageError(f"{words} are more than {MOST_JOBS:,} runs. Give fewer values at a time.")


class TogetherLauncher(BasicLauncher):
    """Checks all jobs before the first is begun, and lets the command's session carry them out.

    What a job returns to a sweeper that searches is its clean training error after the last step.
    In another application than resexp it does what Hydra's own launcher does.
    """

    others: Launcher | None = None  # takes the jobs to processes of its own

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        from resexp import config

        session = config.session
        if session is None:
            return super().launch(job_overrides, initial_job_idx)
        assert self.hydra_context is not None and self.config is not None
        sweeper = self.config.hydra.runtime.choices["hydra/sweeper"]
        session.search = sweeper not in OWN
        if session.search and session.instead is not None:
            raise UsageError(
                f"hydra/sweeper={sweeper} chooses runs by how others went: they are not known "
                "before they train. Leave it away to plan a sweep, or to fix one."
            )
        loader = self.hydra_context.config_loader
        composed = config.composed(loader, self.config, job_overrides)
        jobs = [
            config.to_job(*one, words) for one, words in zip(composed, job_overrides, strict=True)
        ]
        chosen = session.plan(jobs, here=self.others is None)
        planned = [jobs[index] for index in chosen]
        if planned and self.others is None:
            with closing(session.carry_out(planned)) as messages:
                for job, message in messages:
                    session.note(job, message)
        elif planned and self.others is not None:
            config.before_launch(self.config.hydra.launcher)
            words = [job_overrides[index] for index in chosen]
            session.follow(planned, partial(self.others.launch, words, initial_job_idx))
        errors = {job.directory: error for job, error in session.failures}
        numbers = session.endpoints()
        return [
            JobReturn(
                overrides=list(words),
                status=JobStatus.FAILED if job.directory in errors else JobStatus.COMPLETED,
                _return_value=errors.get(job.directory, numbers.get(job.directory)),
            )
            for job, words in zip(jobs, job_overrides, strict=True)
        ]


class CheckedSweeper(Sweeper):
    """The grid of all values, as Hydra's own sweeper makes it; it writes nothing."""

    def setup(self, **context: Any) -> None:
        self.hydra_context = context["hydra_context"]
        chosen = Plugins.instance().instantiate_launcher(**context)
        launcher = self.launcher = TogetherLauncher()
        launcher.setup(**context)
        launcher.others = None if isinstance(chosen, BasicLauncher) else chosen

    def sweep(self, arguments: list[str]) -> Any:
        assert self.hydra_context is not None and self.launcher is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides(arguments)
        check_count(overrides)
        (jobs,) = BasicSweeper.split_arguments(overrides, None)
        alone = [one for one in overrides if not one.is_sweep_override()]
        typed = {f"{one.get_key_element()}={one.get_value_element_as_str()}": one for one in alone}
        jobs = [
            [typed[word].input_line or word if word in typed else word for word in job]
            for job in jobs
        ]
        return [self.launcher.launch(jobs, initial_job_idx=0)]
