"""Where a notebook's results come from: the run store, published records, or a training; and records written from the store."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from ccdlib import analyses
from ccdlib.analyses import Experiment
from ccdlib.base import paths
from ccdlib.base.files import write_whole
from ccdlib.base.reading import text_of
from ccdlib.base.registry import CcdError, unknown
from ccdlib.evidence.records import FILE, Records
from ccdlib.kit import measures
from ccdlib.kit.parameters import asked_for
from ccdlib.training import Checkpoint, RunConfig, fit, folder_of
from ccdlib.training.identity import source_hash
from ccdlib.training.schedule import digest_of

FROM = "CCD_FROM"  # the variable by which a command tells the kernel
# "any": what the run store lacks comes from records, and what these lack is trained. "records": all comes from records, and the
# run store is not looked at. "scratch": records are not looked at.
SOURCES = ("any", "records", "scratch")
CONFIRMED = "confirmed.json"  # beside the notebooks of a profile: which later code gives the bits of its records


def source() -> str:
    """What $CCD_FROM says, "any" without it. Errors: CcdError for another word."""
    said = os.environ.get(FROM) or SOURCES[0]
    if said not in SOURCES:
        raise unknown(f"${FROM}", said, SOURCES)
    return said


def records_of(profile: str, stem: str) -> Records:
    """The records of a notebook under a profile: its own file in the folder of results, then that of the checkout, and then
    those of the profile's other notebooks, which may share runs."""
    own, published = paths.outputs() / profile, paths.ROOT / "outputs" / profile
    mine = [folder / stem / FILE for folder in (own, published)]
    first = next((file for file in mine if file.exists()), mine[0])
    others = [*mine, *sorted(own.glob(f"*/{FILE}")), *sorted(published.glob(f"*/{FILE}"))]
    return Records(first, [file for file in dict.fromkeys(others) if file != first])


def experiment(stem: str, parameters: Mapping[str, Any], profile: str) -> Experiment:
    """The Experiment of a notebook with the records of its profile, as source() says.

    Errors: CcdError for wrong parameters, and with "records" where runs are not recorded.
    """
    asked, planned = source(), analyses.experiment(stem, parameters)
    if asked == "scratch":
        return planned
    records = records_of(profile, stem)
    planned = replace(planned, records=records if len(records) else None, alone=asked == "records")
    if asked == "records":
        runs = [folder for _, folder in planned.runs.values()]
        if missing := sum(not folder.recorded for folder in runs):
            raise CcdError(
                f"{missing} of {len(runs)} runs of {stem} have no record, or lack the network that a figure needs or what is "
                f"measured of it; `ccd plan {stem} --profile {profile}` lists them. Leave --from records out to train them; "
                "`ccd record` records what is trained"
            )
    return planned


def confirmed_file(profile: str) -> Path:
    """The file that says which later code was found to give the bits of a profile's records."""
    return paths.outputs() / profile / CONFIRMED


def confirmed(profile: str) -> list[dict[str, Any]]:
    """What `ccd check --confirm` found: "source", the hash of the code; "kinds", the kinds of run for which it gives the bits
    of earlier code, {its hash: [kind]}; where and when. Errors: CcdError for a file that cannot be read."""
    published = paths.ROOT / "outputs" / profile / CONFIRMED
    file = next((file for file in (confirmed_file(profile), published) if file.exists()), None)
    try:
        return json.loads(text_of(file)) if file else []
    except ValueError as error:
        raise CcdError(f"{paths.shown(file)} cannot be read ({error}); restore it, for example from git") from error


# What does not change which code a run goes through: its random numbers, and how long and on how many images it is trained.
SIZES = ("seed", "draws", "subset_seed", "n_train", "epochs", "eval_every", "teacher")


def kind_of(config: RunConfig) -> str:
    """Twelve hexadecimal digits for the code that a run goes through: for its configuration but for SIZES, and whether its
    teacher is trained."""
    teacher = config.teacher
    asked = config.model_dump(mode="json", exclude={*SIZES}, exclude_defaults=True)
    return digest_of([asked, teacher and teacher.model, isinstance(teacher, RunConfig)])


def by_this_code(made: Mapping[str, Any], config: RunConfig, profile: str) -> bool:
    """Whether a run of this provenance has the bits that the code as it is now gives: it was trained by it, or by code that
    was confirmed to be the same for its kind of run."""
    now = source_hash()
    if made["source"] == now:
        return True
    kind = kind_of(config)
    return any(kind in fact["kinds"].get(made["source"], ()) for fact in confirmed(profile) if fact["source"] == now)


def keep(planned: Experiment, stem: str, profile: str) -> tuple[Records, int]:
    """Add the finished runs of an Experiment, measured where it says so, to its records in the folder of results.

    Returns the records, and how many are new. Errors: CcdError for runs that were refused, after the others have been added.
    """
    known, file = records_of(profile, stem), paths.outputs() / profile / stem / FILE
    if known.path != file and known.path.exists():
        write_whole(file, known.path.read_bytes())  # what is published stays in the file
    records = Records(file)
    if planned.measure:
        every = [(config, folder_of(config)) for config in planned.measured]
        new = [config for config, folder in every if folder.finished and folder.path.name not in records.lines]
        measures.of_runs([fit(config, show="none") for config in new], planned.measure)
    added = records.add(folder for _, folder in planned.runs.values())
    records.publish(planned.shown)
    return records, added


def write(name: str, profile: str) -> str:
    """keep() for a notebook, as text. Errors: CcdError."""
    path, values = asked_for(name, profile)
    planned = analyses.experiment(path.stem, values)
    records, added = keep(planned, path.stem, profile)
    here = [folder.config for _, folder in planned.runs.values() if records.has(folder.config)]
    older = sum(not by_this_code(records.made(config), config, profile) for config in here)
    note = f"; {older} were trained by another version of the code that shapes results" if older else ""
    said = f"{path.stem}: {added} new, {len(here)} of {len(planned.runs)} runs are recorded"
    return f"{said} in {paths.shown(records.path)}{note}"


def accuracies(planned: Experiment, stem: str, profile: str) -> dict[str, list[float]]:
    """{arm: the recorded accuracies of its first seeds, up to one that is not there}, of arms that have two or more.

    Bundled teachers have those of their cards. Errors: CcdError where no arm has two runs.
    """
    records, found = records_of(profile, stem), {}
    for arm, configs in planned.arms.items():
        here = list(takewhile(lambda config: isinstance(config, Checkpoint) or records.has(config), configs))
        if len(here) > 1:
            found[arm] = [c.accuracy if isinstance(c, Checkpoint) else records.line(c)["accuracy"] for c in here]
    if not any(isinstance(planned.arms[arm][0], RunConfig) for arm in found):
        raise CcdError(
            f"profile {profile} has no records of two runs of an arm of {stem}; `ccd record` writes them from finished runs"
        )
    return found
