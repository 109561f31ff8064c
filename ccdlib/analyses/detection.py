"""08: does augmentation help distillation in object detection, too?"""

from ccdlib.analyses.common import COMPUTE, EPOCHS, needs_of, students_of, teachers_of
from ccdlib.analyses.experiment import EXPERIMENTS, Experiment, Parameters
from ccdlib.base.registry import CcdError
from ccdlib.data.sources import source_of
from ccdlib.evidence.stats import equivalent, more


@EXPERIMENTS.add("08_detection")
def detection(p: Parameters) -> Experiment:
    """Finding (f): a detector alone, by KD of its regions, by DIST, and both with JDA; CCD of regions, paired and as released.

    All students see a flipped image, and those with JDA its twin as well; boxes move with the pixels.
    """
    if not source_of(p["data"])[0].boxed:
        raise CcdError(f"data = {p['data']!r}: its images have no boxes; give scenes or coco:PATH")
    size = {"side": p["side"]}
    teachers = teachers_of(p, method="detection", **size)
    views, kd, ccd = {"views": p["policy"]}, {"method": "detection_kd"}, {"method": "detection_ccd", "views": p["policy"]}
    dist = kd | {"settings": {"loss": "dist"}}

    def students(taught=teachers, epochs=None, **what):
        return students_of(p, taught, epochs, **size | what)

    arms = {
        "teacher": teachers,
        "student alone": students(None, method="detection"),
        "student alone + JDA": students(None, method="detection", **views),
        "KD": students(**kd),
        "KD, twice the epochs": students(epochs=2 * p["student_epochs"], **kd),
        "KD + JDA": students(**kd, **views),
        "CCD, paired": students(**ccd),
        "CCD, paired, all weights 1": students(**ccd, settings={"weight": "none"}),
        "CCD, released": students(**ccd, settings={"pairing": "released"}),
        "DIST": students(**dist),
        "DIST + JDA": students(**dist, **views),
    }
    return Experiment(arms, tuple(_claims(p)), networks={"teacher": 1, "KD": 1, "KD + JDA": 1})


def _claims(p):
    how, longer = needs_of(p), "KD, twice the epochs"
    yield more("(f)", f"KD of regions is better than no teacher, at {EPOCHS}", "KD", "student alone", **how)
    yield more("(f)", f"JDA helps KD of regions, at {EPOCHS}", "KD + JDA", "KD", headline="(f) JDA, detection", **how)
    yield more("(f)", f"JDA helps KD of regions more than twice the epochs, at {COMPUTE}", "KD + JDA", longer, **how)
    yield more("(f)", f"JDA helps a detector without a teacher, at {EPOCHS}", "student alone + JDA", "student alone", **how)
    yield more("(f)", f"JDA helps DIST, at {EPOCHS}", "DIST + JDA", "DIST", **how)
    plain = "CCD, paired, all weights 1"
    yield more("(f)", f"CCD of paired regions is better than KD + JDA, at {EPOCHS}", "CCD, paired", "KD + JDA", **how)
    yield more(
        "(f)", f"the weight of CCD helps: it is better than with all weights 1, at {EPOCHS}", "CCD, paired", plain, **how
    )
    yield more("(f)", "CCD of paired regions is better than of even and odd rows", "CCD, paired", "CCD, released", **how)
    words = "CCD of paired regions and of even and odd rows differ by nothing that matters"
    yield equivalent("(f)", words, "CCD, paired", "CCD, released", p["margin"], least=how["least"])
