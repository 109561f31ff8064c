"""05: does augmentation help the other distillation methods too?"""

from ccdlib.analyses.common import compared, needs_of, teachers_of
from ccdlib.analyses.experiment import EXPERIMENTS, Experiment, Parameters
from ccdlib.base.registry import CcdError, unknown
from ccdlib.evidence.estimands import Contrast
from ccdlib.evidence.stats import Claim, more
from ccdlib.methods.method import METHODS
from ccdlib.training.recipes import comparable


@EXPERIMENTS.add("05_compatibility")
def compatibility(p: Parameters) -> Experiment:
    """Claim (e): each method without augmentation, with JDA, and, if `rotation`, with rotation.

    SSKD and HSAKD, which rotate every view themselves, are trained under their own recipe and, if `matched`, also under the
    recipe of all others.
    """
    teachers = teachers_of(p)
    arms, facts, claims = {"teacher": teachers}, {}, []
    names = comparable()
    for method in _methods(p):
        rotates = METHODS[method].rotates
        for own in (True, False) if rotates and p["matched"] else (True,):
            name = names[method] + ", matched" * (not own)
            kinds = {"none": "none", "rotation": "rotation", "JDA": p["policy"]}
            if rotates or not p["rotation"]:  # the method itself rotates every view
                del kinds["rotation"]
            for kind, views in kinds.items():
                arm = name + f" + {kind}" * (kind != "none")
                arms[arm] = compared(p, method, teachers, own, views=views)
                facts[arm] = {"method": name, "views": kind} | ({} if kind == "none" else {"baseline": name})
            how = f"under {'its own' if rotates and own else 'the matched' if rotates else 'the common'} recipe"
            claims.append(more("(e)", f"{names[method]} gains from JDA, {how}", f"{name} + JDA", name, **needs_of(p)))
    return Experiment(arms, (*claims, *_on_average(p, facts)), facts)


def _on_average(p, facts):
    """Claim (e) for all methods at once: the mean of their gains."""
    gained = [arm for arm, fact in facts.items() if fact["views"] == "JDA"]
    if len(gained) > 1:
        share = 1 / len(gained)
        weights = dict.fromkeys(gained, share) | {facts[arm]["baseline"]: -share for arm in gained}
        words, least = f"mean of the gains from JDA of {len(gained)} methods", needs_of(p)
        statement = f"on average over {len(gained)} methods JDA helps"
        yield Claim("(e)", statement, words, Contrast(weights), headline="(e) JDA, mean of all methods", **least)


def _methods(p):
    """The parameter `methods`. Errors: CcdError for a method that cannot be compared, or is named twice, or for none."""
    for method in p["methods"]:
        if method not in comparable():
            raise unknown("method to compare in `methods`", method, comparable())
    if len(set(p["methods"])) < len(p["methods"]) or not p["methods"]:
        raise CcdError(f"methods = {p['methods']}: name each method once, at least one")
    return p["methods"]
