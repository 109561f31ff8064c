"""RunConfig: all settings of one run, validated together when the object is made, long before any training."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ccdlib.base.arithmetic import Arithmetic, Precision, resolved
from ccdlib.base.devices import best_device
from ccdlib.base.registry import CcdError, Registry, unknown
from ccdlib.data import source_of, statistics_of
from ccdlib.methods import CLASSIFYING, DETECTING, METHODS, check_settings, words_in
from ccdlib.models import BACKBONES, DETECTORS, MODELS
from ccdlib.training.ascent import ASCENTS
from ccdlib.training.recipes import SMALL
from ccdlib.views import OPS, POLICIES, VIEWS, ViewRule

Positive = Annotated[float, Field(gt=0, lt=1e38, allow_inf_nan=False)]  # a finite float32 number
Rate = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
# The limits of Count and Few are far above what anybody trains; a larger number is most likely a slip.
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Few = Annotated[int, Field(ge=1, le=1024)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class Use(NamedTuple):
    """The role of a field of RunConfig; cohorts, identities and forecasts are computed from these roles alone.

    part: the part of a run that the field describes. own: whether the runs of a cohort may differ in it. named: how it enters
    the run's identity: "always"; "where set", unless it has its default (such fields are younger than stored runs); or "by
    content", by the data or teacher that it refers to, or not at all if it changes no result. work: whether the seconds of a
    step depend on it.
    """

    part: str
    own: bool = False
    named: str = "always"
    work: bool = False


class Strict(BaseModel):
    """A frozen pydantic model whose errors are CcdErrors: for unknown keys, with those that are allowed, and wrong values.

    Text such as "1e-3", as yaml reads it, becomes a number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, revalidate_instances="always")

    def __init__(self, **given):
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise CcdError(_readable(type(self).__name__, error.errors())) from None

    def but(self, **changes) -> Self:
        """A copy with other values of some fields, validated like a new object. Errors: CcdError."""
        return type(self)(**dict(self) | changes)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """pydantic's copy. It would not validate `update`, so that raises CcdError; but() makes a changed copy."""
        if update:
            raise CcdError(f"model_copy(update={update!r}) would not check the values; write config.but(name=value)")
        return super().model_copy(deep=deep)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, given):
        if isinstance(given, dict):
            for key in given:
                if key not in cls.model_fields:
                    raise unknown(f"{cls.__name__} parameter", key, cls.model_fields)
        return given


def _use_of(field):
    return next(mark for mark in field.metadata if isinstance(mark, Use))


def _readable(kind, errors):
    """The errors of pydantic as one text: for each the field, the value given, and what is allowed."""
    ours = [error["msg"].removeprefix("Value error, ") for error in errors if error["type"] == "value_error"]
    if ours:  # the text of our own checks is complete, and one is enough
        return ours[0]
    return "; ".join(f"{kind}: {'.'.join(map(str, e['loc']))} = {e['input']!r}: {e['msg']}" for e in errors)


class Checkpoint(Strict):
    """A teacher whose weights come from a file instead of a run of this kit.

    model: the name of its backbone. file: a .safetensors file that a run of this kit wrote; a .pth file with weights of
    torchvision; "ccdlib:NAME", a teacher that comes with the package ("ccdlib:resnet20-objects-s0"); or "torchvision:NAME",
    pretrained weights of that name ("torchvision:IMAGENET1K_V1"), which are downloaded once. accuracy: the percentage that the
    network must reach on the student's test set, within half a point; it is checked before the student is trained. heads,
    method: the file of trained heads (heads.safetensors of a run) and the method that trained them, for students whose method
    needs them. seed: the number of this teacher among several paired ones; the names of runs do not depend on it.
    Errors: CcdError for a wrong value.
    """

    model: str
    file: str
    accuracy: Annotated[float, Field(ge=0, le=100)] | None = None
    heads: str | None = None
    method: str = "ce"
    seed: Seed = 0


class RunConfig(Strict):
    """The settings of one run, which is one network trained once. `fit(config)` trains it, or finds it trained.

    data: the name of the data set, see load_data. side: the height and width of images from files, in pixels. n_train,
    subset_seed: the number or fraction of its training images (None: all) and the seed by which they are chosen.
    model: a row of MODELS. method, settings: a row of METHODS and the values of its settings.
    views: a row of VIEWS: "none" (one base view of each image), "raw" (the image as it is), "base" (two base views),
    "rotation" (one crop at 0, 90, 180 and 270 degrees), a policy such as "cifar100" (the original view and its JDA twin), or
    another augmentation such as "mixup" (the original view and such a twin). p: the probability of the policy's ops, if it is
    not the policy's own. ops: the names of the policy's ops that may fire (None: all). twins: augmented twins of an image (r in
    the paper). share: the fraction of the images, drawn anew in each epoch, that get twins (q in the paper).
    jda: whether the augmentation comes "before crop", on whole images, as in the papers, or "after crop", which is faster for
    large images. flip: whether base views are mirrored at random (None: as usual for the data set). statistics: the mean and
    standard deviation by which images are normalised: "own", or the name of a data set with published ones (the authors' script
    for CIFAR-10 uses those of CIFAR-100).
    teacher: the RunConfig of the teacher, or a Checkpoint; None where the method needs none. For a method that trains heads of
    a frozen network, this network.
    seed: the seed of initial weights, batch order, crops and policy draws, in separate streams. draws: another seed for the
    last three (None: the same). Runs with equal draws and different seeds differ in their initial weights alone.
    epochs, lr, weight_decay, momentum, nesterov: of stochastic gradient descent; nesterov: use Nesterov's momentum.
    optimiser: "sgd"; or "sam" or "asam" (see ascent.py), which compute each step's gradient twice and take that of the highest
    loss within `rho` of the weights (None: 0.05 for sam, 0.5 for asam, as their papers have it for CIFAR-10).
    batch: images in a step, each with all its views. milestones: fractions of the epochs after which lr is divided by ten.
    warmup: number of epochs in which the terms of the loss that need a teacher grow to their full size: in epoch e, counted
    from 1, their factor is min(1, e / warmup). accumulate: number of passes into which the images of a step are split; batch
    norms see one pass at a time. clip: the largest norm of a step's gradient, which is scaled down to it (None: no limit).
    eval_every: number of epochs between evaluations on the test set; the last epoch is always evaluated.
    processes: number of processes that train the run together (see group.py), each with a GPU or a part of the CPU.
    device: "auto", "cpu" or "cuda".
    precision: of networks, "float32" or "bfloat16"; "auto": bfloat16 on a GPU and float32 on a CPU; "fast": bfloat16 also on a
    CPU that has instructions for it (AMX). Weights, batch norm statistics, losses and the optimiser are always float32.
    portable: whether the bits are to be those of every x86-64 processor that was tried, on one thread (see
    base/arithmetic.py). It counts for float32 on a CPU only.
    The run's name depends on every field but device and processes, and on the precision that is meant on the device.
    Errors: CcdError (a ValueError) that says what was given and what is allowed.
    """

    data: Annotated[str, Use("data", named="by content", work=True)] = "digits"
    side: Annotated[int, Field(ge=1, le=4096), Use("view", named="by content", work=True)] = 32
    n_train: Annotated[int | float | None, Use("data", work=True)] = None
    subset_seed: Annotated[Seed, Use("data")] = 0
    model: Annotated[str, Use("network", own=True, work=True)] = "resnet8"
    method: Annotated[str, Use("method", own=True, work=True)] = "ce"
    settings: Annotated[dict[str, Any], Use("method", own=True, work=True)] = {}
    views: Annotated[str, Use("view", work=True)] = "none"
    p: Annotated[Fraction | None, Use("view")] = None
    ops: Annotated[tuple[str, ...] | None, Use("view", named="by content")] = None
    twins: Annotated[int, Field(ge=1, le=64), Use("view", work=True)] = 1
    share: Annotated[Fraction, Use("view", work=True)] = 1.0
    flip: Annotated[bool | None, Use("view")] = None
    statistics: Annotated[str, Use("view", named="by content")] = "own"
    teacher: Annotated["RunConfig | Checkpoint | None", Use("method", named="by content")] = None
    seed: Annotated[Seed, Use("repetition", own=True)] = 0
    draws: Annotated[Seed | None, Use("repetition", own=True)] = None
    epochs: Annotated[Count, Use("recipe")] = SMALL["epochs"]
    batch: Annotated[Count, Use("recipe", work=True)] = SMALL["batch"]
    lr: Annotated[Positive, Use("recipe", own=True)] = SMALL["lr"]
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False), Use("recipe", own=True)] = SMALL["weight_decay"]
    momentum: Annotated[Rate, Use("recipe", own=True)] = 0.9
    nesterov: Annotated[bool, Use("recipe", own=True, named="where set")] = True
    optimiser: Annotated[Literal["sgd", "sam", "asam"], Use("recipe", own=True, work=True, named="where set")] = "sgd"
    rho: Annotated[Positive | None, Use("recipe", own=True, named="where set")] = None
    milestones: Annotated[tuple[Rate, ...], Use("recipe", own=True)] = (0.625, 0.75, 0.875)
    warmup: Annotated[int, Field(ge=0, le=1_000_000), Use("recipe", own=True, named="where set")] = 0
    eval_every: Annotated[Count, Use("report", own=True)] = 1
    jda: Annotated[Literal["before crop", "after crop"], Use("view", named="where set")] = "before crop"
    accumulate: Annotated[Few, Use("recipe", named="where set")] = 1
    clip: Annotated[Positive | None, Use("recipe", own=True, named="where set")] = None
    processes: Annotated[Few, Use("compute", named="by content")] = 1
    device: Annotated[Literal["auto", "cpu", "cuda"], Use("compute", named="by content")] = "auto"
    precision: Annotated[Precision, Use("compute", named="by content")] = "auto"
    portable: Annotated[bool, Use("compute", named="by content")] = False

    @classmethod
    def fields_where(cls, belongs: Callable[[Use], bool]) -> list[str]:
        """The names of the fields for whose Use `belongs` returns True."""
        return [name for name, field in cls.model_fields.items() if belongs(_use_of(field))]

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
        except TypeError as error:  # a key that is not text
            raise CcdError(f"teacher: {error}; the keys must be names of fields") from None

    @model_validator(mode="after")
    def _names_and_needs(self):
        source_of(self.data)
        statistics_of(self.statistics)
        MODELS[self.model]
        self._check_task()
        check_settings(self.method, self.settings)
        rule = VIEWS[self.views]
        for name in ("p", "ops"):
            self._only_where(name, POLICIES, name in rule.knobs, "a policy")
        for name in ("twins", "share"):
            self._only_where(name, [row for row in VIEWS if VIEWS[row].twins], rule.twins, "an augmentation")
        rule = self.rule  # raises CcdError for an op that the policy does not have
        if self.ops is not None and not self.ops:
            raise CcdError("ops = []: a policy without operations makes no augmented view; name some, or use views 'base'")
        paired = [name for name, row in VIEWS.items() if row.base + row.twins == 2 and row.turns == row.candidates == 1]
        unpaired = self.views_per_image == 2 and self.views not in paired
        if METHODS[self.method].pairs and (self.views_per_image != 2 or unpaired):
            raise CcdError(
                f"method {self.method!r} needs two views of each image; views {self.views!r}, twins {self.twins} and share "
                f"{self.share:g} give {self.views_per_image:g}{' that are not an original and its twin' * unpaired}. Use "
                f"twins 1, share 1 and one of the views {', '.join(paired)}"
            )
        self._check_views_of_method(METHODS[self.method])
        self._check_teacher(METHODS[self.method])
        self._check_parts(METHODS[self.method])
        self._check_optimiser()
        return self

    def _check_task(self):
        """Images with boxes need a detector, a method that trains one, and views that say how boxes move; others need none."""
        boxed = source_of(self.data)[0].boxed
        views = [name for name, rule in VIEWS.items() if rule.turns == rule.base == 1 and (rule.moves_boxes or not rule.twins)]
        networks = DETECTORS if boxed else BACKBONES
        kinds = {
            "model": (self.model, MODELS, networks),
            "method": (self.method, METHODS, DETECTING if boxed else CLASSIFYING),
            "views": (self.views, VIEWS, views if boxed else VIEWS),
            "jda": (self.jda, [self.jda], ["before crop"] if boxed else [self.jda]),
        }
        if self.teacher is not None:
            kinds["the teacher's model"] = (self.teacher.model, MODELS, networks)
        for field, (given, known, allowed) in kinds.items():
            if given in known and given not in allowed:  # a name that is not known has its own error
                what = "whose images have boxes" if boxed else "whose images have no boxes"
                raise CcdError(f"{field} = {given!r} with data {self.data!r}, {what}: allowed are {', '.join(allowed)}")

    def _check_optimiser(self):
        if self.optimiser not in ASCENTS and self.rho is not None:
            raise CcdError(
                f"rho = {self.rho} with optimiser {self.optimiser!r}: only {' and '.join(ASCENTS)} have one; leave it out"
            )
        if self.optimiser in ASCENTS and self.accumulate > 1:
            raise CcdError(
                f"accumulate = {self.accumulate} with optimiser {self.optimiser!r}: the gradient at the weights must be known "
                "before the one that a step takes; give accumulate = 1, and several processes where memory is short"
            )

    def _only_where(self, name, views, allowed, what):
        if not allowed and getattr(self, name) != type(self).model_fields[name].default:
            raise CcdError(
                f"{name} = {getattr(self, name)} with views {self.views!r}: only {what} has that; allowed views: "
                + ", ".join(views)
            )

    def _check_parts(self, method):
        parts = self.accumulate * self.processes
        if parts == 1:
            return
        if self.processes > 1 and self.portable:
            raise CcdError(
                f"processes = {self.processes} with portable = True: the bits would depend on the number of processes; give "
                "processes = 1, or portable = False"
            )
        if self.processes > 1 and isinstance(
            self.teacher, RunConfig
        ):  # the same processes train the teacher, which must allow it
            RunConfig(**dict(self.teacher) | {"processes": self.processes})
        if not method.by_image(self.settings):
            allowed = [name for name, row in METHODS.items() if row.by_image({})]
            raise CcdError(
                f"accumulate = {self.accumulate}, processes = {self.processes}: method {self.method!r} with settings "
                f"{self.settings} compares the images of a batch with each other, or trains heads, and needs it undivided. "
                f"Allowed methods: {', '.join(allowed)} (ccd with a weight that is computed for each image alone); or set "
                "both to 1"
            )
        if self.batch < 4 * parts:
            raise CcdError(
                f"batch = {self.batch} with accumulate {self.accumulate} and {self.processes} processes: allowed are batches "
                f"from {4 * parts} images, so that no part of a step is nearly empty"
            )
        if self.rule.candidates > 1:
            raise CcdError(f"views {self.views!r} choose among all images of a step, which must be undivided; use cutmix")

    def _check_views_of_method(self, method):
        rule = self.rule
        if method.rotates and rule.turns > 1:
            allowed = [name for name, row in VIEWS.items() if row.turns == 1 and not row.mixes]
            raise CcdError(
                f"method {self.method!r} turns every view by 0, 90, 180 and 270 degrees itself; views {self.views!r} would do "
                f"it twice. Allowed views: {', '.join(allowed)}"
            )
        if method.hard_labels and rule.mixes:
            allowed = [name for name, row in VIEWS.items() if not row.mixes]
            raise CcdError(
                f"views {self.views!r} mix the labels of two images, and method {self.method!r} needs one hard label an image. "
                f"Allowed views: {', '.join(allowed)}"
            )
        if rule.candidates > 1 and method.teacher == "none":
            raise CcdError(
                f"views {self.views!r} keep the images of which a teacher is least certain, and method {self.method!r} has no "
                "teacher; choose other views or another method"
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
    def rule(self) -> ViewRule:
        """The view rule of `views` with the p and ops of this configuration."""
        return VIEWS[self.views].with_knobs(p=self.p, ops=self.ops)

    @property
    def draws_seed(self) -> int:
        """The seed of batch order, crops and policy draws: `draws`, or `seed` where that is None."""
        return self.seed if self.draws is None else self.draws

    def arithmetic(self, device: str | None = None) -> Arithmetic:
        """What `precision` and `portable` stand for on a device, "cpu" or "cuda" (None: that of this configuration)."""
        kind = device or (best_device().type if self.device == "auto" else self.device)
        return resolved(self.precision, self.portable, kind)

    @property
    def cohort(self) -> str:
        """A key that is equal for runs that can be trained together by fit_cohort().

        These see the same batches and have the same teacher. They may differ in network, method, recipe and initial weights.
        """
        return f"{self.draws_seed} {self.model_dump_json(exclude=_OWN)}"

    @property
    def work(self) -> str:
        """A key that is equal for runs whose steps take equally long, whatever their seeds and epochs."""
        return work_of(self.model_dump(mode="json"))

    @property
    def views_per_image(self) -> float:
        """The mean number of views of an image in an epoch, a fraction where only a share of the images has twins.

        Each view is one network input, or four for a method that rotates its inputs.
        """
        rule = self.rule
        return (rule.base + (self.share * self.twins if rule.twins else 0)) * rule.turns

    @property
    def rows(self) -> list[tuple[Registry, str]]:
        """(registry, name) of every row that shapes the run: its network, method, names in settings, views and ops.

        The rows of its teacher are in the teacher's own list.
        """
        ops = [(OPS, op) for op in self.rule.ops if op in OPS]
        return [(MODELS, self.model), (METHODS, self.method), *words_in(self.method, self.settings), (VIEWS, self.views), *ops]

    def lr_at(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        return self.lr * 0.1 ** sum(epoch >= round(m * self.epochs) for m in self.milestones)

    @property
    def ascent(self) -> tuple[float, bool]:
        """How far from the weights the optimiser takes its gradient, and whether in units of the weights; 0 for sgd."""
        rho, adaptive = ASCENTS.get(self.optimiser, (0.0, False))
        return self.rho or rho, adaptive

    def soft_at(self, epoch: int) -> float:
        """The warm-up factor, up to 1, of the terms of the loss that need a teacher in an epoch, counted from 0."""
        return min(1.0, (epoch + 1) / self.warmup) if self.warmup else 1.0


_OWN = frozenset(RunConfig.fields_where(lambda use: use.own))
_WORK = tuple(RunConfig.fields_where(lambda use: use.work))


def work_of(asked: dict) -> str:
    """RunConfig.work, computed from the fields of a configuration as a run's config.json stores them."""
    teacher, device = asked.get("teacher") or {}, asked.get("device", "auto")
    kind = best_device().type if device == "auto" else device
    arithmetic = resolved(asked.get("precision", "auto"), asked.get("portable", False), kind)
    return str([asked.get(name, RunConfig.model_fields[name].default) for name in _WORK] + [teacher.get("model"), *arithmetic])


def with_teachers(config: "RunConfig | Checkpoint | None") -> list[RunConfig]:
    """The configuration after those of its teacher, its teacher's teacher and so on; [] for a Checkpoint or None."""
    return [*with_teachers(config.teacher), config] if isinstance(config, RunConfig) else []


def teacher_of_method(method: str, teacher: RunConfig | Checkpoint, **changes) -> RunConfig | Checkpoint:
    """The RunConfig that trains, for a frozen `teacher`, the heads that a student's `method` needs (SSKD, HSAKD).

    changes: values of its fields, such as the recipe `**RECIPES["paper_sskd_teacher"]`. Fields that are not given have the
    teacher's values, or RunConfig's defaults if the teacher is a Checkpoint. Returns `teacher` itself if the method needs no
    heads, or the teacher has them. Errors: CcdError.
    """
    needed = METHODS[method].teacher_method
    if needed is None or teacher.method == needed:
        return teacher
    own = dict(teacher) if isinstance(teacher, RunConfig) else {"model": teacher.model}
    plain = {"views": "none", "p": None, "ops": None, "twins": 1, "share": 1.0, "settings": {}}
    return RunConfig(**(own | plain | {"method": needed, "teacher": teacher} | changes))
