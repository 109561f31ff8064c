"""Pilot runs: on which sizes and recipes were chosen, on seeds from 1000 up, which no result uses.

    python benchmarks/pilots.py class      lengths and learning rates for profile class of 00_quickstart
    python benchmarks/pilots.py methods    compared methods under the small recipe, against the student alone
    python benchmarks/pilots.py lite       how many images for the lite profiles, and how far seeds spread there
    python benchmarks/pilots.py teachers   whether JDA improves a teacher of few images, for 02_augmented_teacher
    python benchmarks/pilots.py detection  learning rates and lengths for detectors on scenes, for 08_detection

Prints a table and keeps it, with every accuracy, in pilots.json. Trained runs are found again, as everywhere (CCD_OUTPUTS).
"""

import json
import sys
from pathlib import Path

from ccdlib.base.devices import best_device
from ccdlib.base.files import write_whole
from ccdlib.data.bundled import cards
from ccdlib.evidence.stats import paired
from ccdlib.methods import METHODS
from ccdlib.training import RECIPES, Checkpoint, RunConfig, fit, recipe_of
from ccdlib.training.identity import provenance
from ccdlib.training.recipes import NAMES
from ccdlib.training.schedule import Schedule, Trainings, folders_of

FILE = Path(__file__).with_name("pilots.json")
FIRST = 1000  # seed
TEACHER = next(iter(cards().values()))["configuration"]  # as the bundled ones are trained

# (training images, epochs, learning rate, seeds), of 20 classes: the smallest is two images of each.
DESIGNS = (
    (200, 20, 0.05, 4),
    (200, 15, 0.05, 4),
    (200, 15, 0.03, 8),
    (200, 15, 0.02, 4),
    (100, 40, 0.05, 4),
    (100, 30, 0.1, 4),
    (100, 30, 0.05, 4),
    (100, 30, 0.03, 8),
    (100, 30, 0.02, 4),
    (60, 40, 0.05, 4),
    (60, 40, 0.03, 4),
    (40, 60, 0.05, 8),
    (40, 60, 0.03, 8),
    (40, 60, 0.02, 8),
)
TAUGHT = 4  # pilot teachers, each of one or two pilot students


def teacher(seed):
    seed = FIRST + (seed - FIRST) % TAUGHT
    return RunConfig(**TEACHER | {"seed": seed, "subset_seed": seed})


def student(seed, recipe, teacher=None, **what):
    what = {"model": "resnet8", "method": "kd" if teacher else "ce"} | recipe | what
    what = {"data": "objects", "eval_every": what["epochs"]} | what
    return RunConfig(seed=seed, subset_seed=seed, teacher=teacher, **what)


def of_designs():
    for images, epochs, lr, n in DESIGNS:
        recipe = RECIPES["small"] | {"n_train": images, "epochs": epochs, "lr": lr}
        seeds = range(FIRST, FIRST + n)
        alone = [student(s, recipe) for s in seeds]
        kd = [student(s, recipe, teacher(s)) for s in seeds]
        name = f"{images} images, {epochs} epochs, lr {lr:g}"
        yield f"{name}: student alone", alone, None
        yield f"{name}: KD", kd, alone
        yield f"{name}: KD + JDA", [config.but(views="cifar100") for config in kd], kd


def of_methods(n=4):
    """SSKD and HSAKD apart, whose heads take an hour."""
    seeds, sizes = range(FIRST, FIRST + n), {"n_train": 100, "epochs": 30}
    alone = [student(s, RECIPES["small"] | sizes) for s in seeds]
    yield "student alone", alone, None
    for method, name in NAMES.items():
        if METHODS[method].teacher_method is None:
            own = recipe_of("small", "resnet8", method if f"small_{method}" in RECIPES else "") | sizes
            own |= {"settings": {"negatives": 32}} if method == "crd" else {}
            for views in ("none", "cifar100"):
                arm = [student(s, own, teacher(s), method=method, views=views) for s in seeds]
                yield name + " + JDA" * (views != "none"), arm, alone


def of_lite(n=4, epochs=120):
    """Teachers of the package, whose seeds the students do not share."""
    taught = [Checkpoint(model="resnet20", file=f"ccdlib:resnet20-objects-s{k}") for k in range(n)]
    for images in (100, 200):
        recipe = RECIPES["small"] | {"n_train": images, "epochs": epochs}
        kd = [student(FIRST + k, recipe, taught[k]) for k in range(n)]
        jda = [config.but(views="cifar100") for config in kd]
        name = f"{images} images, {epochs} epochs"
        yield f"{name}: KD", kd, None
        yield f"{name}: KD + JDA", jda, kd
        yield f"{name}: CCD", [config.but(method="ccd") for config in jda], jda


def of_teachers(n=2):
    for images, epochs in ((100, 240), (200, 120)):
        recipe = recipe_of("small", "resnet20", "teacher") | {"n_train": images, "epochs": epochs, "model": "resnet20"}
        plain = [student(seed, recipe) for seed in range(FIRST, FIRST + n)]
        yield f"{images} images, {epochs} epochs: teacher", plain, None
        yield f"{images} images, {epochs} epochs: teacher + JDA", [config.but(views="cifar100") for config in plain], plain


def of_detection(n=2):
    """Detectors: a teacher on all scenes at two learning rates, and students of few scenes by KD, also with JDA."""
    for lr in (0.02, 0.05):
        recipe = recipe_of("scenes", "frcnn_resnet20", "teacher") | {"lr": lr, "model": "frcnn_resnet20", "method": "detection"}
        taught = [student(seed, recipe, data="scenes") for seed in range(FIRST, FIRST + n)]
        yield f"lr {lr:g}: teacher", taught, None
        for images in (60, 120):
            how = recipe_of("scenes", "frcnn_resnet8") | {"lr": lr, "model": "frcnn_resnet8", "n_train": images}
            kd = [student(config.seed, how, config, data="scenes", method="detection_kd") for config in taught]
            yield f"lr {lr:g}, {images} scenes: KD", kd, None
            yield f"lr {lr:g}, {images} scenes: KD + JDA", [config.but(views="detection") for config in kd], kd


def main(section):
    """Train the arms of a section and say how far each lies above what it is compared with."""
    arms = list(SECTIONS[section]())
    rows = []
    with Trainings(Schedule(folders_of([config for _, configs, _ in arms for config in configs]))) as trainings:
        for name, configs, base in arms:
            trainings.wait(configs)
            found = [fit(config, show="none").accuracy for config in configs]
            against = base and paired(found, [fit(config, show="none").accuracy for config in base])
            rows.append({"arm": name, "accuracies": found, "gain": against and list(against)})
            print(f"{name:45} {sum(found) / len(found):5.1f} %  {against or ''}", flush=True)
    kept = json.loads(FILE.read_text()) if FILE.exists() else {}
    kept[section] = {"first_seed": FIRST, "rows": rows, "provenance": provenance(best_device())}
    write_whole(FILE, json.dumps(kept, indent=1) + "\n")


SECTIONS = {"class": of_designs, "methods": of_methods, "lite": of_lite, "teachers": of_teachers, "detection": of_detection}

if __name__ == "__main__":
    main(*sys.argv[1:2])
