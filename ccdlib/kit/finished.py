"""What an executed notebook was made from, so that a finished one is found again by `ccd run` and by batches."""

import json
from functools import lru_cache
from pathlib import Path

from ccdlib.analyses import Experiment
from ccdlib.base import paths
from ccdlib.base.files import sha256, write_whole
from ccdlib.base.sources import code_of
from ccdlib.kit.parameters import cells_of
from ccdlib.training.schedule import digest_of

# No result depends on these modules.
DOORS = ("batch", "clean", "engine", "finished", "jobs", "outlook", "planning")
ABOUT = ("ledger", "pages", "power", "recheck", "verdicts")  # what is done with results
ELSEWHERE = ("cli", "evidence/forest.py", *(f"kit/{name}.py" for name in (*DOORS, *ABOUT)))


def fingerprint(path: Path, parameters: dict, planned: Experiment) -> str:
    """A hash of what the results of a notebook depend on: parameters, code cells, the library's code, its runs, and the records
    that these are read from."""
    code = [cell["source"] for cell in cells_of(path, paths.shown(path)) if cell["cell_type"] == "code"]
    records = planned.records.digest if planned.read else ""
    return digest_of([parameters, code, library_hash(), sorted(planned.runs), records])


@lru_cache
def library_hash() -> str:
    """A hash of the code that a notebook runs: all modules but the doors to them, without comments and docstrings."""
    package = Path(__file__).parent.parent
    files = sorted(path for path in package.rglob("*.py") if not path.relative_to(package).as_posix().startswith(ELSEWHERE))
    return digest_of([[path.name, code_of(path)] for path in files])


def marker(profile: str, stem: str, print_of_it: str) -> Path:
    """The file that says that a notebook was executed, named after what it was made from; profile: its folder in outputs/."""
    return paths.outputs() / ".batch" / profile / "done" / f"{stem}-{print_of_it}"


def is_there(mark: Path) -> bool:
    """Whether the marker is there, and the executed notebook with all that it wrote is still what it was."""
    return mark.exists() and mark.read_text() == _content(mark)


def remember(mark: Path) -> None:
    """Write the marker of a notebook that was executed."""
    forget(mark)
    write_whole(mark, _content(mark))


def forget(mark: Path) -> None:
    """Remove all markers of the notebook, because it is going to write other results."""
    for old in mark.parent.glob(f"{mark.name.rpartition('-')[0]}-*"):
        old.unlink(missing_ok=True)


def _content(mark):
    """A hash of the executed notebook, its results and its figures; "" where something is missing."""
    folder = paths.outputs() / mark.parent.parent.name / mark.name.rpartition("-")[0]
    try:
        figures = json.loads((folder / "results.json").read_text()).get("figures", [])
        files = [folder.with_suffix(".ipynb"), *(folder / name for name in ("results.json", *figures))]
        return digest_of([sha256(file) for file in files])
    except (OSError, ValueError):
        return ""
