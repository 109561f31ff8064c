"""09: is JDA's gain explained by flat minima?"""

from math import log2

import torch

from ccdlib.analyses.common import EPOCHS, needs_of, students_of, teachers_of
from ccdlib.analyses.experiment import EXPERIMENTS, Experiment, Parameters
from ccdlib.base.registry import CcdError, unknown
from ccdlib.data.sources import source_of
from ccdlib.evidence.estimands import Contrast, Correlation, Regression, values_of
from ccdlib.evidence.sharpness import Landscape, sharpness, top_eigenvalue, trace
from ccdlib.evidence.stats import INFINITY, Claim, more
from ccdlib.training.checks import data_of
from ccdlib.training.cohort import Result
from ccdlib.views.crops import normalise

FLAT = "log2 sharpness"  # the measure of the claims
ADAPTIVE, PLAIN = 0.5, 0.05  # rho, as ASAM's and SAM's papers have them for CIFAR-10
TRAINING_IMAGES, TEST_IMAGES = 1000, 100  # at most, and as many of each class, on which a student is measured
LEAST = 1e-6  # nats; a rise that is smaller counts as this one
PASSES = "equal compute"  # of SAM for E epochs and of SGD for 2 E: as many forward and backward passes of the student
OTHERS = ("CCD",)  # methods besides KD and KD + JDA


@EXPERIMENTS.add("09_flat_minima")
def flat_minima(p: Parameters) -> Experiment:
    """Finding (g): KD, KD + JDA and CCD, each by SGD, by SAM, and by SGD for twice the epochs, which costs as much as SAM.

    The claims go both ways: that JDA's gain is one of flatness, so that it is smaller where SAM trains, grows with the change
    of the sharpness and vanishes without it; and that JDA helps where SAM trains, and where the sharpness does not change.
    """
    if p["seeds"] < 4:
        raise CcdError(f"seeds = {p['seeds']}: a regression over seeds, on which claims rest, needs at least 4")
    if source_of(p["data"])[0].in_files:
        raise CcdError(f"data = {p['data']!r}: sharpness is measured on images in memory; choose data that is not in files")
    for name in p["others"]:
        if name not in OTHERS:
            raise unknown("method in `others`", name, OTHERS)
    teachers = teachers_of(p)
    ways = {"KD": {}, "KD + JDA": {"views": p["policy"]}, "CCD": {"method": "ccd", "views": p["policy"]}}
    arms, facts = {"teacher": teachers}, {}
    for arm in ("KD", "KD + JDA", *dict.fromkeys(p["others"])):
        for name, how in _optimisers(p).items():
            full = f"{arm}, {name}" if name else arm
            arms[full] = students_of(p, teachers, **ways[arm] | how)
            facts[full] = {"method": arm, "optimiser": name or "SGD"}
    shown = {"KD": 1, "KD + JDA": 1}
    return Experiment(arms, tuple(_claims(p, tuple(facts))), facts, shown, measure=flatness, measures=(FLAT,))


def twice(p: Parameters) -> str:
    """What the names of the arms add that SGD trains for twice the epochs."""
    return f"{2 * p['student_epochs']} epochs"


def _optimisers(p):
    if not 1e-4 <= p["rho"] <= 10:
        raise CcdError(f"rho = {p['rho']:g}: how far SAM looks around the weights; allowed are numbers from 0.0001 to 10")
    return {"": {}, "SAM": {"optimiser": "sam", "rho": p["rho"]}, twice(p): {"epochs": 2 * p["student_epochs"]}}


def _claims(p, arms):
    how, longer = needs_of(p), twice(p)
    few = {"least": how["least"]}

    def flatter(statement, better, baseline):
        words = f"{FLAT}({baseline}) - {FLAT}({better})"
        contrast = Contrast({values_of(FLAT, baseline): 1, values_of(FLAT, better): -1})
        return Claim("(g)", statement, words, contrast, unit="doublings of sharpness", **few)

    def of_jda(statement, part, words, **bounds):
        return Claim("(g)", statement, words, Regression(FLAT, "KD + JDA", "KD", part), **bounds)

    yield more("(g)", f"SAM helps KD, at {EPOCHS}", "KD, SAM", "KD", **how)
    yield more("(g)", f"SAM helps KD more than twice the epochs, at {PASSES}", "KD, SAM", f"KD, {longer}", **how)
    yield flatter("SAM leads KD to flatter minima", "KD, SAM", "KD")
    yield flatter("JDA leads KD to flatter minima", "KD + JDA", "KD")
    by_sam, long = ("KD + JDA, SAM", "KD, SAM"), (f"KD + JDA, {longer}", f"KD, {longer}")
    yield _smaller("JDA's gain is smaller where SAM trains", by_sam, ("KD + JDA", "KD"), EPOCHS, how)
    yield _smaller("JDA's gain is smaller where SAM trains", by_sam, long, PASSES, how)
    yield more("(g)", f"JDA helps also where SAM trains, at {EPOCHS}", *by_sam, headline="(g) JDA, with SAM", **how)
    yield of_jda(
        "JDA's gain is larger in the seeds in which it flattens more",
        "slope",
        f"slope of accuracy(KD + JDA) - accuracy(KD) over the change of {FLAT}",
        low=-INFINITY,
        high=0.0,
        unit="points for each doubling of sharpness",
        **few,
    )
    yield of_jda(
        "JDA would help KD also where it left the sharpness as it is",
        "remaining",
        f"accuracy(KD + JDA) - accuracy(KD) where {FLAT} does not change, by a regression over seeds",
        headline="(g) JDA, at equal sharpness",
        **how,
    )
    yield Claim(
        "(g)",
        "flatter students are more accurate: within a seed, sharpness and accuracy of all arms are correlated negatively",
        f"correlation over arms of {FLAT} with accuracy",
        Correlation(FLAT, arms),
        low=-INFINITY,
        high=0.0,
        unit="(Pearson's r)",
        **few,
    )


def _smaller(statement, smaller, larger, at, how):
    """The claim that the gain of the first arm over the second is smaller in the pair `smaller` than in the pair `larger`."""
    gains = [f"[accuracy({better}) - accuracy({baseline})]" for better, baseline in (larger, smaller)]
    contrast = Contrast({larger[0]: 1, larger[1]: -1, smaller[0]: -1, smaller[1]: 1})
    return Claim("(g)", f"{statement}, at {at}", " - ".join(gains), contrast, **how)


def flatness(run: Result) -> dict[str, float]:
    """How flat the loss is around a trained student, on TRAINING_IMAGES of its training images and TEST_IMAGES test images.

    Keys: FLAT, the binary logarithm of "sharpness", which is the largest rise of the loss within rho = ADAPTIVE in units of the
    weights, by ten steps on the training images; the same "by one step" and "on test images"; SAM's "plain sharpness" within
    rho = PLAIN by one step; "training loss" and "test loss"; "eigenvalue", the largest one of the Hessian on the training
    images; and its "trace". Losses and rises are in nats; a rise counts as LEAST where it is smaller.
    """
    data, network = data_of(run.config), run.model()
    rows, tests = of_each_class(data.train_labels), of_each_class(data.test_labels, TEST_IMAGES)
    train = Landscape(network, normalise(data.train_images[rows], data.mean, data.std), data.train_labels[rows])
    test = Landscape(network, normalise(data.test_images[tests], data.mean, data.std), data.test_labels[tests])
    rise = max(sharpness(train, ADAPTIVE, 10, adaptive=True), LEAST)
    return {
        FLAT: log2(rise),
        "sharpness": rise,
        "sharpness by one step": sharpness(train, ADAPTIVE, 1, adaptive=True),
        "sharpness on test images": sharpness(test, ADAPTIVE, 10, adaptive=True),
        "plain sharpness": sharpness(train, PLAIN),
        "training loss": train.loss(),
        "test loss": test.loss(),
        "eigenvalue": top_eigenvalue(train),
        "trace": trace(train)[0],
    }


def of_each_class(labels: torch.Tensor, most: int = TRAINING_IMAGES) -> torch.Tensor:
    """The rows of the first images of each class of `labels` (N,): at most so many in all, but one of each."""
    classes = labels.unique()
    each = max(1, most // len(classes))
    return torch.cat([(labels == k).nonzero()[:each, 0] for k in classes])
