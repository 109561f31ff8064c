"""00: does a student learn more when both networks look at augmented images?"""

from ccdlib.analyses.common import COMPUTE, CROP, EPOCHS, needs_of, students_of, sweep_of, teachers_of
from ccdlib.analyses.experiment import EXPERIMENTS, Experiment, Parameters
from ccdlib.evidence.stats import more

VIEWS = {"KD": "none", CROP: "base", "KD + JDA": None}  # of the arms of several lengths; None: the policy


@EXPERIMENTS.add("00_quickstart")
def quickstart(p: Parameters) -> Experiment:
    """Student alone, KD, KD + JDA and CCD: claim (a) on small images. What CCD's weight adds takes the many seeds of 06_ccd.

    With `lengths`, which are numbers of epochs, KD, a second crop and KD + JDA are trained for so long too, and KD, which sees
    one view where the others see two, also for twice as long as these, which is the same compute.
    """
    teachers = teachers_of(p)
    arms = {
        "teacher": teachers,
        "student alone": students_of(p, None),
        "KD": students_of(p, teachers),
        "KD + JDA": students_of(p, teachers, views=p["policy"]),
        "CCD": students_of(p, teachers, method="ccd", views=p["policy"]),
    }
    large = needs_of(p, large=True)
    claims = [
        more(
            "KD",
            "a teacher helps: KD is more accurate than the student alone",
            "KD",
            "student alone",
            headline="KD over the student alone",
            **large,
        ),
        more(
            "(a)",
            "augmented views help: KD + JDA is more accurate than KD",
            "KD + JDA",
            "KD",
            headline="(a) JDA, at equal epochs",
            **large,
        ),
    ]
    facts = {}
    if p["lengths"]:
        longer, facts = _lengths(p, teachers)
        arms |= longer
        claims += _at_equal_compute(p)
    return Experiment(arms, tuple(claims), facts, networks={"teacher": 1})


def length_arm(p: Parameters, method: str, epochs: int) -> str:
    """The name of the arm of `method` that is trained for so many epochs."""
    return method if epochs == p["student_epochs"] else f"{method}, {epochs} epochs"


def _epochs_of(p, method):
    """The numbers of epochs for which a method is trained."""
    two_views = sorted({*sweep_of(p, "lengths", int, 1, 1_000_000, least=1), p["student_epochs"]})
    return two_views if VIEWS[method] != "none" else sorted({*two_views, *(2 * epochs for epochs in two_views)})


def _lengths(p, teachers):
    """The arms of all lengths, and what the figure of accuracy against compute needs of them.

    A network input of the student is the unit of compute.
    """
    arms, facts = {}, {}
    for method, views in VIEWS.items():
        for epochs in _epochs_of(p, method):
            arm = length_arm(p, method, epochs)
            arms[arm] = students_of(p, teachers, epochs, views=views or p["policy"])
            facts[arm] = {"method": method, "epochs": epochs, "inputs": epochs * (1 + (views != "none"))}
    return arms, facts


def _at_equal_compute(p):
    """What is compared with what: a second view of any kind, JDA as the second view, and KD that is trained twice as long."""
    how = needs_of(p)
    yield more("(a)", f"a second crop and flip helps KD, at {EPOCHS}", CROP, "KD", **how)
    statement = "KD gains more from JDA than from a second crop and flip, which costs as much"
    yield more("(a)", statement, "KD + JDA", CROP, headline="(a) JDA over a second crop", **how)
    for epochs in _epochs_of(p, "KD + JDA"):
        twice, once = length_arm(p, "KD", 2 * epochs), length_arm(p, "KD + JDA", epochs)
        statement = f"KD + JDA for {epochs} epochs is more accurate than KD for {2 * epochs}, at {COMPUTE}"
        headline = "(a) JDA, at equal compute" * (epochs == p["student_epochs"])
        yield more("(a)", statement, once, twice, headline=headline, **how)
