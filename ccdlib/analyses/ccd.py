"""06: is the cosine worth it, and is CCD better than HSAKD at less cost?"""

from ccdlib.analyses.common import compared, needs_of, students_of, teachers_of, timing
from ccdlib.analyses.experiment import EXPERIMENTS, Experiment, Parameters
from ccdlib.evidence.cost import check_timed
from ccdlib.evidence.stats import more
from ccdlib.training.recipes import recipe_of

CONTROLS = ("constant", "shuffled", "normalised", "probabilities", "centred")


@EXPERIMENTS.add("06_ccd")
def cosine_confidence(p: Parameters) -> Experiment:
    """CCD compared with KD + JDA, with its controls (other weights), and with SSKD, HSAKD and HSAKD*.

    HSAKD* has a teacher that is trained together with its heads from the start.
    """
    check_timed(p["timed_steps"])
    teachers = teachers_of(p)
    recipe = recipe_of(p["recipe"], p["teacher_model"], "hsakd") | timing(p, p["teacher_epochs"])
    jointly = teachers_of(p, method="hsakd_teacher", **recipe)
    arms = {
        "teacher": teachers,
        "teacher, joint": jointly,
        "KD": students_of(p, teachers),
        "KD + JDA": students_of(p, teachers, views=p["policy"]),
        "CCD": students_of(p, teachers, method="ccd", views=p["policy"]),
    }
    for weight in CONTROLS:
        arms[f"CCD, {weight}"] = students_of(p, teachers, method="ccd", views=p["policy"], settings={"weight": weight})
    for name, (method, taught) in {
        "SSKD": ("sskd", teachers),
        "HSAKD": ("hsakd", teachers),
        "HSAKD*": ("hsakd", jointly),
    }.items():
        arms[name] = compared(p, method, taught)
        arms[f"{name}, matched"] = compared(p, method, taught, own=False)
    return Experiment(arms, tuple(_ccd_claims(p)))


def _ccd_claims(p):
    statements = {
        "KD + JDA": "the weight, size and spread, helps: CCD is more accurate than KD + JDA",
        "CCD, constant": "it is not only the size of the loss: CCD is more accurate than with the batch's mean weight for all",
        "CCD, shuffled": "each image needs its own weight: CCD is more accurate than with the weights shuffled",
        "CCD, normalised": "the size of the loss helps: CCD is more accurate than with weights of mean 1",
        "CCD, probabilities": "logits are the right place: CCD is more accurate than with the cosine of probabilities",
        "CCD, centred": "raw logits are the right ones: CCD is more accurate than with the cosine of centred logits",
    }
    for name in ("SSKD", "HSAKD", "HSAKD*"):
        statements[name] = f"CCD is more accurate than {name}, each under its own recipe"
        statements[f"{name}, matched"] = f"CCD is more accurate than {name}, under one recipe"
    for arm, statement in statements.items():
        yield more("CCD", statement, "CCD", arm, **needs_of(p))
    yield more(
        "CCD",
        "the spread of the weights helps at an unchanged size: CCD with weights of mean 1 is more accurate than KD + JDA",
        "CCD, normalised",
        "KD + JDA",
        **needs_of(p),
    )
