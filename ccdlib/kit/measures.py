"""What is measured of trained networks: kept beside each run, and with its record when the weights are gone."""

import json
from collections.abc import Sequence

from ccdlib.analyses.experiment import Measure, name_of
from ccdlib.base import extensions
from ccdlib.base.devices import cores
from ccdlib.base.files import write_whole
from ccdlib.base.reading import text_of
from ccdlib.evidence.records import MEASURES
from ccdlib.training import Result
from ccdlib.training.schedule import workers


def of_runs(runs: Sequence[Result], measure: Measure) -> list[dict[str, float]]:
    """What `measure` finds of each of some runs, in their order: as it was recorded or kept, else computed on every core.

    Errors: CcdError where it is not known, and the weights are not here.
    """
    found = {run.folder: values for run in runs if (values := _known(run).get(name_of(measure)))}
    missing = list({run.folder: run for run in runs if run.folder not in found}.values())
    for run in missing:
        run.model()  # an error before the first is measured
    if missing:
        rows = extensions.carried()
        with workers(min(cores(), len(missing))) as pool:
            tasks = {run.folder: pool.submit(_measured, run, measure, rows) for run in missing}
            found |= {folder: task.result() for folder, task in tasks.items()}
    return [found[run.folder] for run in runs]


def _measured(run, measure, rows):
    """In a worker: measure one run, and keep what was found beside it."""
    extensions.receive(rows)
    values = measure(run)
    write_whole(run.folder / MEASURES, json.dumps(_known(run) | {name_of(measure): values}) + "\n")
    return values


def _known(run):
    """{name of a measure: its values} of a run, as they were recorded or kept."""
    file = run.folder / MEASURES
    return run.metrics.get("measures") or (json.loads(text_of(file)) if file.exists() else {})
