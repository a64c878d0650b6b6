"""docs/performance.md says what was measured on a GPU, and nothing else."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def performance() -> ModuleType:
    """The script, imported."""
    path = ROOT / "scripts/performance.py"
    spec = importlib.util.spec_from_file_location("performance_script", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def page() -> str:
    return (ROOT / "docs/performance.md").read_text()


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def bench(device: str) -> dict[str, Any]:
    """A file of resexp bench, cut down: every network by the ordinary loop and two engines."""
    times = {"ordinary": 40.0, "graph": 2.5, "triton": 1.25}
    rows = [
        {
            "network": f"{arch}-{depth}",
            "engine": engine,
            "precision": "fp32" if engine == "ordinary" else "bf16",
            "milliseconds": milliseconds,
            "images_per_second": 128_000 / milliseconds,
            "times_ordinary": 40 / milliseconds,
            "kernels": depth * 7,
            "memory_mb": 1234.0,
            "share_of_roofline": 0.125,
        }
        for arch in ("plain", "residual")
        for depth in (20, 32, 44, 56)
        for engine, milliseconds in times.items()
    ]
    networks = list(dict.fromkeys(row["network"] for row in rows))
    together = {"networks": networks, "milliseconds": 5.0, "memory_mb": 6000.0}
    environment = {"device": device, "device_name": "A GPU"}
    return {"environment": environment, "rows": rows, "lockstep": [together]}


def run(arch: str, depth: int, device: str) -> dict[str, Any]:
    """A record of Figure 6, cut down."""
    return {
        "arch": arch,
        "depth": depth,
        "seed": 0,
        "status": "ok",
        "last": {"step": 64000},
        "settings": {"steps": 64000},
        "environment": {"device": device, "engine": "triton", "precision": "bf16"},
    }


def everything(results: Path, device: str) -> None:
    """All files that the page reads."""
    write(results / "gpu-check/bench.json", bench(device))
    write(results / "gpu-check/summary.txt", "now   commit 1\nfirst         12 s   ok\n")
    micro = [("ceilings", "copy", 4.25, "TB/s")]
    micro += [
        ("streams", f"residual-20 graph, {n} at a time", n * 100.0, "images/s") for n in (1, 8)
    ]
    micro += [("streams", f"residual-56 graph, {n} at a time", 99 + n, "images/s") for n in (1, 8)]
    rows = [dict(zip(("part", "what", "value", "unit"), row, strict=True)) for row in micro]
    write(results / "gpu-check/microbench.json", {"on_gpu": device == "cuda", "rows": rows})
    for arch in ("plain", "residual"):
        for depth in (20, 32, 44, 56):
            write(results / f"figure6/{arch}-{depth}-s0/run.json", run(arch, depth, device))
    pieces = "began,seconds,exit_code\na,300,75\nb,150,0\n"
    write(results / "figure6/pieces.csv", pieces)


def test_the_page_says_what_the_committed_files_say(performance: ModuleType) -> None:
    assert performance.filled(page(), ROOT / "results") == page(), "python scripts/performance.py"


def test_without_a_gpu_nothing_is_measured(performance: ModuleType, tmp_path: Path) -> None:
    everything(tmp_path / "cpu", "cpu")
    nothing = performance.filled(page(), tmp_path / "none")
    assert nothing.count("not yet measured |") >= 20
    assert performance.filled(page(), tmp_path / "cpu") == nothing


def test_numbers_of_a_gpu_stand_beside_their_predictions(
    performance: ModuleType, tmp_path: Path
) -> None:
    everything(tmp_path, "cuda")
    lines = performance.filled(page(), tmp_path).splitlines()

    def cell(start: str) -> str:
        """The last cell of the only line that starts so."""
        (line,) = [one for one in lines if one.startswith(f"| {start}")]
        return line.removesuffix(" |").rpartition(" | ")[2]

    assert cell("Figure 6 with streams") == "7.5 minutes (triton; bf16; 2 pieces)"
    assert cell("a network against the ordinary loop") == "32.0 to 32.0 times"
    assert cell("the sweep against ordinary loops") == "64.0 times (8 networks)"  # 8 x 40 / 5
    assert cell("the eight networks together") == "6.00 GB (8 networks)"
    assert cell("first step after the command") == "12 s, with five steps and an evaluation"
    assert cell("ResNet-110") == "not yet measured"
    assert cell("copy, read and written") == "4.25 TB/s"
    assert cell("2 | `launch") == "x8.00 and x1.07 with 8 streams at 20 and 56 layers"
    assert cell("3 | `triton") == "1.25 and 1.25 ms a step at 20 and 56 layers, 140 and 392 kernels"
    assert cell("0 | eager") == "not yet measured"  # no row of eager
    assert cell("residual-56 | graph") == "12.5 %"
    assert "On A GPU:" in lines


def test_an_unfinished_figure_has_no_time(performance: ModuleType, tmp_path: Path) -> None:
    everything(tmp_path, "cuda")
    record = run("plain", 56, "cuda") | {"status": "interrupted"}
    write(tmp_path / "figure6/plain-56-s0/run.json", record)
    text = performance.filled(page(), tmp_path)
    assert "| Figure 6 with streams | under 10 minutes | not yet measured |" in text
