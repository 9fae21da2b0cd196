"""The notebooks run unchanged, except for shorter trainings."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_every_task_has_a_notebook():
    from emdiffuse.config.tasks import TASKS

    assert {path.stem for path in NOTEBOOKS} == set(TASKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_trains_predicts_and_shows(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "resources").symlink_to(ROOT / "resources")
    (tmp_path / "notebooks").mkdir()
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "a notebook is kept without its outputs"
    settings = next(cell for cell in notebook.cells if '"minutes": 2' in cell.source)
    settings.source = settings.source.replace('"minutes": 2, "steps": 5000', '"steps": 12')
    client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": tmp_path / "notebooks"}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    said = "".join(output.get("text", "") for output in outputs if output.output_type == "stream")
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    scores = [float(number) for number in re.findall(r"PSNR ([\d.]+) dB", said)]
    assert len(scores) >= 2 and min(scores) > 10
    assert len(figures) == 1
