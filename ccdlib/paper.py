"""Published top-1 accuracies as data, with their source. A number that could not be obtained is not here: never guessed.

The result tables of the ACCV 2022 and Neurocomputing 2024 papers themselves could not be obtained. What is here comes from the
HSAKD protocol (same teachers and network code); for KD + JDA and CCD there is nothing.
"""

from ccdlib.config import RECIPES, RunConfig

SOURCE = "HSAKD slides p. 22 and README (Yang et al., IJCAI 2021)"

# Means in percent on CIFAR-100. student: trained alone.
ALONE = {
    "wrn_16_2": 73.57,
    "wrn_40_1": 71.95,
    "resnet20": 69.62,
    "resnet8x4": 72.95,
    "mobilenet_v2": 73.51,
    "shufflenet_v1": 71.74,
    "shufflenet_v2": 72.96,
}
# (teacher, student): distilled by KD.
KD = {
    ("wrn_40_2", "wrn_16_2"): 75.23,
    ("wrn_40_2", "wrn_40_1"): 73.90,
    ("resnet56", "resnet20"): 70.91,
    ("resnet32x4", "resnet8x4"): 73.54,
    ("vgg13", "mobilenet_v2"): 75.21,
    ("wrn_40_2", "shufflenet_v1"): 75.83,
    ("resnet32x4", "shufflenet_v2"): 75.43,
}
# (teacher, student): distilled by KD on that many images, epochs not rescaled. HSAKD slides p. 27.
FEW_SHOT = {("resnet56", "resnet20"): {12500: 65.15, 25000: 68.61, 37500: 70.34}}

PROTOCOL = {"data": "cifar100", "views": "none", "settings": {}, **RECIPES["paper"]}
TEACHER = PROTOCOL | RECIPES["paper_teacher"] | {"method": "ce", "n_train": None}


def published(config):
    """The published accuracy (percent) of what a RunConfig trains; None unless it is the protocol of the source: CIFAR-100,
    one view an image, the usual temperature, and the paper recipe (Yang et al., IJCAI 2021)."""
    if not _is(config, PROTOCOL):
        return None
    if config.method == "ce":
        return ALONE.get(config.model) if config.n_train is None else None
    if config.method != "kd" or not _is(config.teacher, TEACHER):
        return None
    pair = config.teacher.model, config.model
    return KD.get(pair) if config.n_train is None else FEW_SHOT.get(pair, {}).get(config.n_train)


def _is(config, wanted):
    return isinstance(config, RunConfig) and all(getattr(config, name) == value for name, value in wanted.items())
