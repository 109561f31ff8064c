"""Every notebook from scratch: all cells, all trainings, as short as can be, through the door that `ccd run` takes."""

import json

import nbformat
import pytest

from ccdlib.base import paths
from ccdlib.evidence.records import FILE, Records
from ccdlib.kit.door import run_notebook

STEMS = sorted(path.stem for path in paths.NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.drill
@pytest.mark.parametrize("stem", STEMS)
def test_a_notebook_trains_from_scratch_and_says_what_it_found(stem, outputs, monkeypatch):
    monkeypatch.setenv("CCD_FROM", "scratch")
    executed, now = run_notebook(stem, "smoke")
    assert now
    folder = outputs / "smoke" / stem
    results = json.loads((folder / "results.json").read_text())
    assert results["trained_by_other_code"] == 0
    assert results["source"].startswith("trained here; ccd run ")
    assert results["figures"]
    assert all((folder / name).stat().st_size > 5000 for name in results["figures"])
    assert {claim["verdict"] for claim in results["claims"]} == {"untested (needs 10 seeds)"}, "smoke finds nothing"
    book = nbformat.read(executed, as_version=4)
    said = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in said if output.output_type == "error" or output.get("name") == "stderr"]
    shown = [output.data["text/markdown"] for output in said if "text/markdown" in output.get("data", {})]
    assert any("**What would change our mind.**" in text and "smoke" in text for text in shown)
    records = Records(folder / FILE)
    runs = {name for names in results["runs"].values() for name in names if not name.startswith("ccdlib:")}
    assert runs <= records.lines.keys()
