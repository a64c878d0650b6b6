"""A launcher that hands the jobs of a sweep to the task all at once.

Hydra loads plugins in a way in which dataclasses cannot have postponed annotations: none here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig


@dataclass
class TogetherLauncherConf:
    _target_: str = "hydra_plugins.resexp_launchers.together_launcher.TogetherLauncher"


ConfigStore.instance().store(
    group="hydra/launcher", name="together", node=TogetherLauncherConf, provider="resexp"
)


class TogetherLauncher(BasicLauncher):
    """Several jobs at a time, if the task function can: if it has an attribute ``together``.

    It is given the jobs' overrides and returns when all are over; how it carries them out is its
    own affair. A task without it runs as under Hydra's own launcher, one job after another.
    """

    def setup(
        self,
        *,
        hydra_context: HydraContext,
        task_function: Callable[[DictConfig], Any],
        config: DictConfig,
    ) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.together = getattr(task_function, "together", None)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        if self.together is None:
            return super().launch(job_overrides, initial_job_idx)
        self.together(job_overrides)
        return [JobReturn(overrides=job, status=JobStatus.COMPLETED) for job in job_overrides]
