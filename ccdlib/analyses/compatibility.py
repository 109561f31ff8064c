"""05: does augmentation help the other distillation methods too?"""

from ccdlib.analyses.common import compared, needs_of, teachers_of
from ccdlib.analyses.experiment import EXPERIMENTS, Experiment
from ccdlib.base.registry import CcdError, unknown
from ccdlib.evidence.stats import more
from ccdlib.methods.method import METHODS
from ccdlib.training.recipes import comparable


@EXPERIMENTS.add("05_compatibility")
def compatibility(p):
    """(e): compared methods without augmentation, with rotation and with JDA, under their own recipe and one matched recipe."""
    teachers = teachers_of(p)
    arms, facts, claims = {"teacher": teachers}, {}, []
    names = comparable()
    for method in _methods(p):
        recipes = (True, False) if METHODS[method].rotates else (True,)
        for own in recipes:
            name = names[method] + ", matched" * (not own)
            kinds = {"none": "none", "rotation": "rotation", "JDA": p["policy"]}
            if METHODS[method].rotates:
                del kinds["rotation"]  # it turns every view itself
            for kind, views in kinds.items():
                arm = name + f" + {kind}" * (kind != "none")
                arms[arm] = compared(p, method, teachers, own, views=views)
                facts[arm] = {"method": name, "views": kind} | ({} if kind == "none" else {"baseline": name})
            how = "under its own recipe" if own else "under the matched recipe"
            how = how if len(recipes) > 1 else "under the common recipe"
            claims.append(more("(e)", f"{names[method]} gains from JDA, {how}", f"{name} + JDA", name, **needs_of(p)))
    return Experiment(arms, tuple(claims), facts)


def _methods(p):
    """The methods that 05 compares, as parameter `methods` names them; CcdError for one that cannot be or is named twice."""
    for method in p["methods"]:
        if method not in comparable():
            raise unknown("method to compare in `methods`", method, comparable())
    if len(set(p["methods"])) < len(p["methods"]) or not p["methods"]:
        raise CcdError(f"methods = {p['methods']}: name each method once, at least one")
    return p["methods"]
