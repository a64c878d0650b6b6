"""The configurations of a sweep: Hydra composes once for each choice, values are set in copies."""

from __future__ import annotations

from typing import Any

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import HydraContext, RunMode
from hydra_plugins.resexp_sweeper.checked_sweeper import CheckedSweeper
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from resexp.settings.choices import config_folder

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


def sweeper_of(context: HydraContext) -> CheckedSweeper:
    sweeper = CheckedSweeper()
    sweeper.hydra_context = context
    sweeper.config = context.config_loader.load_configuration("config", [], RunMode.MULTIRUN)
    return sweeper


@settings(deadline=None, max_examples=6)
@given(st.lists(jobs, min_size=1, max_size=2))
def test_every_job_is_composed_as_hydra_composes_it(sweep: list[list[str]]) -> None:
    with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        sweeper = sweeper_of(HydraContext(config_loader=loader, callbacks=None))  # type: ignore
        configs = sweeper.composed(sweep, OverridesParser.create(config_loader=loader))
        for job, ours in zip(sweep, configs, strict=True):
            theirs = loader.load_sweep_config(sweeper.config, job)
            for key in ("overrides.task", "runtime.choices", "runtime.config_sources", "launcher"):
                assert part(ours.hydra, key) == part(theirs.hydra, key)
            for config in (ours, theirs):
                OmegaConf.set_struct(config, False)
                del config["hydra"]
            assert OmegaConf.to_container(ours) == OmegaConf.to_container(theirs)
            assert OmegaConf.to_object(ours) == OmegaConf.to_object(theirs)


def part(node: Any, key: str) -> Any:
    return OmegaConf.to_container(OmegaConf.select(node, key))


@pytest.mark.parametrize("word", ["dpeth=8", "depth=deep", "arch=nothing", "arch.x=1", "lr.x=1"])
def test_what_hydra_refuses_is_refused_alike(word: str) -> None:
    with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        sweeper = sweeper_of(HydraContext(config_loader=loader, callbacks=None))  # type: ignore
        with pytest.raises(Exception) as ours:
            sweeper.composed([["seed=1", word]], OverridesParser.create(config_loader=loader))
        with pytest.raises(Exception) as theirs:
            loader.load_sweep_config(sweeper.config, ["seed=1", word])
        assert type(ours.value) is type(theirs.value)
        assert str(ours.value) == str(theirs.value)
