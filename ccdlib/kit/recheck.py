"""Records checked by training some of their runs again, and confirmed for code that has changed since."""

import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from math import sqrt
from statistics import fmean, stdev
from typing import NamedTuple

from ccdlib import analyses
from ccdlib.base import paths
from ccdlib.base.arithmetic import TOO_LATE, make_portable, processor
from ccdlib.base.files import write_whole
from ccdlib.base.registry import CcdError
from ccdlib.evidence.records import WEIGHTS, Records
from ccdlib.kit import recorded
from ccdlib.kit.parameters import asked_for
from ccdlib.training import RunConfig
from ccdlib.training.cohort import folder_of
from ccdlib.training.identity import git_state, source_hash
from ccdlib.training.schedule import Schedule, Trainings, folders_of

LEVEL = 0.99  # of the interval in which a retrained run lies, if nothing has changed


class Again(NamedTuple):
    """A run that was trained again. known: the accuracies of its arm in the records, its own first."""

    stem: str
    arm: str
    seed: int
    accuracy: float
    known: list[float]
    portable: bool
    same_bits: bool

    @property
    def span(self) -> tuple[float, float]:
        """Where one more run of the arm lies at the rate LEVEL, by the t distribution."""
        from scipy.stats import t

        n = len(self.known)
        half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * stdev(self.known) * sqrt(1 + 1 / n)
        return fmean(self.known) - half, fmean(self.known) + half

    @property
    def passed(self) -> bool:
        """Whether the run is what its record says: bit by bit where it is portable, otherwise within the spread of its arm."""
        low, high = self.span
        return self.same_bits if self.portable else low <= self.accuracy <= high

    @property
    def bits(self) -> str:
        """The run, its accuracies, and whether its weights are those of the record, bit by bit."""
        bits = "the same bits" if self.same_bits else "OTHER BITS" if self.portable else "other bits"
        return f"{self.stem}, {self.arm}, seed {self.seed}: {self.accuracy:.2f} %, recorded {self.known[0]:.2f} %, {bits}"

    @property
    def said(self) -> str:
        """The finding on a line."""
        low, high = self.span
        where = "within" if low <= self.accuracy <= high else "OUTSIDE"
        return f"{self.bits}; {where} the spread of its arm, {low:.2f} to {high:.2f} %"


class Chosen(NamedTuple):
    """A recorded run of a sample. others: the recorded accuracies of its arm's other seeds."""

    stem: str
    arm: str
    config: RunConfig
    records: Records
    others: list[float]

    @property
    def made(self) -> dict:
        """Where, when and by which code it was trained."""
        return self.records.made(self.config)


def sample(profile: str, stems: Sequence[str], runs: int, seed: int) -> list[Chosen]:
    """A random sample of recorded runs, of arms with at least three. From then on this process computes as they did.

    Errors: CcdError where nothing is recorded, and where it is too late to be portable.
    """
    found = [one for one in _recorded(profile, stems) if len(one.others) > 1]
    if not found:
        raise CcdError("no arm has three recorded runs, from which the spread of a fourth would be known; record more")
    return random.Random(seed).sample(found, min(runs, len(found)))


def one_of_each_kind(profile: str, stems: Sequence[str]) -> list[Chosen]:
    """The shortest recorded run of each kind and each version of the code that trained it, without those that the code as it
    is now trained or is known to give. Errors: as sample()."""
    found = {}
    for one in sorted(_recorded(profile, stems), key=lambda one: one.records.line(one.config)["seconds"]):
        if not recorded.by_this_code(one.made, one.config, profile):
            found.setdefault((one.made["source"], recorded.kind_of(one.config)), one)
    return list(found.values())


def _recorded(profile, stems):
    """Every recorded run, as Chosen. From then on this process computes as they did."""
    found, every = [], {stem: recorded.records_of(profile, stem) for stem in stems}
    # Before any data is read, which computes.
    if any(len(records) and records.way.portable for records in every.values()) and not make_portable():
        raise CcdError(TOO_LATE)
    for stem, records in every.items():
        _, values = asked_for(stem, profile)
        for arm, configs in analyses.experiment(stem, values).arms.items() if len(records) else ():
            here = [config for config in configs if isinstance(config, RunConfig) and records.has(config)]
            known = [records.line(config)["accuracy"] for config in here]
            found += [Chosen(stem, arm, config, records, known[:k] + known[k + 1 :]) for k, config in enumerate(here)]
    if not found:
        raise CcdError(f"profile {profile} has no records of {', '.join(stems)}; `ccd record` writes them from finished runs")
    return found


def again(chosen: Sequence[Chosen]) -> Iterator[Again]:
    """Train runs of a sample again, side by side, in a run store of their own, and compare each with its record.

    Errors: as fit().
    """
    with (
        tempfile.TemporaryDirectory(prefix="ccdlib-") as store,
        paths.variable("CCD_OUTPUTS", store),
        Trainings(Schedule(folders_of(one.config for one in chosen))) as trainings,
    ):
        for one in chosen:
            trainings.wait([one.config])
            metrics, line = folder_of(one.config).metrics, one.records.line(one.config)
            same, portable = metrics["sha256"][WEIGHTS] == line["weights"], one.records.way.portable
            known = [line["accuracy"], *one.others]
            yield Again(one.stem, one.arm, one.config.seed, metrics["accuracy"], known, portable, same)


def confirm(profile: str, chosen: Sequence[Chosen]) -> None:
    """Note that the code as it is now gives the bits of these runs, and so those of all of their kinds that the same code
    trained."""
    commit, dirty = git_state()
    kinds = {}
    for one in chosen:
        kinds.setdefault(one.made["source"], []).append(recorded.kind_of(one.config))
    fact = {"source": source_hash(), "kinds": kinds, "git_commit": commit, "git_dirty": dirty}
    fact |= {"processor": processor(), "date": datetime.now(UTC).date().isoformat()}
    known = recorded.confirmed(profile)
    write_whole(recorded.confirmed_file(profile), json.dumps([*known, fact], indent=1) + "\n")
