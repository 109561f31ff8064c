"""What the analyses share: teachers and students of every seed from a notebook's parameters, seeds that verdicts need, sweeps.

A run that two notebooks list is the same run, because it is described the same.
"""

from ccdlib.base.registry import CcdError, unknown
from ccdlib.data.bundled import PREFIX, cards
from ccdlib.data.sources import sizes_of
from ccdlib.methods.method import METHODS
from ccdlib.training.config import Checkpoint, RunConfig, teacher_of_method
from ccdlib.training.recipes import head_recipe, own_recipe, recipe_of


def timing(p, epochs):
    if p["evaluations"] < 1:
        raise CcdError(f"evaluations = {p['evaluations']}: the last epoch is always evaluated; give 1 or more")
    return {"epochs": epochs, "eval_every": max(1, epochs // p["evaluations"])}


def teachers_of(p, /, **what):
    """The teacher of every seed, with plain cross entropy unless `what` says more; a bundled one where parameter `teacher`
    says so and nothing else is wanted of it."""
    if p.get("teacher", TEACHERS[1]) not in TEACHERS:
        raise unknown("teacher", p["teacher"], TEACHERS)
    if p.get("teacher") == TEACHERS[0] and not what:
        return _bundled(p)
    base = {"data": p["data"], "n_train": p["n_teacher"] or None, "model": p["teacher_model"]}
    base |= recipe_of(p["recipe"], p["teacher_model"], "teacher") | timing(p, p["teacher_epochs"]) | what
    return [RunConfig(**base, seed=s, subset_seed=_subset_seed(p, s)) for s in range(p["seeds"])]


TEACHERS = ("bundled", "train")


def _bundled(p):
    """The teachers that come with the package, one a seed; CcdError where there are none for these parameters."""
    names = [f"{p['teacher_model']}-{p['data']}-s{seed}" for seed in range(p["seeds"])]
    known = cards()
    if missing := [name for name in names if name not in known]:
        raise CcdError(
            f"teacher = 'bundled': {missing[0]} does not come with the package; there are {', '.join(known)}. Give "
            "teacher = train, or data, teacher_model and seeds for which there are some"
        )
    if p["n_teacher"]:
        raise CcdError(
            f"n_teacher = {p['n_teacher']} with teacher = 'bundled': bundled teachers have seen all training images; give "
            "n_teacher = 0, or teacher = train"
        )
    model = p["teacher_model"]
    return [
        Checkpoint(model=model, file=PREFIX + name, accuracy=known[name]["accuracy"], seed=seed)
        for seed, name in enumerate(names)
    ]


def students_of(p, teachers, /, epochs=None, **what):
    """The student of every seed, distilled by KD unless `what` says more; teachers None: alone."""
    base = {"data": p["data"], "n_train": p["n_train"] or None, "model": p["student_model"]}
    base |= (
        recipe_of(p["recipe"], p["student_model"])
        | timing(p, epochs or p["student_epochs"])
        | {"method": "kd" if teachers else "ce"}
        | what
    )
    return [
        RunConfig(**base, teacher=teachers and teachers[s], seed=s, subset_seed=_subset_seed(p, s)) for s in range(p["seeds"])
    ]


def seeds_needed(p, large=False):
    """Seeds that a verdict needs: three in the paper profiles, as the papers have, four in class for an effect that is large
    there, and ten elsewhere."""
    if p["profile"].startswith("paper"):
        return {"least": 3}
    return {"least": 4 if large and p["profile"] == "class" else 10}


def needs_of(p, large=False):
    """What a verdict on an effect that the papers claim needs: seeds, and the margin within which there is practically none."""
    return seeds_needed(p, large) | {"margin": p["margin"]}


SPLITS = ("per seed", "fixed")


def _subset_seed(p, seed):
    """The seed by which training images are drawn: each seed's own or, with a fixed split (the authors' way), one for all."""
    split = p.get("split", SPLITS[0])
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    return seed if split == SPLITS[0] else 0


def sweep_of(p, name, kind, low, high):
    """The values of a sweep, in order; CcdError for duplicates, for what is outside, and for fewer than two."""
    values = p[name]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
            raise CcdError(f"{name} holds {value!r}; allowed are {'whole ' * (kind is int)}numbers from {low:g} to {high:g}")
    if len(set(values)) < max(2, len(values)):
        raise CcdError(f"{name} = {values}: a sweep needs at least two values, each once; take out the duplicates")
    return sorted(values)


def images_of(p):
    """How many training images the students have; CcdError for a number that leaves a class empty, or is not there."""
    sizes = sizes_of(p["data"])
    n = p["n_train"] or sizes.images
    if not sizes.classes <= n <= sizes.images:
        raise CcdError(
            f"n_train = {n}: allowed are {sizes.classes} training images (one of each class) to {sizes.images}, or 0 for all"
        )
    return n


EPOCHS, STEPS = "equal epochs", "equal steps"


def _ready_for(p, method, teachers):
    """The teachers of `method`: with the heads that it needs, where it needs some, trained while the teacher is frozen."""
    needed = METHODS[method].teacher_method
    if needed is None:
        return teachers
    stage = head_recipe(p["recipe"], needed, p["teacher_epochs"])
    if isinstance(teachers[0], Checkpoint):  # what a RunConfig says of itself
        stage |= {"data": p["data"], "n_train": p["n_teacher"] or None}
    return [
        teacher_of_method(method, teacher, **stage, seed=teacher.seed, subset_seed=_subset_seed(p, teacher.seed))
        for teacher in teachers
    ]


def compared(p, method, teachers, own=True, **what):
    """The students of a compared method under its own recipe or, not `own`, the one that all methods can share."""
    fields = (own_recipe(p["recipe"], p["student_model"], method) if own else {}) | {"method": method}
    if method == "crd":
        fields["settings"] = {"negatives": p["negatives"]}
    if method == "dkd":
        fields |= {"settings": {"beta": p["dkd_beta"]}, "warmup": p["dkd_warmup"]}
    return students_of(p, _ready_for(p, method, teachers), **fields | what)
