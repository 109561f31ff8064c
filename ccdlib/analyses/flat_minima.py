"""09: is JDA's gain explained by flat minima?"""

from math import log2

import torch

from ccdlib.analyses.common import COMPUTE, EPOCHS, needs_of, students_of, teachers_of
from ccdlib.analyses.experiment import EXPERIMENTS, Experiment, Parameters
from ccdlib.base.registry import CcdError
from ccdlib.data.sources import source_of
from ccdlib.evidence.estimands import Contrast, Correlation, Remaining, values_of
from ccdlib.evidence.sharpness import Landscape, sharpness, top_eigenvalue, trace
from ccdlib.evidence.stats import Claim, more
from ccdlib.training.checks import data_of
from ccdlib.training.cohort import Result
from ccdlib.views.crops import normalise

FLAT = "log2 sharpness"  # the measure of the claims
ADAPTIVE, PLAIN = 0.5, 0.05  # rho, as ASAM's and SAM's papers have them for CIFAR-10
TRAINING_IMAGES, TEST_IMAGES = 1000, 100  # at most, and as many of each class, on which a student is measured
LEAST = 1e-6  # nats; a rise that is smaller counts as this one


@EXPERIMENTS.add("09_flat_minima")
def flat_minima(p: Parameters) -> Experiment:
    """Finding (g): KD, KD + JDA and CCD, each by SGD, by SAM, and by SGD for twice the epochs, which costs as much as SAM.

    The claims go both ways: that JDA's gain is one of flatness, so that it shrinks under SAM and vanishes where the sharpness
    does not change; and that it adds to SAM's.
    """
    if p["seeds"] < 4:
        raise CcdError(f"seeds = {p['seeds']}: a regression over seeds, on which a claim rests, needs at least 4")
    if source_of(p["data"])[0].in_files:
        raise CcdError(f"data = {p['data']!r}: sharpness is measured on images in memory; choose data that is not in files")
    teachers = teachers_of(p)
    ways = {"KD": {}, "KD + JDA": {"views": p["policy"]}, "CCD": {"method": "ccd", "views": p["policy"]}}
    arms, facts = {"teacher": teachers}, {}
    for arm, what in ways.items():
        for name, how in _optimisers(p).items():
            full = f"{arm}, {name}" if name else arm
            arms[full] = students_of(p, teachers, **what | how)
            facts[full] = {"method": arm, "optimiser": name or "SGD"}
    return Experiment(arms, tuple(_claims(p, tuple(facts))), facts, {"KD": 1, "KD + JDA": 1}, (FLAT,))


def twice(p: Parameters) -> str:
    """The name of the arms that SGD trains for twice the epochs."""
    return f"{2 * p['student_epochs']} epochs"


def _optimisers(p):
    if not 0 < p["rho"] <= 10:
        raise CcdError(f"rho = {p['rho']:g}: how far SAM looks around the weights; allowed are numbers above 0, up to 10")
    return {"": {}, "SAM": {"optimiser": "sam", "rho": p["rho"]}, twice(p): {"epochs": 2 * p["student_epochs"]}}


def _claims(p, arms):
    how, longer = needs_of(p), twice(p)
    flat = {"unit": "doublings of sharpness", "least": how["least"]}

    def flatter(statement, better, baseline, headline=""):
        words = f"{FLAT}({baseline}) - {FLAT}({better})"
        contrast = Contrast({values_of(FLAT, baseline): 1, values_of(FLAT, better): -1})
        return Claim("(g)", statement, words, contrast, headline=headline, **flat)

    yield more("(g)", f"SAM helps KD, at {EPOCHS}", "KD, SAM", "KD", **how)
    yield more("(g)", f"SAM helps KD more than twice the epochs, at {COMPUTE}", "KD, SAM", f"KD, {longer}", **how)
    yield flatter("SAM leads KD to flatter minima", "KD, SAM", "KD")
    yield flatter("JDA leads KD to flatter minima", "KD + JDA", "KD")
    yield _shrinks("JDA's gain is smaller where SAM trains", ("KD + JDA", "KD"), ("KD + JDA, SAM", "KD, SAM"), EPOCHS, how)
    long = f"KD + JDA, {longer}", f"KD, {longer}"
    yield _shrinks("JDA's gain is smaller where SAM trains", long, ("KD + JDA, SAM", "KD, SAM"), COMPUTE, how)
    yield more("(g)", f"JDA's gain adds to SAM's, at {EPOCHS}", "KD + JDA, SAM", "KD, SAM", headline="(g) JDA, with SAM", **how)
    yield Claim(
        "(g)",
        "JDA would help KD also where it left the sharpness as it is",
        "accuracy(KD + JDA) - accuracy(KD), at no change of the sharpness (a regression over seeds)",
        Remaining(FLAT, "KD + JDA", "KD"),
        headline="(g) JDA, at equal sharpness",
        **how,
    )
    yield Claim(
        "(g)",
        "flatter students are more accurate: within a seed, sharpness and accuracy of all arms are correlated negatively",
        f"correlation over arms of {FLAT} with accuracy",
        Correlation(FLAT, arms),
        low=-2.0,
        high=0.0,
        least=how["least"],
        unit="(correlation)",
    )


def _shrinks(statement, plain, sharp, at, how):
    """The claim that the gain of the first arm over the second is smaller in the pair `sharp` than in the pair `plain`."""
    gains = [f"[accuracy({better}) - accuracy({baseline})]" for better, baseline in (plain, sharp)]
    contrast = Contrast({plain[0]: 1, plain[1]: -1, sharp[0]: -1, sharp[1]: 1})
    return Claim("(g)", f"{statement}, at {at}", " - ".join(gains), contrast, **how)


def sharp(run: Result) -> dict[str, float]:
    """How sharp the loss is around a trained student, on TRAINING_IMAGES of its training images and TEST_IMAGES test images.

    Keys: FLAT, the binary logarithm of "sharpness", which is the largest rise of the loss within rho = ADAPTIVE in units of the
    weights, by ten steps on the training images; the same "by one step" and "on test images"; SAM's "plain sharpness" within
    rho = PLAIN by one step; "training loss" and "test loss". Losses and rises are in nats.
    """
    train, test = _landscapes(run)
    rise = sharpness(train, ADAPTIVE, 10, adaptive=True)
    return {
        FLAT: log2(max(rise, LEAST)),
        "sharpness": rise,
        "sharpness by one step": sharpness(train, ADAPTIVE, 1, adaptive=True),
        "sharpness on test images": sharpness(test, ADAPTIVE, 10, adaptive=True),
        "plain sharpness": sharpness(train, PLAIN),
        "training loss": train.loss(),
        "test loss": test.loss(),
    }


def sharp_and_curved(run: Result) -> dict[str, float]:
    """sharp(), and of the Hessian on the training images the largest "eigenvalue" and the "trace"."""
    train, _ = _landscapes(run)
    return sharp(run) | {"eigenvalue": top_eigenvalue(train), "trace": trace(train)[0]}


def _landscapes(run):
    data, network = data_of(run.config), run.model()
    train = _of_each_class(data.train_labels, TRAINING_IMAGES)
    test = _of_each_class(data.test_labels, TEST_IMAGES)
    for images, labels in ((data.train_images[train], data.train_labels[train]), (data.tests(test), data.test_labels[test])):
        yield Landscape(network, normalise(images, data.mean, data.std), labels)


def _of_each_class(labels, most):
    """The rows of the first images of each class, at most so many in all, but one of each."""
    classes = labels.unique()
    each = max(1, most // len(classes))
    return torch.cat([(labels == k).nonzero()[:each, 0] for k in classes])
