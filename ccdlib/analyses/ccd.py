"""06: is the cosine worth it, and is CCD better than HSAKD at less cost?"""

from ccdlib.analyses.common import compared, needs_of, students_of, teachers_of, timing
from ccdlib.analyses.experiment import EXPERIMENTS, Experiment, Parameters
from ccdlib.base.registry import CcdError, unknown
from ccdlib.evidence.cost import check_timed
from ccdlib.evidence.stats import more
from ccdlib.training.recipes import recipe_of

CONTROLS = ("constant", "shuffled", "normalised", "probabilities", "centred")
BESIDE = "CCD, beside rivals"
RIVALS = {"SSKD": "sskd", "HSAKD": "hsakd", "HSAKD*": "hsakd"}  # names in tables, and methods


@EXPERIMENTS.add("06_ccd")
def cosine_confidence(p: Parameters) -> Experiment:
    """CCD compared with KD + JDA, with its controls (other `weights`), and with the `rivals` SSKD, HSAKD and HSAKD*.

    HSAKD* has a teacher that is trained together with its heads from the start. The questions about weights need many seeds,
    and a run of a rival costs several times as much: `rival_images`, `rival_epochs` and `rival_seeds` (0: as the others) are
    the sizes of rivals and of the CCD that is compared with them. `matched`: rivals also under the recipe of the others.
    """
    check_timed(p["timed_steps"])
    teachers = teachers_of(p)
    arms = {
        "teacher": teachers,
        "KD + JDA": students_of(p, teachers, views=p["policy"]),
        "CCD": students_of(p, teachers, method="ccd", views=p["policy"]),
    }
    for weight in _weights(p):
        arms[f"CCD, {weight}"] = students_of(p, teachers, method="ccd", views=p["policy"], settings={"weight": weight})
    rivals = _rivals(p, teachers) if p["rivals"] else {}
    return Experiment(arms | rivals, (*_weight_claims(p), *_rival_claims(p, rivals)), networks={"teacher": 1})


def _weights(p):
    """The parameter `weights`. Errors: CcdError for one that is no control."""
    for weight in p["weights"]:
        if weight not in CONTROLS:
            raise unknown("control in `weights`", weight, CONTROLS)
    return dict.fromkeys(p["weights"])


def _rivals(p, teachers):
    """The arms of the rivals, the CCD of their sizes, and the teacher of HSAKD*. Errors: CcdError for wrong parameters."""
    for name in p["rivals"]:
        if name not in RIVALS:
            raise unknown("rival in `rivals`", name, RIVALS)
    if not 0 <= p["rival_seeds"] <= p["seeds"] or p["rival_seeds"] == 1:
        raise CcdError(f"rival_seeds = {p['rival_seeds']}: allowed are 0 for all seeds, or 2 to {p['seeds']}")
    sizes = {"seeds": "rival_seeds", "n_train": "rival_images", "student_epochs": "rival_epochs"}
    few = p | {name: p[own] or p[name] for name, own in sizes.items()}
    taught, arms = dict.fromkeys(RIVALS, teachers[: few["seeds"]]), {}
    if "HSAKD*" in p["rivals"]:
        recipe = recipe_of(p["recipe"], p["teacher_model"], "hsakd") | timing(p, p["teacher_epochs"])
        taught["HSAKD*"] = arms["teacher, joint"] = teachers_of(few, method="hsakd_teacher", **recipe)
    arms[BESIDE] = students_of(few, taught["SSKD"], method="ccd", views=p["policy"])
    for name in dict.fromkeys(p["rivals"]):
        arms[name] = compared(few, RIVALS[name], taught[name])
        if p["matched"]:
            arms[f"{name}, matched"] = compared(few, RIVALS[name], taught[name], own=False)
    return arms


def _weight_claims(p):
    """For each weight a difference, and, by its margin, that there is practically none."""
    statements = {
        "KD + JDA": "the weight, size and spread, helps: CCD is more accurate than KD + JDA",
        "CCD, constant": "it is not only the size of the loss: CCD is more accurate than with the batch's mean weight for all",
        "CCD, shuffled": "each image needs its own weight: CCD is more accurate than with the weights shuffled",
        "CCD, normalised": "the size of the loss helps: CCD is more accurate than with weights of mean 1",
        "CCD, probabilities": "logits are the right place: CCD is more accurate than with the cosine of probabilities",
        "CCD, centred": "raw logits are the right ones: CCD is more accurate than with the cosine of centred logits",
    }
    there = {"KD + JDA", *(f"CCD, {weight}" for weight in _weights(p))}
    for arm, statement in statements.items():
        if arm in there:
            headline = "CCD over KD + JDA" * (arm == "KD + JDA")
            yield more("CCD", statement, "CCD", arm, headline=headline, **needs_of(p))
    for arm, statement in {
        "CCD, normalised": "the spread of the weights helps at an unchanged size: CCD with weights of mean 1",
        "CCD, constant": "the size alone helps: CCD with the batch's mean weight for all",
    }.items():
        if arm in there:
            yield more("CCD", f"{statement} is more accurate than KD + JDA", arm, "KD + JDA", **needs_of(p))


def _rival_claims(p, rivals):
    for arm in rivals:
        name, _, matched = arm.partition(", ")
        if name in RIVALS:
            how = "under one recipe" if matched else "each under its own recipe"
            headline = f"CCD over {name}" * (not matched)
            yield more("CCD", f"CCD is more accurate than {name}, {how}", BESIDE, arm, headline=headline, **needs_of(p))
