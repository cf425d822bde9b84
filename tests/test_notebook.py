"""The notebook that a newcomer opens runs from the first cell to the last."""

import json

import matplotlib
import pytest
from conftest import ROOT

pytestmark = [pytest.mark.compiled_fast, pytest.mark.slow]

NOTEBOOK = ROOT / "docs/first_steps.ipynb"


def test_every_cell_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    matplotlib.use("Agg")
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(
        cell["outputs"] == [] for cell in cells if cell["cell_type"] == "code"
    )  # nothing stale is kept
    names = {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    said = capsys.readouterr().out
    assert names["p_value"] > 1e-4  # false alarm; the seed is fixed
    assert names["lines"][-1]["accuracy"] > 0.5
    assert 8 * len(names["data"]) < 8 * names["x"].size
    assert "released_model: epsilon = " in said and "server: no guarantee" in said
    matplotlib.pyplot.close("all")
