"""`docs/notebook.ipynb` runs from its first to its last cell."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from support import runs
from support.places import ROOT

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
SMALL = ["data.source=dogimages", "data.size=64", "data.num_workers=0", "trainer.max_epochs=2", "loggers=null"]


def test_the_notebook_holds_no_output() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells), "clear all outputs"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in runs.environment(DOGBREED_CACHE=str(tmp_path / "cache")).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (at,) = [n for n, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
    small = f"root = Path({str(runs.photographs())!r})\nsettings += {SMALL}"
    notebook.cells.insert(at + 1, nbformat.v4.new_code_cell(small))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("Test accuracy" in output.get("text", "") for output in shown)
    assert sum("image/png" in output.get("data", {}) for output in shown) == 2, "the curves and the photograph"
    assert (tmp_path / "outputs" / "notebook_model" / "model.json").is_file()
