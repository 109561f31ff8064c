"""07: does it hold on images in files, with several processes?"""

from ccdlib.analyses.common import needs_of, seeds_needed, students_of, teachers_of
from ccdlib.analyses.experiment import EXPERIMENTS, Experiment, Parameters
from ccdlib.evidence.stats import equivalent, more
from ccdlib.training.config import Checkpoint


@EXPERIMENTS.add("07_imagenet")
def imagenet(p: Parameters) -> Experiment:
    """KD, KD + JDA and CCD on images in files, with JDA before the crop and, for CCD, also after the crop."""
    every = {"side": p["side"], "processes": p["processes"]}
    arms = {}
    if p["teacher"] == "train":
        arms["teacher"] = teachers = teachers_of(p, **every)
    else:
        least = p["teacher_accuracy"] or None
        teachers = [Checkpoint(model=p["teacher_model"], file=p["teacher"], accuracy=least)] * p["seeds"]
    arms |= {
        "student alone": students_of(p, None, **every),
        "KD": students_of(p, teachers, **every),
        "KD + JDA": students_of(p, teachers, views=p["policy"], **every),
        "CCD": students_of(p, teachers, method="ccd", views=p["policy"], **every),
        "CCD, JDA after the crop": students_of(p, teachers, method="ccd", views=p["policy"], jda="after crop", **every),
    }
    same = f"JDA after the crop is as good as on whole images, within {p['margin']:g} points"
    claims = (
        more("KD", "a teacher helps: KD is more accurate than the student alone", "KD", "student alone", **needs_of(p)),
        more("(a)", "augmented views help: KD + JDA is more accurate than KD", "KD + JDA", "KD", **needs_of(p)),
        more("CCD", "the cosine weight helps: CCD is more accurate than KD + JDA", "CCD", "KD + JDA", **needs_of(p)),
        equivalent("kit", same, "CCD, JDA after the crop", "CCD", p["margin"], **seeds_needed(p)),
    )
    return Experiment(arms, claims)
