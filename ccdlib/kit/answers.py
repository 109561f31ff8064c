"""Judged claims in words: a line for a log, and the answer at the end of a notebook."""

from collections.abc import Mapping, Sequence
from statistics import stdev
from typing import Any

from ccdlib.evidence import stats


def said_of(claim: dict) -> str:
    """A judged claim on a line: its verdict, also where all claims of the notebook are counted, and what collapsed."""
    said = f"{claim['verdict']}: {claim['finding']} {claim['claim']}: {stats.brief(claim)} {claim['unit']}"
    if claim["corrected"] != claim["verdict"]:
        said += f" (corrected for the number of claims: {claim['corrected']})"
    for arm, seeds in claim["collapsed"].items():
        said += f"; {arm}: {stats.said_of_collapse(seeds)}"
    return said


def answered(claim: dict) -> str:
    """A judged claim as whole sentences."""
    verdict, statement = claim["verdict"], claim["claim"]
    said = {
        "holds": f"**It holds** that {statement}.",
        "does not hold": f"**It does not hold** that {statement}.",
        "inconclusive": f"**It stays open** whether {statement}.",
    }.get(verdict)
    if verdict.startswith("untested"):
        said = f"**It was not tested** whether {statement}: that takes {claim['least_seeds']} seeds."
    elif said is None:
        said = f"**There is practically no effect** (within ± {claim['margin']:g} points) where it is claimed that {statement}."
    effect = f"{claim['estimate']:+.1f} {claim['unit']}, with an interval from {claim['low']:+.1f} to {claim['high']:+.1f}"
    said += f" The mean over {claim['n']} seeds was {effect} ({100 * claim['level']:g} %)."
    for arm, seeds in claim["collapsed"].items():
        said += f" Of {arm}, {stats.said_of_collapse(seeds)}."
    return said


def answer(question: str, where: str, claims: Sequence[dict]) -> str:
    """The answer of a notebook as Markdown: the question, what was found for what, and what would change our mind.

    question: the title of the notebook. where: data, networks and seeds, in words. claims: as Analysis.judge() keeps them.
    """
    lines = [f"**{question}** {_counted(claims)}", "", f"{where}:", "", *(f"- {answered(claim)}" for claim in claims)]
    return "\n".join([*lines, "", f"**What would change our mind.** {_what_would_change(claims)}"])


def _counted(claims):
    """How many claims have which verdict, in a sentence."""
    counts = {}
    for claim in claims:
        verdict = claim["verdict"].partition(" (")[0].partition(",")[0]
        counts[verdict] = counts.get(verdict, 0) + 1
    words = {
        "holds": "{} hold{s}",
        "does not hold": "{} do{es} not hold",
        "practically zero": "{} concern{s} an effect that is practically zero",
        "inconclusive": "{} stay{s} open",
        "untested": "{} {was} not tested",
    }
    forms = {True: {"s": "s", "es": "es", "was": "was"}, False: {"s": "", "es": "", "was": "were"}}
    said = [text.format(counts[name], **forms[counts[name] == 1]) for name, text in words.items() if name in counts]
    one = len(claims) == 1
    return f"Of {len(claims)} claim{'s' * (not one)}, {' and '.join([', '.join(said[:-1]), said[-1]] if said[1:] else said)}."


def _what_would_change(claims: Sequence[Mapping[str, Any]]) -> str:
    decided = [claim for claim in claims if claim["verdict"] in ("holds", "does not hold") or claim["verdict"][:4] == "prac"]
    lines = []
    if decided:
        nearest = min(decided, key=_distance)
        lines.append(
            "A verdict turns if the interval of a repetition with other seeds lies on the other side of its line. "
            f"Nearest to it, in half-widths of its interval, is the verdict on whether {nearest['claim']}."
        )
    open_ones = [claim for claim in claims if claim["verdict"] == "inconclusive" and len(claim["per_seed"]) == 1]
    for claim in open_ones:
        if claim["unit"].startswith("points") and (seeds := _seeds(claim)):
            effect = f"one {claim['unit'].replace('points', 'point')}"
            rate = f"{seeds} seeds would show an effect of {effect} in {100 * stats.POWER:g} % of cases"
            lines += [f"Whether {claim['claim']}: with the spread seen here, {rate}."]
    return " ".join([*lines, "Other images, other networks and longer trainings may give other answers."])


def _distance(claim):
    """How many half-widths of the interval lie between the estimate and the value at which the verdict would turn."""
    zero = claim["verdict"].startswith("practically zero")
    lines = [claim["margin"], -claim["margin"]] if zero else [bound for bound in claim["bounds"] if bound is not None]
    half = (claim["high"] - claim["low"]) / 2
    return min(abs(claim["estimate"] - line) for line in lines) / half if half else float("inf")


def _seeds(claim):
    spread = stdev(claim["per_seed"][0])
    return stats.seeds_to_detect(spread, 1.0) if spread else None
