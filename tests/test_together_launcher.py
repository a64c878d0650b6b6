"""The launcher of several jobs at a time obeys Hydra's own rules for launchers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)
from hydra_plugins.resexp_launchers.together_launcher import TogetherLauncher

import resexp.config


def test_hydra_finds_the_launcher() -> None:
    names = [one.__name__ for one in Plugins.instance().discover(Launcher)]
    assert TogetherLauncher.__name__ in names


def test_a_task_that_can_is_given_all_jobs_at_once() -> None:
    given: list[Any] = []

    def task(config: Any) -> None:
        raise AssertionError("no job is launched by itself")

    task.together = given.append  # type: ignore[attr-defined]
    launcher = TogetherLauncher()
    launcher.setup(hydra_context=None, task_function=task, config=None)  # type: ignore[arg-type]
    done = launcher.launch([["seed=0"], ["seed=1"]], 0)
    assert given == [[["seed=0"], ["seed=1"]]]
    assert [one.overrides for one in done] == given[0]


#: Hydra's own suites for launchers; their task functions have no attribute ``together``.
PLUGINS = Path(resexp.config.__file__).parent / "_plugins"
FLAGS = ["-m", "hydra/job_logging=disabled", "hydra/launcher=together"]


@pytest.mark.filterwarnings("ignore:Future Hydra versions will no longer change working")
@pytest.mark.parametrize(("launcher_name", "overrides"), [("together", [])])
class TestHydrasRules(LauncherTestSuite):
    pass


@pytest.mark.filterwarnings("ignore:Future Hydra versions will no longer change working")
@pytest.mark.parametrize(
    ("launcher_name", "overrides"), [("together", ["hydra.sweeper.max_batch_size=2"])]
)
class TestHydrasRulesInBatches(BatchedSweeperTestSuite):
    pass


@pytest.fixture
def plugins_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a process that does not import resexp find the launcher."""
    monkeypatch.setenv("PYTHONPATH", str(PLUGINS))


@pytest.mark.usefixtures("plugins_on_the_path")
@pytest.mark.parametrize(("task_launcher_cfg", "extra_flags"), [({}, FLAGS)])
class TestHydrasRulesInAProcess(IntegrationTestSuite):
    pass
