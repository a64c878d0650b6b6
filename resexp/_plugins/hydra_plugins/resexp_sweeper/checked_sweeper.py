"""A sweeper that composes and checks every job of a sweep before the launcher starts the first.

Hydra loads plugins in a way in which dataclasses cannot have postponed annotations: none here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext
from omegaconf import DictConfig


@dataclass
class CheckedSweeperConf:
    _target_: str = "hydra_plugins.resexp_sweeper.checked_sweeper.CheckedSweeper"


ConfigStore.instance().store(
    group="hydra/sweeper", name="checked", node=CheckedSweeperConf, provider="resexp"
)


class CheckedSweeper(Sweeper):
    """The grid of all values, as Hydra's own sweeper, but nothing is trained or written unchecked.

    The task function may have an attribute ``plan``: it is given every job's configuration, raises
    on the first that cannot be run, and returns the indices of those to launch.
    """

    def setup(
        self,
        *,
        hydra_context: HydraContext,
        task_function: Callable[[DictConfig], Any],
        config: DictConfig,
    ) -> None:
        self.hydra_context = hydra_context
        self.config = config
        self.plan = getattr(task_function, "plan", None)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        assert self.hydra_context and self.config is not None and self.launcher
        loader = self.hydra_context.config_loader
        parser = OverridesParser.create(config_loader=loader)
        (jobs,) = BasicSweeper.split_arguments(parser.parse_overrides(arguments), None)
        if self.plan is not None:
            configs = [loader.load_sweep_config(self.config, job) for job in jobs]
            jobs = [jobs[index] for index in self.plan(configs)]
        return self.launcher.launch(jobs, initial_job_idx=0) if jobs else []
