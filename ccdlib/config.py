"""RunConfig: everything that shapes one trained network, checked when it is made, long before any training."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ccdlib.augment import AUGMENTATIONS, POLICIES, Mix, Policy, policy_named
from ccdlib.data import source_of, statistics_of
from ccdlib.methods import METHODS, check_settings
from ccdlib.models import MODELS
from ccdlib.registry import CcdError, Registry, unknown

TWINNED = (*POLICIES, *AUGMENTATIONS)  # views with augmented twins
# How many views of each image a step sees, by `views`; an augmentation adds twins, one unless `twins` says more.
VIEWS = {"raw": 1, "none": 1, "base": 2, "rotation": 4} | dict.fromkeys(TWINNED, 2)

# What the runs of a cohort may differ in; draws count by their seed.
OWN = {"model", "method", "settings", "seed", "draws", "eval_every"}
OWN |= {"lr", "weight_decay", "momentum", "nesterov", "milestones", "warmup", "clip"}

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
FAMILIES = ("small", "paper", "hsakd", "imagenet", "imagenet_small", "cifar10")

LIGHT = ("mobilenet_v2", "shufflenet_v1", "shufflenet_v2")  # networks whose own learning rate is lower


def recipe_of(family, model, method=""):
    """The settings with which a `family` of RECIPES trains a student `model` by a method that has settings of its own there.

    Errors: CcdError for a family that there is not, or that has none for that method.
    """
    if family not in FAMILIES:
        raise unknown("recipe", family, FAMILIES)
    name = f"{family}_{method}" if method else family
    return RECIPES[f"{name}_light" if model in LIGHT and f"{name}_light" in RECIPES else name]


Positive = Annotated[float, Field(gt=0, lt=1e38, allow_inf_nan=False)]  # a float32 number
Rate = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
# Far above what anybody trains, and below what would only hang.
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Few = Annotated[int, Field(ge=1, le=1024)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class Strict(BaseModel):
    """A pydantic model that refuses unknown keys, saying which are allowed; "1e-3" strings become numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, revalidate_instances="always")

    def __init__(self, **given):
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise CcdError(_readable(type(self).__name__, error.errors())) from None

    def but(self, **changes):
        """The same with other values of some fields, checked like a new one."""
        return type(self)(**dict(self) | changes)

    def model_copy(self, *, update=None, deep=False):
        """pydantic's copy, which would put `update` in unchecked; CcdError where there is one."""
        if update:
            raise CcdError(f"model_copy(update={update!r}) would check nothing; write config.but(name=value)")
        return super().model_copy(deep=deep)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, given):
        if isinstance(given, dict):
            for key in given:
                if key not in cls.model_fields:
                    raise unknown(f"{cls.__name__} parameter", key, cls.model_fields)
        return given


def _readable(kind, errors):
    """pydantic's errors as one text: which field, what was given, what is allowed."""
    ours = [error["msg"].removeprefix("Value error, ") for error in errors if error["type"] == "value_error"]
    if ours:  # our own checks say it all, once is enough
        return ours[0]
    return "; ".join(f"{kind}: {'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}" for e in errors)


class Checkpoint(Strict):
    """Weights from a file instead of a run of this store.

    file: a .safetensors of `model`, as a run of this kit writes it; a .pth that torchvision wrote; "ccdlib:NAME", a teacher
    that comes with the package ("ccdlib:resnet20-objects-s0"); or "torchvision:NAME", pretrained weights of that name
    ("torchvision:IMAGENET1K_V1"), downloaded once. accuracy: what the network must reach on the student's test set (percent,
    within half a point), measured before the student's training starts. heads, method: the file of trained heads
    (heads.safetensors of a run) and the method that trained them, for a student's method that needs them. seed: which of
    several paired teachers it is; it names no run.
    """

    model: str
    file: str
    accuracy: Annotated[float, Field(ge=0, le=100)] | None = None
    heads: str | None = None
    method: str = "ce"
    seed: Seed = 0


class RunConfig(Strict):
    """One network trained once. `fit(config)` trains it, or finds it trained.

    data, side, n_train, subset_seed: see load_data and Data.subset (n_train None: all of it).
    model: the backbone. method, settings: a row of METHODS and its settings.
    views: "none" (one base view an image), "raw" (the image as it is), "base" (two base views), "rotation" (0, 90, 180, 270
    degrees of one crop), a policy ("cifar100", ...): the original and its JDA twin, or one of AUGMENTATIONS: the original and
    such a twin. p: the policy's probability, when another than its own. ops: the ops of the policy that are kept (None:
    all). twins: augmented twins of an image (r).
    share: the fraction of the images, drawn anew each epoch, that get them (q).
    teacher: the RunConfig that makes the teacher, or a Checkpoint; None where the method needs none. For a method that
    trains heads of a frozen network, that network.
    seed: of initial weights, batch order, crops and policy draws, in separate streams. draws: the seed of the last three, when
    another: runs with different seeds and equal draws differ in nothing but their weights, and can share a teacher's answers.
    batch: images a step (each with all its views). milestones: fractions of the epochs after which lr is divided by ten.
    nesterov: Nesterov's momentum, or the plain one. warmup: the epochs over which all terms of the loss but its cross entropy
    grow linearly to their full size: in epoch e, from 1, they count min(1, e / warmup).
    flip: overrides the data set's own base flip. statistics: the mean and standard deviation by which images are normalised:
    "own", or those of the data set of that name, one whose statistics the literature fixes (the authors' script for CIFAR-10
    has CIFAR-100's). eval_every: epochs between test evaluations (the last is always one).
    jda: whether the augmentation comes "before crop", on whole images, as the papers have it, or "after crop", which is
    faster where images are large. accumulate: passes over which a step's images are spread, each with batch norms of its
    own. clip: the norm to which a step's gradient is cut (None: not).
    processes: how many train the run together (see group.py), a GPU each, or a part of the CPU.
    device: "auto", "cpu" or "cuda". Device and processes do not name the run, every other field does.
    Errors: CcdError (a ValueError), saying what was given and what is allowed.
    """

    data: str = "digits"
    side: Annotated[int, Field(ge=1, le=4096)] = 32
    n_train: int | float | None = None
    subset_seed: Seed = 0
    model: str = "resnet8"
    method: str = "ce"
    settings: dict[str, Any] = {}
    views: str = "none"
    p: Fraction | None = None
    ops: tuple[str, ...] | None = None
    twins: Annotated[int, Field(ge=1, le=64)] = 1
    share: Fraction = 1.0
    flip: bool | None = None
    statistics: str = "own"
    teacher: "RunConfig | Checkpoint | None" = None
    seed: Seed = 0
    draws: Seed | None = None
    epochs: Count = SMALL["epochs"]
    batch: Count = SMALL["batch"]
    lr: Positive = SMALL["lr"]
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = SMALL["weight_decay"]
    momentum: Rate = 0.9
    nesterov: bool = True
    milestones: tuple[Rate, ...] = (0.625, 0.75, 0.875)
    warmup: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    eval_every: Count = 1
    jda: Literal["before crop", "after crop"] = "before crop"
    accumulate: Few = 1
    clip: Positive | None = None
    processes: Few = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @field_validator("teacher", mode="before")
    @classmethod
    def _teachers_mistakes_are_the_teachers(cls, given):
        if given is None or isinstance(given, RunConfig | Checkpoint):
            return given
        if not isinstance(given, dict):
            raise CcdError(f"teacher = {given!r}: give a RunConfig, a Checkpoint, the fields of one, or None")
        try:
            return (Checkpoint if "file" in given else cls)(**given)
        except CcdError as error:
            raise CcdError(f"teacher: {error}") from None
        except TypeError as error:  # a key that is no word
            raise CcdError(f"teacher: {error}; keys are names of fields") from None

    @model_validator(mode="after")
    def _names_and_needs(self):
        source_of(self.data)
        statistics_of(self.statistics)
        MODELS[self.model]
        check_settings(self.method, self.settings)
        if self.views not in VIEWS:
            raise unknown("views", self.views, VIEWS)
        for name, kinds in {"p": POLICIES, "ops": POLICIES, "twins": TWINNED, "share": TWINNED}.items():
            if self.views not in kinds and getattr(self, name) != type(self).model_fields[name].default:
                only = "a policy" if kinds is POLICIES else "an augmentation"
                raise CcdError(
                    f"{name} = {getattr(self, name)} with views {self.views!r}: only {only} has that; "
                    f"allowed views: {', '.join(kinds)}"
                )
        _ = self.policy  # an op that the policy lacks is named here
        if self.ops is not None and not self.ops:
            raise CcdError("ops = []: a policy without operations makes no augmented view; name some, or use views 'base'")
        unpaired = self.candidates > 1
        if self.method == "ccd" and (self.views_per_image != 2 or unpaired):
            raise CcdError(
                f"method 'ccd' weighs two views an image; views {self.views!r}, twins {self.twins} and share {self.share:g} "
                f"give {self.views_per_image:g}{' that are no pairs' * unpaired}. Use twins 1, share 1 and one of the views "
                f"base, {', '.join(name for name in TWINNED if name != 'cutmixpick')}"
            )
        self._check_views_of_method(METHODS[self.method])
        self._check_teacher(METHODS[self.method])
        self._check_parts(METHODS[self.method])
        return self

    def _check_parts(self, method):
        parts = self.accumulate * self.processes
        if parts == 1:
            return
        if self.processes > 1 and isinstance(self.teacher, RunConfig):  # which the same processes train
            RunConfig(**dict(self.teacher) | {"processes": self.processes})
        if not method.by_image(self.settings):
            allowed = [name for name, row in METHODS.items() if row.by_image({})]
            raise CcdError(
                f"accumulate = {self.accumulate}, processes = {self.processes}: method {self.method!r} with settings "
                f"{self.settings} compares the images of a batch with each other, or trains heads, and cannot see it in parts. "
                f"Allowed methods: {', '.join(allowed)} (ccd with a weight that is each image's own); or give 1 and 1"
            )
        if self.batch < 4 * parts:
            raise CcdError(
                f"batch = {self.batch} with accumulate {self.accumulate} and {self.processes} processes: allowed are batches "
                f"from {4 * parts} images, so that no part of a step is nearly empty"
            )
        if self.candidates > 1:
            raise CcdError(f"views {self.views!r} choose among all images of a step, which cannot be in parts; use cutmix")

    def _check_views_of_method(self, method):
        if method.rotates and self.views == "rotation":
            allowed = [name for name in VIEWS if name != "rotation" and not isinstance(AUGMENTATIONS.get(name), Mix)]
            raise CcdError(
                f"method {self.method!r} turns every view by 0, 90, 180 and 270 degrees itself; views 'rotation' would do it "
                f"twice. Allowed views: {', '.join(allowed)}"
            )
        if method.hard_labels and isinstance(self.augmentation, Mix):
            allowed = [name for name in VIEWS if not isinstance(AUGMENTATIONS.get(name), Mix)]
            raise CcdError(
                f"views {self.views!r} mix the labels of two images, and method {self.method!r} needs one hard label an image. "
                f"Allowed views: {', '.join(allowed)}"
            )
        if self.candidates > 1 and method.teacher == "none":
            raise CcdError(
                f"views {self.views!r} keep what a teacher is least certain of; method {self.method!r} has no teacher"
            )

    def _check_teacher(self, method):
        if (self.teacher is None, method.teacher) in ((True, "needed"), (False, "none")):
            needs = "needs a teacher; give teacher=RunConfig(...)" if self.teacher is None else "uses no teacher; leave it out"
            raise CcdError(f"method {self.method!r} {needs}")
        if self.teacher is None:
            return
        if method.freezes and self.teacher.model != self.model:
            raise CcdError(
                f"method {self.method!r} trains heads of its frozen teacher: model {self.model!r} must be the teacher's, "
                f"{self.teacher.model!r}"
            )
        if isinstance(self.teacher, RunConfig) and self.teacher.statistics != self.statistics:
            raise CcdError(
                f"statistics = {self.statistics!r}, and the teacher's are {self.teacher.statistics!r}: both see the same "
                "inputs, normalised in one way; give both the same"
            )
        heads = isinstance(self.teacher, RunConfig) or self.teacher.heads
        if method.teacher_method and (self.teacher.method != method.teacher_method or not heads):
            raise CcdError(
                f"method {self.method!r} needs a teacher with the heads that {method.teacher_method!r} trains, and this one "
                f"({self.teacher.model}, method {self.teacher.method!r}) has none. One command trains them: "
                f"ccdlib.fit(ccdlib.teacher_of_method({self.method!r}, teacher)); give that configuration as teacher, or a "
                f"Checkpoint with heads=FILE and method={method.teacher_method!r}"
            )

    @property
    def policy(self) -> Policy | None:
        """The policy of the augmented view; None where there is none."""
        return policy_named(self.views, self.p, self.ops) if self.views in POLICIES else None

    @property
    def augmentation(self):
        """What makes the augmented twins: a Policy or a row of AUGMENTATIONS; None where there are none."""
        return self.policy or AUGMENTATIONS.get(self.views)

    @property
    def candidates(self):
        """How many augmented twins are made for one that is kept; more than one only with CutMixPick."""
        return getattr(self.augmentation, "candidates", 1)

    @property
    def draws_seed(self):
        """The seed of batch order, crops and policy draws."""
        return self.seed if self.draws is None else self.draws

    @property
    def cohort(self):
        """A text that is equal for runs that see the same batches and have the same teacher, so that they can be trained
        together (train.fit_cohort): they differ in nothing but network, method, recipe and the seed of their weights."""
        return f"{self.draws_seed} {self.model_dump_json(exclude=OWN)}"

    @property
    def views_per_image(self):
        """Network inputs an image in an epoch, on average where only a share of the images has twins.

        A method with rotations of its own makes four inputs of each of these views.
        """
        return 1 + self.share * self.twins if self.augmentation else VIEWS[self.views]

    def lr_at(self, epoch):
        """The learning rate of an epoch, counted from 0."""
        return self.lr * 0.1 ** sum(epoch >= round(m * self.epochs) for m in self.milestones)

    def soft_at(self, epoch):
        """How much the terms of the loss but its cross entropy count in an epoch, counted from 0."""
        return min(1.0, (epoch + 1) / self.warmup) if self.warmup else 1.0


def teacher_of_method(method, teacher, **changes):
    """The RunConfig that trains the heads that `method` needs onto a trained `teacher` (RunConfig or Checkpoint), frozen.

    changes: other fields of it, such as the recipe of that stage, `**RECIPES["paper_sskd_teacher"]`; the teacher's own stand
    where nothing is said, for a Checkpoint those of a new RunConfig. `teacher` itself where it needs no heads or has them.
    """
    needed = METHODS[method].teacher_method
    if needed is None or teacher.method == needed:
        return teacher
    own = dict(teacher) if isinstance(teacher, RunConfig) else {"model": teacher.model}
    plain = {"views": "none", "p": None, "ops": None, "twins": 1, "share": 1.0, "settings": {}}
    return RunConfig(**(own | plain | {"method": needed, "teacher": teacher} | changes))
