"""Sweepers that are not ours: what a job returns to them, and what they cannot do."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from test_cli import call, run

pytestmark = pytest.mark.process
WITHOUT_OPTUNA = pytest.mark.skipif(find_spec("optuna") is not None, reason="Optuna is here")


def test_a_job_returns_what_the_verdict_goes_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    returned: list[JobReturn] = []
    known = {one.__name__: one for one in Plugins.instance().discover(Launcher)}
    together: Any = known["TogetherLauncher"]  # as Hydra loaded it
    launch = together.launch

    def seen(self: Launcher, *what: Any, **more: Any) -> Any:
        returned.extend(launch(self, *what, **more))
        return returned

    monkeypatch.setattr(together, "launch", seen)
    assert run("-m", "seed=0,1", "hydra/sweeper=basic").code == 0
    assert run("-m", "seed=0", "hydra/sweeper=basic").code == 0  # one that was done before
    records = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("run.json"))]
    ends = [record["last"]["clean_train_error"] for record in records]
    assert [one.return_value for one in returned] == [*ends, ends[0]]


@pytest.mark.filterwarnings("ignore")  # Optuna's own
def test_a_search_trains_each_choice_once_and_names_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    monkeypatch.chdir(tmp_path)
    words = ["-m", "lr=0.01,0.1", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=5"]
    found = run(*words, "hydra.sweeper.sampler.seed=0")
    assert found.code == 0, found.err
    records = {path: json.loads(path.read_text()) for path in tmp_path.rglob("run.json")}
    ends = {path.parent: record["last"]["clean_train_error"] for path, record in records.items()}
    best = tmp_path / found.out.splitlines()[-1].partition(" of ")[2]
    assert found.out.splitlines()[0] == f"{len(ends)} done"
    assert ends[best] == min(ends.values())
    assert f"best_value: {min(ends.values())}" in Path("optimization_results.yaml").read_text()
    planned = run(*words, "--dry-run")
    assert (planned.code, "not known before" in planned.err) == (2, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["launch=joblib"], "launch=joblib does not hand back. Use launch=processes"),
        pytest.param([], "pip install hydra-optuna-sweeper", marks=WITHOUT_OPTUNA),
    ],
)
def test_a_search_that_cannot_be_is_refused_by_name(words: list[str], said: str) -> None:
    refused = call("run", "-m", "seed=0,1", "hydra/sweeper=optuna", *words)
    assert (refused.code, said in refused.err) == (2, True)
