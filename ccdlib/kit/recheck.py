"""Records checked by training some of their runs again."""

import random
import tempfile
from collections.abc import Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import NamedTuple

from ccdlib import analyses
from ccdlib.base import paths
from ccdlib.base.arithmetic import TOO_LATE, make_portable
from ccdlib.base.registry import CcdError
from ccdlib.evidence.records import WEIGHTS, Records
from ccdlib.kit import recorded
from ccdlib.kit.parameters import asked_for
from ccdlib.training import RunConfig, fit

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
    def said(self) -> str:
        """The finding on a line."""
        low, high = self.span
        where = "within" if low <= self.accuracy <= high else "OUTSIDE"
        bits = "the same bits" if self.same_bits else "OTHER BITS" if self.portable else "other bits"
        return (
            f"{self.stem}, {self.arm}, seed {self.seed}: {self.accuracy:.2f} %, recorded {self.known[0]:.2f} %, {bits}; "
            f"{where} the spread of its arm, {low:.2f} to {high:.2f} %"
        )


class Chosen(NamedTuple):
    """A recorded run of a sample. others: the recorded accuracies of its arm's other seeds."""

    stem: str
    arm: str
    config: RunConfig
    records: Records
    others: list[float]


def sample(profile: str, stems: Sequence[str], runs: int, seed: int) -> list[Chosen]:
    """A random sample of recorded runs, of arms with at least three. From then on this process computes as they did.

    Errors: CcdError where nothing is recorded, and where it is too late to be portable.
    """
    found, every = [], {stem: recorded.records_of(profile, stem) for stem in stems}
    # Before any data is read, which computes.
    if any(len(records) and records.way.portable for records in every.values()) and not make_portable():
        raise CcdError(TOO_LATE)
    for stem, records in every.items():
        _, values = asked_for(stem, profile)
        for arm, configs in analyses.experiment(stem, values).arms.items() if len(records) else ():
            here = [config for config in configs if isinstance(config, RunConfig) and records.has(config)]
            known = [records.line(config)["accuracy"] for config in here]
            found += [
                Chosen(stem, arm, config, records, known[:k] + known[k + 1 :])
                for k, config in enumerate(here if len(here) > 2 else ())
            ]
    if not found:
        raise CcdError(f"profile {profile} has no records of {', '.join(stems)}; `ccd record` writes them from finished runs")
    return random.Random(seed).sample(found, min(runs, len(found)))


def again(chosen: Chosen) -> Again:
    """Train one run of a sample again, in a run store of its own, and compare it with its record. Errors: as fit()."""
    line = chosen.records.line(chosen.config)
    with tempfile.TemporaryDirectory(prefix="ccdlib-") as store, paths.variable("CCD_OUTPUTS", store):
        result = fit(chosen.config, show="none")
    same = result.metrics["sha256"][WEIGHTS] == line["weights"]
    known, portable = [line["accuracy"], *chosen.others], chosen.records.way.portable
    return Again(chosen.stem, chosen.arm, chosen.config.seed, result.accuracy, known, portable, same)
