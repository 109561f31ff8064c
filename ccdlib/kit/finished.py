"""What an executed notebook was made from, so that a finished one is found again by `ccd run` and by batches."""

import ast
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from ccdlib.base import paths
from ccdlib.base.files import write_whole
from ccdlib.kit.parameters import cells_of
from ccdlib.training.schedule import digest_of
from ccdlib.training.store import Folder

# No result depends on these modules.
ELSEWHERE = ("cli", *(f"kit/{name}.py" for name in ("batch", "clean", "engine", "finished", "jobs", "verdicts")))


def fingerprint(path: Path, parameters: dict, runs: Iterable[Folder]) -> str:
    """A hash of what the results of a notebook depend on: parameters, code cells, the library's code, and its runs."""
    code = [cell["source"] for cell in cells_of(path, paths.shown(path)) if cell["cell_type"] == "code"]
    return digest_of([parameters, code, library_hash(), sorted(folder.path.name for folder in runs)])


@lru_cache
def library_hash() -> str:
    """A hash of the code that a notebook runs: all modules but the doors to them, without comments and docstrings."""
    package = Path(__file__).parent.parent
    files = sorted(path for path in package.rglob("*.py") if not path.relative_to(package).as_posix().startswith(ELSEWHERE))
    return digest_of([[path.name, _code(path)] for path in files])


def _code(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            del node.body[0]
    return ast.dump(tree)


def marker(profile: str, stem: str, print_of_it: str) -> Path:
    """The file that says that a notebook was executed, named after what it was made from; profile: its folder in outputs/."""
    return paths.outputs() / ".batch" / profile / "done" / f"{stem}-{print_of_it}"


def is_there(profile: str, stem: str) -> bool:
    """Whether an executed notebook lies in the folder of a profile with all that it writes."""
    folder = paths.outputs() / profile / stem
    try:
        figures = json.loads((folder / "results.json").read_text()).get("figures", [])
    except (OSError, ValueError):
        return False
    return folder.with_suffix(".ipynb").exists() and all((folder / name).exists() for name in figures)


def remember(mark: Path) -> None:
    """Write the marker of a notebook that was executed, and remove its older ones."""
    for old in mark.parent.glob(f"{mark.name.rpartition('-')[0]}-*"):
        old.unlink(missing_ok=True)
    write_whole(mark, "")
