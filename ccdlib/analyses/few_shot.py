"""04: does augmentation help most where images are few?"""

from math import log2

from ccdlib.analyses.common import EPOCHS, STEPS, images_of, needs_of, seeds_needed, students_of, sweep_of, teachers_of
from ccdlib.analyses.experiment import EXPERIMENTS, Experiment, Parameters
from ccdlib.base.registry import CcdError
from ccdlib.data.sources import sizes_of
from ccdlib.evidence.estimands import Contrast, slope
from ccdlib.evidence.stats import INFINITY, Claim, more
from ccdlib.training.recipes import recipe_of
from ccdlib.views.epoch import steps_an_epoch


@EXPERIMENTS.add("04_few_shot")
def few_shot(p: Parameters) -> Experiment:
    """Claim (d): KD without and with JDA, on fractions of the training set and on a few images of each class.

    "equal epochs": the same number of epochs for all, as in the papers, so that fewer images also mean fewer steps. "equal
    steps": for every number of images as many steps as for the largest, rounded to a whole epoch.
    """
    teachers, amounts = teachers_of(p), few_shot_amounts(p)
    batch = recipe_of(p["recipe"], p["student_model"])["batch"]
    target, every = p["student_epochs"] * steps_an_epoch(amounts[-1], batch), sizes_of(p["data"]).images
    arms, facts = {"teacher": teachers}, {}
    for schedule in (EPOCHS, STEPS):
        for n in amounts:
            given = None if n == every else n  # as the other notebooks describe it, so that it is the same run
            steps = steps_an_epoch(n, batch)
            epochs = p["student_epochs"] if schedule == EPOCHS else max(1, round(target / steps))
            for method, views in (("KD", "none"), ("KD + JDA", p["policy"])):
                name = f"{method}, {n} images, {schedule}"
                arms[name] = students_of(p, teachers, n_train=given, views=views, epochs=epochs)
                facts[name] = {"method": method, "images": n, "schedule": schedule, "steps": epochs * steps}
                if views != "none":
                    facts[name]["baseline"] = f"KD, {n} images, {schedule}"
    return Experiment(arms, tuple(_few_shot_claims(p, amounts)), facts)


def few_shot_amounts(p: Parameters) -> list[int]:
    """The numbers of training images in 04, from the smallest. Errors: CcdError for numbers that leave a class empty."""
    sizes, whole = sizes_of(p["data"]), images_of(p)
    fractions = [round(f * whole) for f in sweep_of(p, "fractions", (int, float), 0, 1)]
    counts = [k * sizes.classes for k in sweep_of(p, "per_class", int, 1, whole // sizes.classes)]
    if fractions[0] < sizes.classes:
        raise CcdError(
            f"fractions holds {min(p['fractions'])}: {fractions[0]} of {whole} training images leave some of the "
            f"{sizes.classes} classes empty; allowed are fractions from {sizes.classes / whole:g}"
        )
    return sorted({*fractions, *counts})


def _few_shot_claims(p, amounts):
    few, many = amounts[0], amounts[-1]
    for schedule in (EPOCHS, STEPS):
        at = f"at {schedule}"
        pair = [f"{method}, {few} images, {schedule}" for method in ("KD + JDA", "KD")]
        yield more("(d)", f"with {few} images KD gains from JDA, {at}", *pair, **needs_of(p))
        weights = {}
        for n, weight in zip(amounts, slope([log2(n) for n in amounts]), strict=True):
            weights |= {f"KD + JDA, {n} images, {schedule}": weight, f"KD, {n} images, {schedule}": -weight}
        words = f"slope of the gain from JDA over log2(images), {few} to {many} images"
        statement = f"the gain from JDA is larger the fewer the images, {at}"
        unit, headline = "points per doubling", f"(d) JDA per doubling, {at}"
        yield Claim("(d)", statement, words, Contrast(weights), -INFINITY, 0.0, unit=unit, headline=headline, **seeds_needed(p))
