"""00: does a student learn more when both networks look at augmented images, and does CCD weigh them well?"""

from ccdlib.analyses.common import needs_of, students_of, teachers_of
from ccdlib.analyses.experiment import EXPERIMENTS, Experiment, Parameters
from ccdlib.evidence.stats import more


@EXPERIMENTS.add("00_quickstart")
def quickstart(p: Parameters) -> Experiment:
    """Student alone, KD, KD + JDA and CCD: claim (a) on small images, and the effect of CCD's weight."""
    teachers = teachers_of(p)
    arms = {
        "teacher": teachers,
        "student alone": students_of(p, None),
        "KD": students_of(p, teachers),
        "KD + JDA": students_of(p, teachers, views=p["policy"]),
        "CCD": students_of(p, teachers, method="ccd", views=p["policy"]),
    }
    claims = (
        more(
            "KD",
            "a teacher helps: KD is more accurate than the student alone",
            "KD",
            "student alone",
            **needs_of(p, large=True),
        ),
        more("(a)", "augmented views help: KD + JDA is more accurate than KD", "KD + JDA", "KD", **needs_of(p, large=True)),
        more("CCD", "the cosine weight helps: CCD is more accurate than KD + JDA", "CCD", "KD + JDA", **needs_of(p)),
    )
    return Experiment(arms, claims)
