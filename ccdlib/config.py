"""RunConfig: everything that shapes one trained network, checked when it is made, long before any training."""

import inspect
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ccdlib.augment import POLICIES, Policy, policy_named
from ccdlib.data import source_of
from ccdlib.losses import LOSSES, WEIGHTS
from ccdlib.models import MODELS
from ccdlib.registry import CcdError, Registry, unknown

# How many views of each image a step sees, by `views`; a policy adds augmented twins, one unless `twins` says more.
VIEWS = {"raw": 1, "none": 1, "base": 2, "rotation": 4} | dict.fromkeys(POLICIES, 2)

# The methods of the papers at their settings (methods.md, section 4), and a small one for minutes on a CPU.
RECIPES = Registry("recipe")
RECIPES |= {
    "small": {"lr": 0.05, "weight_decay": 5e-4, "batch": 25, "epochs": 30},
    "small_teacher": {"lr": 0.05, "weight_decay": 5e-4, "batch": 25, "epochs": 50},
    "paper": {"lr": 0.1, "weight_decay": 1e-4, "batch": 128, "epochs": 240},
    "paper_teacher": {"lr": 0.1, "weight_decay": 5e-4, "batch": 128, "epochs": 240},
}

Positive = Annotated[float, Field(gt=0, lt=1e38, allow_inf_nan=False)]  # a float32 number
Rate = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    """A pydantic model that refuses unknown keys, saying which are allowed; "1e-3" strings become numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def __init__(self, **given):
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise CcdError(_readable(type(self).__name__, error.errors())) from None

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
    """Weights from a file instead of a run of this store: a .safetensors of `model`, as a run of this kit writes it."""

    model: str
    file: str


class RunConfig(Strict):
    """One network trained once. `fit(config)` trains it, or finds it trained.

    data, side, n_train, subset_seed: see load_data and Data.subset (n_train None: all of it).
    model: the backbone. method, settings: the loss (a row of LOSSES) and its settings.
    views: "none" (one base view an image), "raw" (the image as it is), "base" (two base views), "rotation" (0, 90, 180, 270
    degrees of one crop), or a policy ("cifar100", ...): the original and its JDA twin. p: the policy's probability, when
    another than its own. ops: the ops of the policy that are kept (None: all). twins: augmented twins of an image (r).
    share: the fraction of the images, drawn anew each epoch, that get them (q).
    teacher: the RunConfig that makes the teacher, or a Checkpoint; None where the loss needs none.
    seed: of initial weights, batch order, crops and policy draws, in separate streams.
    batch: images a step (each with all its views). milestones: fractions of the epochs after which lr is divided by ten.
    flip: overrides the data set's own base flip. eval_every: epochs between test evaluations (the last is always one).
    device: "auto", "cpu" or "cuda"; it does not name the run, every other field does.
    Errors: CcdError (a ValueError), saying what was given and what is allowed.
    """

    data: str = "digits"
    side: Count = 32
    n_train: int | float | None = None
    subset_seed: int = 0
    model: str = "resnet8"
    method: str = "ce"
    settings: dict[str, Any] = {}
    views: str = "none"
    p: Fraction | None = None
    ops: tuple[str, ...] | None = None
    twins: Count = 1
    share: Fraction = 1.0
    flip: bool | None = None
    teacher: "RunConfig | Checkpoint | None" = None
    seed: int = 0
    epochs: Count = RECIPES["small"]["epochs"]
    batch: Count = RECIPES["small"]["batch"]
    lr: Positive = RECIPES["small"]["lr"]
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = RECIPES["small"]["weight_decay"]
    momentum: Rate = 0.9
    milestones: tuple[Rate, ...] = (0.625, 0.75, 0.875)
    eval_every: Count = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _names_and_needs(self):
        source_of(self.data)
        MODELS[self.model]
        _check_settings(self.method, self.settings)
        if self.views not in VIEWS:
            raise unknown("views", self.views, VIEWS)
        if self.views not in POLICIES:
            for name in ("p", "ops", "twins", "share"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise CcdError(
                        f"{name} = {getattr(self, name)} with views {self.views!r}: only a policy has that; "
                        f"allowed views: {', '.join(POLICIES)}"
                    )
        _ = self.policy  # an op that the policy lacks is named here
        if self.method == "ccd" and self.views_per_image != 2:
            raise CcdError(
                f"method 'ccd' weighs two views an image; views {self.views!r}, twins {self.twins} and share {self.share:g} "
                f"give {self.views_per_image:g}. Use twins 1, share 1 and one of the views base, {', '.join(POLICIES)}"
            )
        if (self.teacher is not None) != needs_teacher(self.method):
            needs = "needs a teacher; give teacher=RunConfig(...)" if self.teacher is None else "uses no teacher; leave it out"
            raise CcdError(f"method {self.method!r} {needs}")
        return self

    @property
    def policy(self) -> Policy | None:
        """The policy of the augmented view; None where there is none."""
        return policy_named(self.views, self.p, self.ops) if self.views in POLICIES else None

    @property
    def views_per_image(self):
        """Network inputs an image in an epoch, on average where only a share of the images has twins."""
        return 1 + self.share * self.twins if self.views in POLICIES else VIEWS[self.views]

    def lr_at(self, epoch):
        """The learning rate of an epoch, counted from 0."""
        return self.lr * 0.1 ** sum(epoch >= round(m * self.epochs) for m in self.milestones)


def needs_teacher(method):
    """Whether a loss compares with a teacher; all but the plain cross entropy do."""
    return method != "ce"


def _settings_of(method):
    parameters = inspect.signature(LOSSES[method]).parameters
    return {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}


def _check_settings(method, settings):
    known = _settings_of(method)
    for name, value in settings.items():
        if name not in known:
            raise unknown(f"setting of loss {method!r}", name, known or ["(this loss has none)"])
        kind = type(known[name])
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
            raise CcdError(
                f"setting {name} = {value!r} of loss {method!r}: it must be a {kind.__name__}, such as {known[name]!r}"
            )
        if name == "weight":
            WEIGHTS[value]
        elif name == "temperature" and not 0 < value < float("inf"):
            raise CcdError(f"temperature = {value!r}: allowed are numbers above 0")
