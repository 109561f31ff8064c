"""Statistics of paired runs: intervals of differences over seeds, and claims that are declared before results are seen.

A claim is an estimand (a difference of arms, a slope over arms, or a peak inside a sweep), the values at which the claim is
true, and the least number of seeds. Every verdict rests on t intervals over seeds that miss in at most 5 % of cases: "holds"
when the interval lies inside the claimed values, "does not hold" when it lies outside, "practically zero" when it lies within
the margin that the claim declares for no effect, "inconclusive" in between, "untested" with too few seeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import NamedTuple

from ccdlib.base.registry import CcdError, unknown

VERDICTS = ("holds", "does not hold", "practically zero", "inconclusive", "untested")


INFINITY = math.inf


ERROR = 0.05  # of a verdict, whichever it is


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


def p_above(values, bound):
    """One-sided p value of the t test that the mean of `values`, which are independent, lies above `bound`."""
    values = _numbers(values)
    from scipy.stats import t

    distance, error = fmean(values) - bound, stdev(values) / math.sqrt(len(values))
    if error == 0 or math.isinf(distance):
        return 0.0 if distance > 0 else 1.0
    return float(t.sf(distance / error, len(values) - 1))


def p_below(values, bound):
    """One-sided p value of the t test that the mean of `values` lies below `bound`."""
    return p_above([-value for value in values], -bound)


def collapsed(accuracies, chance):
    """Which of an arm's runs collapsed: those whose accuracy lies less than half as far above `chance` as that of the arm's
    best run, where that lies at least ten points above it.

    One rule for all arms, which also names the runs of an arm of which most collapsed. accuracies and chance (100 / classes)
    are in percent. Returns places in `accuracies`.
    """
    best = max(accuracies) - chance
    return [k for k, accuracy in enumerate(accuracies) if best >= 10 and accuracy - chance < best / 2]


def collapsed_seeds(runs):
    """The seeds of an arm's `runs` (Results) that collapsed."""
    return [runs[k].config.seed for k in collapsed([run.accuracy for run in runs], 100 / runs[0].classes)]


def said_of_collapse(seeds):
    """What is said beside a mean over runs of which those of `seeds` collapsed; nothing where there are none."""
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))} collapsed" if seeds else ""


class Contrast(NamedTuple):
    """A weighted sum of arms, seed by seed: a difference, a difference of differences, a slope."""

    weights: Mapping[str, float]

    @property
    def arms(self):
        """The arms it needs."""
        return tuple(self.weights)

    def alternatives(self, accuracies):
        """{"": [one number a seed]}, see Claim."""
        seeds = range(len(accuracies[self.arms[0]]))
        return {"": [[sum(w * accuracies[arm][s] for arm, w in self.weights.items()) for s in seeds]]}


class Peak(NamedTuple):
    """How far each value inside of a sweep lies above the sweep's first arm, and above its last.

    The claim needs one inside value with both differences. Errors: CcdError for fewer than three arms.
    """

    arms: Sequence[str]

    def alternatives(self, accuracies):
        """{inside arm: [above the first arm, one number a seed; above the last]}, see Claim."""
        if len(self.arms) < 3:
            raise CcdError(f"a peak needs something between two ends; given: {', '.join(self.arms)}")
        first, *inside, last = self.arms

        def above(arm, end):
            return [a - b for a, b in zip(accuracies[arm], accuracies[end], strict=True)]

        return {arm: [above(arm, first), above(arm, last)] for arm in inside}


def slope(x):
    """Weights that give the least-squares slope of values at the places `x`."""
    middle = fmean(x)
    size = sum((value - middle) ** 2 for value in x)
    if size == 0:
        raise CcdError(f"a trend needs at least two different places; given: {list(x)}")
    return [(value - middle) / size for value in x]


@dataclass(frozen=True)
class Claim:
    """A finding, declared before its results exist.

    finding: the paper's letter. statement, words: the claim, and its estimand, in words. estimand: a Contrast or a Peak.
    low, high: the claim is true when every number of the estimand lies above `low` and below `high`. least: seeds needed.
    margin: of an effect that the paper claims, the size below which it is practically zero (None: not asked).

    An estimand has K alternatives of M numbers (a Contrast one of one, a Peak each inside value with two); the claim is true
    where all numbers of some alternative are. It holds when those of one alternative are inside at error 5 % / K, because any
    of K may be (Bonferroni); it does not hold when each alternative has a number outside at error 5 % / M, because only one of
    them need be the true one, and any of its M numbers may seem outside (an intersection-union test). Both are wrong in at most
    2.5 % of cases.
    """

    finding: str
    statement: str
    words: str
    estimand: Contrast | Peak
    low: float = 0.0
    high: float = INFINITY
    least: int = 10
    unit: str = "points"
    margin: float | None = None

    def __post_init__(self):
        if not self.low < self.high or self.least < 2:
            raise CcdError(
                f"claim {self.statement!r}: true from {self.low} to {self.high} with {self.least} seeds; give low < high and "
                "at least 2 seeds"
            )
        if self.margin is not None:
            _positive(self.margin)
            if self._peak:
                raise CcdError(
                    f"claim {self.statement!r}: margin = {self.margin:g} for a peak, which has no one effect that could be "
                    "practically zero; leave it out"
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
        which = "for every value inside, one of its two 97.5 % intervals" if self._peak else "the 95 % interval"
        return f"{which} lies wholly {' or '.join(ends)}"

    @property
    def zero_when(self):
        """What would show that there is practically no effect, in words; nothing where no margin is declared."""
        return f"the 95 % interval lies within ± {self.margin:g} {self.unit}" if self.margin else ""

    @property
    def _peak(self):
        return isinstance(self.estimand, Peak)

    def needs(self, arms):
        """Raise CcdError where the estimand names an arm that is not among `arms`."""
        for arm in self.estimand.arms:
            if arm not in arms:
                raise unknown(f"arm of claim {self.statement!r}", arm, arms)

    def judge(self, accuracies, chance=0.0):
        """The claim with its verdict, as a dict for results.json; accuracies {arm: [one a seed]}, paired; chance in percent.

        "collapsed" names the places of collapsed runs in the arms that the claim is about. Of several numbers the one that
        decides the verdict stands for all, with the interval at its error ("level"); "ps" has the least error at which each
        verdict is reached.
        """
        self.needs(accuracies)
        alternatives = self.estimand.alternatives(accuracies)
        verdict, ps, inside, part = self.decide(alternatives)
        values = alternatives[inside][part]
        ways = len(alternatives[inside]) if verdict == "does not hold" else len(alternatives)
        decides = interval(values, 1 - ERROR / ways)
        return {
            "finding": self.finding,
            "claim": self.statement,
            "estimand": self.words,
            "true_where": self.true_where,
            "refuted_when": self.refuted_when,
            "margin": self.margin,
            "least_seeds": self.least,
            **decides._asdict(),
            "level": 1 - ERROR / ways,
            "ps": ps,
            "bootstrap": list(bootstrap(values, 1 - ERROR / ways)[1:3]),
            "inside": inside,
            "intervals": [interval(values, 1 - ERROR / ways)[:3] for values in alternatives[inside]],
            "per_seed": alternatives[inside],
            "unit": self.unit,
            "collapsed": {arm: fallen for arm in self.estimand.arms if (fallen := collapsed(accuracies[arm], chance))},
            "verdict": verdict,
        }

    def decide(self, alternatives):
        """(verdict, {verdict: p value}, the alternative that decides, the place of its number that decides) of the estimand's
        `alternatives`. Of verdicts that are reached together the first counts."""
        inside, outside = {}, {}
        for name, parts in alternatives.items():
            inside[name] = [2 * max(p_above(values, self.low), p_below(values, self.high)) for values in parts]
            outside[name] = [2 * min(p_below(values, self.low), p_above(values, self.high)) for values in parts]
        best = min(inside, key=lambda name: max(inside[name]))
        worst = max(outside, key=lambda name: min(outside[name]))
        n, ways = len(alternatives[best][0]), len(alternatives[best])
        found = {
            "holds": min(1.0, len(alternatives) * max(inside[best])),
            "does not hold": min(1.0, ways * min(outside[worst])),
        }
        if self.margin:
            zero = 2 * max(p_above(alternatives[best][0], -self.margin), p_below(alternatives[best][0], self.margin))
            found[f"practically zero, within ± {self.margin:g}"] = min(1.0, zero)
        verdict = _reached(found, ERROR)
        name, ps, pick = (worst, outside, min) if verdict == "does not hold" else (best, inside, max)
        if n < self.least:
            verdict = f"untested (needs {self.least} seeds)"
        return verdict, found, name, ps[name].index(pick(ps[name]))


def _reached(ps, error):
    """The first verdict of {verdict: p value} that is reached at that error."""
    return next((verdict for verdict, p in ps.items() if p < error), "inconclusive")


def corrected(claims):
    """The verdicts of judged claims (dicts) once more, at errors that count how many claims there are (Holm 1979): the chance
    of even one wrong verdict is at most 5 %. A claim that reaches no verdict then is "inconclusive". Untested ones are not
    counted.
    """
    verdicts = [claim["verdict"] if claim["verdict"].startswith("untested") else "inconclusive" for claim in claims]
    tested = [k for k, claim in enumerate(claims) if not claim["verdict"].startswith("untested")]
    tested.sort(key=lambda k: min(claims[k]["ps"].values()))
    for rank, k in enumerate(tested):
        verdicts[k] = _reached(claims[k]["ps"], ERROR / (len(tested) - rank))
        if verdicts[k] == "inconclusive":
            break  # as is everything after it
    return verdicts


def more(finding, statement, better, baseline, by=0.0, **options):
    """The claim that arm `better` is more accurate than arm `baseline`, by more than `by` points."""
    words = f"accuracy({better}) - accuracy({baseline})"
    return Claim(finding, statement, words, Contrast({better: 1, baseline: -1}), low=by, **options)


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
