"""Statistics of paired runs: intervals of differences over seeds, and claims that are declared before results are seen.

A claim is an estimand (see estimands.py), the values at which the claim is true, and the least number of seeds. Every verdict
rests on t intervals over seeds that miss in at most 5 % of cases: "holds" when the interval lies inside the claimed values,
"does not hold" when it lies outside, "practically zero" when it lies within the margin that the claim declares for no effect,
"inconclusive" otherwise, "untested" with too few seeds.
"""

import math
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, NamedTuple

from ccdlib.base.registry import CcdError, unknown
from ccdlib.evidence.estimands import Accuracies, Alternatives, Contrast, Estimand, Peak, arm_of
from ccdlib.training.cohort import Result

VERDICTS = ("holds", "does not hold", "practically zero", "inconclusive", "untested")
INFINITY = math.inf
ERROR = 0.05  # the rate at which each verdict may be wrong


class Interval(NamedTuple):
    """A mean over n seeds with the ends of its interval."""

    estimate: float
    low: float
    high: float
    n: int

    def __str__(self):
        return f"{self.estimate:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def interval(values: Iterable[float], level: float = 0.95) -> Interval:
    """Student's t interval of the mean of independent `values`, one for each seed, that covers it at the rate `level`.

    Errors: CcdError for fewer than two values, and for values that are not finite.
    """
    values = _numbers(values)
    from scipy.stats import t

    mean, n = fmean(values), len(values)
    half = float(t.ppf((1 + level) / 2, n - 1)) * stdev(values) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def bootstrap(values: Iterable[float], level: float = 0.95, resamples: int = 9999) -> Interval:
    """Percentile bootstrap interval of the mean. It assumes no distribution, but is too narrow for few seeds (see the tests).

    Errors: as interval().
    """
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


def paired(better: Sequence[float], baseline: Sequence[float], level: float = 0.95) -> Interval:
    """Interval of the mean difference better - baseline; entry k of both must come from the same seed.

    Errors: CcdError for different numbers of values, and as interval().
    """
    if len(better) != len(baseline):
        raise CcdError(f"the arms have {len(better)} and {len(baseline)} results; run both arms with the same seeds")
    return interval([a - b for a, b in zip(better, baseline, strict=True)], level)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The mean and the sample standard deviation of at least two values."""
    return fmean(values), stdev(values)


def p_above(values: Iterable[float], bound: float) -> float:
    """One-sided p value of the t test that the mean of independent `values` lies above `bound`. Errors: as interval()."""
    values = _numbers(values)
    from scipy.stats import t

    distance, error = fmean(values) - bound, stdev(values) / math.sqrt(len(values))
    if error == 0 or math.isinf(distance):
        return 0.0 if distance > 0 else 1.0
    return float(t.sf(distance / error, len(values) - 1))


def p_below(values: Iterable[float], bound: float) -> float:
    """One-sided p value of the t test that the mean of independent `values` lies below `bound`. Errors: as interval()."""
    return p_above([-value for value in values], -bound)


def collapsed(accuracies: Sequence[float], chance: float) -> list[int]:
    """The places in `accuracies` of an arm's runs that collapsed.

    A run collapsed where it lies less than half as far above `chance` as the best run of the arm, if that lies at least ten
    points above. The rule also works where most runs of an arm collapsed. accuracies, chance (of guessing): in percent.
    """
    best = max(accuracies) - chance
    return [k for k, accuracy in enumerate(accuracies) if best >= 10 and accuracy - chance < best / 2]


def collapsed_seeds(runs: Sequence[Result]) -> list[int]:
    """The seeds of an arm's runs that collapsed, see collapsed()."""
    return [runs[k].config.seed for k in collapsed([run.accuracy for run in runs], runs[0].chance)]


def said_of_collapse(seeds: Sequence[int] | None) -> str:
    """The note beside a mean over runs of which those of `seeds` collapsed; empty where there are none."""
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))} collapsed" if seeds else ""


@dataclass(frozen=True)
class Claim:
    """A finding, declared before its results exist.

    finding: the letter that the paper's finding has here. statement, words: the claim and its estimand in words. estimand: what
    it is about. low, high: the claim is true where the estimand lies above `low` and below `high`. least: seeds that a
    verdict needs. unit: of the estimand. margin: the size below which a claimed effect is practically zero (None: not asked).
    headline: the label of a claim in the forest plot, which has only the claims that have one.

    An estimand has K alternatives of M numbers each: a Contrast one of one number, a Peak one of two numbers for each inside
    arm. The claim is true where all numbers of some alternative lie between `low` and `high`. It holds when all numbers of one
    alternative lie inside at error 5 % / K, because any of K may seem to by chance (Bonferroni). It does not hold when every
    alternative has a number outside at error 5 % / M, because if the claim is true all M numbers of one alternative lie inside,
    and any of them may seem outside by chance (an intersection-union test). Each is wrong in at most 2.5 % of cases.

    Errors: CcdError for low >= high, fewer than two seeds, a margin that is not above 0, and a margin with a Peak.
    """

    finding: str
    statement: str
    words: str
    estimand: Estimand
    low: float = 0.0
    high: float = INFINITY
    least: int = 10
    unit: str = "points"
    margin: float | None = None
    headline: str = ""

    def __post_init__(self):
        if not self.low < self.high or self.least < 2:
            raise CcdError(
                f"claim {self.statement!r}: low = {self.low}, high = {self.high} and least = {self.least} seeds; give "
                "low < high and at least 2 seeds"
            )
        if self.margin is not None:
            _positive(self.margin)
            if self._peak:
                raise CcdError(
                    f"claim {self.statement!r}: margin = {self.margin:g} for a peak, which has no single effect that could "
                    "be practically zero; leave margin out"
                )

    @property
    def true_where(self) -> str:
        """The values at which the claim is true, in words."""
        if self.high == INFINITY:
            return f"above {self.low:g} {self.unit}"
        if self.low == -INFINITY:
            return f"below {self.high:g} {self.unit}"
        return f"between {self.low:g} and {self.high:g} {self.unit}"

    @property
    def refuted_when(self) -> str:
        """The result that would refute the claim, in words."""
        ends = [f"at or below {self.low:g}"] * (self.low > -INFINITY) + [f"at or above {self.high:g}"] * (self.high < INFINITY)
        which = "for every value inside, one of its two 97.5 % intervals" if self._peak else "the 95 % interval"
        return f"{which} lies wholly {' or '.join(ends)}"

    @property
    def zero_when(self) -> str:
        """The result that would show that the effect is practically zero, in words; empty where no margin is declared."""
        return f"the 95 % interval lies within ± {self.margin:g} {self.unit}" if self.margin else ""

    @property
    def _peak(self):
        return isinstance(self.estimand, Peak)

    def needs(self, arms: Collection[str]) -> None:
        """Raise CcdError where the estimand names an arm that is not among `arms`."""
        for arm in self.estimand.arms:
            if arm not in arms:
                raise unknown(f"arm of claim {self.statement!r}", arm, arms)

    def judge(self, accuracies: Accuracies, chance: float = 0.0) -> dict[str, Any]:
        """Judge the claim by paired accuracies: the claim with its verdict, as a dict for results.json.

        chance: accuracy of guessing, in percent. Where the estimand has several numbers, "estimate", "low", "high" and "n" are
        of the number that decides the verdict, with an interval that covers it at the rate "level". "ps": the least error at
        which each verdict is reached. "collapsed": for each arm of the claim, the places of the runs that collapsed.
        Errors: CcdError for an arm that is not there, and as interval().
        """
        self.needs(accuracies)
        n = min(len(accuracies[arm]) for arm in self.estimand.arms)  # of the seeds, a costly arm may have only the first
        accuracies = {arm: accuracies[arm][:n] for arm in self.estimand.arms}
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
            "bounds": [bound if math.isfinite(bound) else None for bound in (self.low, self.high)],
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
            "collapsed": {
                arm: fallen
                for arm in self.estimand.arms
                if arm == arm_of(arm) and (fallen := collapsed(accuracies[arm], chance))
            },
            "verdict": verdict,
        }

    def decide(self, alternatives: Alternatives) -> tuple[str, dict[str, float], str, int]:
        """Decide by the estimand's `alternatives`; of verdicts that are reached together the first counts.

        Returns the verdict, {verdict: p value}, and the alternative and the place of its number that decide.
        """
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
    """The first verdict of {verdict: p value} that is reached at the rate `error`, else "inconclusive"."""
    return next((verdict for verdict, p in ps.items() if p < error), "inconclusive")


def corrected(claims: Sequence[dict[str, Any]]) -> list[str]:
    """The verdicts of judged claims, corrected for how many claims there are (Holm 1979).

    The chance of even one wrong verdict is then at most 5 %. A claim that no longer reaches a verdict is "inconclusive".
    Untested claims stay untested and are not counted. claims: the dicts of Claim.judge().
    """
    verdicts = [claim["verdict"] if claim["verdict"].startswith("untested") else "inconclusive" for claim in claims]
    tested = [k for k, claim in enumerate(claims) if not claim["verdict"].startswith("untested")]
    tested.sort(key=lambda k: min(claims[k]["ps"].values()))
    for rank, k in enumerate(tested):
        verdicts[k] = _reached(claims[k]["ps"], ERROR / (len(tested) - rank))
        if verdicts[k] == "inconclusive":
            break  # and so are all claims with larger p values
    return verdicts


def more(finding: str, statement: str, better: str, baseline: str, by: float = 0.0, **options) -> Claim:
    """The claim that arm `better` is more accurate than arm `baseline` by more than `by` points; options: fields of Claim."""
    words = f"accuracy({better}) - accuracy({baseline})"
    return Claim(finding, statement, words, Contrast({better: 1, baseline: -1}), low=by, **options)


def no_better(finding: str, statement: str, arm: str, baseline: str, margin: float, **options) -> Claim:
    """The claim that `arm` is better than `baseline` by less than `margin` points, or worse; options: fields of Claim."""
    words = f"accuracy({arm}) - accuracy({baseline})"
    return Claim(finding, statement, words, Contrast({arm: 1, baseline: -1}), -INFINITY, _positive(margin), **options)


def equivalent(finding: str, statement: str, arm: str, baseline: str, margin: float, **options) -> Claim:
    """The claim that `arm` and `baseline` differ by less than `margin` points, either way; options: fields of Claim.

    These are two one-sided tests on the 95 % interval, so at 2.5 % error each, where the usual equivalence test allows 5 %.
    """
    words = f"accuracy({arm}) - accuracy({baseline})"
    margin = _positive(margin)
    return Claim(finding, statement, words, Contrast({arm: 1, baseline: -1}), -margin, margin, **options)


MOST = 10_000  # seeds, beyond which nobody goes
POWER = 0.8  # the rate at which so many seeds decide a claim


def seeds_to_detect(sd: float, difference: float, power: float = POWER) -> int | None:
    """The seeds with which a t interval excludes zero at the rate `power`, if the true mean is `difference`.

    sd: of the paired differences, from seed to seed. None: more than MOST. Errors: CcdError for numbers that are not positive.
    """
    from scipy.stats import nct, t

    return _fewest(sd, difference, lambda n, shift: nct.sf(t.ppf(1 - ERROR / 2, n - 1), n - 1, shift) >= power)


def seeds_to_exclude(sd: float, difference: float, power: float = POWER) -> int | None:
    """The seeds with which a t interval lies within ± `difference` at the rate `power`, if the true mean is zero.

    The rate is a lower bound: the chance of leaving at one end is counted twice. Otherwise as seeds_to_detect().
    """
    from scipy.stats import nct, t

    return _fewest(sd, difference, lambda n, shift: 2 * nct.sf(t.ppf(1 - ERROR / 2, n - 1), n - 1, shift) - 1 >= power)


def _fewest(sd, difference, enough):
    if not (sd > 0 and difference > 0):
        raise CcdError(f"sd = {sd:g}, difference = {difference:g}: both must be above 0")
    seeds = range(2, MOST + 1)
    k = bisect_left(seeds, True, key=lambda n: bool(enough(n, difference * math.sqrt(n) / sd)))
    return seeds[k] if k < len(seeds) else None


def _positive(margin):
    if not 0 < margin < INFINITY:
        raise CcdError(f"margin = {margin!r}: a claim of no effect needs a margin above 0, in points")
    return margin


def brief(difference: Interval | Mapping[str, Any] | None) -> str:
    """An Interval, or a dict with its fields, as a table shows it: "+0.72 [-0.08, +1.51]"; empty for None."""
    if difference is None:
        return ""
    fields = difference if isinstance(difference, dict) else difference._asdict()
    return str(Interval(*(fields[name] for name in Interval._fields)))
