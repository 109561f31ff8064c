"""10: does the teacher alone tell which augmentation is good for a student?"""

from ccdlib.analyses.common import CROP, EPOCHS, needs_of, seeds_needed, students_of, sweep_of, teachers_of
from ccdlib.analyses.experiment import EXPERIMENTS, Experiment, Parameters
from ccdlib.base.devices import best_device
from ccdlib.base.registry import CcdError, unknown
from ccdlib.evidence.estimands import Contrast, Correlation, values_of
from ccdlib.evidence.stats import INFINITY, Claim, more
from ccdlib.evidence.teacher_views import GROUPS, teacher_stddev
from ccdlib.training.checks import data_of
from ccdlib.training.cohort import Result, network_of
from ccdlib.training.evaluate import evaluate
from ccdlib.views import VIEWS, policy_named

SPREAD, LOSS = "T. stddev", "test loss"  # the measures
ONE = {"identity": "raw", "flip": "flip", "crop and flip": "none"}  # arm: views; one view of an image
TWO = {CROP: "base"}  # a second view besides the original one; these rows of VIEWS have the arms' names in lower case
TWO |= {arm: arm.lower() for arm in ("Cutout", "AutoAugment", "RandAugment", "TrivialAugment", "Mixup", "CutMix", "CutMixPick")}
SAID = {CROP: "crop and flip as the second view"}
COMPARED = "CutMixPick"  # the best of those that were published


@EXPERIMENTS.add("10_predict_from_teacher")
def predict_from_teacher(p: Parameters) -> Experiment:
    """KD with many kinds of views, and JDA at several p: does T. stddev, of the teacher alone, go with the student's result?

    `views` holds arms of ONE and TWO, all if it is empty, or other rows of VIEWS, such as a reader's own.
    """
    teachers, known = teachers_of(p), ONE | TWO
    arms, facts = {"teacher": teachers}, {}

    def add(arm, **what):
        arms[arm] = students_of(p, teachers, **what)
        several = arms[arm][0].views_per_image > 1
        facts[arm] = {"kind": "JDA" if "p" in what else "two views" if several else "one view"}

    for name in p["views"] or known:
        if name not in known and name not in VIEWS:
            raise unknown("kind of views in `views`", name, [*known, *VIEWS])
        add(name, views=known.get(name, name))
    if len({known.get(name, name) for name in p["views"]}) < len(p["views"]):
        raise CcdError(f"views = {p['views']}: name each kind of views once")
    for fires in sweep_of(p, "sweep_p", (int, float), 0, 1, least=1):
        add(jda(fires), views=p["policy"], p=fires)
    if len(facts) < 3:
        raise CcdError("a correlation over kinds of views needs at least three of them in `views` and `sweep_p`")
    return Experiment(arms, tuple(_claims(p, facts)), facts, measure=predicted, measures=(SPREAD, LOSS))


def jda(fires: float) -> str:
    """The name of the arm of JDA whose ops fire with this probability."""
    return f"JDA, p {fires:g}"


def _claims(p, facts):
    every, few = tuple(facts), seeds_needed(p)
    two = tuple(arm for arm, fact in facts.items() if fact["kind"] != "one view")
    swept = tuple(arm for arm, fact in facts.items() if fact["kind"] == "JDA")

    def together(statement, arms, other=""):
        """That T. stddev rises with the loss, or falls with the accuracy, within a seed."""
        words = f"correlation over arms of {SPREAD} with {other or 'accuracy'}"
        low, high = (0.0, INFINITY) if other else (-INFINITY, 0.0)
        return Claim(SPREAD, statement, words, Correlation(SPREAD, arms, other), low, high, unit="(Pearson's r)", **few)

    lower = f"the lower {SPREAD} of the views is, the"
    yield together(f"{lower} lower the student's test loss, over all kinds of views", every, LOSS)
    yield together(f"{lower} higher the student's accuracy, over all kinds of views", every)
    if len(two) > 2:
        yield together(f"{lower} lower the student's test loss, over kinds of two views", two, LOSS)
        yield together(f"{lower} higher the student's accuracy, over kinds of two views", two)
    if len(swept) > 2:
        yield together(f"{lower} higher the student's accuracy, over JDA's probabilities", swept)
    ours = jda(policy_named(p["policy"]).p)
    for other in (CROP, COMPARED):
        if {ours, other} <= facts.keys():
            yield _lower(f"JDA has a lower {SPREAD} than {SAID.get(other, other)}", ours, other, few)
    if {ours, COMPARED} <= facts.keys():
        yield more(SPREAD, f"JDA is better than {COMPARED}, at {EPOCHS}", ours, COMPARED, **needs_of(p))


def _lower(statement, ours, other, few):
    words = f"{SPREAD}({other}) - {SPREAD}({ours}), in thousandths"
    contrast = Contrast({values_of(SPREAD, other): 1000, values_of(SPREAD, ours): -1000})
    return Claim(SPREAD, statement, words, contrast, unit="thousandths of a probability", **few)


def predicted(run: Result) -> dict[str, float]:
    """T. stddev of a student's views, from its teacher alone, and the student's mean cross entropy on the test set.

    The views are made of all training images, as the few that a student sees would be in every group again. Keys: SPREAD, a
    standard deviation of probabilities over GROUPS groups (or as many as the training has epochs, if these are fewer, as in
    tests), and LOSS, in nats.
    """
    config, device = run.config.but(n_train=None), best_device()
    own, data = (data_of(each).to(device) for each in (run.config, config))
    teacher, student = network_of(config.teacher, data, show="none").to(device), run.model().to(device)
    groups = min(GROUPS, max(2, config.epochs))
    return {
        SPREAD: teacher_stddev(teacher, config, data, groups),
        LOSS: evaluate(student, own, device, precision="float32")["loss"],
    }
