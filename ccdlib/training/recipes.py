"""Recipes: the settings of trainings, and the rules that assign them to networks, methods and heads."""

from ccdlib.base.registry import Registry, unknown
from ccdlib.methods.method import METHODS

# Parts of recipes. In the small recipes gradients are clipped, and AT and FitNet have a quarter and a tenth of the weights that
# their papers use for CIFAR. Without this, on few small images, single students collapsed (AT and FitNet: all stayed below the
# student alone). The values were chosen on seeds from 1000 up, which no result uses. SSKD and HSAKD make four inputs of each
# view, so a step has half as many images.
IMAGENET = {"milestones": (0.3, 0.6, 0.9), "accumulate": 2, "clip": 20.0, "nesterov": False}
HSAKD = {"lr": 0.05, "weight_decay": 5e-4, "batch": 64}
HSAKD_LIGHT = HSAKD | {"lr": 0.01}
HSAKD_SMALL = {"lr": 0.025, "weight_decay": 5e-4, "batch": 13}
SSKD_HEADS = {"milestones": (0.5, 0.75)}  # 30 and 45 of 60 epochs
HSAKD_HEADS = {"milestones": (0.3, 0.6, 0.9)}  # 30, 60 and 90 of 100 epochs
PLAIN = {"nesterov": False}  # as SSKD's own code has it
SMALL = {"lr": 0.05, "weight_decay": 5e-4, "batch": 25, "epochs": 30, "clip": 10.0}
SCENES = {"lr": 0.02, "weight_decay": 5e-4, "batch": 12, "epochs": 60, "clip": 10.0}
COCO = {"lr": 0.02, "weight_decay": 1e-4, "batch": 16, "epochs": 24, "milestones": (16 / 24, 22 / 24), "nesterov": False}
CIFAR10 = {"milestones": (91 / 182, 136 / 182), "statistics": "cifar100"}

# The recipes of a family: FAMILY for students, FAMILY_teacher for their teachers, and FAMILY_METHOD for a method that has
# settings of its own. Networks in LIGHT take FAMILY..._light where there is one (recipe_of). "paper", "imagenet" and "cifar10"
# are the authors' recipes, "hsakd" is the one of HSAKD's table, and the small ones take minutes on a CPU.
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
    # With two views 768 images are 1,536 inputs, which the authors split into two passes.
    "imagenet": IMAGENET | {"lr": 0.1, "weight_decay": 1e-4, "batch": 768, "epochs": 200},
    "imagenet_teacher": IMAGENET | {"lr": 0.1, "weight_decay": 1e-4, "batch": 768, "epochs": 200},
    "imagenet_small": IMAGENET | {"lr": 0.05, "weight_decay": 5e-4, "batch": 24, "epochs": 4},
    "imagenet_small_teacher": PLAIN | {"lr": 0.05, "weight_decay": 5e-4, "batch": 24, "epochs": 6},
    # Detectors. The recipe for scenes is not yet chosen on pilot seeds; that for COCO is the authors' public one (2023).
    "scenes": SCENES,
    "scenes_teacher": SCENES | {"epochs": 30},
    "coco": COCO,
    "coco_teacher": COCO,
    # The authors' script normalises by the statistics of CIFAR-100. We assume that its teacher was trained in the same way.
    "cifar10": CIFAR10 | {"lr": 0.1, "weight_decay": 1e-4, "batch": 64, "epochs": 182},
    "cifar10_teacher": CIFAR10 | {"lr": 0.1, "weight_decay": 1e-4, "batch": 64, "epochs": 182},
}
# HSAKD's table has one recipe for all methods.
RECIPES |= {f"hsakd_{method}{size}": RECIPES[f"hsakd{size}"] for method in ("sskd", "hsakd") for size in ("", "_light")}
LIGHT = ("mobilenet_v2", "shufflenet_v1", "shufflenet_v2")  # networks with a lower learning rate
# The epochs in which the heads of a frozen teacher are trained, as a fraction of the teacher's own epochs.
HEAD_EPOCHS = {"sskd_teacher": 60 / 240, "hsakd_teacher": 100 / 240}
# The names and the order of the compared methods in tables.
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
    own = [
        name
        for name in METHODS.added
        if METHODS[name].teacher != "none" and not (METHODS[name].freezes or METHODS[name].detects)
    ]
    return NAMES | {name: name for name in own}


def families() -> list[str]:
    """The names of all families of RECIPES: each has a recipe for students and one for teachers."""
    stages = tuple(f"_{method}" for method in METHODS)
    return [name for name in RECIPES if f"{name}_teacher" in RECIPES and not name.endswith(stages)]


def recipe_of(family: str, model: str, method: str = "") -> dict:
    """The recipe of a `family` for a network: values of fields of RunConfig.

    method: "teacher", or a method with a recipe of its own in the family; "": the recipe of all other students. model: networks
    in LIGHT have recipes of their own in some families. Errors: CcdError for an unknown family, or a method without a recipe.
    """
    if family not in families():
        raise unknown("recipe", family, families())
    name = f"{family}_{method}" if method else family
    return RECIPES[f"{name}_light" if model in LIGHT and f"{name}_light" in RECIPES else name]


def own_recipe(family: str, model: str, method: str) -> dict:
    """The recipe that a family has for `method` alone, without the epochs; {} for a method that is trained like all others."""
    if not METHODS[method].rotates and f"{family}_{method}" not in RECIPES:
        return {}
    return {key: value for key, value in recipe_of(family, model, method).items() if key != "epochs"}


def head_recipe(family: str, stage: str, epochs: int) -> dict:
    """The recipe by which the method `stage` trains the heads of a frozen teacher that was itself trained for `epochs`."""
    epochs = max(1, round(HEAD_EPOCHS[stage] * epochs))
    return RECIPES[f"{family}_{stage}"] | {"epochs": epochs, "eval_every": epochs}
