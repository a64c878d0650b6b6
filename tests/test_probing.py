"""resexp probe: what is probed, from what, and what a finding leaves behind."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_results import write_run

from resexp import probes
from resexp.cli import main
from resexp.config import compose
from resexp.data import Images
from resexp.launch.local import perform
from resexp.probes import Case, Needs, Row, Tell, Verdict, networks, rank, rows
from resexp.probes import run as probing
from resexp.settings import Arch, Data, Init, Settings, UsageError, as_dict, from_dict
from resexp.settings.choices import alternatives

pytestmark = pytest.mark.process

TINY = ["steps=4", "depth=8", "batch_size=8", "eval_every=2", "threads=1", "keep_checkpoint=true"]


def call(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``resexp WORDS``."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["resexp", *words])
        redirected = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
        with redirected[0], redirected[1], pytest.raises(SystemExit) as stop:
            main()
    return int(stop.value.code or 0), out.getvalue(), err.getvalue()


@pytest.fixture
def small_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rank probe with one seed and shallow networks: the quickest there is."""
    monkeypatch.setattr(rank, "GRADIENT_LAYERS", (2, 4))
    monkeypatch.setattr(rank, "SEEDS", 1)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment folder with one finished run that kept its checkpoint."""
    root = tmp_path_factory.mktemp("probing")
    return perform(compose(["arch=residual", *TINY, f"results={root}"])).job.directory.parent


# --- settings out of a record


def test_settings_come_back_from_a_record() -> None:
    arch = Arch(merge="weighted", options={"branch_scale": 0.5}, skip_stages=[1, 2])
    settings = Settings(arch=arch, data=Data(size=16), init=Init.xavier, milestones=[0.25])
    back = from_dict(json.loads(json.dumps(as_dict(settings))))
    assert back == settings
    assert type(back.init) is Init


def test_settings_that_came_later_are_at_their_default() -> None:
    record = as_dict(Settings(depth=8))
    del record["arch"]["norm"], record["nesterov"]
    assert from_dict(record) == Settings(depth=8)


@pytest.mark.parametrize("change", [{"speed": 1}, {"init": "magic"}, {"arch": {"order": "magic"}}])
def test_a_record_of_a_later_version_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="this version of resexp knows no"):
        from_dict(as_dict(Settings()) | change)


# --- networks


def test_a_snapshot_is_the_network_that_the_run_left(swept: Path) -> None:
    [one] = probing.of_runs("gradients", swept, [])
    [case] = one.cases
    data = networks.load(case.settings)
    left = networks.trained(case, data).state_dict()
    (start, first), (last, end) = networks.snapshots(case.settings, data, [0, 4])
    assert (start, last) == (0, 4)
    assert all(torch.equal(value, left[key]) for key, value in end.state_dict().items())
    fresh = networks.at_start(case.settings, data).state_dict()
    assert all(torch.equal(value, fresh[key]) for key, value in first.state_dict().items())
    assert not torch.equal(left["classifier.weight"], fresh["classifier.weight"])


def test_a_step_beyond_the_end_is_refused(few_digits: Images) -> None:
    with pytest.raises(UsageError, match="steps=5"):
        next(networks.snapshots(Settings(depth=8, steps=5), few_digits, [6]))


def test_a_checkpoint_of_other_settings_is_refused(swept: Path) -> None:
    [case] = probing.of_runs("gradients", swept, [])[0].cases
    assert case.run is not None
    other = replace(case.run, record=case.run.record | {"digest": "0" * 12})
    with pytest.raises(UsageError, match="keep_checkpoint=true"):
        networks.trained(replace(case, run=other), networks.load(case.settings))


def test_some_images_are_spread_over_the_set(few_digits: Images) -> None:
    images, labels = networks.some_images(Settings(), few_digits, 14)
    assert images.shape == (14, 1, 8, 8)
    assert torch.equal(labels, few_digits.train_labels[::3])
    everything, _ = networks.some_images(Settings(), few_digits, 1000)
    assert len(everything) == 40
    assert everything.mean(0).abs().max() < 1e-6  # of these 40 the mean was subtracted


# --- what is probed


def test_every_probe_has_all_that_the_contract_asks_for() -> None:
    assert "gradients" in probes.names()
    for name in probes.names():
        one = probes.probe(name)
        assert one.CLAIM.endswith(".")
        assert one.SOURCE
        assert one.TEXTBOOK.endswith(".")
        assert isinstance(one.NEEDS, Needs)
        if one.NEEDS not in (Needs.runs, Needs.trained):
            assert all("=" in word for word in one.USUAL)
        assert all(callable(part) for part in (one.measure, one.conclude, one.draw))
        assert (Path(__file__).parent / f"test_probe_{name}.py").exists()


def test_values_with_commas_are_cases_of_their_own() -> None:
    assert alternatives("depth=20,56") == ["depth=20", "depth=56"]
    assert alternatives("milestones=[0.5,0.75]") == ["milestones=[0.5,0.75]"]
    [one] = probing.of_words("gradients", ["depth=8", "seed=1,4", "results=x"], compose)
    places = [(case.arch, case.settings.depth, case.settings.seed) for case in one.cases]
    assert places == [("plain", 8, 1), ("plain", 8, 4), ("residual", 8, 1), ("residual", 8, 4)]
    assert one.folder == Path("x/digits")


def test_trained_networks_are_asked_for_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rank, "NEEDS", Needs.trained)
    with pytest.raises(UsageError, match="Give their folder"):
        probing.of_words("rank", [], compose)
    write_run(tmp_path, "plain", 8, 0)
    [one] = probing.of_runs("rank", tmp_path, [])
    with pytest.raises(UsageError, match=r"kept its checkpoint.*keep_checkpoint=true"):
        probing.perform(one, "resexp probe rank")
    assert not list(tmp_path.glob("*/probe-*"))


def test_a_diverged_run_is_no_case(tmp_path: Path) -> None:
    write_run(tmp_path, "plain", 8, 0, status="diverged")
    with pytest.raises(UsageError, match="finished and finite"):
        probing.of_runs("rank", tmp_path, [])


def test_two_experiments_are_one_too_many(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_run(tmp_path, "plain", 8, 0, name=name)
    with pytest.raises(UsageError, match="2 experiments"):
        probing.of_runs("rank", tmp_path, [])


@pytest.mark.parametrize(
    ("name", "archs", "hint"),
    [
        *((name, "plain", "arch=plain,residual") for name in ("steps", "lesion", "landscape")),
        ("landscape", "plain residual:14", "one depth"),
        ("gradients", "highway", "arch=plain,residual"),
        *((name, "highway", "arch=residual") for name in ("paths", "routes", "where")),
        *((name, "transformer", "arch=residual") for name in ("highway", "speed")),
        *(("identity", archs, "depth=8,20") for archs in ("plain", "residual residual:14")),
    ],
)
def test_what_networks_are_missing_is_told_with_what_to_type(
    name: str, archs: str, hint: str
) -> None:
    cases = []
    for arch, _, depth in (one.partition(":") for one in archs.split()):
        cases.append(Case(arch, compose([f"arch={arch}", f"depth={depth or 8}"]).settings))
    with pytest.raises(UsageError, match=hint):
        list(probes.probe(name).measure(cases, iter))


# --- what is left behind


def test_a_finding_is_a_table_a_figure_and_a_record(swept: Path, small_rank: None) -> None:
    code, out, _ = call("probe", "rank", str(swept))
    assert code == 0
    assert "supported under this recipe: " in out
    record = json.loads((swept / "probe-rank.json").read_text())
    assert record["verdict"] in list(Verdict)
    assert record["sentence"] in out
    assert record["claim"] == rank.CLAIM
    assert record["command"] == f"resexp probe rank {swept}"
    table = rows.read((swept / "probe-rank.csv").read_text())
    [value] = rows.values(table, "value", measured="rank", arm="attention alone", layers=4)
    assert value == record["numbers"]["rel(X), attention alone, 4 layers"]
    assert (swept / "probe-rank.png").read_bytes()[:4] == b"\x89PNG"
    code, out, _ = call("probe", "rank", str(swept), "--json")
    assert code == 0
    assert [one["numbers"] for one in json.loads(out)] == [record["numbers"]]


def test_among_several_one_that_cannot_be_done_is_left_out(
    swept: Path, small_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [one for one in probing.of_runs("all", swept, []) if one.name in ("rank", "speed")]

    def refuse(cases: Sequence[Case], tell: Tell) -> list[Row]:
        raise UsageError("no such networks.")

    monkeypatch.setattr("resexp.probes.speed.measure", refuse)
    assert [one["probe"] for one in probing.perform_all(wanted, "resexp probe all")] == ["rank"]
    with pytest.raises(UsageError, match="no such networks"):
        list(probing.perform_all([wanted[1]], "resexp probe all"))


def test_the_probes_are_listed_with_their_claims() -> None:
    code, out, _ = call("probe")
    assert code == 0
    assert all(name in out for name in probes.names())
    code, _, err = call("probe", "gradient")
    assert code == 2
    assert "there is no probe gradient" in err
