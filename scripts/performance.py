"""Fill in the tables of docs/performance.md from what was measured; a test compares them.

    python scripts/performance.py

Reads results/gpu-check/bench.json (``resexp bench``), microbench.json (scripts/microbench.py) and
the records of results/figure6, each where it is there and comes from a GPU. What no file says is
"not yet measured". Predictions stand here, beside the key of what they are compared with.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/performance.md"
UNKNOWN = "not yet measured"
FIGURE = (20, 32, 44, 56)  # layers
FORMATS = ("bf16", "fp16", "fp32")

Json = dict[str, Any]


def read(path: Path) -> Json:
    """A JSON file; nothing where there is none."""
    return json.loads(path.read_text()) if path.is_file() else {}


class Measured:
    """What there is from a GPU."""

    def __init__(self, results: Path) -> None:
        bench = read(results / "gpu-check/bench.json")
        if bench.get("environment", {}).get("device") != "cuda":
            bench = {}
        self.bench: list[Json] = bench.get("rows", [])
        self.together: list[Json] = bench.get("lockstep", [])
        micro = read(results / "gpu-check/microbench.json")
        rows = micro.get("rows", []) if micro.get("on_gpu") else []
        # Convolutions have one name in two parts, with and without a search.
        self.micro: dict[tuple[str, str], Json] = {
            (row["part"], row["what"]): row for row in rows if "value" in row
        }
        self.device: str = bench.get("environment", {}).get("device_name", "")
        summary = results / "gpu-check/summary.txt"
        text = summary.read_text() if self.bench and summary.is_file() else ""
        self.first = re.search(r"^first +(\d+) s   ok$", text, re.MULTILINE)
        self.runs = [read(path) for path in sorted(results.glob("figure6/*/run.json"))]
        self.runs = [run for run in self.runs if run["environment"]["device"] == "cuda"]
        log = results / "figure6/pieces.csv"
        lines = log.read_text().splitlines()[1:] if self.runs and log.is_file() else []
        self.pieces = [line.split(",") for line in lines]  # began, seconds, exit code

    def steps(self, network: str, engine: str, precision: str = "bf16") -> Json:
        """A row of resexp bench; nothing if there is none."""
        wanted = network, engine, precision
        for row in self.bench:
            if (row["network"], row["engine"], row["precision"]) == wanted:
                return row
        return {}

    def milliseconds(self, engine: str) -> str:
        """Of a step in bf16 at 20 and 56 layers, and the kernels."""
        rows = [self.steps(f"residual-{depth}", engine) for depth in (20, 56)]
        if not all(rows):
            return UNKNOWN
        times = " and ".join(f"{row['milliseconds']:.2f}" for row in rows)
        counts = [row["kernels"] for row in rows if row["kernels"]]
        kernels = f", {' and '.join(map(str, counts))} kernels" if len(counts) == 2 else ""
        return f"{times} ms a step at 20 and 56 layers{kernels}"

    def small(self, part: str, whats: Sequence[str]) -> str:
        """Values of the micro-benchmarks, where all are there."""
        rows = [self.micro.get((part, what)) for what in whats]
        if not all(rows):
            return UNKNOWN
        numbers = " / ".join(f"{row['value']:.3g}" for row in rows if row)
        return f"{numbers} {rows[0]['unit'] if rows[0] else ''}".strip()

    def streams(self, engine: str) -> str:
        """How many times the images/s of one network eight have together, at 20 and 56 layers."""
        found = []
        for depth in (20, 56):
            rows = [
                self.micro.get(("streams", f"residual-{depth} {engine}, {count} at a time"))
                for count in (1, 8)
            ]
            if not all(rows):
                return UNKNOWN
            one, eight = (row["value"] for row in rows if row)
            found.append(f"x{eight / one:.2f}")
        return f"{' and '.join(found)} with 8 streams at 20 and 56 layers"

    def figure(self) -> str:
        """Minutes of the commands that made Figure 6, and how."""
        done = {(run["arch"], run["depth"], run["seed"]) for run in self.runs if finished(run)}
        wanted = {(arch, depth, 0) for arch in ("plain", "residual") for depth in FIGURE}
        if done != wanted or not self.pieces:  # more runs would have taken more
            return UNKNOWN
        minutes = sum(int(seconds) for _, seconds, _ in self.pieces) / 60
        used = sorted({run["environment"]["engine"] for run in self.runs})
        formats = sorted({run["environment"]["precision"] for run in self.runs})
        how = f"{', '.join(used)}; {', '.join(formats)}; {len(self.pieces)} pieces"
        return f"{minutes:.1f} minutes ({how})"


def finished(run: Json) -> bool:
    """Whether all its steps are done."""
    return run["status"] in ("ok", "collapsed") and run["last"]["step"] == run["settings"]["steps"]


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def plan(measured: Measured) -> str:
    """The steps of the plan, each with its prediction."""
    rows = [
        ("0", "eager, channels-last, bf16, images on the GPU", "45 to 80 minutes"),
        ("1", "`graph`: no counters, no casts, flat SGD, tables on the GPU", "12 to 18 minutes"),
        ("2", "`launch=lockstep`: a graph and a stream for each of 8 networks", "6 to 12 minutes"),
        ("3", "`triton`: own normalisation, addition and ReLU", "4 to 9 minutes with streams"),
        ("4", "`fused`: these in the convolutions' prologue and epilogue", "2 to 3 minutes"),
        ("5", "plain and residual twins in one launch", "1.5 to 2.5 minutes"),
        ("6", "programmatic dependent launch, several steps a graph", "10 to 25 % less"),
    ]
    found = [
        measured.milliseconds("eager"),
        measured.milliseconds("graph"),
        measured.streams("graph"),
        measured.milliseconds("triton"),
        *["not written"] * 3,
    ]
    cells = [(*row, cell) for row, cell in zip(rows, found, strict=True)]
    return table(("step", "what", "predicted for Figure 6", "measured"), cells)


def engines(measured: Measured) -> str:
    """Every loop that resexp bench timed."""
    titles = ("network", "loop", "precision", "ms a step", "images/s", "times the ordinary loop")
    titles = (*titles, "kernels a step", "MB", "share of roofline")
    rows = [
        (
            row["network"],
            row["engine"],
            row["precision"],
            f"{row['milliseconds']:.3f}",
            f"{row['images_per_second']:,.0f}",
            f"{row['times_ordinary']:.1f}" if row["times_ordinary"] else "-",
            str(row["kernels"] or "-"),
            f"{row['memory_mb']:,.0f}" if row["memory_mb"] else "-",
            f"{100 * row['share_of_roofline']:.1f} %",
        )
        for row in measured.bench
    ]
    if not rows:
        return f"On a GPU: {UNKNOWN}."
    return f"On {measured.device}:\n\n{table(titles, rows)}"


def assumptions(measured: Measured) -> str:
    """What the predictions rest on."""
    stages = ("16x32x32", "32x16x16", "64x8x8")
    rows = [
        ("copy, read and written", "4.3 TB/s", measured.small("ceilings", ["copy"])),
        (
            "matrix product bf16 / fp16 / fp32",
            "788 TFLOP/s / - / -",
            measured.small("ceilings", [f"matrix product {one}" for one in FORMATS]),
        ),
        ("an empty node of a graph", "0.6 to 1.3 us", measured.small("ceilings", ["empty node"])),
        (
            "the same with programmatic dependent launch",
            "1 us less",
            measured.small("ceilings", ["empty node with PDL"]),
        ),
        (
            "elementwise from the L2, 4.2 / 2.1 / 1.0 MB in bf16",
            "2 us and 2 x bytes at 5.5 TB/s: 3.5 / 2.8 / 2.4 us",
            measured.small(
                "ceilings",
                [
                    f"elementwise {stage} ({size} MB), hot"
                    for stage, size in zip(stages, ("4.19", "2.10", "1.05"), strict=True)
                ],
            ),
        ),
        *(
            (
                f"cuDNN {what}, bf16, three stages",
                predicted,
                measured.small("searched", [f"{what} {stage} bf16, cold" for stage in stages]),
            )
            for what, predicted in (
                ("forward", "4 to 7 us"),
                ("dgrad", "4 to 7 us"),
                ("wgrad", "6 to 11 us"),
            )
        ),
        (
            "`eager` at 20 / 56 layers, bf16",
            "3 to 5 / 9 to 13 ms a step",
            measured.small("steps", [f"residual-{depth} bf16 eager" for depth in (20, 56)]),
        ),
        (
            "`graph`",
            "0.76 to 1.1 / 2.1 to 3.1 ms a step",
            measured.small("steps", [f"residual-{depth} bf16 graph" for depth in (20, 56)]),
        ),
        (
            "`triton`",
            "0.54 to 0.81 / 1.5 to 2.3 ms a step",
            measured.small("steps", [f"residual-{depth} bf16 triton" for depth in (20, 56)]),
        ),
        (
            "kernels of `triton` a step",
            "145 / 397, 7 a layer",
            " / ".join(
                str(measured.steps(f"residual-{depth}", "triton").get("kernels") or UNKNOWN)
                for depth in (20, 56)
            ).replace(f"{UNKNOWN} / {UNKNOWN}", UNKNOWN),
        ),
        ("8 streams, `triton`", "x1.5 to x2.2", measured.streams("triton")),
    ]
    return table(("what", "predicted", "measured"), rows)


def targets(measured: Measured) -> str:
    """What the project set itself."""
    figure = measured.figure()
    ratios = [
        max(
            (
                row["times_ordinary"]
                for row in measured.bench
                if row["network"] == f"{arch}-{depth}" and row["times_ordinary"]
            ),
            default=0,
        )
        for arch in ("plain", "residual")
        for depth in FIGURE
    ]
    alone = f"{min(ratios):.1f} to {max(ratios):.1f} times" if all(ratios) else UNKNOWN
    spent = measured.first and measured.first[1]
    first = f"{spent} s, with five steps and an evaluation" if spent else UNKNOWN
    deep = measured.steps("residual-110", "triton") or measured.steps("residual-110", "graph")
    memory = f"{deep['memory_mb'] / 1000:.2f} GB" if deep.get("memory_mb") else UNKNOWN
    rows = [
        ("Figure 6 with streams", "under 10 minutes", figure),
        ("Figure 6 with fused kernels", "under 3 minutes", "not written"),
        ("a network against the ordinary loop", "at least 10 times", alone),
        ("the sweep against ordinary loops in turn", "at least 20 times", sweep(measured)),
        ("ResNet-110's training", "within 1.5 GB of the GPU", memory),
        ("the eight networks together", "within 8 GB", eight(measured)),
        ("first step after the command, cold cache", "within 20 s", first),
    ]
    return table(("what", "target", "measured"), rows)


def sweep(measured: Measured) -> str:
    """Best lockstep of resexp bench against the ordinary loops of its networks in turn."""
    found = []
    for one in measured.together:
        ordinary = [measured.steps(network, "ordinary", "fp32") for network in one["networks"]]
        if all(ordinary):
            spent = sum(row["milliseconds"] for row in ordinary)
            found.append((spent / one["milliseconds"], len(ordinary)))
    if not found:
        return UNKNOWN
    times, count = max(found)
    return f"{times:.1f} times ({count} networks)"


def eight(measured: Measured) -> str:
    """Memory of the least lockstep of resexp bench that has eight networks or more."""
    some = [one for one in measured.together if len(one["networks"]) >= 2 * len(FIGURE)]
    some = [one for one in some if one["memory_mb"]]
    if not some:
        return UNKNOWN
    middle = statistics.median(one["memory_mb"] for one in some)
    return f"{middle / 1000:.2f} GB ({len(some[0]['networks'])} networks)"


TABLES = {"plan": plan, "engines": engines, "assumptions": assumptions, "targets": targets}


def filled(page: str, results: Path) -> str:
    """The page with its tables as ``results`` has them; each stands between two comments."""
    measured = Measured(results)
    for name, make in TABLES.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if len(place.findall(page)) != 1:
            raise SystemExit(f"{PAGE} has no single place for the table {name}")
        text = make(measured) + "\n"
        page = place.sub(lambda found, text=text: found[1] + text + found[2], page)
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(), ROOT / "results"))
