"""The command line on tiny trainings: what is trained, skipped, printed and left behind."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import pytest
from fake_results import write_run
from filelock import FileLock
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image

import resexp
from resexp import config
from resexp.cli import app, main
from resexp.launch import dry_run, estimates
from resexp.launch.dry_run import remember
from resexp.models import Size
from resexp.settings import Settings, UsageError, as_dict, choices, run_name
from resexp.train.fit import fit
from resexp.train.row import COLUMNS

pytestmark = pytest.mark.process

TINY = ["steps=4", "depth=8", "batch_size=8", "eval_every=2", "threads=1"]
EXTRAS = "batch_size=8,eval_every=2,steps=4"  # what these add to a run's name
KEYS = (  # of run.json
    "run name status arch depth seed extras settings digest overrides command preregistration data "
    "parameters parameters_without_norm flops last seconds images_per_second peak_memory_mb "
    "engine_reason environment started updated error"
)
PLAIN_8 = 75_002  # parameters: 3x3 kernels 73,872, classifier 650, normalisation 480
PAINT = re.compile(r"\x1b\[[\d;?]*[mAKhl]")  # colours, and moves of the cursor


@dataclass(slots=True)
class Answer:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def call(*words: str, code: int | None = None) -> Answer:
    """``resexp WORDS`` in this process and folder, which must end with ``code``."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["resexp", *words])
        streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
        with streams[0], streams[1], pytest.raises(SystemExit) as stop:
            main()
    assert isinstance(stop.value.code, int)
    assert code in (None, stop.value.code), err.getvalue()
    assert not PAINT.search(out.getvalue() + err.getvalue())  # there is no terminal
    return Answer(stop.value.code, out.getvalue(), err.getvalue())


def run(*words: str, code: int | None = None) -> Answer:
    """``resexp run`` of a tiny network."""
    return call("run", *TINY, *words, code=code)


def place(name: str) -> Path:
    """The folder of a run of a tiny network."""
    return Path("results/digits") / f"{name},{EXTRAS}"


def next_of(answer: Answer) -> list[str]:
    """The words of the command that trains the twin."""
    command = re.search(r"next: resexp (run .*), then resexp plot", answer.out)
    assert command is not None
    return shlex.split(command[1])


def record(directory: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((directory / "run.json").read_text())
    return loaded


def contents(folder: Path) -> dict[str, bytes]:
    """Each file under ``folder`` and what is in it."""
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def without_time(csv: Path) -> list[list[str]]:
    """The cells of a metrics.csv but for the two columns of time."""
    return [line.split(",")[:-2] for line in csv.read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with results/digits/{plain,residual}-8-s{0,1}. Not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    with contextlib.chdir(folder):
        run("-m", "arch=plain,residual", "seed=0,1", code=0)
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def copied(here: Path, trained: Path) -> Path:
    """The current folder, with the trained results of which everything may be changed."""
    shutil.copytree(trained, here, dirs_exist_ok=True)
    return here


@pytest.fixture
def reading(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The trained folder as the current one; it must be left as it was."""
    monkeypatch.chdir(trained)
    before = contents(trained)
    yield trained
    assert contents(trained) == before


# --- one run


def test_a_run_leaves_its_record_rows_and_settings(here: Path) -> None:
    answer = run("seed=3")
    directory = place("plain-8-s3")
    assert answer.code == 0
    left = {path.name for path in directory.iterdir()} - {".lock"}
    assert left == {"config.yaml", "metrics.csv", "run.json"}
    written = record(directory)
    assert " ".join(written) == KEYS
    assert answer.out.split()[:2] == [written["status"], str(directory)]
    for words in (f"{PLAIN_8:,} parameters", "step 2/4", "step 4/4"):
        assert words in answer.err
    assert written["status"] in ("ok", "collapsed")
    assert written["parameters"] == PLAIN_8
    assert written["parameters_without_norm"] == PLAIN_8 - 480
    assert written["flops"] == 1_494_272
    assert written["peak_memory_mb"] > 10
    assert written["seconds"] == pytest.approx(written["last"]["seconds"], 1e-6)
    assert written["seconds"] > 0
    assert written["extras"] == {"batch_size": 8, "eval_every": 2, "steps": 4}
    assert written["overrides"] == [*TINY, "seed=3"]
    assert written["data"]["shape"] == [8, 8, 1]
    assert written["environment"]["threads"] == 1
    assert written["error"] is None
    rows = without_time(directory / "metrics.csv")
    assert rows[0] == list(COLUMNS[:-2])
    assert [row[0] for row in rows[1:]] == ["2", "4"]
    assert [row[5] == "" for row in rows[1:]] == [True, False]  # a clean pass at the end only
    assert written["last"]["step"] == 4
    assert f"{written['last']['clean_train_error']:.7g}" == rows[-1][6]
    assert OmegaConf.load(directory / "config.yaml") == written["settings"]


def test_the_next_command_trains_the_twin_and_then_both_are_named(copied: Path) -> None:
    shutil.rmtree(place("residual-8-s1"))
    answer = run("seed=1")
    second = call(*next_of(answer), code=0)
    error = record(place("plain-8-s1"))["last"]["clean_train_error"]
    assert f"plain twin: {error:.1f} %" in second.out
    assert "next: resexp plot" in second.out


def test_the_recorded_command_is_as_it_was_typed_and_names_the_same_run() -> None:
    words = ["depth=8", "milestones=[0.25,0.5]", "lr=1e-2", "flip=True", "arch=residual"]
    job = config.compose([*words, "arch.shortcut=B"])
    again = config.compose(shlex.split(job.command)[2:])
    assert job.command == (
        "resexp run depth=8 'milestones=[0.25,0.5]' lr=1e-2 flip=True arch=residual arch.shortcut=B"
    )
    assert again.directory == job.directory
    assert again.settings == job.settings
    assert job.run == "residual-8-s0,arch.shortcut=B,flip=true,lr=0.01,milestones=%5B0.25;0.5%5D"
    one = config.compose(["lr=0.1", "depth=20", "arch=residual"])
    other = config.compose(["arch=residual", "depth=20", "lr=1e-1", "threads=3", "results=x"])
    assert one.run == other.run == "residual-20-s0,lr=0.1"


def test_a_run_lies_in_a_folder_named_after_its_data_or_its_experiment() -> None:
    photos = ["data=imagefolder", "data.root=my photos.zip"]
    for words, folder in (
        ([], "results/digits"),
        (photos, "results/my-photos"),
        ([*photos, "name=mine"], "results/mine"),
        (["experiment=he2015"], "results/he2015"),
        (["results=other/deep", "name=first-try"], "other/deep/first-try"),
    ):
        assert config.compose(words).directory.parent == Path(folder)


def test_a_run_of_another_experiment_in_ones_own_folder(here: Path) -> None:
    (here / "mine/experiment").mkdir(parents=True)
    (here / "mine/experiment/tiny.yaml").write_text(
        "# @package _global_\n# Four steps.\nname: tiny\nsteps: 4\nbatch_size: 8\neval_every: 2\n"
    )
    answer = call("run", "depth=8", "--config-dir", "mine", "experiment=tiny", "threads=1", code=0)
    written = record(here / "results/tiny/plain-8-s0")
    assert (written["extras"], written["settings"]["steps"]) == ({}, 4)
    call(*next_of(answer), code=0)
    assert (here / "results/tiny/residual-8-s0/run.json").exists()
    again = call(*shlex.split(written["command"])[1:])
    assert again.out.startswith("done")


# --- a directory that holds something


def test_other_settings_are_refused_by_their_key_and_overwritten_on_request(copied: Path) -> None:
    directory = place("plain-8-s0")
    rows = without_time(directory / "metrics.csv")
    written = record(directory)
    written["settings"]["lr"] = 0.5
    (directory / "run.json").write_text(json.dumps(written))
    before = contents(copied)
    for words in ([], ["-m"]):
        answer = run(*words)
        assert (answer.code, answer.out) == (2, "")
        assert re.fullmatch(r"resexp: .* was trained with lr=0\.5, not lr=.*\n", answer.err)
        assert "overwrite=true" in answer.err
    assert contents(copied) == before
    (directory / "metrics.csv").write_text("spoilt\n")
    (directory / "checkpoint.pt").write_text("of other settings")
    (directory / "notes.txt").write_text("mine")
    answer = run("overwrite=true", code=0)
    assert without_time(directory / "metrics.csv") == rows
    assert record(directory)["settings"]["lr"] == Settings().lr
    assert (directory / "notes.txt").read_text() == "mine"
    assert not (directory / "checkpoint.pt").exists()


def test_a_directory_at_work_is_left_alone(here: Path) -> None:
    directory = place("plain-8-s0")
    directory.mkdir(parents=True)
    with FileLock(directory / ".lock"):
        alone = run()
        sweep = run("-m", "seed=0,1")
    assert (alone.code, sweep.code) == (0, 0)
    assert alone.out.split()[:2] == ["busy", str(directory)]
    assert sweep.out.startswith("1 done, 1 left to another process")
    assert [path.name for path in directory.iterdir()] == [".lock"]


# --- sweeps


def test_a_sweep_trains_each_combination_once_and_skips_the_finished(here: Path) -> None:
    run("seed=1", code=0)
    before = contents(here)
    again = run("seed=1", code=0)
    assert again.out.split()[:2] == ["done", str(place("plain-8-s1"))]
    assert "nothing to do" in again.out and contents(here) == before
    answer = run("-m", "seed=0,1,0", "arch=plain,residual", code=0)
    assert answer.out == (
        "3 done, 1 skipped (finished before)\nnext: resexp plot, resexp table, resexp verdict\n"
    )
    columns = [line.index("clean") for line in answer.err.splitlines() if "clean" in line]
    assert len(columns) == 4 and len(set(columns)) == 1  # aligned, whatever the length of a name
    arms = product(("plain", "residual"), (0, 1))
    assert set(here.rglob("run.json")) == {
        here / place(f"{arch}-8-s{seed}") / "run.json" for arch, seed in arms
    }
    assert before.items() <= contents(here).items()


def test_flags_and_their_values_are_told_from_overrides() -> None:
    for words in permutations(["-m", "--config-dir mine", "depth=8", "seed=-1"]):
        flags, overrides = config.split(" ".join(words).split())
        assert sorted(overrides) == ["depth=8", "seed=-1"]
        assert flags in (["-m", "--config-dir", "mine"], ["--config-dir", "mine", "-m"])


def test_a_dry_run_shows_the_plan_and_writes_nothing(copied: Path) -> None:
    directory = place("residual-8-s1")
    written = record(directory)
    (directory / "run.json").write_text(json.dumps(written | {"status": "interrupted"}))
    before = contents(copied)
    answer = run("--dry-run", "-m", "arch=residual", "seed=0,1,2", code=0)
    states = re.findall(r"^residual-8-s(\d)\S* +(\w+) +([\d,]+)", answer.out, re.MULTILINE)
    assert states == [("0", "done", "75,002"), ("1", "resume", "75,002"), ("2", "new", "75,002")]
    assert "2 of 3 runs to train" in answer.out
    assert contents(copied) == before
    alone = run("--dry-run", "seed=9")
    assert "1 of 1 run to train" in alone.out
    assert contents(copied) == before


def test_the_first_step_is_not_timed_alone_however_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0, spent=iter([5.0, 1.0, 1.0, 1.0]))

    def steps(*_: object) -> Iterator[None]:
        for seconds in clock.spent:
            clock.now += seconds
            yield None

    monkeypatch.setattr(estimates, "fit", steps)
    monkeypatch.setattr(estimates, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    job = config.compose(["batch_size=16", "threads=1"])
    assert estimates.seconds_per_image(job, Size(1, 1, 1000)) == 1 / 16


def test_nothing_is_kept_for_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    job = config.compose(["depth=8"])
    monkeypatch.setattr(Path, "expanduser", homeless)
    remember([job], [dry_run.Estimate("", "", "", 1, 1, 1.0)])
    assert dry_run.measured(job) == {}


def without_torch(*words: str) -> subprocess.CompletedProcess[str]:
    """``resexp run`` with these words in a process that cannot import torch."""
    program = "import sys; sys.modules['torch'] = None; from resexp.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, "run", *words],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )


@pytest.mark.process
def test_what_is_done_is_skipped_without_torch_or_a_launcher(copied: Path) -> None:
    before = contents(copied)
    words = ("-m", "arch=plain,residual", "seed=0,1", "launch=processes", "device=cuda", *TINY)
    done = without_torch(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4 skipped (finished before)")
    assert contents(copied) == before


@pytest.mark.process
def test_networks_of_a_dry_run_are_known_without_torch_for_a_day(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*more: str) -> str:
        done = without_torch("--dry-run", "data.cache=cache", *TINY, *more)
        return done.stdout + done.stderr

    monkeypatch.setattr(dry_run, "remember", remember)
    assert run("--dry-run", "data.cache=cache", "seed=1", code=0).out == said("seed=1")
    assert "2 of 2 runs to train" in said("-m", "seed=2,3", "name=other")
    assert "torch" in said("lr=0.3")  # the check of another rate was not made
    place("plain-8-s1").mkdir(parents=True)
    (place("plain-8-s1") / "mine.txt").touch()
    assert "not a run of resexp" in said("seed=1")
    table = Path("cache/costs.json")
    costs = json.loads(table.read_text())
    for hostile in (
        {key: one | {"at": one["at"] - 86_401} for key, one in costs.items()},
        {key: one | {"seconds": "long"} for key, one in costs.items()},
        [1],
    ):
        table.write_text(json.dumps(hostile))
        assert "torch" in said("seed=2")
    assert "1 of 1 run to train" in run("--dry-run", "data.cache=cache", "seed=2", code=0).out
    assert json.loads(table.read_text()).keys() == costs.keys()


def test_ctrl_c_exits_with_130(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("resexp.runs.run.fit", interrupted)
    run("-m", "seed=0,1", code=130)
    assert record(place("plain-8-s0"))["status"] == "running"
    assert not place("plain-8-s1").exists()


@pytest.mark.parametrize(("one", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_ends_the_sweep_and_says_how_to_go_on(
    here: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, one: signal.Signals, code: int
) -> None:
    def disturbed(*words: Any) -> Iterator[Any]:
        for row in fit(*words):
            os.kill(os.getpid(), one)
            yield row

    with monkeypatch.context() as patch:
        patch.setattr("resexp.runs.run.fit", disturbed)
        answer = run("-m", "seed=0,1")
    assert (answer.code, answer.out) == (code, "")
    assert "run the same command again" in answer.err
    directory = place("plain-8-s0")
    assert record(directory)["status"] == "interrupted"
    assert (directory / "checkpoint.pt").exists()
    assert not place("plain-8-s1").exists()
    again = run("-m", "seed=0,1")
    assert again.out.startswith("2 done") and "resuming from step 1" in again.err
    rows = directory / "metrics.csv"
    assert without_time(rows) == without_time(trained / rows)


def test_what_nobody_foresaw_is_one_line_unless_the_traceback_is_asked_for(
    reading: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a fault of ours\nin two lines")

    monkeypatch.setattr("resexp.commands.listing.runs", broken)
    answer = call("list", code=1)
    assert re.fullmatch(r"resexp: RuntimeError: a fault of ours [^\n]*\n", answer.err)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["resexp", "list"])
    with pytest.raises(RuntimeError, match="a fault of ours"):
        main()


# --- Hydra's flags


def test_cfg_prints_the_settings_as_yaml_and_trains_nothing(here: Path) -> None:
    answer = call("run", "depth=8", "seed=3", "--cfg", "job", code=0)
    assert OmegaConf.create(answer.out) == as_dict(Settings(depth=8, seed=3))
    assert not list(here.iterdir())


def test_info_prints_how_the_settings_came_together(tmp_path: Path) -> None:
    # A process of its own: once a job has run here, Hydra's loggers are switched off.
    result = subprocess.run(
        [sys.executable, "-m", "resexp", "run", "depth=8", "--info", "defaults"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert result.returncode == 0, result.stderr
    assert "Defaults List" in result.stdout and "experiment/digits" in result.stdout
    assert not list(tmp_path.iterdir())


# --- reading


def test_every_reading_command_has_json(reading: Path, tmp_path: Path) -> None:
    runs = call("list", "--json").json
    arms = product(("plain", "residual"), (0, 1))
    assert [row["run"] for row in runs] == [place(f"{arch}-8-s{seed}").name for arch, seed in arms]
    rows = call("table", "--json").json
    assert [(row["depth"], row["parameters"], row["seeds"]) for row in rows] == [(8, 75_002, 2)] * 2
    shown = call("show", runs[0]["run"], "--json").json
    assert shown["directory"] == f"results/digits/{runs[0]['run']}"
    assert shown["settings"]["steps"] == 4
    drawn = call("plot", "--json", "--format", "svg", "--out", str(tmp_path))
    assert drawn.json == [str(tmp_path / "curves.svg")]  # of depth there is one
    assert "<svg" in (tmp_path / "curves.svg").read_text() and "note: no depth" in drawn.err
    checks = call("twin", "depth=8", "--json").json
    assert len(checks) == 5 and all(check["equal"] for check in checks)
    findings = call("doctor", "--json").json
    assert {finding["level"] for finding in findings} <= {"ok", "warn", "fail"}
    assert {"versions", "device", "results", "digits"} <= {one["what"] for one in findings}


def test_figures_and_the_report_are_opened_where_that_is_asked(
    reading: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("typer.launch", lambda path: opened.append(path))
    words = ["--width", "8.5", "--dpi", "60", "--title", "Mine", "--which", "curves", "--show"]
    call("plot", *words, "--out", str(tmp_path), code=0)
    call("report", "--open", "--out", str(tmp_path), code=0)
    assert opened == [str(tmp_path / "curves.png"), str(tmp_path / "report.html")]
    with Image.open(opened[0]) as image:
        assert image.width == 200  # 8.5 cm at 60 dots an inch
    call("plot", "--width", "3", code=2)


def test_the_verdict_has_json_and_exit_codes(here: Path) -> None:
    def write(arch: str, deep: float) -> None:
        for depth, seed in product((20, 56), range(5)):
            error = (deep if depth == 56 else 1.0) * (1 + seed / 9)
            write_run(here / "results", arch, depth, seed, clean_error=error)

    write("plain", 40.0)
    write("residual", 1.0)
    answer = call("verdict", "--json", code=0)
    assert answer.json["outcome"] == "degrades"
    assert [arm["cure"] for arm in answer.json["arms"]] == ["", "cured"]
    assert [answer.json["shallow"], answer.json["deep"]] == [20, 56]
    text = call("verdict", code=0)
    assert "plain networks: degrades" in text.out and "Cured: residual." in text.out
    write("residual", 40.0)
    call("verdict", code=5)
    write("plain", 0.0)
    call("verdict", code=3)
    call("verdict", "seed=0", code=4)


def test_json_has_null_where_a_number_is_not_finite(here: Path) -> None:
    last = {"clean_train_error": None, "test_error": None, "seconds": 1.5}
    write_run(here / "results", "plain", 8, 0, status="diverged", record={"last": last})

    def not_json(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    for words in (["list"], ["show", "plain-8-s0"], ["table"]):
        json.loads(call(*words, "--json").out, parse_constant=not_json)


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        (["arch=plain"], ["plain-8-s0", "plain-8-s1"]),
        (["runs", "results/digits", "seed=1", "steps=4"], ["plain-8-s1", "residual-8-s1"]),
        (["depth=20"], []),
    ],
)
def test_list_filters(reading: Path, filters: list[str], names: list[str]) -> None:
    found = [row["run"].split(",")[0] for row in call("list", *filters, "--json").json]
    assert found == names
    text = call("list", *filters).out
    assert re.findall(r"\w+-8-s\d", text) == found
    assert (text == "none\n") == (not found)


@pytest.mark.parametrize(
    ("what", "group"),
    [
        *(("archs", "arch"), ("data", "data"), ("recipes", "recipe")),
        *(("optimizers", "optimizer"), ("experiments", "experiment")),
    ],
)
def test_what_can_be_chosen_is_listed_with_a_sentence_each(what: str, group: str) -> None:
    rows = call("list", what, "--json").json
    assert [row[group] for row in rows] == choices.options(group)
    assert all(len(row.get("use", row["what it is"])) > 20 for row in rows)
    assert what != "archs" or all(row["what it is"].startswith("y = ") for row in rows)
    text = call("list", what).out
    assert all(row[group] in text for row in rows)


def test_every_setting_is_listed_with_its_default() -> None:
    rows = {row["setting"]: row for row in call("list", "settings", "--json").json}
    assert rows["depth"]["default"] == Settings().depth
    shortcut = rows["arch.shortcut"]
    assert shortcut["meaning"] and (shortcut["default"], shortcut["values"]) == ("A", "A B C")
    [lr] = call("list", "settings", "lr", "--json").json
    assert (lr["default"], lr["meaning"]) == (0.02, "learning rate at the start")
    [gate] = call("list", "settings", "gate_bias", "--json").json
    assert gate["meaning"] == "of arch=highway, shortcut_gate"
    text = call("list", "settings").out
    named = [line for line in text.splitlines()[1:] if not line.startswith(" ")]  # others go on
    assert [line.split()[0] for line in named] == list(rows)


def test_show_names_the_settings_and_the_command_that_repeats_the_run(copied: Path) -> None:
    name = f"residual-8-s1,{EXTRAS}"
    by_name, by_place = call("show", name), call("show", f"results/digits/{name}")
    assert by_name == by_place
    assert "steps=4" in by_name.out and "75,002 parameters" in by_name.out
    command = re.search(r"^again +resexp (.*)$", by_name.out, re.MULTILINE)
    assert command is not None
    csv = place("residual-8-s1") / "metrics.csv"
    rows = without_time(csv)
    call(*shlex.split(command[1]), code=0)
    assert without_time(csv) == rows
    assert len(list(copied.rglob("run.json"))) == 4


def test_show_needs_the_folder_where_a_name_is_not_enough(here: Path) -> None:
    write_run(here / "results", "plain", 20, 0, name="one")
    write_run(here / "results", "plain", 20, 0, name="two")
    answer = call("show", "plain-20-s0", code=2)
    assert "results/one/plain-20-s0, results/two/plain-20-s0" in answer.err


@pytest.mark.parametrize(
    ("arch", "code"), [("preact", 0), ("residual arch.shortcut=B", 3), ("plain", 0)]
)
def test_twins_that_differ_in_more_than_the_skip_have_an_exit_code(arch: str, code: int) -> None:
    answer = call("twin", "depth=8", *f"arch={arch}".split(), code=code)
    assert ("DIFFERS" in answer.out) == (code == 3)


def test_a_demo_trains_draws_tabulates_and_decides(here: Path) -> None:
    words = ["depth=8,14", "seed=0", "steps=2", "batch_size=8", "threads=1", "launch=local"]
    words += ["results=mine"]
    answer = call("demo", *words, code=0)
    first = answer.out.splitlines()[0]
    assert "4 done" in first
    assert f"resexp run -m arch=plain,residual keep_checkpoint=true {' '.join(words)}" in first
    for command in ("resexp plot", "resexp table", "resexp verdict"):
        assert re.search(rf"^{command} mine/digits$", answer.out, re.MULTILINE)
    assert "Training deeper plain networks" in answer.out
    assert (here / "mine/digits/curves.png").read_bytes()[:4] == b"\x89PNG"
    assert not (here / "results").exists()


# --- help, versions, colours

COMMANDS = [
    command.name or command.callback.__name__
    for command in app.registered_commands
    if command.callback is not None
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    answer = call(command, "--help", code=0)
    assert re.search(rf"Examples?\b.*resexp {command}", answer.out, re.DOTALL)


def test_no_command_is_a_question_for_help() -> None:
    answer, asked = call(), call("--help")
    assert "Usage: resexp" in answer.out
    assert answer.out.strip() == asked.out.strip()
    assert (answer.err, asked.code) == ("", 0)
    of_the_readme = {"run", "plot", "table", "verdict", "list", "show", "twin", "doctor", "demo"}
    assert of_the_readme <= set(COMMANDS)
    for command in COMMANDS:
        assert command in asked.out
    version = call("--version")
    named = [line.split()[0] for line in version.out.splitlines()]
    assert (version.code, named) == (0, ["resexp", "torch", "hydra-core"])


# --- from Python


def test_python_trains_as_the_command_line_does(here: Path, trained: Path) -> None:
    tiny: dict[str, Any] = {"depth": 8, "arch": "residual", "seed": 1, "results": here / "py"}
    tiny |= {"steps": 4, "batch_size": 8, "eval_every": 2, "threads": 1}
    done = resexp.run(**tiny)
    name = f"residual-8-s1,{EXTRAS}"
    assert done.path == here / "py/digits" / name
    assert done.status in ("ok", "collapsed")
    there = without_time(trained / "results/digits" / name / "metrics.csv")
    assert without_time(done.path / "metrics.csv") == there
    before = contents(here)
    assert resexp.run(**tiny).path == done.path
    assert contents(here) == before


def test_python_refuses_in_one_sentence(here: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean depth"):
        resexp.run(dpeth=8)
    with pytest.raises(UsageError, match="6n\\+2"):
        resexp.run(depth=9)
    with pytest.raises(AttributeError, match="trainn"):
        _ = resexp.trainn
    assert list(here.iterdir()) == []


# --- names

words = st.text(max_size=12)
extras = st.fixed_dictionaries(
    {},
    optional={
        "data.name": words,
        "data.root": words,
        "lr": st.floats(1e-9, 10, allow_subnormal=False),
        "steps": st.integers(1, 10**9),
        "flip": st.booleans(),
        "milestones": st.lists(st.floats(0.001, 0.999), max_size=3),
        "data.size": st.none() | st.integers(8, 1024),
    },
)
SAFE = re.compile(r"[A-Za-z0-9_.+;,=%~-]+")


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(extras, extras)
@hypothesis.example({"data.name": "/41"}, {"data.name": "\u2f41"})
@hypothesis.example({"data.name": "a,lr=1"}, {"data.name": "a", "lr": 1})
@hypothesis.example({"data.name": "a%2Fb"}, {"data.name": "a/b"})
@hypothesis.example({"data.name": "x" * 200 + "1"}, {"data.name": "x" * 200 + "2"})
def test_two_runs_share_a_name_only_if_they_share_their_settings(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert (run_name("plain", 20, 0, one) == run_name("plain", 20, 0, other)) == (one == other)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(extras, st.randoms())
def test_a_name_is_safe_short_and_depends_on_no_order(values: dict[str, Any], random: Any) -> None:
    name = run_name("plain", 56, 3, values)
    assert SAFE.fullmatch(name) and name.startswith("plain-56-s3") and len(name) <= 180
    shuffled = list(values.items())
    random.shuffle(shuffled)
    assert run_name("plain", 56, 3, dict(shuffled)) == name


# --- the way of a job


@pytest.mark.parametrize("words", [["seed=0"], ["-m", "seed=0,1"]])
def test_no_more_than_seven_functions_lie_between_the_command_and_a_row(
    here: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    root = str(Path(resexp.__file__).parent)
    ways = []

    def append_row(*_: object) -> None:
        frames = [one for one in inspect.stack()[1:] if one.filename.startswith(root)]
        ways.append([one.function for one in reversed(frames)])

    monkeypatch.setattr("resexp.runs.records.append_row", append_row)
    run(*words, code=0)
    way = ["main", "run", "launch", "sweep", "launch", "run_all", "train"]  # then append_row
    assert ways == [way] * 2 * len(words)
