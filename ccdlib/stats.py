"""Statistics of paired runs: means, standard deviations, intervals of differences over seeds, and verdicts."""

import math
from statistics import fmean, stdev
from typing import NamedTuple

from ccdlib.registry import CcdError

VERDICTS = ("holds", "does not hold", "inconclusive", "untested")


class Interval(NamedTuple):
    """A mean over n paired seeds with its 95 % t interval; with one seed the ends are None."""

    estimate: float
    low: float | None
    high: float | None
    n: int

    def __str__(self):
        ends = "one seed, no interval" if self.low is None else f"95 % interval {self.low:+.2f} to {self.high:+.2f}"
        return f"{self.estimate:+.2f} ({ends}, n {self.n})"


def interval(values, level=0.95):
    """The t interval of the mean of `values`, which are independent: one number a seed."""
    values = [float(v) for v in values]
    if not values or not all(map(math.isfinite, values)):
        raise CcdError(f"an interval needs finite numbers, one a seed; given: {values}")
    mean, n = fmean(values), len(values)
    if n == 1:
        return Interval(mean, None, None, 1)
    from scipy.stats import t

    half = float(t.ppf((1 + level) / 2, n - 1)) * stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def paired(better, baseline):
    """Interval of the mean difference better - baseline; entry k of both must come from the same seed."""
    if len(better) != len(baseline):
        raise CcdError(f"{len(better)} and {len(baseline)} results are no pairs; run both arms with the same seeds")
    return interval([a - b for a, b in zip(better, baseline, strict=True)])


def verdict(difference, least):
    """What an Interval says about "the difference is above zero", when at least `least` seeds were asked for."""
    if difference.n < max(least, 2):
        return "untested (needs lite/paper)"
    if difference.low > 0:
        return "holds"
    return "does not hold" if difference.high < 0 else "inconclusive"


def spread(values):
    """(mean, standard deviation) of the values; the deviation of a single one is None."""
    return fmean(values), stdev(values) if len(values) > 1 else None


def brief(difference):
    """An Interval's dict as a table shows it: "+0.72 [-0.08, +1.51]"; nothing for None, no ends for a single seed."""
    if difference is None:
        return ""
    low, high = difference["low"], difference["high"]
    return f"{difference['estimate']:+.2f}" + ("" if low is None else f" [{low:+.2f}, {high:+.2f}]")
