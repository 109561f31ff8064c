"""Where a notebook's results come from: the run store, published records, or a training; and records written from the store."""

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from ccdlib import analyses
from ccdlib.analyses import Experiment
from ccdlib.base import paths
from ccdlib.base.registry import CcdError, unknown
from ccdlib.evidence.records import FILE, Records
from ccdlib.kit.parameters import asked_for, label
from ccdlib.training import Result
from ccdlib.training.schedule import unfinished

FROM = "CCD_FROM"  # the variable by which a command tells the kernel
# "any": what the run store lacks comes from records, and what these lack is trained. "records": nothing is trained. "scratch":
# records are not looked at.
SOURCES = ("any", "records", "scratch")


def source() -> str:
    """What $CCD_FROM says, "any" without it. Errors: CcdError for another word."""
    said = os.environ.get(FROM) or SOURCES[0]
    if said not in SOURCES:
        raise unknown(f"${FROM}", said, SOURCES)
    return said


def file_of(profile: str, stem: str) -> Path:
    """The file of the records of a notebook under a profile: in the folder of results, else in the checkout."""
    own = paths.outputs() / profile / stem / FILE
    published = paths.ROOT / "outputs" / profile / stem / FILE
    return own if own.exists() or not published.exists() else published


def experiment(stem: str, parameters: Mapping[str, Any], profile: str) -> Experiment:
    """The Experiment of a notebook with the records of its profile, as source() says.

    Errors: CcdError for wrong parameters, and with "records" where runs are not recorded.
    """
    asked, planned = source(), analyses.experiment(stem, parameters)
    if asked == "scratch":
        return planned
    records = Records(file_of(profile, stem))
    planned = replace(planned, records=records if records.lines else None)
    if asked == "records" and (missing := unfinished(folder for _, folder in planned.runs.values())):
        raise CcdError(
            f"{len(missing)} of {len(planned.runs)} runs are neither recorded in {paths.shown(records.path)} nor in the run "
            f"store; `ccd plan {stem} --profile {profile}` lists them. Leave --from records out to train them"
        )
    return planned


@lru_cache
def lacking(stem: str, profile: str) -> str:
    """What the published records of a notebook lack, in words; "" where they have all of its runs."""
    _, values = asked_for(stem, profile)
    records, runs = Records(paths.ROOT / "outputs" / profile / stem / FILE), analyses.experiment(stem, values).runs
    there = sum(records.has(folder.config) for _, folder in runs.values())
    return "" if there == len(runs) else f"{there} of {len(runs)} runs of {stem} are recorded, and the others are to be trained"


def write(name: str, profile: str) -> str:
    """Add the finished runs of a notebook to the records of its profile; returns what was added, in words. Errors: CcdError."""
    path, values = asked_for(name, profile)
    file = paths.outputs() / label(path, profile, values) / path.stem / FILE
    planned = analyses.experiment(path.stem, values)
    records, runs = Records(file), [folder for _, folder in planned.runs.values()]
    added = records.add(runs)
    records.publish(planned.shown)
    there = sum(records.has(folder.config) for folder in runs)
    return f"{path.stem}: {added} new, {there} of {len(runs)} runs are recorded in {paths.shown(file)}"


def results(name: str, profile: str) -> tuple[Experiment, dict[str, list[Result]]]:
    """The Experiment of a notebook, and {arm: the Results of its first seeds, up to one that is not there}; nothing is trained.

    Errors: CcdError where no arm has two seeds.
    """
    path, values = asked_for(name, profile)
    planned = replace(analyses.experiment(path.stem, values), records=Records(file_of(profile, path.stem)))
    found = {}
    for arm, configs in planned.arms.items():
        here = list(takewhile(planned.known, configs))
        if len(here) > 1:
            found[arm] = [planned.result(config) for config in here]
    if not found:
        where = f"{path.stem} --profile {profile}"
        raise CcdError(f"{path.stem}, profile {profile}: no arm has two runs that are there; see `ccd plan {where}`")
    return planned, found
