"""Published top-1 accuracies with their sources. A number that could not be obtained is left out, never guessed.

The result tables of the ACCV 2022 and Neurocomputing 2024 papers could not be obtained, so there is nothing for KD + JDA and
CCD. The numbers come from the table of HSAKD, which uses the same network code and trained all networks and methods by one
recipe, its own ("hsakd" in RECIPES). REPORTED has the numbers of others, under recipes that the kit lacks.
"""

from typing import NamedTuple

from ccdlib.methods.method import METHODS, settings_of
from ccdlib.training.config import Checkpoint, RunConfig
from ccdlib.training.recipes import recipe_of

SOURCE = "HSAKD slides p. 22 and README (Yang et al., IJCAI 2021)"

# Means in percent on CIFAR-100. Students that are trained without a teacher.
ALONE = {
    "wrn_16_2": 73.57,
    "wrn_40_1": 71.95,
    "resnet20": 69.62,
    "resnet8x4": 72.95,
    "mobilenet_v2": 73.51,
    "shufflenet_v1": 71.74,
    "shufflenet_v2": 72.96,
}

# Teachers, trained alone and jointly with HSAKD's branches. ResNet50's 79.34 is from the slides; HSAKD's README says 76.34, so
# that one of the two is a misprint.
TEACHERS = {"wrn_40_2": 76.45, "resnet56": 73.44, "resnet32x4": 79.63, "vgg13": 74.64, "resnet50_cifar": 79.34}
JOINTLY = {"wrn_40_2": 80.70, "resnet56": 77.20, "resnet32x4": 83.73, "vgg13": 78.48, "resnet50_cifar": 83.85}

# {(teacher, student): the student's accuracy with KD}
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

# {(teacher, student): {method: the student's accuracy}}; "hsakd*" is hsakd with a teacher that was trained jointly.
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

# {(teacher, student): {method: the standard deviation over runs}}, in points, from the same table; "ce" is the student alone.
SPREADS = {
    ("wrn_40_2", "wrn_16_2"): {"ce": 0.23, "kd": 0.23, "sp": 0.59, "crd": 0.33, "sskd": 0.17, "hsakd": 0.17, "hsakd*": 0.20},
    ("wrn_40_2", "wrn_40_1"): {"ce": 0.59, "kd": 0.44, "sp": 0.24, "crd": 0.25, "sskd": 0.04, "hsakd": 0.21, "hsakd*": 0.25},
    ("resnet56", "resnet20"): {"ce": 0.26, "kd": 0.10, "sp": 0.38, "crd": 0.42, "sskd": 0.02, "hsakd": 0.33, "hsakd*": 0.10},
    ("resnet32x4", "resnet8x4"): {"ce": 0.24, "kd": 0.26, "sp": 0.11, "crd": 0.24, "sskd": 0.29, "hsakd": 0.14, "hsakd*": 0.05},
    ("vgg13", "mobilenet_v2"): {"ce": 0.26, "kd": 0.24, "sp": 0.35, "crd": 0.16, "sskd": 0.16, "hsakd": 0.21, "hsakd*": 0.12},
    ("resnet50_cifar", "mobilenet_v2"): {
        "ce": 0.26,
        "kd": 0.46,
        "sp": 0.14,
        "crd": 0.27,
        "sskd": 0.16,
        "hsakd": 0.11,
        "hsakd*": 0.24,
    },
    ("wrn_40_2", "shufflenet_v1"): {
        "ce": 0.35,
        "kd": 0.18,
        "sp": 0.37,
        "crd": 0.23,
        "sskd": 0.31,
        "hsakd": 0.20,
        "hsakd*": 0.32,
    },
    ("resnet32x4", "shufflenet_v2"): {
        "ce": 0.33,
        "kd": 0.33,
        "sp": 0.21,
        "crd": 0.09,
        "sskd": 0.24,
        "hsakd": 0.11,
        "hsakd*": 0.15,
    },
}

# {(teacher, student): {training images: the student's accuracy with KD}}, with as many epochs as on all images. HSAKD slides
# p. 27.
FEW_SHOT = {("resnet56", "resnet20"): {12500: 65.15, 25000: 68.61, 37500: 70.34}}

# ImageNet, ResNet-34 to ResNet-18: (top-1, top-5), from HSAKD's slides. Each number has the recipe of its source, none of which
# the kit has, so none stands beside a run. An independent reproduction of SSKD (torchdistill) gives 70.09.
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


# {kind of views: (T. stddev in thousandths, test loss of the student)} on CIFAR-100, WRN-40-2 to WRN-16-2, read off the figures
# of Wang et al., NeurIPS 2022, to within 0.005.
T_STDDEV = {
    "identity": (5.47, 1.095),
    "flip": (5.47, 1.075),
    "crop and flip": (5.26, 1.055),
    "Cutout": (5.11, 1.027),
    "AutoAugment": (4.99, 1.045),
    "Mixup": (4.72, 1.025),
    "CutMix": (4.40, 1.003),
    "CutMixPick": (4.15, 0.972),
}


class Reported(NamedTuple):
    """A top-1 accuracy, in percent, that others report under a recipe that the kit lacks."""

    source: str
    recipe: str
    data: str
    teacher: str
    student: str
    method: str
    reached: float
    original: float | None = None  # the number that they set out to reproduce; None: not said
    runs: int | None = None  # how many runs `reached` is the mean of; None: not said


def _torchdistill():
    source, recipe = "torchdistill, imagenet-resnet18_kd.tsv (July 2026)", "torchdistill's of each method"
    rows = {
        "KD": (None, 71.37),  # 0.7 above the KD that HSAKD's slides quote
        "AT": (70.70, 70.90),
        "FT": (71.43, 71.56),
        "CRD": (71.17, 70.93),
        "Tf-KD": (70.42, 70.52),
        "SSKD": (71.62, 70.09),
        "KR": (71.61, 71.64),
        "ICKD": (72.19, 68.34),
        "DIST": (72.07, 71.95),
        "SRD": (71.63, 71.92),
        "KD + LS": (71.42, 71.23),
        "DIST+": (72.39, 71.37),
    }
    for method, (original, reached) in rows.items():
        yield Reported(source, recipe, "imagenet", "resnet34", "resnet18", method, reached, original)


def _mdistiller():
    source, recipe = "README of logit-standardization-KD", "mdistiller's teachers and recipe"
    pairs = (("resnet32x4", "resnet8x4"), ("wrn_40_2", "wrn_16_2"), ("wrn_40_2", "wrn_40_1"), ("resnet56", "resnet20"))
    rows = {
        "KD": (73.33, 74.92, 73.54, 70.66),
        "KD, standardised": (76.62, 76.11, 74.37, 71.43),
        "DKD": (76.32, 76.24, 74.81, 71.97),
        "MLLD": (77.08, 76.63, 75.35, 72.19),
        "MLLD, standardised": (78.28, 76.95, 75.56, 72.33),
    }
    for method, numbers in rows.items():
        for pair, reached in zip(pairs, numbers, strict=True):
            yield Reported(source, recipe, "cifar100", *pair, method, reached)
    users, pair = "users of mdistiller, its thread 8", ("cifar100", "wrn_40_2", "wrn_16_2")
    yield Reported(users, "mdistiller's", *pair, "DKD", 75.15, 76.24)
    yield Reported(users, "mdistiller's", *pair, "DKD", 75.505, 76.24, runs=4)


REPORTED = (*_torchdistill(), *_mdistiller())


class Published(NamedTuple):
    """A published accuracy of the network, method and teacher that a run trains."""

    accuracy: float  # percent
    same_recipe: bool  # whether recipe, teacher and protocol are the source's, so that the two can be compared


def published(config: RunConfig | Checkpoint) -> Published | None:
    """The accuracy in HSAKD's table (SOURCE) for what `config` trains.

    None where the table has none: for a Checkpoint, and for other data, views, networks, methods or settings.
    """
    if not _on_cifar100(config):
        return None
    defaults = settings_of(config.method)
    if any(defaults[name] != value for name, value in config.settings.items()):
        return None
    number = _number(config)
    return None if number is None else Published(number, _trained_as_there(config))


def _on_cifar100(config):
    return isinstance(config, RunConfig) and (config.data, config.views) == ("cifar100", "none")


def _number(config):
    whole, taught = config.n_train is None, config.teacher
    if config.method == "ce":
        return (ALONE | TEACHERS).get(config.model) if whole else None
    if config.method == "hsakd_teacher" and taught is None:
        return JOINTLY.get(config.model) if whole else None
    if not _on_cifar100(taught) or taught.n_train is not None:
        return None
    pair, needed = (taught.model, config.model), METHODS[config.method].teacher_method
    if needed is None and taught.method == "ce":
        if config.method == "kd":
            return KD.get(pair) if whole else FEW_SHOT.get(pair, {}).get(config.n_train)
        return PAIRS.get(pair, {}).get(config.method) if whole else None
    joint = taught.method == "hsakd_teacher" and taught.teacher is None
    if not whole or not (
        joint or (taught.method == needed and _on_cifar100(taught.teacher) and _number(taught.teacher) is not None)
    ):
        return None
    return PAIRS.get(pair, {}).get(config.method + "*" * joint)


def _trained_as_there(config):
    """Whether the run, and its teacher's, has HSAKD's recipe and protocol."""
    role = "teacher" if config.model in TEACHERS else ""
    if METHODS[config.method].rotates:
        role = "teacher" if config.method == "hsakd_teacher" and config.teacher is None else config.method
    protocol = RunConfig.fields_where(lambda use: use.part in ("view", "recipe"))
    wanted = {name: RunConfig.model_fields[name].default for name in protocol}
    wanted |= recipe_of("hsakd", config.model, role)
    same = all(getattr(config, name) == value for name, value in wanted.items())
    return same and (config.teacher is None or _trained_as_there(config.teacher))
