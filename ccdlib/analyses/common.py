"""Functions that several analyses use: the teachers and students of all seeds, the seeds that verdicts need, and sweeps.

`p` is always the parameters of a notebook. Two notebooks share a run if they describe it equally, which these functions ensure.
"""

from itertools import cycle

from ccdlib.analyses.experiment import Parameters
from ccdlib.base.registry import CcdError, unknown
from ccdlib.data.bundled import PREFIX, cards
from ccdlib.data.sources import sizes_of
from ccdlib.methods.method import METHODS
from ccdlib.training.config import Checkpoint, RunConfig, teacher_of_method
from ccdlib.training.recipes import head_recipe, own_recipe, recipe_of

TEACHERS = ("bundled", "train")
SPLITS = ("per seed", "fixed")
EPOCHS, STEPS = "equal epochs", "equal steps"
COMPUTE = "equal compute"  # of the students: as many network inputs
CROP = "KD + crop and flip"  # the second view is a second crop and flip


def timing(p: Parameters, epochs: int) -> dict[str, int]:
    """The fields `epochs` and `eval_every` of a RunConfig that is evaluated p["evaluations"] times. Errors: CcdError."""
    if p["evaluations"] < 1:
        raise CcdError(f"evaluations = {p['evaluations']}: the last epoch is always evaluated; give 1 or more")
    return {"epochs": epochs, "eval_every": max(1, epochs // p["evaluations"])}


def computed_as(p: Parameters) -> dict[str, str | bool]:
    """The fields `precision` and `portable` of a RunConfig, where the notebook has these parameters."""
    return {name: p[name] for name in ("precision", "portable") if name in p}


def teachers_of(p: Parameters, /, **what) -> list[RunConfig | Checkpoint]:
    """The teacher of every seed, trained with cross entropy on original views; what: other fields of its RunConfig.

    Without `what`, they are the bundled teachers if the parameter `teacher` is "bundled". Errors: CcdError for a wrong
    `teacher`, and for parameters for which there are no bundled teachers.
    """
    if p.get("teacher", TEACHERS[1]) not in TEACHERS:
        raise unknown("teacher", p["teacher"], TEACHERS)
    if p.get("teacher") == TEACHERS[0] and not what:
        return _bundled(p)
    base = {"data": p["data"], "n_train": p["n_teacher"] or None, "model": p["teacher_model"]} | computed_as(p)
    epochs = p["teacher_epochs"]  # evaluated once, at the end: no figure shows the curve of a teacher
    base |= recipe_of(p["recipe"], p["teacher_model"], "teacher") | {"epochs": epochs, "eval_every": epochs} | what
    return [RunConfig(**base, seed=s, subset_seed=_subset_seed(p, s)) for s in range(p["seeds"])]


def _bundled(p):
    """The bundled teacher of every seed; where there are more seeds than teachers, they take turns.

    Errors: CcdError if there are none for these parameters.
    """
    prefix, known = f"{p['teacher_model']}-{p['data']}-s", cards()
    names = [name for name in known if name.startswith(prefix)]
    if not names:
        raise CcdError(
            f"teacher = 'bundled': no {prefix}0 comes with the package; it has {', '.join(known)}. Give teacher = train, or "
            "data and teacher_model for which it has teachers"
        )
    if p["n_teacher"]:
        raise CcdError(
            f"n_teacher = {p['n_teacher']} with teacher = 'bundled': bundled teachers were trained on all training images; "
            "give n_teacher = 0, or teacher = train"
        )
    return [
        Checkpoint(model=p["teacher_model"], file=PREFIX + name, accuracy=known[name]["accuracy"], seed=seed)
        for seed, name in zip(range(p["seeds"]), cycle(names), strict=False)
    ]


def students_of(
    p: Parameters, teachers: list[RunConfig | Checkpoint] | None, /, epochs: int | None = None, **what
) -> list[RunConfig]:
    """The student of every seed, trained by KD, or by cross entropy alone if `teachers` is None.

    epochs: instead of the parameter `student_epochs`. what: other fields of its RunConfig.
    """
    base = {"data": p["data"], "n_train": p["n_train"] or None, "model": p["student_model"]} | computed_as(p)
    base |= (
        recipe_of(p["recipe"], p["student_model"])
        | timing(p, epochs or p["student_epochs"])
        | {"method": "kd" if teachers else "ce"}
        | what
    )
    return [
        RunConfig(**base, teacher=teachers and teachers[s], seed=s, subset_seed=_subset_seed(p, s)) for s in range(p["seeds"])
    ]


def seeds_needed(p: Parameters, large: bool = False) -> dict[str, int]:
    """The number of seeds that a verdict needs, as {"least": n} for a Claim.

    It is three in the paper profiles, as in the papers, four in the profile class for `large` effects, and ten otherwise.
    """
    if p["profile"].startswith("paper"):
        return {"least": 3}
    return {"least": 4 if large and p["profile"] == "class" else 10}


def needs_of(p: Parameters, large: bool = False) -> dict[str, float]:
    """seeds_needed(), and the "margin" in points within which an effect counts as practically zero, for a Claim."""
    return seeds_needed(p, large) | {"margin": p["margin"]}


def _subset_seed(p, seed):
    """The seed by which the training images are chosen: its own for each seed or, with a fixed split as the authors', 0."""
    split = p.get("split", SPLITS[0])
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    return seed if split == SPLITS[0] else 0


def sweep_of(p: Parameters, name: str, kind: type | tuple[type, ...], low: float, high: float, least: int = 2) -> list:
    """The sorted values of the sweep in parameter `name`, of type `kind` and from `low` to `high`.

    Errors: CcdError for other values, for duplicates, and for fewer than `least` values.
    """
    values = p[name]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
            raise CcdError(f"{name} holds {value!r}; allowed are {'whole ' * (kind is int)}numbers from {low:g} to {high:g}")
    if len(set(values)) < max(least, len(values)):
        raise CcdError(f"{name} = {values}: give at least {least} values, each once")
    return sorted(values)


def images_of(p: Parameters) -> int:
    """The number of the students' training images. Errors: CcdError if a class would be empty, or there are not so many."""
    sizes = sizes_of(p["data"])
    n = p["n_train"] or sizes.images
    if not sizes.classes <= n <= sizes.images:
        raise CcdError(
            f"n_train = {n}: allowed are {sizes.classes} training images (one of each class) to {sizes.images}, or 0 for all"
        )
    return n


def _ready_for(p, method, teachers):
    """The teachers of `method`; if it needs heads (SSKD, HSAKD), the runs that train these for the frozen teachers."""
    needed = METHODS[method].teacher_method
    if needed is None:
        return teachers
    stage = head_recipe(p["recipe"], needed, p["teacher_epochs"])
    if isinstance(teachers[0], Checkpoint):  # which, unlike a RunConfig, does not tell its data
        stage |= {"data": p["data"], "n_train": p["n_teacher"] or None} | computed_as(p)
    return [
        teacher_of_method(method, teacher, **stage, seed=teacher.seed, subset_seed=_subset_seed(p, teacher.seed))
        for teacher in teachers
    ]


def compared(p: Parameters, method: str, teachers: list[RunConfig | Checkpoint], own: bool = True, **what) -> list[RunConfig]:
    """The student of every seed, trained by a compared method; what: other fields of its RunConfig.

    own: under the method's own recipe, where it has one, instead of the recipe that all methods share.
    """
    fields = (own_recipe(p["recipe"], p["student_model"], method) if own else {}) | {"method": method}
    if method == "crd":
        fields["settings"] = {"negatives": p["negatives"]}
    if method == "dkd":
        fields |= {"settings": {"beta": p["dkd_beta"]}, "warmup": p["dkd_warmup"]}
    return students_of(p, _ready_for(p, method, teachers), **fields | what)
