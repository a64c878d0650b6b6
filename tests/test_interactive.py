"""From Python and in notebooks: runs, sweeps and what reads them show themselves."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest
from fake_results import write_grid, write_run

import resexp
from resexp import interactive
from resexp.analysis.results import Sweep, find_runs
from resexp.settings import UsageError

NOTEBOOK = Path(__file__).parents[1] / "docs/notebook.ipynb"
TINY = {"steps": 4, "batch_size": 8, "width": 4, "eval_every": 2, "threads": 1, "device": "cpu"}


def curves_of(html: str) -> list[str]:
    """The figures in a piece of HTML, as SVG."""
    found = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', html)
    return [base64.b64decode(one).decode() for one in found]


def test_every_name_is_listed_documented_and_there() -> None:
    assert set(resexp.__all__) <= set(dir(resexp))
    for name in resexp.__all__:
        assert getattr(resexp, name).__doc__, name


@pytest.mark.parametrize(
    ("setting", "value", "word"),
    [
        ("depth", [20, 56], "20,56"),
        ("seed", range(3), "0,1,2"),
        ("arch", ("plain", "residual"), "plain,residual"),
        ("arch", "plain,residual", "plain,residual"),
        ("lr", 0.1, "0.1"),
        ("flip", [True, False], "true,false"),
        ("milestones", [0.5, 0.75], "[0.5,0.75]"),
        ("milestones", [[0.5], [0.25, 0.5]], "[0.5],[0.25,0.5]"),
        ("arch__skip_stages", [1, 2], "[1,2]"),
        ("data__size", [8, None], "8,null"),
    ],
)
def test_several_values_are_an_axis_and_a_list_of_a_list_setting_is_not(
    setting: str, value: Any, word: str
) -> None:
    assert interactive.spell_axis(setting, value) == word


@pytest.mark.process
def test_a_sweep_trains_all_and_outlives_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = {**TINY, "results": tmp_path}
    with pytest.raises(UsageError, match="6n\\+2"):
        resexp.sweep(depth=[8, 9], **place)
    assert list(tmp_path.iterdir()) == []
    runs = resexp.sweep(depth=8, arch=["plain", "residual"], **place)
    assert [(run.arch, run.rows()[-1].step) for run in runs] == [("plain", 4), ("residual", 4)]
    assert "2 done" in capsys.readouterr().err
    one = resexp.run(depth=8, arch="preact", **place)
    assert "step 4/4  error: train" in capsys.readouterr().err
    assert repr(one).startswith(f"Run({one.path}, {one.status}, clean training error ")
    monkeypatch.setattr("resexp.runs.run.fit", None)
    again = resexp.sweep(depth=8, arch=["residual", "se"], **place)
    assert [run.status for run in again] == [runs[1].status, "failed"]
    assert "1 skipped (finished before), 1 failed" in capsys.readouterr().err


def test_runs_show_themselves(tmp_path: Path) -> None:
    write_grid(tmp_path, (20,), 1)
    named = {"data.name": "<b>"}
    write_run(tmp_path, "plain", 8, 0, status="running", rows=0, extras=named, name="young")
    for shown in (one._repr_html_() for one in (Sweep(find_runs(tmp_path)), *find_runs(tmp_path))):
        young = "&lt;b&gt;" in shown and "<td>young" not in shown
        assert len(curves_of(shown)) == (not young)
        assert "<b>" not in shown
    assert "<td>0.50</td>" in find_runs(tmp_path / "digits")[0]._repr_html_()
    assert Sweep()._repr_html_() == "no runs"


def test_what_reads_takes_a_folder_a_run_or_runs(tmp_path: Path) -> None:
    write_grid(tmp_path, (20, 56), 2)
    runs = find_runs(tmp_path)
    for given in (tmp_path, str(tmp_path), runs):
        assert len(resexp.table(given)) == 4
        assert resexp.verdict(given, deep=56).outcome == resexp.verdict(runs).outcome
    assert len(resexp.table(tmp_path, ["arch=plain"])) == 2
    assert len(resexp.table(runs[0])) == 1
    assert repr(resexp.verdict(runs)).startswith("Training deeper plain networks: ")
    resexp.plot(tmp_path, "depth").save(tmp_path / "depth.png")
    assert (tmp_path / "depth.png").read_bytes().startswith(b"\x89PNG")
    for words, said in (
        (("curvs",), "no figure curvs. Choose from curves, "),
        (("curves", ["arch=plain"]), "filters go with a folder"),
    ):
        with pytest.raises(UsageError, match=said):
            resexp.plot(runs, *words)
    write_run(tmp_path, "plain", 20, 0, name="other")
    with pytest.raises(UsageError, match="a figure is of one"):
        resexp.plot(tmp_path)


@pytest.mark.process
def test_the_notebook_runs(tmp_path: Path) -> None:
    """With small networks; what it shows is there."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    cells[0].source += f"\nsettings |= {TINY}"
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=200, resources=where).execute()
    last = [cell.outputs[-1].get("data", {}) for cell in cells[1:]]
    assert [len(curves_of(shown.get("text/html", ""))) for shown in last] == [1, 1, 0, 1, 0, 0]
    assert "layers, 4 steps, 1 seed" in last[2]["text/plain"]
    assert len(find_runs(tmp_path / "results")) == 5
