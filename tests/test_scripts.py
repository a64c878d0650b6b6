"""The scripts for a GPU, on a CPU: tiny runs through the whole of them."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resexp import config
from resexp.settings import Job

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))
TINY = ["steps=150", "eval_every=30", "width=4", "batch_size=8", "warmup_steps=10", "threads=1"]


def environment(**variables: object) -> dict[str, str]:
    """This process's, with these variables and what makes ``resexp`` this checkout's."""
    ours = {"RESEXP": f"{sys.executable} -m resexp", "PYTHONPATH": str(ROOT)}
    kept = {key: os.environ[key] for key in os.environ.keys() - {"OUT", "FROM", "MINUTES"}}
    return kept | ours | {key: str(value) for key, value in variables.items()}


def program(path: Path, text: str) -> Path:
    """An executable shell script."""
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)
    return path


def told(
    folder: Path, script: str, *words: str, resexp: str = "", **variables: object
) -> tuple[int, list[str]]:
    """The exit code of a script in a checkout of scripts alone, and what it said to resexp.

    ``resexp``: what that does beside writing down its words, in sh.
    """
    shutil.copytree(ROOT / "scripts", folder / "scripts", dirs_exist_ok=True)
    fake = program(folder / "resexp", f'echo "$*" >>said\n{resexp}')
    done = subprocess.run(
        ["bash", folder / "scripts" / script, *words],
        cwd="/",
        env=environment(RESEXP=fake, **variables),
        input="",
        text=True,
        stdout=subprocess.DEVNULL,
    )
    return done.returncode, (folder / "said").read_text().splitlines()


def figure6(*words: str, **variables: object) -> subprocess.Popen[str]:
    """The script, begun; its output goes into one pipe."""
    return subprocess.Popen(
        [str(ROOT / "scripts/figure6.sh"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(**variables),
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code and its output."""
    output, _ = process.communicate()
    return process.returncode, output


def jpegs(root: Path) -> Path:
    """24 training and 8 test images of 32x32 pixels in two classes."""
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name, least in (("dark", 0), ("light", 128)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(least, least + 128, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.jpg")
    return root


def rows(folder: Path) -> dict[str, list[dict[str, str]]]:
    """The rows of every run of an experiment, without their two columns of time."""
    found = {}
    for path in folder.glob("*/metrics.csv"):
        with path.open() as file:
            found[path.parent.name] = list(csv.DictReader(file))
        for row in found[path.parent.name]:
            del row["images_per_second"], row["seconds"]
    return found


def packed(path: Path) -> list[str]:
    """The files in an archive."""
    with tarfile.open(path) as archive:
        return archive.getnames()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_can_read_a_script(script: Path) -> None:
    checked = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert os.access(script, os.X_OK)


@pytest.mark.process
def test_a_sweep_gives_its_words_to_resexp_and_ends_as_the_verdict_does(tmp_path: Path) -> None:
    """sweep.sh, as the scripts of the committed sweeps use it, from a checkout of nothing else."""
    here = "results/digits/x"
    for folder in (here, "scripts"):
        (tmp_path / folder).mkdir(parents=True)
    script = '. "$(dirname "$0")/sweep.sh"\non_digits x depth=8 "$@"\nwritten\n'
    (tmp_path / "scripts/x.sh").write_text(script)
    code, said = told(tmp_path, "x.sh", "threads=2", resexp='[ "$1" != verdict ] || exit 4')
    assert code == 4
    assert said == [
        "run -m results=results/digits name=x launch=processes threads=1 depth=8 threads=2",
        f"export {here} --out results/digits",
        f"report {here}",
        f"table {here}",
        f"verdict {here}",
    ]
    assert (tmp_path / here / "verdict.txt").read_text() == "\n"  # between table and verdict


@pytest.mark.process
def test_claims_are_trained_at_what_was_chosen_then_exported_and_probed(tmp_path: Path) -> None:
    """claims.sh with a resexp that writes down its words, and a choice of two networks."""
    chosen = "resexp run -m results=r depth=20 b=-1\nresexp run -m results=r depth=56 b=-3"
    greedy = f'[ "$1" = best ] && echo "{chosen}"\ncat >/dev/null'  # reads all of stdin
    python = program(tmp_path / "python", 'echo "$*" >>said\n')
    variables = {"PYTHON": python, "CLAIMS": "gates spans", "SEEDS": "92"}
    code, said = told(tmp_path, "claims.sh", "steps=2", resexp=greedy, **variables)
    assert code == 0
    gates, spans = (
        f"run -m results=results/digits/claims name={name} launch=processes threads=1 depth="
        for name in ("gates", "spans")
    )
    assert said == [
        f"{gates}20,56 arch=residual seed=92 steps=2",
        f"{gates}20,56 arch=highway,shortcut_gate gate_bias=-1,-2,-3,-4 seed=90,91 steps=2",
        "best results/digits/claims/gates --setting arch.gate_bias --chosen-on 90,91 --then 92",
        "run -m results=r depth=20 b=-1 steps=2",
        "run -m results=r depth=56 b=-3 steps=2",
        "export results/digits/claims --out results/digits",
        "probe gates results/digits/claims/gates",
        f"{spans}20,56 arch=plain seed=92 steps=2",
        f"{spans}20,56 arch=residual arch.skip_span=1,2,3 seed=92 steps=2",
        "export results/digits/claims --out results/digits",
        "probe spans results/digits/claims/spans",
        "scripts/mechanisms.py",
    ]


@pytest.mark.process
def test_figure6_plans_the_papers_eight_runs(tmp_path: Path) -> None:
    images = jpegs(tmp_path / "jpeg")
    variables = {"DRY": 1, "RESULTS": tmp_path, "RESEXP_CIFAR10_JPEG": images}
    code, output = ended(figure6("batch_size=2", "width=2", "threads=1", **variables))
    assert code == 0, output
    named = [line.split(",")[0] for line in output.splitlines() if " new " in line]
    assert named == [f"{a}-{d}-s0" for d in (20, 32, 44, 56) for a in ("plain", "residual")]
    assert "8 of 8 runs to train" in output
    assert [path.name for path in tmp_path.iterdir()] == ["jpeg"]


@pytest.mark.slow
def test_figure6_goes_on_in_another_folder_where_it_was_stopped(tmp_path: Path) -> None:
    variables = {"RESEXP_CIFAR10_JPEG": jpegs(tmp_path / "jpeg"), "DEPTHS": "8,14"}
    words = [*TINY, f"data.cache={tmp_path}/cache"]
    code, output = ended(figure6(*words, RESULTS=tmp_path / "whole", **variables))
    assert code == 0, output
    whole = tmp_path / "whole/figure6"
    drawn = ("curves.png", "curves-paper.png", "depth.png", "report.html")
    for name in (*drawn, "table.md", "verdict.txt"):
        assert (whole / name).stat().st_size > 0, name
    assert "cifar10-jpeg" in (whole / "verdict.txt").read_text()
    assert [len(one) for one in rows(whole).values()] == [5] * 4

    begun, pieces = tmp_path / "begun", tmp_path / "pieces"
    script = figure6(*words, RESULTS=begun, OUT=pieces, **variables)
    give_up = time.monotonic() + 120
    while len(rows(begun / "figure6")) < 4 and time.monotonic() < give_up:
        time.sleep(0.02)
    script.send_signal(signal.SIGTERM)
    code, output = ended(script)
    assert code == 75, output
    stopped = rows(begun / "figure6")
    assert [len(one) in range(1, 5) for one in stopped.values()] == [True] * 4
    kept = ["figure6-rows.tar.gz", "figure6.tar.gz.00"]
    assert sorted(path.name for path in pieces.iterdir()) == kept
    small, saved = (packed(pieces / name) for name in kept)
    assert len(saved) == 4 and all(name.endswith("/checkpoint.pt") for name in saved)
    assert not [name for name in small if name.endswith((".pt", ".lock"))]

    code, output = ended(figure6(*words, RESULTS=begun, FROM=pieces, **variables))
    assert code == 2 and "holds unfinished runs" in output  # which may be newer

    fresh = {"RESULTS": tmp_path / "fresh", "FROM": pieces, "OUT": tmp_path / "out"}
    code, output = ended(figure6(*words, **fresh, **variables))
    assert code == 0, output
    assert output.count("resuming from step") == 4
    assert rows(tmp_path / "fresh/figure6") == rows(whole)
    log = (tmp_path / "fresh/figure6/pieces.csv").read_text().splitlines()
    assert [line.split(",")[-1] for line in log] == ["exit_code", "75", "0"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == kept[:1]
    assert "figure6/report.html" in packed(tmp_path / "out" / kept[0])


def gpu_check(*words: str, **variables: object) -> tuple[int, str]:
    """The script's exit code and output."""
    script = str(ROOT / "scripts/gpu_check.sh")
    known = environment(**{"PYTHON": sys.executable} | variables)
    done = subprocess.run([script, *words], capture_output=True, text=True, env=known)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.process
def test_gpu_check_says_in_a_line_that_there_is_no_gpu(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    code, output = gpu_check(OUT=tmp_path / "out")
    assert code == 2 and output.count("\n") == 1
    assert output.startswith("gpu_check: PyTorch finds no GPU")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_gpu_check_goes_through_its_parts_and_leaves_their_output(tmp_path: Path) -> None:
    _, output = gpu_check("--dry", OUT=tmp_path)
    summary = (tmp_path / "summary.txt").read_text().splitlines()
    assert summary == output.splitlines()[: len(summary)]
    parts = {line.split()[0]: line for line in summary[1:]}
    assert list(parts) == ["checks", "microbench", "first", "bench", "tests", "all"]
    for name in list(parts)[:-1]:
        assert parts[name].endswith(" s   ok"), (tmp_path / f"{name}.txt").read_text()
    found = json.loads((tmp_path / "microbench.json").read_text())
    assert not found["on_gpu"] and not [row for row in found["rows"] if "error" in row]
    measured = {row["part"] for row in found["rows"] if row["us"] > 0}
    assert measured == {"nodes", "elementwise", "convolutions", "norms"}
    assert len(list(tmp_path.iterdir())) <= 8


@pytest.mark.slow
def test_gpu_check_goes_on_when_a_part_fails_or_hangs(tmp_path: Path) -> None:
    cases = 'case "$*" in *microbench*) sleep 60 ;; *test_gpu.py*) exit 3 ;; esac\n'
    python = program(tmp_path / "python", cases)
    code, _ = gpu_check("--dry", PYTHON=python, OUT=tmp_path / "out", MINUTES=1)
    assert code == 1
    lines = (tmp_path / "out/summary.txt").read_text().splitlines()[1:]
    said = {line.split()[0]: line.split(" s ")[-1].strip() for line in lines[:-1]}
    assert said == {
        "checks": "failed: exit code 3, see checks.txt",
        "microbench": "out of time: limit 12 s",
        "first": "ok",
        "bench": "ok",
        "tests": "ok",
    }


@pytest.mark.process
@pytest.mark.parametrize(("ended", "code"), [(0, 0), (75, 75), (1, 1)])
def test_the_cifar10_sweep_takes_up_what_was_exported(
    tmp_path: Path, ended: int, code: int
) -> None:
    """Depths, seeds and steps as variables; what is stopped is exported too, what failed is not."""
    here = tmp_path / "results/cifar10-jpeg"
    here.mkdir(parents=True)
    (here / "runs.csv").touch()
    variables = {"RESEXP_CIFAR10_JPEG": tmp_path / "data/x.tar.xz", "STEPS": 750}
    ends = f'[ "$1" != run ] || exit {ended}'
    left, said = told(tmp_path, "cifar10.sh", resexp=ends, **variables)
    assert left == code
    assert said[:2] == [
        "export results/cifar10-jpeg --unpack",
        "run -m experiment=cifar10_short_jpeg data.root=data/x.tar.xz steps=750 "
        "seed=0,1,2,3,4 depth=20,56 arch=plain,residual results=results name=cifar10-jpeg "
        "launch=processes threads=1",
    ]
    assert (len(said) > 2) == (ended != 1)


@pytest.mark.process
@pytest.mark.parametrize(
    ("script", "names"),
    [
        ("cifar10_controls.sh", {"cifar10-controls": 15}),
        ("cifar10_depths.sh", {"cifar10-jpeg": 14}),
        ("resnet_vgg.sh", {"cifar10-resnet": 8, "cifar10-vgg": 8}),
    ],
)
def test_what_the_scripts_train_on_jpegs_is_composed_and_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, names: dict[str, int]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x.tar.xz").touch()
    monkeypatch.chdir(tmp_path)
    code, said = told(tmp_path, script, RESEXP_CIFAR10_JPEG=tmp_path / "data/x.tar.xz")
    assert code == 0
    jobs: list[Job] = []
    for line in said:
        verb, *words = re.findall(r"(?:[^\s']|'[^']*')+", line)
        if verb == "run":
            config.launch(words, lambda planned, *_: jobs.extend(planned))
    assert Counter(job.settings.name for job in jobs) == names
    assert len({job.directory for job in jobs}) == len(jobs)
    exported = [line.split()[1] for line in said if line.startswith("export")]
    assert exported == [f"results/{name}" for name in names]
