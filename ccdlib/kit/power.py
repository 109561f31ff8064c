"""How many seeds a verdict needs, from the spread of the runs that are there."""

from statistics import stdev

from ccdlib import analyses
from ccdlib.base.registry import CcdError
from ccdlib.evidence.estimands import Peak, arm_of
from ccdlib.evidence.stats import POWER, seeds_to_detect, seeds_to_exclude
from ccdlib.kit import recorded
from ccdlib.kit.parameters import asked_for


def power(name: str, profile: str, difference: float) -> str:
    """For each claim of a notebook, the seeds with which it is decided in four of five cases, as text.

    difference: the true effect that is to be detected, and the margin within which none is to be shown to be practically zero,
    in points. A claim whose arms lack runs says so. Errors: CcdError where nothing is recorded, or for a difference that is not
    above 0.
    """
    if difference <= 0:
        raise CcdError(f"difference = {difference:g}: give the size of an effect in points, above 0")
    path, values = asked_for(name, profile)
    planned = analyses.experiment(path.stem, values)
    accuracies = recorded.accuracies(planned, path.stem, profile)
    lines = [
        f"{name}, profile {profile}: how many seeds decide a claim in {100 * POWER:g} % of cases",
        f"  seeds   sd   to detect {difference:g}   to show none beyond {difference:g}   claim",
    ]
    return "\n".join(lines + [_row(claim, accuracies, difference) for claim in planned.claims])


def _row(claim, accuracies, difference):
    said = f"{claim.finding} {claim.statement}"
    if isinstance(claim.estimand, Peak):
        return f"  a peak inside a sweep, which has no single spread: {said}"
    if any(name != arm_of(name) for name in claim.estimand.arms):
        return f"  about what was measured, and not about accuracies alone: {said}"
    if missing := [arm for arm in claim.estimand.arms if arm not in accuracies]:
        return f"  no two runs of {', '.join(missing)}: {said}"
    n = min(len(accuracies[arm]) for arm in claim.estimand.arms)
    (values,) = claim.estimand.alternatives({arm: accuracies[arm][:n] for arm in claim.estimand.arms})[""]
    sd = stdev(values)
    if sd == 0:
        return f"  {n:5}  all differences are equal, which says nothing about their spread: {said}"
    found = [seeds_to_detect(sd, difference), seeds_to_exclude(sd, difference)]
    detect, exclude = ("more than 10,000" if seeds is None else str(seeds) for seeds in found)
    return f"  {n:5}  {sd:4.2f}  {detect:>{10 + len(f'{difference:g}')}}  {exclude:>{20 + len(f'{difference:g}')}}   {said}"
