"""Who may import what, and when: reading is fast because it never loads torch or Hydra."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest
from fake_results import write_run

import resexp

ROOT = Path(resexp.__file__).parent
MODULES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.py"))

#: Package: where alone it may be imported (a folder ends in a slash).
ONLY_IN = {
    "typer": ["cli/"],
    "click": [],  # Typer carries its own
    "hydra": ["config.py", "_plugins/"],
    "omegaconf": ["config.py", "_plugins/"],
    "matplotlib": ["analysis/", "probes/"],
    "pandas": ["analysis/", "probes/"],
    "triton": ["train/engine/kernels.py", "train/engine/step_kernels.py"],
    "resexp.cli": ["__main__.py", "cli/"],
    "resexp.config": ["cli/", "interactive.py", "_plugins/"],
}

#: Modules that come before training, or read what it left: importing them imports no torch.
WITHOUT_TORCH = ["__init__.py", "__main__.py", "cli/", "config.py", "settings/", "interactive.py"]
WITHOUT_TORCH += ["commands/listing.py", "commands/watch.py", "files.py", "console.py"]
WITHOUT_TORCH += ["runs/records.py", "runs/ready.py", "runs/messages.py", "runs/stop.py"]
WITHOUT_TORCH += ["train/row.py", "launch/cluster.py", "launch/processes.py", "launch/dry_run.py"]
WITHOUT_TORCH += ["launch/progress.py", "launch/session.py", "data/__init__.py", "analysis/"]
WITHOUT_TORCH += ["_plugins/"]


def imported(tree: ast.AST, *, when_loaded: bool = False) -> Iterator[str]:
    """Full names of the modules imported, with ``when_loaded`` by loading the module itself.

    What stands under ``if TYPE_CHECKING`` is imported by nobody.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "resexp imports by full names"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (is_for_types(node) or (when_loaded and isinstance(node, ast.FunctionDef))):
            yield from imported(node, when_loaded=when_loaded)


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@cache
def parse(module: str) -> ast.Module:
    return ast.parse((ROOT / module).read_text())


def allowed(module: str, places: list[str]) -> bool:
    folders = tuple(place for place in places if place.endswith("/"))
    return module in places or module.startswith(folders)


def users(
    places: list[str], packages: Iterable[str], *, when_loaded: bool = False
) -> list[tuple[str, str]]:
    """Who in some places imports one of these packages, and what of it."""
    modules = [module for module in MODULES if allowed(module, places)]
    assert modules != []
    return [
        (module, name)
        for module in modules
        for name in imported(parse(module), when_loaded=when_loaded)
        if any(within(name, package) for package in packages)
    ]


@pytest.mark.process
@pytest.mark.parametrize("package", ONLY_IN)
def test_a_package_is_imported_in_its_place_alone(package: str) -> None:
    found = {module for module, _ in users(MODULES, [package])}
    assert [module for module in found if not allowed(module, ONLY_IN[package])] == []
    assert found or ONLY_IN[package] == []


#: ``resexp probe`` loads all probes, to list their claims, but not what draws them.
PROBES = [module for module in MODULES if module.startswith("probes/") and "drawing" not in module]
DRAWING = ["matplotlib", "resexp.analysis.figures", "resexp.probes.drawing"]


@pytest.mark.parametrize(
    ("places", "packages"),
    [
        (WITHOUT_TORCH, ["torch", "torchvision", "numpy.typing"]),
        (PROBES, DRAWING),
        (MODULES, ["torchvision"]),
    ],
)
def test_what_is_slow_is_loaded_only_where_it_is_used(
    places: list[str], packages: list[str]
) -> None:
    assert users(places, packages, when_loaded=True) == []


@pytest.mark.parametrize(
    "leaf", ["models/", "data/", "train/schedule.py", "runs/records.py", "console.py"]
)
def test_leaves_know_nothing_above_them(leaf: str) -> None:
    above = ["cli", "config", "runs.run", "launch", "commands", "probes", "bench"]
    assert users([leaf], [f"resexp.{upper}" for upper in above]) == []


def test_the_analysis_knows_records_and_settings_only() -> None:
    known = ["analysis", "files", "runs.preregistration", "runs.records", "settings", "train.row"]
    known.append("console")  # a leaf itself: how wide a screen is, how tables stand on it
    found = {name for _, name in users(["analysis/"], ["resexp"])} - {"resexp"}
    unknown = [name for name in found if not any(within(name, f"resexp.{one}") for one in known)]
    assert unknown == []


@pytest.mark.process
def test_arrows_between_folders_run_one_way() -> None:
    left: dict[str, set[str]] = {}
    for module in MODULES:
        room = Path(module).parts[0].removesuffix(".py")
        names = {name.split(".")[1] for _, name in users([module], ["resexp"]) if "." in name}
        left[room] = left.get(room, set()) | names - {room}
    del left["_plugins"]  # Hydra calls them, and they call back
    left = {room: to & left.keys() for room, to in left.items()}
    while free := [room for room, to in left.items() if not to & left.keys()]:
        for room in free:
            del left[room]
    assert left == {}, "these rooms need each other"


def distributions(requirements: list[str]) -> set[str]:
    """``{"torch"}`` of ``["torch>=2.11"]``."""
    return {re.split(r"[<>=!~;\[ ]", one)[0].lower() for one in requirements}


def modules(requirements: list[str]) -> set[str]:
    """What can be imported where these are installed."""
    unlike = {
        "hydra-core": {"hydra", "omegaconf"},
        "hydra-ray-launcher": {"ray"},
        "torchvision": {"torchvision", "numpy", "PIL"},
        "mlflow-skinny": {"mlflow"},
        "pyyaml": {"yaml"},
        "torch": {"torch", "triton"},  # for CUDA; without it engine=triton is refused
    }
    return {module for name in distributions(requirements) for module in unlike.get(name, {name})}


@pytest.mark.process
def test_every_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    known = {"resexp", *modules(project["dependencies"]), *sys.stdlib_module_names}
    optional = project["optional-dependencies"]
    extras = [one for key in optional if key not in ("test", "dev") for one in optional[key]]
    for when_loaded, there in ((True, known), (False, known | modules(extras))):
        for module in MODULES:
            names = imported(parse(module), when_loaded=when_loaded)
            assert {name.partition(".")[0] for name in names} <= there, module


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    names = {part.removesuffix(".py") for module in MODULES for part in Path(module).parts}
    assert names & {"utils", "util", "common", "core", "helpers", "misc", "base"} == set()


def test_the_reader_of_imports_sees_them_wherever_they_stand() -> None:
    source = (
        "import torch.nn as nn\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import a\n"
        "try:\n    import b\nexcept ImportError:\n    pass\n"
        "class C:\n    import c\n    def f(self):\n        from d import e\n"
    )
    loaded = ["torch.nn", "typing", "typing.TYPE_CHECKING", "b", "c"]
    assert list(imported(ast.parse(source), when_loaded=True)) == loaded
    assert list(imported(ast.parse(source))) == [*loaded, "d", "d.e"]


# --- at run time

SCRIPT = """
import contextlib, io, sys
sys.path.insert(0, sys.argv[1])

def call(*words):
    from resexp.cli import main
    sys.argv = ["resexp", *words]
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            main()
    except SystemExit as stop:
        assert stop.code in (0, 4), (words, stop.code)
    assert out.getvalue().strip(), words

def absent(*packages):
    loaded = [package for package in packages if package in sys.modules]
    assert not loaded, (loaded, "after", sys.argv)

import resexp
absent("typer", "rich", "numpy")
for words in ("--help", "run --help", "plot --help", "--version", "list archs", "list settings",
              "list", "show plain-20-s0", "watch --once"):
    call(*words.split())
    absent("torch", "hydra", "omegaconf", "pandas", "matplotlib", "numpy")
for words in (["table"], ["verdict"], ["doctor", "--results", "results"]):
    call(*words)
    absent("torch", "hydra", "omegaconf", "pandas", "matplotlib")
for words in (["plot"], ["report"]):
    call(*words)
    absent("torch", "hydra", "omegaconf", "pandas", "matplotlib.pyplot")
call("run", "depth=8", "--cfg", "job")
absent("torch", "pandas")
resexp.load_results("results")
absent("torch")
"""


@pytest.mark.process
def test_reading_loads_neither_torch_nor_hydra(tmp_path: Path) -> None:
    record = {
        "parameters_without_norm": 267_450,
        "flops": 8_000_000,
        "seconds": 1.5,
        "updated": "2026-01-01T00:00:00+00:00",
        "environment": dict.fromkeys(("device_name", "threads", "precision", "torch", "python"))
        | dict.fromkeys(("git_commit", "git_dirty", "resexp")),
    }
    for arch in ("plain", "residual"):
        for depth in (20, 56):
            write_run(tmp_path / "results", arch, depth, 0, record=record)
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, str(ROOT.parent)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "results/digits/curves.png").exists()
