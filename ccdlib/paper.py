"""Published top-1 accuracies as data, with their source. A number that could not be obtained is not here: never guessed.

The result tables of the ACCV 2022 and Neurocomputing 2024 papers themselves could not be obtained. What is here comes from the
HSAKD protocol (same teachers and network code); for KD + JDA and CCD there is nothing.
"""

from ccdlib.config import RECIPES, RunConfig
from ccdlib.experiments import rotating_recipe
from ccdlib.methods import settings_of

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
# Teachers: trained alone, and jointly with HSAKD's branches.
TEACHERS = {"wrn_40_2": 76.45, "resnet56": 73.44, "resnet32x4": 79.63, "vgg13": 74.64, "resnet50_cifar": 79.34}
JOINTLY = {"wrn_40_2": 80.70, "resnet56": 77.20, "resnet32x4": 83.73, "vgg13": 78.48, "resnet50_cifar": 83.85}
# (teacher, student): distilled by KD.
KD = {
    ("wrn_40_2", "wrn_16_2"): 75.23,
    ("wrn_40_2", "wrn_40_1"): 73.90,
    ("resnet56", "resnet20"): 70.91,
    ("resnet32x4", "resnet8x4"): 73.54,
    ("vgg13", "mobilenet_v2"): 75.21,
    ("resnet50_cifar", "mobilenet_v2"): 75.80,
    ("wrn_40_2", "shufflenet_v1"): 75.83,
    ("resnet32x4", "shufflenet_v2"): 75.43,
}
# The pairs of that table, and what its methods reach: {method: mean}, for the same protocol with the method's own recipe.
PAIRS = {
    ("wrn_40_2", "wrn_16_2"): {"sp": 74.35, "crd": 75.81, "sskd": 76.16, "hsakd": 77.20, "hsakd*": 78.67},
    ("wrn_40_2", "wrn_40_1"): {"sp": 72.91, "crd": 74.76, "sskd": 75.84, "hsakd": 77.00, "hsakd*": 78.12},
    ("resnet56", "resnet20"): {"sp": 71.45, "crd": 71.83, "sskd": 70.80, "hsakd": 72.58, "hsakd*": 73.73},
    ("resnet32x4", "resnet8x4"): {"sp": 75.44, "crd": 75.77, "sskd": 75.83, "hsakd": 77.26, "hsakd*": 77.69},
    ("vgg13", "mobilenet_v2"): {"sp": 75.68, "crd": 76.13, "sskd": 76.21, "hsakd": 77.45, "hsakd*": 79.27},
    ("resnet50_cifar", "mobilenet_v2"): {"sp": 76.35, "crd": 76.89, "sskd": 78.21, "hsakd": 78.79, "hsakd*": 79.43},
    ("wrn_40_2", "shufflenet_v1"): {"sp": 76.40, "crd": 76.37, "sskd": 76.71, "hsakd": 78.51, "hsakd*": 80.11},
    ("resnet32x4", "shufflenet_v2"): {"sp": 76.43, "crd": 76.51, "sskd": 77.64, "hsakd": 79.93, "hsakd*": 80.86},
}
# (teacher, student): distilled by KD on that many images, epochs not rescaled. HSAKD slides p. 27.
FEW_SHOT = {("resnet56", "resnet20"): {12500: 65.15, 25000: 68.61, 37500: 70.34}}

# ImageNet, ResNet-34 -> ResNet-18: (top-1, top-5). HSAKD slides; the recipe of each number is that of its source, not one of
# ours, so none is put beside a run. An independent reproduction (torchdistill) of SSKD gives 70.09.
IMAGENET = {
    "teacher": (73.31, 91.42),
    "teacher, joint": (75.48, 92.67),
    "student alone": (69.75, 89.07),
    "KD": (70.66, 89.88),
    "AT": (70.70, 90.00),
    "SP": (70.62, 89.80),
    "CRD": (71.38, 90.49),
    "SSKD": (71.62, 90.67),
    "HSAKD": (72.16, 90.85),
    "HSAKD*": (72.39, 91.00),
}

PROTOCOL = {"data": "cifar100", "views": "none"}
PLAIN = PROTOCOL | RECIPES["paper"]
TEACHER = PROTOCOL | RECIPES["paper_teacher"] | {"method": "ce", "n_train": None}
JOINT = PROTOCOL | RECIPES["paper_rotating"] | {"method": "hsakd_teacher", "n_train": None, "teacher": None}


def published(config):
    """The published accuracy (percent) of what a RunConfig trains; None unless it is the protocol of the source: CIFAR-100,
    one view an image, default settings, and the recipe of the method (Yang et al., IJCAI 2021)."""
    defaults = settings_of(config.method)
    if not _is(config, PROTOCOL) or any(defaults[name] != value for name, value in config.settings.items()):
        return None
    if config.method in ("sskd", "hsakd"):
        return _with_rotations(config)
    for recipe, numbers in ((TEACHER, TEACHERS), (JOINT, JOINTLY)):
        if _is(config, recipe):
            return numbers.get(config.model)
    if not _is(config, PLAIN):
        return None
    if config.method == "ce":
        return ALONE.get(config.model) if config.n_train is None else None
    if not _is(config.teacher, TEACHER):
        return None
    pair = config.teacher.model, config.model
    if config.method == "kd":
        return KD.get(pair) if config.n_train is None else FEW_SHOT.get(pair, {}).get(config.n_train)
    return PAIRS.get(pair, {}).get(config.method) if config.n_train is None else None


def _with_rotations(config):
    """The published accuracy of SSKD, HSAKD and, with a jointly trained teacher, HSAKD*."""
    recipe, taught = RECIPES[rotating_recipe("paper", config.model)], config.teacher
    if config.n_train is not None or not _is(config, recipe):
        return None
    joint = _is(taught, JOINT)
    if not joint:
        stage = isinstance(taught, RunConfig) and PROTOCOL | RECIPES.get(f"paper_{taught.method}", {}) | {"n_train": None}
        if not (stage and _is(taught, stage) and _is(taught.teacher, TEACHER)):
            return None
    return PAIRS.get((taught.model, config.model), {}).get(config.method + "*" * joint)


def _is(config, wanted):
    return isinstance(config, RunConfig) and all(getattr(config, name) == value for name, value in wanted.items())
