"""Intervals, estimands and claims, on made data where the right answer is known."""

import math

import numpy as np
import pytest

from ccdlib import stats
from ccdlib.registry import CcdError
from ccdlib.stats import INFINITY, Claim, Contrast, Peak, bootstrap, equivalent, interval, more, no_better, paired, slope


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
    with pytest.raises(CcdError, match="are no pairs"):
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
        (more("x", "", "a", "b", margin=0.8), 1.0, "inconclusive"),
        (more("x", "", "a", "b", margin=2.0), 1.0, "does not hold"),
        (no_better("x", "", "a", "b", 1.0), 0.0, "holds"),
        (no_better("x", "", "a", "b", 1.0), -5.0, "holds"),  # it may be worse
        (no_better("x", "", "a", "b", 1.0), 0.9, "inconclusive"),
        (no_better("x", "", "a", "b", 1.0), 2.0, "does not hold"),
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
    assert Claim("", "", "", Peak("abc")).refuted_when == "one of the two 95 % intervals lies wholly at or below 0"


@pytest.mark.parametrize("margin", [0, -1.0, float("inf"), float("nan")])
def test_no_effect_needs_a_margin(margin):
    for claim in (no_better, equivalent):
        with pytest.raises(CcdError, match="needs a margin above 0"):
            claim("x", "", "a", "b", margin)


def test_claims_that_make_no_sense():
    with pytest.raises(CcdError, match="give low < high and at least 2 seeds"):
        more("x", "", "a", "b", least=1)
    with pytest.raises(CcdError, match="give low < high"):
        Claim("x", "", "", Contrast({"a": 1}), 1.0, 0.0)
    with pytest.raises(CcdError, match="unknown arm of claim 'a beats c' 'c'"):
        more("x", "a beats c", "a", "c").judge({"a": [1.0, 2.0], "b": [1.0, 2.0]})


# ---------------------------------------------------------------- trends and peaks


def test_slope_is_the_least_squares_slope():
    x, y = [0.0, 1.0, 3.0, 4.5], [2.0, 1.0, 4.0, 3.5]
    assert sum(w * v for w, v in zip(slope(x), y, strict=True)) == pytest.approx(np.polyfit(x, y, 1)[0])
    with pytest.raises(CcdError, match="at least two different places"):
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
    with pytest.raises(CcdError, match="something between two ends"):
        Claim("x", "", "", Peak(("first", "last"))).judge(arms)


def test_flat_sweeps_are_rarely_taken_for_a_range():
    rng = np.random.default_rng(0)
    wrong = sum(peak([0, 0, 0, 0, 0], rng=rng)["verdict"] == "holds" for _ in range(200))
    assert wrong <= 10  # 5 % at most; chosen and measured on the same seeds, it would be more


def test_a_plateau_up_to_the_end_is_rarely_taken_for_a_range():
    rng = np.random.default_rng(0)
    wrong = sum(peak([0, 3, 3, 3, 3], rng=rng)["verdict"] == "holds" for _ in range(200))
    assert wrong <= 10


def test_the_best_inside_is_chosen_by_the_other_seeds():
    arms = {"first": [0.0, 0.0, 0.0], "x": [9.0, 0.0, 0.0], "y": [1.0, 1.0, 1.0], "last": [0.0, 0.0, 0.0]}
    # Without seed 0, y is best (2 against 0); without seed 1 or 2, x is (9 against 2).
    assert Peak(tuple(arms)).per_seed(arms) == [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]


def test_brief():
    assert stats.brief(None) == ""
    assert stats.brief(interval([1.0, 2.0])) == "+1.50 [-4.85, +7.85]"
