"""Intervals, estimands and claims, on made data where the right answer is known."""

import math

import numpy as np
import pytest

from ccdlib.base.registry import CcdError
from ccdlib.evidence import stats
from ccdlib.evidence.estimands import Contrast, Peak, slope
from ccdlib.evidence.stats import (
    INFINITY,
    Claim,
    bootstrap,
    equivalent,
    interval,
    more,
    no_better,
    paired,
)


def seeds(mean, spread=0.5, n=10, at=0):
    """n numbers with exactly this mean and standard deviation."""
    values = np.random.default_rng(at).normal(size=n)
    values = (values - values.mean()) / values.std(ddof=1)
    return (mean + spread * values).tolist()


# ---------------------------------------------------------------- intervals


def test_paired_interval_is_the_t_interval_of_the_differences():
    a, b = [80.0, 82.0, 81.5, 79.0], [78.0, 81.0, 80.0, 79.5]
    differences = [x - y for x, y in zip(a, b, strict=True)]
    mean = sum(differences) / 4
    deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / 3)
    half = 3.182446 * deviation / 2  # the 97.5 % point of Student's t with 3 degrees of freedom, from a table
    assert paired(a, b) == pytest.approx((mean, mean - half, mean + half, 4))
    wider = 5.840909 * deviation / 2  # 99.5 %
    assert paired(a, b, level=0.99) == pytest.approx((mean, mean - wider, mean + wider, 4))


def test_95_percent_intervals_cover_about_95_percent():
    rng = np.random.default_rng(0)
    hits, n = 0, 2000
    for _ in range(n):
        found = interval(rng.normal(0.7, 2.0, size=10))
        hits += found.low <= 0.7 <= found.high
    assert hits / n == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / n))


def test_the_bootstrap_interval_covers_a_little_less_with_ten_seeds():
    rng = np.random.default_rng(0)
    hits, n = 0, 400
    for _ in range(n):
        found = bootstrap(rng.normal(0.7, 2.0, size=10), resamples=499)
        hits += found.low <= 0.7 <= found.high
    assert 0.84 < hits / n < 0.95, "too narrow for few seeds, which is why verdicts rest on t"


def test_the_bootstrap_is_repeatable_and_agrees_with_t_on_many_values():
    values = seeds(1.0, n=400)
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap(values) == pytest.approx(interval(values), abs=0.01)
    assert bootstrap([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0, 3)


@pytest.mark.parametrize("function", [interval, bootstrap])
@pytest.mark.parametrize("values", [[], [1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_an_interval_needs_two_finite_numbers(function, values):
    with pytest.raises(CcdError, match="finite numbers from at least two seeds"):
        function(values)


def test_pairs_need_equally_many():
    with pytest.raises(CcdError, match="the arms have .* results; run both arms with the same seeds"):
        paired([1.0, 2.0], [1.0])


# ---------------------------------------------------------------- verdicts on differences


def verdict(claim, difference):
    return claim.judge({"a": [50.0 + d for d in difference], "b": [50.0] * len(difference)})["verdict"]


@pytest.mark.parametrize(
    ("claim", "mean", "expected"),
    [
        (more("x", "", "a", "b"), 1.0, "holds"),
        (more("x", "", "a", "b"), -1.0, "does not hold"),
        (more("x", "", "a", "b"), 0.1, "inconclusive"),
        (more("x", "", "a", "b", by=0.8), 1.0, "inconclusive"),
        (more("x", "", "a", "b", by=2.0), 1.0, "does not hold"),
        (no_better("x", "", "a", "b", 1.0), 0.0, "holds"),
        (no_better("x", "", "a", "b", 1.0), -5.0, "holds"),  # it may be worse
        (no_better("x", "", "a", "b", 1.0), 0.9, "inconclusive"),
        (no_better("x", "", "a", "b", 1.0), 2.0, "does not hold"),
        (more("x", "", "a", "b", margin=1.0), 0.05, "practically zero, within ± 1"),
        (more("x", "", "a", "b", margin=1.0), 0.5, "holds"),  # small, but there
        (more("x", "", "a", "b", margin=1.0), -0.5, "does not hold"),
        (more("x", "", "a", "b", margin=0.3), 0.05, "inconclusive"),
        (equivalent("x", "", "a", "b", 1.0), 0.0, "holds"),
        (equivalent("x", "", "a", "b", 1.0), 0.9, "inconclusive"),
        (equivalent("x", "", "a", "b", 1.0), 2.0, "does not hold"),
        (equivalent("x", "", "a", "b", 1.0), -2.0, "does not hold"),
    ],
)
def test_each_verdict_where_it_is_right(claim, mean, expected):
    assert verdict(claim, seeds(mean)) == expected
    assert verdict(claim, seeds(mean, n=9)) == "untested (needs 10 seeds)"


def test_a_wide_interval_around_zero_is_no_evidence_of_no_effect():
    assert verdict(equivalent("x", "", "a", "b", 1.0), seeds(0.0, spread=5.0)) == "inconclusive"
    assert verdict(no_better("x", "", "a", "b", 1.0), seeds(0.0, spread=5.0)) == "inconclusive"


def test_three_seeds_are_enough_where_three_are_asked_for():
    claim = more("x", "", "a", "b", least=3)
    assert verdict(claim, [2.0, 1.9, 2.0]) == "holds"
    assert verdict(claim, [2.0, 1.9]) == "untested (needs 3 seeds)"


def test_a_judged_claim_says_everything_a_reader_needs():
    made = more("(a)", "a beats b", "a", "b").judge({"a": seeds(51.0), "b": [50.0] * 10})
    assert (made["finding"], made["claim"], made["estimand"]) == ("(a)", "a beats b", "accuracy(a) - accuracy(b)")
    assert (made["true_where"], made["refuted_when"]) == ("above 0 points", "the 95 % interval lies wholly at or below 0")
    assert made["estimate"] == pytest.approx(1.0)
    low, high = made["bootstrap"]
    assert made["low"] < low < 1.0 < high < made["high"]


def test_what_is_true_and_what_refutes_in_words():
    assert no_better("", "", "a", "b", 1.5).true_where == "below 1.5 points"
    assert equivalent("", "", "a", "b", 1.5).true_where == "between -1.5 and 1.5 points"
    assert equivalent("", "", "a", "b", 1.5).refuted_when.endswith("wholly at or below -1.5 or at or above 1.5")
    every = "for every value inside, one of its two 97.5 % intervals lies wholly at or below 0"
    assert Claim("", "", "", Peak("abc")).refuted_when == every
    assert more("", "", "a", "b", margin=0.5).zero_when == "the 95 % interval lies within ± 0.5 points"
    assert more("", "", "a", "b").zero_when == ""


@pytest.mark.parametrize("margin", [0, -1.0, float("inf"), float("nan")])
def test_no_effect_needs_a_margin(margin):
    for claim in (no_better, equivalent, lambda *given: more(*given[:-1], margin=given[-1])):
        with pytest.raises(CcdError, match="needs a margin above 0"):
            claim("x", "", "a", "b", margin)


def test_claims_that_make_no_sense():
    with pytest.raises(CcdError, match="give low < high and at least 2 seeds"):
        more("x", "", "a", "b", least=1)
    with pytest.raises(CcdError, match="give low < high"):
        Claim("x", "", "", Contrast({"a": 1}), 1.0, 0.0)
    with pytest.raises(CcdError, match="margin = 1 for a peak"):
        Claim("x", "", "", Peak(("a", "b", "c")), margin=1.0)
    with pytest.raises(CcdError, match="unknown arm of claim 'a beats c' 'c'"):
        more("x", "a beats c", "a", "c").judge({"a": [1.0, 2.0], "b": [1.0, 2.0]})


# ---------------------------------------------------------------- trends and peaks


def test_slope_is_the_least_squares_slope():
    x, y = [0.0, 1.0, 3.0, 4.5], [2.0, 1.0, 4.0, 3.5]
    assert sum(w * v for w, v in zip(slope(x), y, strict=True)) == pytest.approx(np.polyfit(x, y, 1)[0])
    with pytest.raises(CcdError, match="at least two different values of x"):
        slope([1.0, 1.0])


def trend(values_at, low=-INFINITY, high=0.0):
    arms = {f"n{x}": values for x, values in values_at.items()}
    weights = dict(zip(arms, slope(list(values_at)), strict=True))
    return Claim("x", "falls", "slope", Contrast(weights), low, high).judge(arms)["verdict"]


def test_a_trend_is_found_where_it_is():
    assert trend({x: seeds(5.0 - x, at=x) for x in range(4)}) == "holds"
    assert trend({x: seeds(5.0 + x, at=x) for x in range(4)}) == "does not hold"
    assert trend({x: seeds(5.0, at=x) for x in range(4)}) == "inconclusive"
    assert trend({x: seeds(5.0 - x, at=x, n=5) for x in range(4)}) == "untested (needs 10 seeds)"


def peak(means, spread=0.5, rng=None):
    rng = rng or np.random.default_rng(1)
    luck = rng.normal(size=10)  # a seed's own level, which pairing removes
    arms = {str(k): (80 + m + luck + spread * rng.normal(size=10)).tolist() for k, m in enumerate(means)}
    return Claim("x", "a range", "peak", Peak(tuple(arms))).judge(arms)


def test_a_suitable_range_is_found_where_it_is_and_nowhere_else():
    assert peak([0, 2, 3, 1, 0])["verdict"] == "holds"
    assert peak([0, 1, 2, 3, 4])["verdict"] == "does not hold"
    assert peak([4, 3, 2, 1, 0])["verdict"] == "does not hold"
    assert peak([2, 1, 0, 1, 2])["verdict"] == "does not hold"
    assert peak([0, 0, 0, 0, 0], spread=2.0)["verdict"] in ("inconclusive", "does not hold")
    # The smaller of the two differences is the estimate: 3 over the first, 1 over the last.
    assert peak([0, 2, 3, 1, 2])["estimate"] == pytest.approx(1.0, abs=0.6)


def test_the_interval_that_decides_is_the_one_shown():
    arms = {"first": [0.0] * 10, "x": seeds(1.2, 0.1), "last": seeds(-0.2, 2.0, at=1)}
    made = Claim("x", "", "", Peak(tuple(arms))).judge(arms)
    above_first, above_last = made["intervals"]
    assert above_first[0] < above_last[0]
    assert (made["verdict"], made["low"]) == ("inconclusive", above_last[1]), "the wide one decides, though its mean is larger"
    arms = {"first": seeds(0.9, 0.1), "x": seeds(0.0, 0.1, at=1), "last": seeds(1.0, 5.0, at=2)}
    made = Claim("x", "", "", Peak(tuple(arms))).judge(arms)
    assert (made["verdict"], made["high"] < 0) == ("does not hold", True), (
        "the narrow one decides, though the other's mean is lower"
    )
    with pytest.raises(CcdError, match="at least three arms: two ends"):
        Claim("x", "", "", Peak(("first", "last"))).judge(arms)


def test_a_peak_may_be_any_inside_value_and_each_counts():
    # Above both ends by 0.7 to 0.9 standard deviations: enough for one inside value, not for the best of five.
    arms = {"first": [0.0] * 10, "x": seeds(0.9), "last": [0.0] * 10}
    one = Claim("x", "", "", Peak(("first", "x", "last"))).judge(arms)
    others = {f"low {k}": seeds(-1.0, at=k) for k in range(4)}
    many = Claim("x", "", "", Peak(("first", "x", *others, "last"))).judge(arms | others)
    assert (one["inside"], many["inside"], one["level"], many["level"]) == ("x", "x", 0.95, 0.99)
    assert many["ps"]["holds"] == pytest.approx(5 * one["ps"]["holds"])
    assert many["low"] < one["low"]
    # Refuted: however many inside values there are, both ends of each count, and no more.
    down = {"first": seeds(3.0, at=1), "x": seeds(0.0), "y": seeds(1.0, at=3), "last": [0.5] * 10}
    made = Claim("x", "", "", Peak(tuple(down))).judge(down)
    assert (made["verdict"], made["inside"], made["level"]) == ("does not hold", "y", 0.975)


def error_rate(means, verdict, n=3000):
    """How often sweeps of such true means, with ten seeds, get this verdict."""
    rng, claim = np.random.default_rng(0), Claim("x", "a range", "peak", Peak(tuple(map(str, range(len(means))))))
    wrong = 0
    for arms in rng.normal(size=(n, len(means), 10)) * 0.5 + np.array(means)[:, None]:
        named = {str(k): values.tolist() for k, values in enumerate(arms)}
        wrong += claim.decide(claim.estimand.alternatives(named))[0] == verdict
    return wrong / n


def allowed(sweeps):
    """What 2.5 % may look like in so many sweeps."""
    return 0.025 + 2 * math.sqrt(0.025 * 0.975 / sweeps)


SWEEPS = pytest.mark.parametrize("sweeps", [300, pytest.param(3000, marks=pytest.mark.drill)])


@SWEEPS
@pytest.mark.parametrize("means", [[0, 0, 0, 0, 0], [0, 3, 3, 3, 3], [3, 3, 3, 3, 0], [0, 0, 3, 3], [0, 0, 0]])
def test_sweeps_without_a_peak_are_rarely_taken_for_one(means, sweeps):
    assert error_rate(means, "holds", sweeps) <= allowed(sweeps)


@SWEEPS
@pytest.mark.parametrize(
    "means", [[0, 0.001, 0], [0, 0.001, 0, 0, 0], [3, 0, 3.001, 0, 3], [0, 0.001, -3, -3, -3, 0], [0, 1, 0.999]]
)
def test_sweeps_with_a_tiny_peak_are_rarely_refuted(means, sweeps):
    assert error_rate(means, "does not hold", sweeps) <= allowed(sweeps)


def test_p_values_are_those_of_the_t_test():
    values = seeds(0.4)
    from scipy.stats import ttest_1samp

    assert stats.p_above(values, 0.1) == pytest.approx(ttest_1samp(values, 0.1, alternative="greater").pvalue)
    assert stats.p_below(values, 0.1) == pytest.approx(ttest_1samp(values, 0.1, alternative="less").pvalue)
    assert (stats.p_above([1.0, 1.0], 0.5), stats.p_above([1.0, 1.0], 1.0), stats.p_below([1.0, 1.0], INFINITY)) == (0, 1, 0)
    for level in (0.9, 0.95, 0.999):  # an interval and a p value say the same
        low = interval(values, level).low
        assert 2 * stats.p_above(values, low) == pytest.approx(1 - level)


def test_holm_by_hand():
    def verdicts(*each):
        return stats.corrected([{"verdict": "", "ps": dict(zip(("holds", "zero"), ps, strict=False))} for ps in each])

    no = "inconclusive"
    # Allowed are .05 / 4 = .0125, then .0167, .025 and .05, as long as none fails.
    assert verdicts([0.04], [0.01], [0.03], [0.02]) == [no, "holds", no, no]
    assert verdicts([0.04], [0.01], [0.024], [0.016]) == ["holds"] * 4
    assert verdicts([0.5], [0.9]) == [no, no]
    assert verdicts() == []
    # A claim that reached two verdicts keeps the one that stands.
    assert verdicts([0.04, 0.001], [0.01], [0.9]) == ["zero", "holds", no]
    assert verdicts([0.001, 0.001], [0.9]) == ["holds", no]


def test_verdicts_corrected_for_their_number():
    sure, close, zero, few = (
        more("x", "", "a", "b", margin=m).judge({"a": [50.0 + d for d in values], "b": [50.0] * len(values)})
        for values, m in ((seeds(2.0), None), (seeds(0.38), None), (seeds(0.0), 3.0), (seeds(1.0, n=5), None))
    )
    assert [c["verdict"] for c in (sure, close, zero, few)] == [
        "holds",
        "holds",
        "practically zero, within ± 3",
        "untested (needs 10 seeds)",
    ]
    assert 0.02 < close["ps"]["holds"] < 0.05
    assert stats.corrected([close]) == ["holds"]
    assert stats.corrected([sure, close, few]) == [
        "holds",
        "holds",
        few["verdict"],
    ]  # the weakest of Holm's steps is uncorrected
    undecided = more("x", "", "a", "b").judge({"a": seeds(0.0), "b": seeds(0.0, at=5)})
    assert stats.corrected([sure, close, undecided, zero]) == ["holds", "inconclusive", "inconclusive", zero["verdict"]]


def test_a_run_collapsed_when_it_is_less_than_half_as_far_above_chance_as_the_best():
    assert stats.collapsed([90.0, 91.0, 16.2, 89.0, 50.6], chance=10.0) == [2]  # half way is at 50.5 %
    assert stats.collapsed([90.0, 91.0, 50.4, 89.0, 90.0], chance=10.0) == [2]
    assert stats.collapsed([12.0, 90.0, 16.2, 10.0, 30.1], chance=10.0) == [0, 2, 3, 4]  # most of them
    assert stats.collapsed([68.0, 58.0, 71.0], chance=10.0) == []  # an arm that is low as a whole has no run apart
    assert stats.collapsed([10.0, 10.0, 9.0], chance=10.0) == []  # nor has one that learned nothing
    assert stats.collapsed([13.0, 12.0, 10.5], chance=10.0) == []  # or next to nothing


def test_brief():
    assert stats.brief(None) == ""
    assert stats.brief(interval([1.0, 2.0])) == "+1.50 [-4.85, +7.85]"


# ---------------------------------------------------------------- how many seeds


def test_seeds_to_detect_an_effect_by_simulation():
    """34 pairs for an effect of half a standard deviation at 80 %, as in the tables of Cohen (1988)."""
    assert stats.seeds_to_detect(1.0, 0.5) == 34
    assert stats.seeds_to_detect(2.0, 1.0) == 34
    assert stats.seeds_to_detect(1.0, 0.5, power=0.9) == 44
    assert stats.seeds_to_detect(0.01, 5.0) == 2
    assert stats.seeds_to_detect(1000.0, 0.1) is None
    for sd, difference in ((0.0, 1.0), (1.0, 0.0), (1.0, -1.0)):
        with pytest.raises(CcdError, match="both must be above 0"):
            stats.seeds_to_detect(sd, difference)


def test_seeds_to_exclude_an_effect_by_simulation():
    n = stats.seeds_to_exclude(1.0, 0.5)
    rng = np.random.default_rng(0)
    spans = [stats.interval(values) for values in rng.normal(0, 1, (1000, n))]
    inside = sum(span.low > -0.5 and span.high < 0.5 for span in spans) / 1000
    assert 0.78 < inside < 0.88, "a lower bound"
    assert stats.seeds_to_exclude(1.0, 0.5) > stats.seeds_to_detect(1.0, 0.5)
