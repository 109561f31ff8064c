"""Records checked by training some of their runs again."""

import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import sqrt
from statistics import fmean, stdev
from typing import NamedTuple

from ccdlib.base.registry import CcdError
from ccdlib.evidence.records import Records
from ccdlib.kit import recorded
from ccdlib.kit.parameters import asked_for
from ccdlib.training import RunConfig, fit
from ccdlib.training.cohort import computes_as

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


def sample(profile: str, stems: Sequence[str], runs: int, seed: int) -> list[tuple[str, str, RunConfig, Records]]:
    """A random sample of recorded runs, as (notebook, arm, configuration, records).

    Errors: CcdError where nothing is recorded.
    """
    found = []
    for stem in stems:
        _, values = asked_for(stem, profile)
        records = Records(recorded.file_of(profile, stem))
        planned = recorded.experiment(stem, values, profile)
        for arm, configs in planned.arms.items() if records.lines else ():
            found += [
                (stem, arm, config, records) for config in configs if isinstance(config, RunConfig) and records.has(config)
            ]
    if not found:
        raise CcdError(f"profile {profile} has no records of {', '.join(stems)}; `ccd record` writes them from finished runs")
    return random.Random(seed).sample(found, min(runs, len(found)))


def again(chosen: tuple[str, str, RunConfig, Records], profile: str) -> Again:
    """Train one run of a sample again, in a run store of its own, and compare it with its record. Errors: as fit()."""
    stem, arm, config, records = chosen
    computes_as([config])
    own, (_, known) = records.result(config).accuracy, recorded.results(stem, profile)
    others = [run.accuracy for run in known[arm] if run.config.seed != config.seed]
    with _own_store():
        result = fit(config, show="none")
    same = result.metrics["sha256"]["weights.safetensors"] == records.lines[records.name(config)]["weights"]
    return Again(stem, arm, config.seed, result.accuracy, [own, *others], records.arithmetic.portable, same)


@contextmanager
def _own_store() -> Iterator[None]:
    before = os.environ.get("CCD_OUTPUTS")
    with tempfile.TemporaryDirectory(prefix="ccdlib-") as folder:
        os.environ["CCD_OUTPUTS"] = folder
        try:
            yield
        finally:
            os.environ.pop("CCD_OUTPUTS")
            if before is not None:
                os.environ["CCD_OUTPUTS"] = before
