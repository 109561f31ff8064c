"""Estimands: what a claim is about, computed for each seed from the accuracies of its arms and from what was measured of them.

Values that are no accuracies are named "measure: arm", such as "sharpness: KD" (see values_of).
"""

from collections.abc import Mapping, Sequence
from statistics import correlation, fmean
from typing import NamedTuple, Protocol

from ccdlib.base.registry import CcdError

Accuracies = Mapping[str, Sequence[float]]  # {arm: [percent, one for each seed]}; entry k of every arm has the same seed
Alternatives = dict[str, list[list[float]]]  # {alternative: [the values of each of its numbers, one for each seed]}


def values_of(measure: str, arm: str) -> str:
    """The name under which an estimand finds what was measured of the runs of an arm."""
    return f"{measure}: {arm}"


def arm_of(name: str) -> str:
    """The arm whose values have this name."""
    return name.rpartition(": ")[2]


class Estimand(Protocol):
    """What a claim is about."""

    @property
    def arms(self) -> Sequence[str]:
        """The arms, or the values_of arms, that it needs."""

    @property
    def places(self) -> tuple[float, ...]:
        """A number for each of the arms, which with the kind of the estimand says what is done with them."""

    def alternatives(self, accuracies: Accuracies) -> Alternatives:
        """Its values; see Claim."""


class Contrast(NamedTuple):
    """An estimand: a weighted sum of arms for each seed, such as a difference, a difference of differences, or a slope."""

    weights: Mapping[str, float]  # {arm: weight}

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms that it needs."""
        return tuple(self.weights)

    @property
    def places(self) -> tuple[float, ...]:
        """The weights, in the order of the arms."""
        return tuple(self.weights.values())

    def alternatives(self, accuracies: Accuracies) -> Alternatives:
        """Its one alternative of one number, {"": [[the sum for each seed]]}; see Claim."""
        seeds = range(len(accuracies[self.arms[0]]))
        return {"": [[sum(w * accuracies[arm][s] for arm, w in self.weights.items()) for s in seeds]]}


class Peak(NamedTuple):
    """An estimand: how far each arm inside a sweep lies above the sweep's first arm, and above its last.

    There is a peak where both differences are large enough for one inside arm.
    """

    arms: Sequence[str]  # of the sweep, in its order

    @property
    def places(self) -> tuple[float, ...]:
        """The places of the arms in the sweep."""
        return tuple(map(float, range(len(self.arms))))

    def alternatives(self, accuracies: Accuracies) -> Alternatives:
        """{inside arm: [differences from the first arm for each seed, differences from the last]}; see Claim.

        Errors: CcdError for fewer than three arms.
        """
        if len(self.arms) < 3:
            raise CcdError(f"a peak needs at least three arms: two ends and one between them; given: {', '.join(self.arms)}")
        first, *inside, last = self.arms

        def above(arm, end):
            return [a - b for a, b in zip(accuracies[arm], accuracies[end], strict=True)]

        return {arm: [above(arm, first), above(arm, last)] for arm in inside}


def slope(x: Sequence[float]) -> list[float]:
    """The weights with which values at the places `x` add up to their least-squares slope.

    Errors: CcdError where all places are the same.
    """
    middle = fmean(x)
    size = sum((value - middle) ** 2 for value in x)
    if size == 0:
        raise CcdError(f"a slope needs at least two different values of x; given: {list(x)}")
    return [(value - middle) / size for value in x]


class Correlation(NamedTuple):
    """An estimand: within each seed, Pearson's correlation over arms of a measure with the accuracy, or with another measure.

    What seeds have in common, such as easy images, does not enter it. It is 0 in a seed in which one of the two does not vary.
    compared: the arms, at least three. other: the second measure; the accuracy where it is empty.
    """

    measure: str
    compared: Sequence[str]
    other: str = ""

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms, or the second measure of them, and then the first."""
        second = (values_of(self.other, arm) if self.other else arm for arm in self.compared)
        return *second, *(values_of(self.measure, arm) for arm in self.compared)

    @property
    def places(self) -> tuple[float, ...]:
        """0 for the accuracy or the second measure, 1 for the first."""
        return tuple(float(k >= len(self.compared)) for k in range(2 * len(self.compared)))

    def alternatives(self, accuracies: Accuracies) -> Alternatives:
        """Its one alternative of one number, {"": [[the correlation for each seed]]}; see Claim."""
        n, found = len(self.compared), []
        for seed in zip(*(accuracies[name] for name in self.arms), strict=True):
            varies = len(set(seed[:n])) > 1 and len(set(seed[n:])) > 1
            found.append(correlation(seed[:n], seed[n:]) if varies else 0.0)
        return {"": [found]}


class Regression(NamedTuple):
    """An estimand: the regression over seeds of a gain, `better` over `baseline`, on the change of a measure.

    part: "slope", what the gain grows by with each unit of the measure; or "remaining", the value of the line where the change
    is zero: the gain that is left in a seed in which the measure does not change. That asks whether the measure mediates the
    gain (Judd, Kenny and McClelland, Psychological Methods 2001; without their covariate, the mean of the two measurements,
    for which there are too few seeds). The values for each seed are the jackknife's pseudo-values, whose mean is the part
    without its bias in first order; their t interval covers it a little less often than it says.
    """

    measure: str
    better: str
    baseline: str
    part: str = "remaining"

    @property
    def arms(self) -> tuple[str, ...]:
        """The two arms, and then what was measured of them."""
        both = self.better, self.baseline
        return *both, *(values_of(self.measure, arm) for arm in both)

    @property
    def places(self) -> tuple[float, ...]:
        """1 for what the gain and the change add, -1 for what they subtract; twice that for the slope."""
        size = 1.0 + (self.part == "slope")
        return size, -size, size, -size

    def alternatives(self, accuracies: Accuracies) -> Alternatives:
        """Its one alternative of one number, {"": [[a pseudo-value for each seed]]}; see Claim.

        Errors: CcdError for fewer than four seeds, and where the measure changes equally in all of them.
        """
        better, baseline, after, before = (accuracies[name] for name in self.arms)
        gains = [a - b for a, b in zip(better, baseline, strict=True)]
        changes = [a - b for a, b in zip(after, before, strict=True)]
        n, place = len(gains), ("slope", "remaining").index(self.part)
        if n < 4:
            raise CcdError(f"a regression over seeds needs at least four; given: {n}")
        every = line(changes, gains)[place]
        without = [line(changes[:k] + changes[k + 1 :], gains[:k] + gains[k + 1 :])[place] for k in range(n)]
        return {"": [[n * every - (n - 1) * one for one in without]]}


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """The slope of the least-squares line through points (x, y), and its value at x = 0.

    Errors: CcdError where all x are the same.
    """
    steep = sum(weight * value for weight, value in zip(slope(x), y, strict=True))
    return steep, fmean(y) - fmean(x) * steep
