"""What is measured of trained networks, kept beside the results, so that it can be read where the weights are gone."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from loky import ProcessPoolExecutor

from ccdlib.base import paths
from ccdlib.base.devices import jobs
from ccdlib.base.files import write_whole
from ccdlib.base.reading import text_of
from ccdlib.base.registry import CcdError
from ccdlib.evidence.records import WEIGHTS
from ccdlib.training import Result

FILE = "measures.json"


def of_runs(folder: Path, runs: Sequence[Result], function: Callable[[Result], dict[str, float]]) -> dict[str, dict]:
    """{network_of a run: what `function` measures of it}, read from FILE where it is known, else computed and added to it.

    folder: of the results of a notebook and profile; what is published for them is known, too. A change of the measure needs
    another name of the function. Errors: CcdError for a file that cannot be read, and where weights are needed that are gone.
    """
    file, kind = folder / FILE, f"{function.__module__}.{function.__qualname__}"
    published = paths.ROOT / "outputs" / folder.relative_to(paths.outputs()) / FILE
    known = _read(published)
    for name, values in _read(file).items():
        known[name] = known.get(name, {}) | values
    found = dict(known.get(kind, {}))
    missing = list({network_of(run): run for run in runs if network_of(run) not in found}.values())
    if not missing:
        return found
    for run in missing:
        run.model()  # an error before the first is measured
    with ProcessPoolExecutor(min(jobs(), len(missing)), env={"OMP_NUM_THREADS": "1"}) as pool:
        for run, values in zip(missing, pool.map(function, missing), strict=True):
            found[network_of(run)] = values
            # One by one, so that an interruption loses nothing.
            write_whole(file, json.dumps(known | {kind: dict(sorted(found.items()))}, indent=1) + "\n")
    return found


def network_of(run: Result) -> str:
    """Sixteen hexadecimal digits that name the trained network by its weights: a run of the same name that was trained on
    another machine may have others."""
    return run.metrics["sha256"][WEIGHTS][:16]


def _read(file):
    try:
        return json.loads(text_of(file)) if file.exists() else {}
    except ValueError as error:
        raise CcdError(f"{paths.shown(file)} cannot be read ({error}); restore it from git, or delete it") from error
