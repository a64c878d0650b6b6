"""Hydra's multirun: jobs are composed as Hydra does, and its rules for launchers obeyed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    LauncherTestSuite,
)
from hydra.types import RunMode
from hydra_plugins.resexp_sweeps import TogetherLauncher
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from test_cli import call, run

from resexp.config import composed
from resexp.settings.choices import config_folder

pytestmark = pytest.mark.process

#: Words of a sweep, among them options, values, lists, nested keys, additions and no values.
WORDS = {
    "arch": ["arch=plain", "arch=residual", "arch=preact"],
    "depth": ["depth=8", "depth=20", "++depth=32"],
    "experiment": ["experiment=digits", "experiment=he2015"],
    "recipe": ["recipe=he2015"],
    "data": ["data=cifar10"],
    "data.size": ["data.size=16", "data.size=null"],
    "milestones": ["milestones=[0.25,0.5]", "milestones=[]"],
    "loggers": ["loggers=[tensorboard]"],
    "arch.shortcut": ["arch.shortcut=B"],
    "arch.order": ["arch.order=full_preactivation"],
    "name": ["name=mine", "name='1e-3'"],
    "lr": ["lr=1e-2", "lr=${warmup_lr}"],
    "launch.jobs": ["launch.jobs=3"],
    "flip": ["flip=true"],
}
jobs = st.lists(st.sampled_from(sorted(WORDS)), unique=True, max_size=6).flatmap(
    lambda keys: st.tuples(*(st.sampled_from(WORDS[key]) for key in keys)).map(list)
)


@settings(deadline=None, max_examples=6)
@given(st.lists(jobs, min_size=1, max_size=2), st.booleans())
def test_every_job_is_composed_as_hydra_composes_it(sweep: list[list[str]], typed: bool) -> None:
    """With all words swept over, or all typed but the seed: these jobs are not composed anew."""
    with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        if typed:
            sweep = [[*sweep[0], f"seed={seed}"] for seed in (1, 2)]
        words = [*sweep[0][:-1], "seed=1,2"] if typed else []
        whole = loader.load_configuration("config", words, RunMode.MULTIRUN)
        for job, (ours, its_hydra) in zip(sweep, composed(loader, whole, sweep), strict=True):
            theirs = loader.load_sweep_config(whole, job)
            for key in ("runtime.choices", "runtime.config_sources"):
                assert part(its_hydra, key) == part(theirs.hydra, key)
            OmegaConf.set_struct(theirs, False)
            del theirs["hydra"]
            assert OmegaConf.to_container(ours) == OmegaConf.to_container(theirs)
            assert OmegaConf.to_object(ours) == OmegaConf.to_object(theirs)


def test_options_that_all_jobs_share_are_composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        words = ["arch=residual", "data=cifar10", "depth=8,20"]
        whole = loader.load_configuration("config", words, RunMode.MULTIRUN)
        monkeypatch.setattr(loader, "load_sweep_config", None)
        sweep = [[*words[:2], f"depth={depth}"] for depth in (8, 20)]
        assert [one.depth for one, _ in composed(loader, whole, sweep)] == [8, 20]


def part(node: Any, key: str) -> Any:
    return OmegaConf.to_container(OmegaConf.select(node, key))


@pytest.mark.parametrize("word", ["dpeth=8", "depth=deep", "arch=nothing", "arch.x=1", "lr.x=1"])
def test_what_hydra_refuses_is_refused_alike(word: str) -> None:
    with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        whole = loader.load_configuration("config", [], RunMode.MULTIRUN)
        with pytest.raises(Exception) as ours:
            list(composed(loader, whole, [["seed=1", word]]))
        with pytest.raises(Exception) as theirs:
            loader.load_sweep_config(whole, ["seed=1", word])
        assert type(ours.value) is type(theirs.value)
        assert str(ours.value) == str(theirs.value)


def test_hydras_own_sweeper_and_launcher_carry_the_jobs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("-m", "seed=0,1", "hydra/sweeper=basic").out.startswith("2 done")
    assert run("-m", "seed=0,2", "hydra/launcher=basic").out.startswith("1 done, 1 skipped")
    monkeypatch.setattr("resexp.runs.run.fit", None)
    failed = run("-m", "seed=5", "hydra/sweeper=basic")  # it raises what a job returns
    assert (failed.code, failed.out.splitlines()[0]) == (1, "1 failed")
    assert call("run", "depth=9", "hydra/sweeper=basic").code == 2


def test_hydra_finds_the_launcher() -> None:
    names = [one.__name__ for one in Plugins.instance().discover(Launcher)]
    assert TogetherLauncher.__name__ in names


#: Hydra's own suites for launchers, in an application that is not resexp.
chdir = pytest.mark.filterwarnings("ignore:Future Hydra versions will no longer change working")


@chdir
@pytest.mark.parametrize(("launcher_name", "overrides"), [("together", [])])
class TestHydrasRules(LauncherTestSuite):
    pass


@chdir
@pytest.mark.parametrize(
    ("launcher_name", "overrides"), [("together", ["hydra.sweeper.max_batch_size=2"])]
)
class TestHydrasRulesInBatches(BatchedSweeperTestSuite):
    pass
