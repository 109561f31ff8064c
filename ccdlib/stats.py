"""Statistics of paired runs: intervals of differences over seeds, and claims that are declared before results are seen.

A claim is an estimand (a difference of arms, a slope over arms, or a peak inside a sweep), the values at which the claim is
true, and the least number of seeds. Every verdict rests on 95 % t intervals over seeds: "holds" when they lie inside the
claimed values, "does not hold" when one lies outside, "inconclusive" in between, "untested" with too few seeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import NamedTuple

from ccdlib.registry import CcdError, unknown

VERDICTS = ("holds", "does not hold", "inconclusive", "untested")
INFINITY = math.inf


class Interval(NamedTuple):
    """A mean over n paired seeds with its interval, 95 % unless asked otherwise."""

    estimate: float
    low: float
    high: float
    n: int

    def __str__(self):
        return f"{self.estimate:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def interval(values, level=0.95):
    """Student's t interval of the mean of `values`, which are independent: one number a seed, at least two."""
    values = _numbers(values)
    from scipy.stats import t

    mean, n = fmean(values), len(values)
    half = float(t.ppf((1 + level) / 2, n - 1)) * stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def bootstrap(values, level=0.95, resamples=9999):
    """Percentile bootstrap interval of the mean; assumes no shape, but is too narrow for few seeds (tests say how much)."""
    values = _numbers(values)
    import numpy as np
    from scipy import stats

    rng = np.random.default_rng(0)  # the same values give the same interval
    found = stats.bootstrap(
        (values,), np.mean, confidence_level=level, n_resamples=resamples, method="percentile", rng=rng
    ).confidence_interval
    return Interval(fmean(values), float(found.low), float(found.high), len(values))


def _numbers(values):
    values = [float(v) for v in values]
    if len(values) < 2 or not all(map(math.isfinite, values)):
        raise CcdError(f"an interval needs finite numbers from at least two seeds; given: {values}")
    return values


def paired(better, baseline, level=0.95):
    """Interval of the mean difference better - baseline; entry k of both must come from the same seed."""
    if len(better) != len(baseline):
        raise CcdError(f"{len(better)} and {len(baseline)} results are no pairs; run both arms with the same seeds")
    return interval([a - b for a, b in zip(better, baseline, strict=True)], level)


def spread(values):
    """(mean, standard deviation) of the values."""
    return fmean(values), stdev(values)


# ---------------------------------------------------------------- estimands: {arm: accuracies} -> numbers a seed


class Contrast(NamedTuple):
    """A weighted sum of arms, seed by seed: a difference, a difference of differences, a slope."""

    weights: Mapping[str, float]

    @property
    def arms(self):
        """The arms it needs."""
        return tuple(self.weights)

    def per_seed(self, accuracies):
        """[[one number a seed]]"""
        seeds = range(len(accuracies[self.arms[0]]))
        return [[sum(w * accuracies[arm][s] for arm, w in self.weights.items()) for s in seeds]]


class Peak(NamedTuple):
    """How far the best inside of a sweep lies above its first arm and above its last: two numbers a seed.

    Which arm is best is decided, for each seed, by the mean over the *other* seeds; chosen and measured on the same seeds, it
    would look better than it is. A claim needs both differences (an intersection-union test). The choices of two seeds share
    most of their data, so the intervals are a little too narrow: in simulations with ten seeds, up to 5 % of sweeps without
    a peak were taken for one, where independent choices would give 2.5 %. Errors: CcdError for fewer than three arms.
    """

    arms: Sequence[str]

    def per_seed(self, accuracies):
        """[[above the first, one number a seed], [above the last]]"""
        if len(self.arms) < 3:
            raise CcdError(f"a peak needs something between two ends; given: {', '.join(self.arms)}")
        first, *inside, last = (accuracies[arm] for arm in self.arms)
        above = [], []
        for s in range(len(first)):
            best = max(inside, key=lambda values: sum(values) - values[s])
            above[0].append(best[s] - first[s])
            above[1].append(best[s] - last[s])
        return list(above)


def slope(x):
    """Weights that give the least-squares slope of values at the places `x`."""
    middle = fmean(x)
    size = sum((value - middle) ** 2 for value in x)
    if size == 0:
        raise CcdError(f"a trend needs at least two different places; given: {list(x)}")
    return [(value - middle) / size for value in x]


# ---------------------------------------------------------------- claims


@dataclass(frozen=True)
class Claim:
    """A finding, declared before its results exist.

    finding: the paper's letter. statement, words: the claim, and its estimand, in words. estimand: a Contrast or a Peak.
    low, high: the claim is true when every number of the estimand lies above `low` and below `high`. least: seeds needed.
    """

    finding: str
    statement: str
    words: str
    estimand: Contrast | Peak
    low: float = 0.0
    high: float = INFINITY
    least: int = 10
    unit: str = "points"

    def __post_init__(self):
        if not self.low < self.high or self.least < 2:
            raise CcdError(
                f"claim {self.statement!r}: true from {self.low} to {self.high} with {self.least} seeds; give low < high and "
                "at least 2 seeds"
            )

    @property
    def true_where(self):
        """The values at which the claim is true, in words."""
        if self.high == INFINITY:
            return f"above {self.low:g} {self.unit}"
        if self.low == -INFINITY:
            return f"below {self.high:g} {self.unit}"
        return f"between {self.low:g} and {self.high:g} {self.unit}"

    @property
    def refuted_when(self):
        """What would refute it, in words."""
        ends = [f"at or below {self.low:g}"] * (self.low > -INFINITY) + [f"at or above {self.high:g}"] * (self.high < INFINITY)
        which = "the 95 % interval" if isinstance(self.estimand, Contrast) else "one of the two 95 % intervals"
        return f"{which} lies wholly {' or '.join(ends)}"

    def needs(self, arms):
        """Raise CcdError where the estimand names an arm that is not among `arms`."""
        for arm in self.estimand.arms:
            if arm not in arms:
                raise unknown(f"arm of claim {self.statement!r}", arm, arms)

    def judge(self, accuracies):
        """The claim with its verdict, as a dict for results.json; accuracies {arm: [one a seed]}, paired.

        Of a Peak's two intervals, the one that decides the verdict stands for both; "intervals" has all.
        """
        self.needs(accuracies)
        parts = self.estimand.per_seed(accuracies)
        intervals = [interval(values) for values in parts]
        verdict = self.verdict(intervals)
        decides = min(intervals, key=lambda found: found.high if verdict == "does not hold" else found.low)
        return {
            "finding": self.finding,
            "claim": self.statement,
            "estimand": self.words,
            "true_where": self.true_where,
            "refuted_when": self.refuted_when,
            "least_seeds": self.least,
            **decides._asdict(),
            "bootstrap": list(bootstrap(parts[intervals.index(decides)])[1:3]),
            "intervals": [found[:3] for found in intervals],
            "per_seed": parts,
            "unit": self.unit,
            "verdict": verdict,
        }

    def verdict(self, intervals):
        """What the estimand's intervals say about the claim."""
        if intervals[0].n < self.least:
            return f"untested (needs {self.least} seeds)"
        if any(found.high <= self.low or found.low >= self.high for found in intervals):
            return "does not hold"
        return "holds" if all(self.low < found.low and found.high < self.high for found in intervals) else "inconclusive"


def more(finding, statement, better, baseline, margin=0.0, **options):
    """The claim that arm `better` is more accurate than arm `baseline`, by more than `margin` points."""
    words = f"accuracy({better}) - accuracy({baseline})"
    return Claim(finding, statement, words, Contrast({better: 1, baseline: -1}), low=margin, **options)


def no_better(finding, statement, arm, baseline, margin, **options):
    """The claim that `arm` is not better than `baseline` by as much as `margin` points (it may be worse)."""
    words = f"accuracy({arm}) - accuracy({baseline})"
    return Claim(finding, statement, words, Contrast({arm: 1, baseline: -1}), -INFINITY, _positive(margin), **options)


def equivalent(finding, statement, arm, baseline, margin, **options):
    """The claim that `arm` and `baseline` differ by less than `margin` points, either way (two one-sided tests).

    On the 95 % interval, so with 2.5 % error on each side where the usual equivalence test allows 5 %.
    """
    words = f"accuracy({arm}) - accuracy({baseline})"
    margin = _positive(margin)
    return Claim(finding, statement, words, Contrast({arm: 1, baseline: -1}), -margin, margin, **options)


def _positive(margin):
    if not 0 < margin < INFINITY:
        raise CcdError(f"margin = {margin!r}: a claim of no effect needs a margin above 0, in points")
    return margin


def brief(difference):
    """An Interval, or a dict with its fields, as a table shows it: "+0.72 [-0.08, +1.51]"; nothing for None."""
    if difference is None:
        return ""
    fields = difference if isinstance(difference, dict) else difference._asdict()
    return str(Interval(*(fields[name] for name in Interval._fields)))
