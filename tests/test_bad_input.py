"""Wrong command lines: exit code 2, one line that says what to type next, nothing written."""

from __future__ import annotations

import math
import re
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_results import write_grid
from test_cli import call

from resexp import config
from resexp.settings import Above, Range, Settings, UsageError
from resexp.settings.fields import bare, leaves, said
from resexp.settings.schema import check
from resexp.train import device

#: What each command line must be answered with; words are separated by spaces, none has one inside.
RUN = [
    # names
    ("run dpeth=56", ["unknown setting dpeth", "Did you mean depth?"]),
    ("run learning_rate=0.1", ["unknown setting learning_rate", "resexp list settings"]),
    ("run shortcutt=B", ["unknown setting shortcutt", "Did you mean arch.shortcut?"]),
    ("run +foo=1", ["unknown setting foo", "resexp list settings"]),
    ("run -m dpeth=20,56", ["unknown setting dpeth", "Did you mean depth?"]),
    # options of a group
    ("run arch=residul", ["arch has no option residul", "Did you mean residual?"]),
    ("run -m arch=plain,resid", ["arch has no option resid", "Did you mean residual?"]),
    ("run arch=", ["arch", "Choose one of: plain, "]),
    ("run arch=null", ["arch=null", "Choose one of: plain, "]),
    ("run ~arch", ["arch", "plain"]),
    ("run arch=[plain,residual]", ["arch", "plain, "]),
    ("run data=mnist", ["data has no option mnist", "cifar10, digits, fashion_mnist"]),
    ("run +experiment=digits", ["experiment=digits"]),
    # values of the wrong kind
    ("run depth=abc", ["depth", "abc", "Integer"]),
    ("run depth=null", ["depth", "resexp list settings"]),
    ("run -m depth=8,abc", ["depth", "abc", "Integer"]),
    ("run milestones=0.5", ["milestones must be a list", "'milestones=[0.5,0.75]'"]),
    ("run arch.shortcut=D", ["arch.shortcut", "D", "A, B, C"]),
    ("run precision=fp16", ["precision", "fp16", "fp32, bf16"]),
    # values out of range
    ("run depth=55", ["depth=55 is not 6n+2", "Nearest: 50, 56."]),
    ("run depth=2", ["depth=2", "Nearest: 8."]),
    ("run depth=-8", ["depth=-8", "from 1"]),
    ("run width=4096", ["width=4096", "up to width=1581"]),
    ("run -m seed=range(200000)", ["seed=range(200000)", "10,000 runs"]),
    ("run -m seed=range(2000000000) depth=8,14", ["depth=8,14", "10,000 runs"]),
    ("run -m seed=range(0) depth=8,14", ["seed=range(0)", "no values", "seed=range(3)"]),
    (f"run seed={'9' * 6000}", ["seed has a number of 6,000 digits"]),
    ("run device=cuda:99999999999999999999", ["device=cuda:9999", "cpu, cuda"]),
    ("run hydra.launcher._target_=os.system", ["hydra.launcher._target_", "launch="]),
    ("run arch=repvgg arch.options={}", ["arch.options={...}", "data.size=32"]),
    ("run arch.merge=magic", ["arch.merge=magic", "plain, residual, weighted"]),
    ("run arch=plain gate_bias=-2", ["arch.options.gate_bias", "arch=highway or shortcut_gate"]),
    ("run arch.gate_bias=-2", ["arch.options.gate_bias", "arch=highway or shortcut_gate"]),
    ("run -m depth=20,55", ["depth=55", "50, 56"]),
    ("run arch.unit=bottleneck depth=26", ["depth=26 is not 9n+2", "Nearest: 20, 29."]),
    ("run lr=nan", ["lr=nan", "above 0"]),
    # several values
    ("run depth=20,56", ["depth=20,56", "Add -m"]),
    ("run depth=range(8,20)", ["depth=range(8,20)", "Add -m"]),
    # what is no override
    ("run depth=[1", ["depth=[1", "key=value"]),
    ("run depth", ["'depth'", "key=value"]),
    ("run =", ["'='", "key=value"]),
    # this machine
    ("run device=gpu", ["device=gpu", "cpu, cuda"]),
    ("run device=cuda", ["device=cuda", "no GPU", "device=cpu", "resexp doctor"]),
    ("run precision=bf16", ["precision=bf16", "avx512_bf16", "precision=fp32"]),
    # data
    ("run threads=512", ["threads=512", "up to threads=8", "threads=0"]),
    ("bench threads=512 depth=8", ["threads=512", "up to threads=8", "threads=0"]),
    ("run data=cifar10 data.download=false", ["CIFAR-10", "data.root", "experiment=digits"]),
    ("run data=fashion_mnist data.download=false", ["Fashion-MNIST", "data.root"]),
    ("run data=imagefolder data.root=nowhere", ["data.root=nowhere", "train/<class>"]),
    ("run data.loader=cifar", ["data.loader=cifar", "Did you mean cifar10?"]),
    ("run data.split=45k depth=8 steps=2", ["data.split=45k", "1,437", "data.split=full"]),
    # places
    ("run name=../x", ["name='../x'", "name=first-try"]),
    ("run results=/dev/null/x depth=8 steps=2", ["/dev/null/x", "cannot be written", "results="]),
    ("run results=file depth=8 steps=2", ["file", "cannot be written", "results="]),
    # flags
    ("run --frobnicate", ["--frobnicate", "resexp run --help"]),
    ("run --dry-rum depth=8", ["--dry-rum", "--dry-run"]),
    ("run --cfg foo", ["--cfg", "foo", "job"]),
    ("run --cfg job -m depth=8,20", ["--cfg and -m", "one of them"]),
    ("run -i config -c job", ["--info and --cfg", "one of them"]),
    ("run --info foo", ["--info", "foo", "defaults"]),
    ("run --config-dir nowhere", ["nowhere"]),
    ("run --config-name foo", ["foo", "config"]),
    ("run hydra/launcher=slurm", ["hydra/launcher has no option slurm", "basic"]),
    ("run hydra.run.dir=x", ["hydra.run.dir", "results= or name="]),
    ("run -m seed=0,1 hydra.sweep.dir=x", ["hydra.sweep.dir", "results= or name="]),
    ("run --json", ["--json goes with --dry-run", "resexp list --json"]),
]

OTHERS = [
    ("runn", ["runn", "'run'"]),
    ("--frobnicate", ["--frobnicate", "resexp --help"]),
    ("plot nowhere", ["no folder nowhere", "results folder"]),
    ("table nowhere", ["no folder nowhere", "results folder"]),
    ("verdict nowhere", ["no folder nowhere", "results folder"]),
    ("list nowhere", ["no folder nowhere", "results folder"]),
    ("list", ["no folder results", "resexp demo"]),
    ("show nothing", ["no run nothing", "resexp list"]),
    ("show", ["RUN", "--help"]),
    ("list a b", ["a", "b", "give one"]),
    ("list archs dpeth=3", ["dpeth"]),
    ("list settings dpeth", ["unknown setting dpeth", "Did you mean depth?"]),
    ("plot --format gif", ["gif", "'png', 'svg', 'pdf'"]),
    ("table --format word", ["word", "'latex'"]),
    ("verdict --deep x", ["--deep", "integer"]),
    ("twin dpeth=3", ["unknown setting dpeth", "Did you mean depth?"]),
    ("twin depth=9", ["depth=9", "8, 14"]),
    ("twin --frobnicate", ["--frobnicate", "--help"]),
    ("doctor dpeth=3", ["unknown setting dpeth", "Did you mean depth?"]),
    ("doctor --frobnicate", ["--frobnicate", "resexp doctor --help"]),
    ("doctor --results", ["--results needs a value", "resexp doctor --help"]),
    ("demo dpeth=3", ["unknown setting dpeth", "Did you mean depth?"]),
    ("demo --frobnicate", ["--frobnicate", "--help"]),
]

WITH_RESULTS = [
    ("list dpeth=3", ["unknown setting dpeth", "Did you mean depth?"]),
    ("table dpeth=3", ["unknown setting dpeth", "Did you mean depth?"]),
    ("plot dpeth=3", ["unknown setting dpeth", "Did you mean depth?"]),
    ("verdict dpeth=3", ["unknown setting dpeth", "Did you mean depth?"]),
    ("plot results results", ["two results folders", "give one"]),
    ("plot arch=none", ["no run in results has arch=none", "resexp list"]),
    ("table depth=44", ["no run in results has depth=44", "resexp list"]),
    ("verdict --deep 44", ["no plain runs of depth 44", "20, 56"]),
    ("verdict --deep 20 --shallow 56", ["depth 20 is not deeper than 56"]),
    ("show plain-20-s9", ["no run plain-20-s9", "resexp list"]),
    ("verdict --axis nothing", ["no setting nothing"]),
    ("verdict --axis run", ["no setting run"]),
    ("best --setting milestones --chosen-on 0", ["milestones have no order", "lr"]),
    ("best --setting arch.skip_stages --chosen-on 0", ["arch.skip_stages have no order", "lr"]),
]


@pytest.fixture(autouse=True)
def a_modest_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two cores, no GPU, no bfloat16 and nothing in the current folder but a file."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "bf16_on_cpu", lambda: False)
    monkeypatch.setattr(device, "machine_cores", lambda: 2)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("not a folder")


def everything(folder: Path) -> dict[str, bytes | None]:
    """Each path under ``folder`` and what is in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def check_refused(command: str, words: list[str]) -> None:
    """Run ``resexp COMMAND`` here and check how it is refused."""
    before = everything(Path())
    answer = call(*command.split())
    assert (answer.code, answer.out) == (2, ""), answer.err
    assert re.fullmatch(r"resexp: \S[^\n]*\n", answer.err), f"not one line: {answer.err}"
    assert [word for word in words if word not in answer.err] == [], answer.err
    assert not re.search(r"Error\b|\w\.\.\s|runtime|defaults list", answer.err), answer.err
    assert everything(Path()) == before


@pytest.mark.parametrize(("command", "words"), [*RUN, *OTHERS], ids=lambda one: str(one)[:60])
def test_what_cannot_be_done_is_refused(command: str, words: list[str]) -> None:
    check_refused(command, words)


@pytest.mark.parametrize(("command", "words"), WITH_RESULTS, ids=lambda one: str(one)[:60])
def test_the_readers_refuse(command: str, words: list[str], tmp_path: Path) -> None:
    write_grid(tmp_path / "results", (20, 56), 1)
    check_refused(command, words)


VALUED = {flag for flag, values in config.FLAGS.items() if values != ()}
VALUED |= {other for other, flag in config.ALIASES.items() if flag in VALUED}


@pytest.mark.parametrize("flag", sorted(VALUED))
def test_a_flag_without_its_value_is_refused(flag: str) -> None:
    check_refused(f"run depth=8 {flag}", [f"{flag} needs a value", "resexp run --help"])


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("lrr: 0.1", "mine.yaml, line 2: unknown setting lrr. Did you mean lr?"),
        ("data:\n  rooot: x", "mine.yaml, line 3: unknown setting data.rooot"),
        ("depth: abc", "mine.yaml, line 2: depth: Value 'abc'"),
        ("milestones: 0.5", "mine.yaml, line 2: milestones must be a list"),
        ("lr: [0.1\nsteps: 3", "mine.yaml, line 3: no YAML: expected ',' or ']'"),
        (None, "mine.yaml must begin with the line: # @package _global_"),
    ],
)
def test_a_fault_in_ones_own_experiment_is_named_with_its_file_and_line(
    lines: str | None, said: str, tmp_path: Path
) -> None:
    (tmp_path / "experiment").mkdir()
    text = "lr: 0.1" if lines is None else f"# @package _global_\n{lines}"
    (tmp_path / "experiment/mine.yaml").write_text(text)
    check_refused("run --config-dir . experiment=mine", ["experiment/" + said])


@pytest.mark.parametrize(("key", "hint"), list(leaves(Settings)), ids=str)
def test_every_setting_has_a_meaning_and_every_number_a_range(key: str, hint: Any) -> None:
    assert said(hint, str), key
    number = bare(hint) in (int, float, int | None)
    bounds = said(hint, Range)
    assert (bounds is not None) == number
    if not number:
        return
    outside = [bounds.least - 1, bounds.most * 2, math.nan, math.inf]
    for value in [*outside, bounds.least] if isinstance(bounds, Above) else outside:
        settings = Settings()
        group, _, name = key.rpartition(".")
        setattr(attrgetter(group)(settings) if group else settings, name, value)
        with pytest.raises(UsageError, match=rf"^{key}={value} is out of range\. Choose"):
            check(settings)


@pytest.mark.parametrize("milestones", [[0], [1], [0.5, 0.25], [32000, 48000], [math.nan]])
def test_milestones_are_rising_shares_of_the_steps(milestones: list[float]) -> None:
    with pytest.raises(UsageError, match=r"milestones=\[.*shares of steps"):
        Settings(milestones=milestones)


def test_no_results_is_said_with_the_command_that_makes_some(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    for command in ("table", "plot", "verdict"):
        check_refused(command, ["no runs", "resexp run -m depth=20,56"])


@pytest.mark.process
def test_bf16_is_accepted_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "bf16_on_cpu", lambda: True)
    monkeypatch.setattr("resexp.launch.estimates.seconds_per_image", lambda job, size: 0.0)
    assert call("run", "precision=bf16", "depth=8", "steps=2", "--dry-run").code == 0
