"""The strict papermill door: notebooks executed headlessly, with checked parameters, whole or not at all."""

import ast
import json
import logging
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ccdlib.analyses.experiment import EXPERIMENTS
from ccdlib.base import paths
from ccdlib.base.arithmetic import switched
from ccdlib.base.devices import jobs
from ccdlib.base.files import write_whole
from ccdlib.base.registry import CcdError
from ccdlib.evidence import stats
from ccdlib.kit import finished, recorded
from ccdlib.kit.answers import said_of
from ccdlib.kit.batch import duration
from ccdlib.kit.parameters import (
    CHECKED,
    DEFAULT,
    arithmetic_of,
    asked_for,
    cells_of,
    checksum,
    find,
    label,
    profile_parameters,
)
from ccdlib.training.checks import check_surroundings
from ccdlib.training.forecast import expected_seconds
from ccdlib.training.schedule import unfinished

if TYPE_CHECKING:  # it takes seconds to import
    from nbformat import NotebookNode


class NotebookFailed(Exception):
    """A notebook raised an error; its executed copy is kept."""


def run_notebook(
    name: str,
    profile: str = DEFAULT,
    files: Sequence[str] = (),
    given: Sequence[tuple[str, str]] = (),
    checked: bool = False,
    again: bool = True,
    say: Callable[[str], object] = lambda text: None,
) -> tuple[Path, bool]:
    """Execute a notebook by papermill with checked parameters (see asked_for).

    The executed notebook lands in outputs/<label>/<stem>.ipynb, whole or not at all; a failing one as <stem>.failed.ipynb,
    with NotebookFailed raised. checked: it is known that its runs can be trained. again: also where it was executed before
    with the same parameters, code and runs. say: is told how long a training takes. Returns its path, and whether it was
    executed now. Errors: CcdError before anything runs.
    """
    path, values = asked_for(name, profile, files, given)
    check_surroundings()
    _check_names_itself(path)
    here, mark = label(path, profile, values), None
    target = paths.outputs() / here / f"{path.stem}.ipynb"
    if path.stem in EXPERIMENTS:
        planned = recorded.experiment(path.stem, values, profile)
        runs = [folder for _, folder in planned.runs.values()]
        mark = finished.marker(here, path.stem, finished.fingerprint(path, values, planned))
        if not (again or unfinished(runs)) and finished.is_there(mark):
            return target, False
        if not checked:
            planned.check()
        finished.forget(mark)
        if lacking := [folder.config for folder in unfinished(runs)]:
            takes = duration(sum(expected_seconds(lacking)) / jobs())
            say(f"{len(lacking)} of {len(runs)} runs are to be trained, in about {takes}; what is finished is kept")
    os.environ[CHECKED] = checksum(path.stem, values)
    arithmetic = arithmetic_of(values)
    defaults = profile_parameters(path, DEFAULT)
    with switched(arithmetic.portable):
        execute(path, target, {key: value for key, value in values.items() if value != defaults[key]})
    if mark:
        finished.remember(mark)
    return target, True


def _check_names_itself(path):
    """Raise CcdError unless the notebook writes its results under its own name: a copy under another one trains for nothing."""
    code = [cell["source"] for cell in cells_of(path, paths.shown(path)) if cell["cell_type"] == "code"]
    try:
        calls = [node for node in ast.walk(_python("\n".join(code))) if isinstance(node, ast.Call) and node.args]
    except SyntaxError as error:
        raise CcdError(f"{paths.shown(path)}: a cell is not valid Python: {error}") from error
    names = [call.args[0].value for call in calls if _is_analysis(call.func) and isinstance(call.args[0], ast.Constant)]
    if names != [path.stem]:
        said = f"names {', '.join(map(repr, names))} in ccdlib.Analysis(...)" if names else "has no ccdlib.Analysis(...)"
        raise CcdError(
            f"{paths.shown(path)} {said}, so its results would not be found; its first lines must have "
            f'analysis = ccdlib.Analysis("{path.stem}", profile, globals())'
        )


def _python(code):
    """The syntax tree of the code of notebook cells, which may have magics such as %timeit and shell commands."""
    try:
        return ast.parse(code)
    except SyntaxError:
        from IPython.core.inputtransformer2 import TransformerManager  # takes a second to import

        return ast.parse(TransformerManager().transform_cell(code))


def _is_analysis(function):
    return (function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")) == "Analysis"


def execute(path: Path, target: Path, parameters: dict) -> Path:
    """Execute notebook `path` with papermill into `target`, through a temporary name; times are stripped.

    Whatever ends it early (an error in a cell, a kernel that died), what was executed is kept as `failed`.
    """
    import nbformat  # takes seconds to import, which a kernel should not pay
    import papermill
    from traitlets.config import Config

    failed = target.with_suffix(".failed.ipynb")
    mine = f"{platform.node()}-{os.getpid()}"
    beside = target.with_name(f".{target.stem}.{mine}.part.ipynb")
    _sweep([*target.parent.glob(f".{target.stem}.*.part.ipynb"), *Path("/tmp").glob("ccd-*-*.sockets")])
    results = target.with_suffix("") / "results.json"
    before = results.stat().st_mtime_ns if results.exists() else None
    # Files as sockets: network ports are chosen before the kernel takes them, and notebooks that start side by side
    # took each other's. Under /tmp, because the path of such a file must be short, which that of TMPDIR need not be.
    sockets = tempfile.TemporaryDirectory(prefix=f"ccd-{mine}.", suffix=".sockets", dir="/tmp", ignore_cleanup_errors=True)
    quiet = ["--IPKernelApp.log_level=50"]  # a kernel that is interrupted would show where
    config = {
        "KernelManager": {"transport": "ipc", "ip": f"{sockets.name}/kernel"},
        "NotebookClient": {"extra_arguments": quiet},
    }
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what it calls an error is raised as well
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        papermill.execute_notebook(
            str(path),
            str(beside),
            parameters=parameters,
            cwd=str(paths.ROOT),
            config=Config(config),
            progress_bar=False,
            coalesce_streams=True,  # how prints are cut into outputs depends on timing
            start_timeout=300,
        )
        if not results.exists() or results.stat().st_mtime_ns == before:
            raise NotebookFailed(
                f"{paths.shown(path)} ran, but did not write {paths.shown(results)}; its last cell must call analysis.save()"
            )
        executed = nbformat.read(beside, as_version=4)
    except KeyboardInterrupt:
        logging.getLogger("asyncio").disabled = True  # it would show what became of the cell that was interrupted
        raise
    except OSError as error:
        raise CcdError(
            f"{target} could not be written ({error}); free some space or set CCD_OUTPUTS to another folder"
        ) from error
    except Exception as error:
        if not beside.exists():
            raise
        failed.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(beside, failed)
        said = f"{error.ename}: {error.evalue}" if isinstance(error, papermill.PapermillExecutionError) else str(error)
        raise NotebookFailed(f"{said}\nThe executed notebook is {paths.shown(failed)}") from None
    finally:
        beside.unlink(missing_ok=True)
        sockets.cleanup()
    write_whole(target, nbformat.writes(without_times(executed)) + "\n")
    failed.unlink(missing_ok=True)
    return target


def _sweep(found):
    """Remove what processes of this machine that were killed have left behind, of files and folders named ...HOST-PID...."""
    for path in found:
        owner = re.search(rf"\b{re.escape(platform.node())}-(\d+)\.", path.name)
        if owner and not alive(int(owner[1])):
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def alive(pid: int) -> bool:
    """Whether a process of this machine goes on."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def without_times(notebook: "NotebookNode") -> "NotebookNode":
    """The notebook without what differs from run to run: times, papermill's notes, the Python version."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.id = "injected-parameters"  # papermill draws one by chance
    return notebook


def refresh(names: Sequence[str]) -> list[str]:
    """Execute notebooks with the values of their parameters cells, from records alone, and keep the outputs in them.

    All are executed before any is written, because a changed notebook is a changed checkout. Returns a line for each notebook;
    one whose records are not complete stays as it is.
    """
    executed, said = {}, []
    with paths.variable(recorded.FROM, "records"):
        for name in names:
            path = find(name)
            try:
                executed[path] = run_notebook(str(path))[0].read_bytes()
                said.append(paths.shown(path))
            except CcdError as error:
                said.append(f"{paths.shown(path)} stays as it is: {error}")
    for path, content in executed.items():
        write_whole(path, content)
    return said


def report(executed: Path) -> str:
    """A few lines about an executed notebook: its table, its verdicts, and where everything is."""
    folder = executed.with_suffix("")
    results = json.loads((folder / "results.json").read_text())
    rows = results["table"]
    width = max(len(row["arm"]) for row in rows)
    seeds = max(len(row["seeds"]) for row in rows)
    lines = [
        f"{results['notebook']}, profile {results['profile']}, {seeds} seeds, {results['arithmetic']}",
        f"  {'':{width}}  test accuracy   gain, paired [95 % interval]",
    ]
    for row in rows:
        gain = f"{stats.brief(row['difference'])} over {row['baseline']}" if row["baseline"] else ""
        fallen = stats.said_of_collapse(row.get("collapsed"))
        lines.append(f"  {row['arm']:{width}}  {row['mean']:6.2f} % ± {row['std']:<5.2f} {gain}  {fallen}".rstrip())
    lines += [f"  {said_of(claim)}" for claim in results["claims"]]
    if results["trained_by_other_code"]:
        lines.append(f"  note: {results['trained_by_other_code']} of the runs were trained by an earlier version of the code")
    lines += [f"notebook  {paths.shown(executed)}", f"results   {paths.shown(folder / 'results.json')}"]
    lines += [f"figure    {paths.shown(folder / name)}" for name in results["figures"]]
    return "\n".join(lines)
