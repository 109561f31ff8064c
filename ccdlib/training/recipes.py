"""Recipes: the settings of trainings, and the rules by which networks, methods and their heads get them. All others read them here."""

from ccdlib.base.registry import Registry, unknown
from ccdlib.methods.method import METHODS

# Parts of recipes. On few small images, where no batch norm has settled yet, gradients are cut, and AT and FitNet have a
# quarter and a tenth of the weights that were made for CIFAR: otherwise single students collapsed, or all stayed below the
# student alone (chosen on seeds from 1000 up, which no result uses). Four rotations of an image are four inputs: SSKD and HSAKD
# take half the images a step.
IMAGENET = {"milestones": (0.3, 0.6, 0.9), "accumulate": 2, "clip": 20.0, "nesterov": False}
HSAKD = {"lr": 0.05, "weight_decay": 5e-4, "batch": 64}
HSAKD_LIGHT = HSAKD | {"lr": 0.01}
HSAKD_SMALL = {"lr": 0.025, "weight_decay": 5e-4, "batch": 13}
SSKD_HEADS = {"milestones": (0.5, 0.75)}  # 30 and 45 of 60 epochs
HSAKD_HEADS = {"milestones": (0.3, 0.6, 0.9)}  # 30, 60 and 90 of 100 epochs
PLAIN = {"nesterov": False}  # as SSKD's own code has it
SMALL = {"lr": 0.05, "weight_decay": 5e-4, "batch": 25, "epochs": 30, "clip": 10.0}
CIFAR10 = {"milestones": (91 / 182, 136 / 182), "statistics": "cifar100"}


# Families of settings: FAMILY for students, FAMILY_teacher for their teachers, FAMILY_METHOD where a method has settings of its
# own; networks of LIGHT take FAMILY..._light where there is one (recipe_of). "paper", "imagenet", "cifar10" are the authors',
# "hsakd" is the one that all networks and methods of HSAKD's table were trained by, the small ones take minutes on a CPU.
RECIPES = Registry("recipe")
RECIPES |= {
    "small": SMALL,
    "small_at": SMALL | {"settings": {"gamma": 250.0}},
    "small_fitnet": SMALL | {"settings": {"gamma": 10.0}},
    "small_teacher": {"lr": 0.05, "weight_decay": 5e-4, "batch": 25, "epochs": 50},
    "small_sskd": HSAKD_SMALL | PLAIN | {"epochs": 30, "clip": SMALL["clip"]},
    "small_sskd_teacher": HSAKD_SMALL | PLAIN | SSKD_HEADS | {"epochs": 12},
    "small_hsakd": HSAKD_SMALL | {"epochs": 30, "clip": SMALL["clip"]},
    "small_hsakd_teacher": HSAKD_SMALL | HSAKD_HEADS | {"epochs": 20},
    "paper": {"lr": 0.1, "weight_decay": 1e-4, "batch": 128, "epochs": 240},
    "paper_teacher": {"lr": 0.1, "weight_decay": 5e-4, "batch": 128, "epochs": 240},
    "paper_sskd": HSAKD | PLAIN | {"epochs": 240},
    "paper_sskd_light": HSAKD_LIGHT | PLAIN | {"epochs": 240},
    "paper_sskd_teacher": HSAKD | PLAIN | SSKD_HEADS | {"epochs": 60},
    "paper_hsakd": HSAKD | {"epochs": 240},
    "paper_hsakd_light": HSAKD_LIGHT | {"epochs": 240},
    "paper_hsakd_teacher": HSAKD | HSAKD_HEADS | {"epochs": 100},
    "hsakd": HSAKD | {"epochs": 240},
    "hsakd_light": HSAKD_LIGHT | {"epochs": 240},
    "hsakd_teacher": HSAKD | {"epochs": 240},
    "hsakd_sskd_teacher": HSAKD | SSKD_HEADS | {"epochs": 60},
    "hsakd_hsakd_teacher": HSAKD | HSAKD_HEADS | {"epochs": 100},
    # 768 images are 1,536 inputs, over two accumulation steps; and the same in the small.
    "imagenet": IMAGENET | {"lr": 0.1, "weight_decay": 1e-4, "batch": 768, "epochs": 200},
    "imagenet_teacher": IMAGENET | {"lr": 0.1, "weight_decay": 1e-4, "batch": 768, "epochs": 200},
    "imagenet_small": IMAGENET | {"lr": 0.05, "weight_decay": 5e-4, "batch": 24, "epochs": 4},
    "imagenet_small_teacher": PLAIN | {"lr": 0.05, "weight_decay": 5e-4, "batch": 24, "epochs": 6},
    # The authors' script normalises by the statistics of CIFAR-100. That its teacher is trained likewise is our assumption.
    "cifar10": CIFAR10 | {"lr": 0.1, "weight_decay": 1e-4, "batch": 64, "epochs": 182},
    "cifar10_teacher": CIFAR10 | {"lr": 0.1, "weight_decay": 1e-4, "batch": 64, "epochs": 182},
}


# HSAKD's table has one recipe for all methods.
RECIPES |= {f"hsakd_{method}{size}": RECIPES[f"hsakd{size}"] for method in ("sskd", "hsakd") for size in ("", "_light")}
LIGHT = ("mobilenet_v2", "shufflenet_v1", "shufflenet_v2")  # networks whose own learning rate is lower

# The epochs of the heads of a frozen teacher, as a part of the teacher's own: 60 and 100 of 240.
HEAD_EPOCHS = {"sskd_teacher": 60 / 240, "hsakd_teacher": 100 / 240}

# The compared methods as tables name them, in their order.
NAMES = {
    "kd": "KD",
    "fitnet": "FitNet",
    "at": "AT",
    "sp": "SP",
    "sp_released": "SP, released",
    "rkd": "RKD",
    "crd": "CRD",
    "dkd": "DKD",
    "kd_std": "KD, standardised",
    "sskd": "SSKD",
    "hsakd": "HSAKD",
}


def comparable() -> dict[str, str]:
    """{method: its name in tables} of all methods that can be compared, a reader's own among them."""
    own = {name: name for name, method in METHODS.items() if name in METHODS.added and method.teacher != "none"}
    return NAMES | {name: name for name in own if not METHODS[name].freezes}


def families() -> list[str]:
    """The families of RECIPES: those that have one for students and one for teachers."""
    stages = tuple(f"_{method}" for method in METHODS)
    return [name for name in RECIPES if f"{name}_teacher" in RECIPES and not name.endswith(stages)]


def recipe_of(family: str, model: str, method: str = "") -> dict:
    """The settings with which a `family` of RECIPES trains a student `model` by a method that has settings of its own there.

    method: such a method, or "teacher"; "": the settings of all others. Errors: CcdError for a family that there is not, or
    that has none for that method.
    """
    if family not in families():
        raise unknown("recipe", family, families())
    name = f"{family}_{method}" if method else family
    return RECIPES[f"{name}_light" if model in LIGHT and f"{name}_light" in RECIPES else name]


def own_recipe(family: str, model: str, method: str) -> dict:
    """The settings, but for the epochs, that `method` has of its own in a family; {} where it is trained as all others are."""
    if not METHODS[method].rotates and f"{family}_{method}" not in RECIPES:
        return {}
    return {key: value for key, value in recipe_of(family, model, method).items() if key != "epochs"}


def head_recipe(family: str, stage: str, epochs: int) -> dict:
    """The settings of the training of a frozen teacher's heads by the method `stage`; epochs: the teacher's own."""
    epochs = max(1, round(HEAD_EPOCHS[stage] * epochs))
    return RECIPES[f"{family}_{stage}"] | {"epochs": epochs, "eval_every": epochs}
