"""03: how much augmentation is right?"""

from ccdlib.analyses.common import COMPUTE, EPOCHS, STEPS, images_of, needs_of, seeds_needed, students_of, sweep_of, teachers_of
from ccdlib.analyses.experiment import EXPERIMENTS, Experiment, Parameters
from ccdlib.data.sources import sizes_of
from ccdlib.evidence.estimands import Peak
from ccdlib.evidence.stats import Claim, more
from ccdlib.training.recipes import recipe_of
from ccdlib.views.epoch import steps_an_epoch
from ccdlib.views.policies import policy_named

SWEEPS = {"p": "probabilities p of the policy", "r": "numbers r of twins", "q": "shares q of images with a twin"}


@EXPERIMENTS.add("03_proportion")
def proportion(p: Parameters) -> Experiment:
    """Claim (c): sweeps of the policy's p, of the number of twins of an image (r) and of the share of images with twins (q).

    In all arms a step has about as many network inputs as a step of KD + JDA. So with more augmented views an epoch has more
    steps. "equal epochs" accepts this; "equal steps" gives every arm the same number of steps, rounded to a whole epoch.
    """
    teachers, n = teachers_of(p), images_of(p)
    policy = policy_named(p["policy"])
    changing = len(policy.effective(sizes_of(p["data"]).channels))
    batch = recipe_of(p["recipe"], p["student_model"])["batch"]
    target = p["student_epochs"] * steps_an_epoch(n, batch)
    arms, facts = {"teacher": teachers}, {}

    def add(sweep, value, schedule, fires=policy.p, twins=1, share=1.0):
        augmented = share * twins
        images = -(-2 * batch // (1 + augmented))  # rounded up
        steps = steps_an_epoch(n, images)
        epochs = p["student_epochs"] if schedule == EPOCHS else max(1, round(target / steps))
        what = {"batch": int(images), "epochs": epochs}
        if augmented and fires:
            what |= {"views": p["policy"], "p": fires, "twins": twins, "share": share}
        elif augmented:
            what |= {"views": "base"}  # with p = 0 the twin is a second crop and flip
        name = f"{sweep} {value:g}, {schedule}"
        arms[name] = students_of(p, teachers, **what)
        part = augmented / (1 + augmented)  # of all network inputs
        facts[name] = {
            "sweep": sweep,
            "value": value,
            "schedule": schedule,
            "expected_ops": part * changing * fires,
            "p_no_op": 1 - part * (1 - (1 - fires) ** changing),
            "steps": epochs * steps,
        }

    for schedule in (STEPS, EPOCHS):
        for fires in sweep_of(p, "sweep_p", (int, float), 0, 1):
            add("p", fires, schedule, fires=fires)  # the same runs in both schedules, since p does not change the steps
        for twins in sweep_of(p, "sweep_r", int, 0, 16):
            add("r", twins, schedule, twins=max(1, twins), share=float(twins > 0))
        for share in sweep_of(p, "sweep_q", (int, float), 0, 1):
            add("q", share, schedule, share=float(share))
    return Experiment(arms, (*_second_views(p, arms), *_suitable_ranges(p, facts)), facts)


def _second_views(p, arms):
    """At equal compute: what any second view gives, and what JDA gives on top. All arms have the steps of KD + JDA."""
    none, crop, jda = f"r 0, {STEPS}", f"p 0, {STEPS}", f"p {policy_named(p['policy']).p:g}, {STEPS}"
    if {none, crop, jda} <= arms.keys():
        compared = {
            "a second crop and flip is better than as many inputs without twins": (crop, none),
            "JDA is better than as many inputs without twins": (jda, none),
            "JDA is better than a second crop and flip": (jda, crop),
        }
        for statement, pair in compared.items():
            yield more("(a)", f"{statement}, at {COMPUTE}", *pair, **needs_of(p))


def _suitable_ranges(p, facts):
    """Claim (c) for every sweep of at least three values."""
    for sweep, what in SWEEPS.items():
        for schedule in (STEPS,) if sweep == "p" else (STEPS, EPOCHS):
            ladder = [arm for arm, fact in facts.items() if (fact["sweep"], fact["schedule"]) == (sweep, schedule)]
            if len(ladder) > 2:
                at = "at equal epochs and steps" if sweep == "p" else f"at {schedule}"
                first, last = (f"{sweep} {facts[arm]['value']:g}" for arm in (ladder[0], ladder[-1]))
                words = f"accuracy(best inside) - accuracy({first}), and accuracy(best inside) - accuracy({last})"
                statement = f"{what} have a suitable range, where the student beats both ends of the sweep, {at}"
                yield Claim(
                    "(c)",
                    statement,
                    words,
                    Peak(tuple(ladder)),
                    headline="(c) best p over both ends" * (sweep == "p"),
                    **seeds_needed(p),
                )
