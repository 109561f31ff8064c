"""02: should the teacher see augmented images too?"""

from ccdlib.analyses.common import needs_of, seeds_needed, students_of, teachers_of
from ccdlib.analyses.experiment import EXPERIMENTS, Experiment, Parameters
from ccdlib.evidence.stats import more, no_better

SHOWN = 3  # teachers of each kind of whose answers there is a figure


@EXPERIMENTS.add("02_augmented_teacher")
def augmented_teacher(p: Parameters) -> Experiment:
    """Claim (b): teachers trained without and with JDA, each with students distilled without and with JDA."""
    plain, rich = teachers_of(p), teachers_of(p, views=p["policy"])
    arms = {
        "teacher": plain,
        "teacher + JDA": rich,
        "KD": students_of(p, plain),
        "KD + JDA": students_of(p, plain, views=p["policy"]),
        "KD from teacher + JDA": students_of(p, rich),
        "KD + JDA from teacher + JDA": students_of(p, rich, views=p["policy"]),
    }
    margin, least = p["margin"], seeds_needed(p)
    without = "without JDA in distillation, a teacher trained with JDA makes no better student"
    within = "with JDA in distillation, a teacher trained with JDA makes no better student"
    claims = (
        more(
            "(b)",
            "training with JDA improves the teacher",
            "teacher + JDA",
            "teacher",
            headline="(b) JDA for the teacher",
            **needs_of(p),
        ),
        no_better("(b)", without, "KD from teacher + JDA", "KD", margin, **least),
        no_better(
            "(b)", within, "KD + JDA from teacher + JDA", "KD + JDA", margin, headline="(b) student of that teacher", **least
        ),
    )
    trained = {arm: "with JDA" if "teacher + JDA" in arm else "without JDA" for arm in arms}
    who = {arm: "the teacher" if arm.startswith("teacher") else f"student, {arm.partition(' from ')[0]}" for arm in arms}
    facts = {arm: {"who": who[arm], "teacher": trained[arm]} for arm in arms}
    return Experiment(arms, claims, facts, networks={"teacher": SHOWN, "teacher + JDA": SHOWN})
