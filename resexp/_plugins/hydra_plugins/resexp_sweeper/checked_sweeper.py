"""A sweeper that composes and checks every job of a sweep before the launcher starts the first.

Hydra loads plugins in a way in which dataclasses cannot have postponed annotations: none here.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, flag_override

from resexp.settings import UsageError


@dataclass
class CheckedSweeperConf:
    _target_: str = "hydra_plugins.resexp_sweeper.checked_sweeper.CheckedSweeper"


ConfigStore.instance().store(
    group="hydra/sweeper", name="checked", node=CheckedSweeperConf, provider="resexp"
)


#: Runs of one sweep: composing more would take minutes before the first could start.
MOST_JOBS = 10_000


def check_count(overrides: Sequence[Override]) -> None:
    """Raise UsageError for more combinations of values than one sweep may have."""
    grids = [one for one in overrides if one.is_choice_sweep() or one.is_range_sweep()]
    counts = [sum(1 for _ in islice(one.sweep_iterator(), MOST_JOBS + 1)) for one in grids]
    if math.prod(counts) > MOST_JOBS:
        words = " ".join(str(one.input_line) for one in grids)
        raise UsageError(f"{words} are more than {MOST_JOBS:,} runs. Give fewer values at a time.")


class CheckedSweeper(Sweeper):
    """The grid of all values, as Hydra's own sweeper, but nothing is trained or written unchecked.

    The task function may have an attribute ``plan``: it is given every job's configuration, raises
    on the first that cannot be run, and returns the indices of those to launch. Of the ``hydra``
    node these have the parts named in ``KEPT``.
    """

    KEPT = ("overrides", "runtime", "launcher")

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
        overrides = parser.parse_overrides(arguments)
        check_count(overrides)
        (jobs,) = BasicSweeper.split_arguments(overrides, None)
        if self.plan is not None:
            jobs = [jobs[index] for index in self.plan(self.composed(jobs, parser))]
        return self.launcher.launch(jobs, initial_job_idx=0) if jobs else []

    def composed(self, jobs: Sequence[list[str]], parser: OverridesParser) -> list[DictConfig]:
        """Every job's configuration.

        Composing takes Hydra 100 ms, so it does that once for each choice of options, such as
        arch; values, such as depth, are then set in copies, by the same function of Hydra's.
        """
        words = {word for job in jobs for word in job}
        known = {word: parser.parse_override(word) for word in words}
        bases: dict[tuple[str, ...], DictConfig] = {}
        configs = []
        for job in jobs:
            parsed = [known[word] for word in job]
            values = [one for one in parsed if self.sets_value(one)]
            if any(one.is_add() or one.is_force_add() or one.is_delete() for one in parsed):
                values = []  # what it adds or takes away may be what another sets
            chosen = tuple(str(one.input_line) for one in parsed if one not in values)
            if chosen not in bases:
                bases[chosen] = self.compose(list(chosen))
            config = copy.deepcopy(bases[chosen])
            ConfigLoaderImpl._apply_overrides_to_config(values, config)
            config.hydra.overrides.task = job
            configs.append(config)
        return configs

    def compose(self, overrides: list[str]) -> DictConfig:
        """One configuration by Hydra's own way."""
        assert self.hydra_context and self.config is not None
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with flag_override(config.hydra, ["struct", "readonly"], False):
            for name in [name for name in config.hydra if name not in self.KEPT]:
                del config.hydra[name]
        return config

    def sets_value(self, override: Override) -> bool:
        """Whether an override gives a setting that exists a value, and chooses no option."""
        assert self.config is not None
        key = override.key_or_group
        if override.package is not None or override.is_hydra_override():
            return False
        if key in self.config.hydra.runtime.choices or "/" in key:
            return False
        absent = object()
        try:
            value = OmegaConf.select(self.config, key, default=absent)
        except Exception:  # no setting's name: composing will say so
            return False
        return value is not absent and not isinstance(value, DictConfig)
