"""What users install: the wheel holds everything it needs and runs from any folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from test_imports import distributions

ROOT = Path(__file__).parents[1]
TINY = ["depth=8", "steps=2", "batch_size=8", "threads=1"]

for tool in ("build", "hatchling", "pip"):
    pytest.importorskip(tool, reason=f"building a wheel needs {tool}")


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def python(folder: Path, path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python in ``folder`` with ``path`` before the installed packages."""
    command, environment = [sys.executable, *words], os.environ | {"PYTHONPATH": str(path)}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout without a network."""
    folder = tmp_path_factory.mktemp("dist")
    options = ["--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = python(folder, Path(), "-m", "build", *options)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages into which the wheel is installed, and nothing else."""
    folder = tmp_path_factory.mktemp("installed") / "site"
    words = ["install", "--no-deps", "--no-index", "--quiet", "--target", str(folder), str(wheel)]
    done = python(folder.parent, Path(), "-m", "pip", *words)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.process
def test_the_wheel_holds_what_a_run_needs_and_no_more(wheel: Path) -> None:
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {"resexp/data/digits.npz", "hydra_plugins/resexp_sweeps/__init__.py"} <= files
    here = {f"resexp/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert len(here) > 10
    assert {name for name in files if name.startswith("resexp/configs/")} == here
    sources = [path for path in (ROOT / "resexp").rglob("*") if path.is_file()]
    shipped = {str(path.relative_to(ROOT)) for path in sources if path.parent.name != "__pycache__"}
    assert files - here == {name.replace("resexp/_plugins/", "") for name in shipped}
    assert "hydra_plugins/__init__.py" not in files  # other plugins live in that namespace too
    assert zipfile.ZipFile(wheel).getinfo("resexp/data/digits.npz").file_size < 1_000_000


@pytest.mark.process
def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    info = f"resexp-{PROJECT['version']}.dist-info"
    metadata = archive.read(f"{info}/METADATA").decode()
    assert f"\nVersion: {PROJECT['version']}\n" in metadata
    assert f"\nRequires-Python: {PROJECT['requires-python']}\n" in metadata
    required = [line.split(": ")[1] for line in metadata.splitlines() if "Requires-Dist: " in line]
    needed = distributions([line for line in required if "extra ==" not in line])
    assert needed == distributions(PROJECT["dependencies"])
    assert {"torch", "torchvision", "typer", "hydra-core", "pandas", "matplotlib"} <= needed
    assert "resexp = resexp.__main__:main" in archive.read(f"{info}/entry_points.txt").decode()
    licences = [name for name in archive.namelist() if name.startswith(f"{info}/licenses/")]
    assert {name.rsplit("/", 1)[-1] for name in licences} == {"LICENSE", "DIGITS_LICENSE.txt"}


WHERE = """
import json, sys
from resexp import config
from resexp.settings import choices
import resexp, hydra_plugins.resexp_sweeps as sweeper
print(json.dumps([resexp.__file__, sweeper.__file__, str(choices.config_folder())]))
"""


def runs_from(folder: Path, packages: Path) -> None:
    """Assert that ``packages`` holds all of resexp, and that it refuses and leaves nothing."""
    located = python(folder, packages, "-c", WHERE)
    assert located.returncode == 0, located.stderr
    for path in json.loads(located.stdout):
        assert Path(path).is_relative_to(packages), path
    refused = python(folder, packages, "-m", "resexp", "run", "-m", "depth=8,9")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "resexp: depth=9 is not 6n+2. Nearest: 8, 14.\n"
    assert list(folder.iterdir()) == []


@pytest.mark.process
def test_a_bare_checkout_plans_from_any_folder(tmp_path: Path) -> None:
    runs_from(tmp_path, ROOT)


@pytest.mark.process
def test_an_installed_wheel_lists_refuses_and_sweeps_from_any_folder(
    site: Path, tmp_path: Path
) -> None:
    runs_from(tmp_path, site)
    listed = python(tmp_path, site, "-m", "resexp", "list", "archs", "--json")
    assert {"plain", "residual"} <= {row["arch"] for row in json.loads(listed.stdout)}
    result = python(tmp_path, site, "-m", "resexp", "run", *TINY, "-m", "arch=plain,residual")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("2 done")
    (record, _) = tmp_path.glob("results/digits/*/run.json")
    environment = json.loads(record.read_text())["environment"]
    assert environment["resexp"] == PROJECT["version"]
    assert environment["git_commit"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


@pytest.mark.slow
def test_a_wheel_from_the_source_archive_is_the_same(wheel: Path, tmp_path: Path) -> None:
    options = ["--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    built = python(tmp_path, Path(), "-m", "build", *options)  # the wheel from the archive
    assert built.returncode == 0, built.stdout + built.stderr
    (again,) = tmp_path.glob("*.whl")
    listed = [sorted(zipfile.ZipFile(path).namelist()) for path in (wheel, again)]
    assert listed[0] == listed[1]
