"""The scripts for a GPU, on a CPU: tiny runs through the whole of them."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))
TINY = ["steps=150", "eval_every=30", "width=4", "batch_size=8", "warmup_steps=10", "threads=1"]


def environment(**variables: object) -> dict[str, str]:
    """This process's, with these variables and what makes ``resexp`` this checkout's."""
    ours = {"RESEXP": f"{sys.executable} -m resexp", "PYTHONPATH": str(ROOT)}
    kept = {
        key: value for key, value in os.environ.items() if key not in ("OUT", "FROM", "MINUTES")
    }
    return kept | ours | {key: str(value) for key, value in variables.items()}


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
    numpy = pytest.importorskip("numpy")
    image = pytest.importorskip("PIL.Image")
    random = numpy.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name in ("dark", "light"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 128, (32, 32, 3)) + 128 * (name == "light")
                image.fromarray(pixels.astype("uint8")).save(folder / f"{number}.jpg")
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


def test_figure6_plans_the_papers_eight_runs(tmp_path: Path) -> None:
    images = jpegs(tmp_path / "jpeg")
    variables = {"DRY": 1, "RESULTS": tmp_path, "RESEXP_CIFAR10_JPEG": images}
    code, output = ended(figure6("batch_size=2", "width=2", **variables))  # quick to forecast
    assert code == 0, output
    named = [line.split(",")[0] for line in output.splitlines() if " new " in line]
    assert named == [f"{a}-{d}-s0" for d in (20, 32, 44, 56) for a in ("plain", "residual")]
    assert "8 of 8 to train" in output
    assert [path.name for path in tmp_path.iterdir()] == ["jpeg"]


@pytest.mark.slow
def test_figure6_goes_on_in_another_folder_where_it_was_stopped(tmp_path: Path) -> None:
    variables = {"RESEXP_CIFAR10_JPEG": jpegs(tmp_path / "jpeg"), "DEPTHS": "8,14"}
    words = [*TINY, f"data.cache={tmp_path}/cache"]
    code, output = ended(figure6(*words, RESULTS=tmp_path / "whole", **variables))
    assert code == 0, output
    whole = tmp_path / "whole/figure6"
    drawn = ("curves.png", "curves-paper.png", "depth.png", "difference.png", "report.html")
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
    assert [path.name for path in pieces.iterdir()] == ["figure6.tar.gz.00"]
    names = packed(pieces / "figure6.tar.gz.00")
    assert sum(name.endswith("/checkpoint.pt") for name in names) == 4
    assert not [name for name in names if "checkpoint.before" in name or name.endswith(".lock")]

    code, output = ended(figure6(*words, RESULTS=begun, FROM=pieces, **variables))
    assert code == 2 and "holds unfinished runs" in output  # which may be newer

    fresh = {"RESULTS": tmp_path / "fresh", "FROM": pieces, "OUT": tmp_path / "out"}
    code, output = ended(figure6(*words, **fresh, **variables))
    assert code == 0, output
    assert output.count("goes on from step") == 4
    assert rows(tmp_path / "fresh/figure6") == rows(whole)
    log = (tmp_path / "fresh/figure6/pieces.csv").read_text().splitlines()
    assert [line.split(",")[-1] for line in log] == ["exit_code", "75", "0"]
    names = packed(tmp_path / "out/figure6.tar.gz.00")
    assert "figure6/report.html" in names
    assert not [name for name in names if name.endswith(".pt")]
