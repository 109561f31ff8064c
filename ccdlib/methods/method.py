"""Methods: how a network is trained. A row of METHODS is a plain loss, or a class with heads or a memory.

A method is built for its networks (Given) and called at every step: `method(student, teacher, batch) -> {"term": scalar}`.
Heads are extra layers that a method trains with the student and that the trained student does without.

A method that rotates (`rotates`: SSKD, HSAKD) sees every view at 0, 90, 180 and 270 degrees: V views of an image become 4 V
inputs, [all views; all views at 90 degrees; ...]. It can be combined with any policy.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from ccdlib.base.registry import CcdError, Registry, Subset
from ccdlib.base.streams import stream
from ccdlib.methods import settings as rules
from ccdlib.methods.losses import LOSSES, Terms, full
from ccdlib.models.backbone import HE, Backbone, Initial, Output, initialise
from ccdlib.views.epoch import Batch


def _row(name, method):
    """The class of a row. Errors: CcdError for anything but a class made from Method; a plain loss is a row of LOSSES."""
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise CcdError(f"method {name!r}: expected a subclass of ccdlib.Method, got {method!r}; add a function by LOSSES.add")
    return method


METHODS = Registry("method", _row)
CLASSIFYING = Subset(METHODS, "method", lambda row: not row.detects)
DETECTING = Subset(METHODS, "method of detection", lambda row: row.detects)
TURNS = 4  # rotations of every view, for methods that rotate


class Given(NamedTuple):
    """What a method is built for: the networks, the trained heads of the teacher where there are some, and the data."""

    student: Backbone
    teacher: Backbone | None
    teacher_heads: "Method | None"
    shape: tuple[int, int, int]  # of an image: channels, height, width
    classes: int
    labels: torch.Tensor  # (n,) of the training images
    seed: int = 0  # of the run; decides the weights of the heads and the method's own draws


class Method(nn.Module):
    """Base class of all methods. A new one defines forward(), and others of its parts where they differ.

    teacher: whether a method has one. teacher_method: the method that must have trained the teacher, because its heads are
    needed (None: any). freezes: where there is a teacher, the network is a frozen copy of it and only heads are trained.
    rotates: every view is seen at four rotations. hard_labels: mixed labels are refused. pairs: an image has exactly two views,
    an original and its twin. detects: it trains detectors, on images with boxes. hard: the terms that need no teacher, which a
    warm-up leaves as they are. keeps: the heads are stored with the run. initial: how the weights of the heads are drawn. half:
    whether the networks compute in bfloat16; the loop sets it.
    """

    teacher: Literal["needed", "none", "optional"] = "needed"
    teacher_method: str | None = None
    freezes: bool = False
    rotates: bool = False
    hard_labels: bool = True
    pairs: bool = False
    detects: bool = False
    hard: tuple[str, ...] = ("ce",)
    keeps: bool = False
    initial: Initial = HE
    half: bool = False

    @classmethod
    def by_image(cls, settings: dict) -> bool:
        """Whether a step can be computed in parts: with `settings`, all terms are means over inputs or pairs of views."""
        return False

    @classmethod
    def function(cls) -> Callable:
        """The function whose arguments with defaults are the method's settings."""
        return cls.__init__

    def __init__(self, given: Given):
        super().__init__()
        # In a tuple, so that PyTorch neither trains the teacher's heads, nor puts them into train mode, nor stores them here.
        self._taught_by = (given.teacher_heads,)

    @property
    def teacher_heads(self) -> "Method | None":
        """The method that trained the teacher, with its heads frozen; None where the teacher has no stored heads."""
        return self._taught_by[0]

    def heads(self, output: Output) -> Any:
        """What the heads make of a network's Output; None where there are none."""

    def counted(self, student: Output, batch: Batch) -> tuple[torch.Tensor, int]:
        """How many views of a batch the student classified correctly, and of how many, after a call."""
        said, labels = student.logits[: len(batch.labels)].argmax(1), batch.labels
        return (said == (labels if labels.ndim == 1 else labels.argmax(1))).sum(), len(labels)

    def headed(self, head: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """head(x) in float32, computed in the networks' own precision."""
        if not self.half:
            return head(x)
        with torch.autocast(x.device.type, torch.bfloat16):
            return full(head(x))


class Plain(Method):
    """A row of LOSSES as a method, without heads or memory.

    name: of the row. loss: its function. mean_over_inputs: its option by_image.
    """

    name: str
    loss: Callable[..., Terms]
    mean_over_inputs: bool = False

    @classmethod
    def by_image(cls, settings: dict) -> bool:
        """Whether the loss, and every row of a registry that its settings name, is by_image."""
        return cls.mean_over_inputs and all(
            row.options[name].get("by_image", True) for row, name in rules.words_in(cls.loss, settings)
        )

    @classmethod
    def function(cls) -> Callable:
        """The loss, whose arguments with defaults are the method's settings."""
        return cls.loss

    def __init__(self, given: Given, **settings):
        super().__init__(given)
        self.settings = settings
        if self.name == "at" and given.teacher is not None:
            both = [blank_output(network, given.shape) for network in (given.student, given.teacher)]
            self.loss(
                *both, both[0].logits.new_zeros(2, dtype=torch.long)
            )  # raises before training where the stages do not match

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Terms:
        """The terms of the loss."""
        return self.loss(student, teacher, batch.labels, **self.settings)


def _plain(name, loss, hard_labels, by_image, pairs, teacher):
    """The method class of a loss."""
    own = {"name": name, "loss": staticmethod(loss), "__doc__": loss.__doc__, "teacher": teacher}
    return type(name, (Plain,), own | {"hard_labels": hard_labels, "mean_over_inputs": by_image, "pairs": pairs})


METHODS.follow(LOSSES, _plain)


def settings_of(name: str) -> dict[str, Any]:
    """The settings of the method `name` with their defaults: {setting: default}."""
    return rules.defaults_of(METHODS[name].function())


def check_settings(name: str, settings: dict) -> None:
    """Raise CcdError unless `settings` are settings of the method `name`, of the right type and in their range."""
    rules.check(name, METHODS[name].function(), settings)


def words_in(name: str, settings: dict) -> list[tuple[Registry, str]]:
    """The rows of registries that settings of the method `name` or their defaults name, such as (WEIGHTS, "cosine")."""
    return rules.words_in(METHODS[name].function(), settings)


def make(name: str, given: Given, settings: dict | None = None) -> Method:
    """Build the method `name` for its networks, with fresh weights in its heads.

    Errors: CcdError for an unknown name, and where the method cannot train these networks on these images.
    """
    with torch.random.fork_rng(devices=[]):  # layers draw from the global generator when they are made
        method = METHODS[name](given, **(settings or {}))
    # Heads that are copies of a frozen network's parts are frozen too until this.
    return initialise(method.requires_grad_(True), stream(given.seed, "heads"), method.initial)


@torch.no_grad()
def blank_output(network: Backbone, shape: tuple[int, int, int]) -> Output:
    """The Output of a network for two blank images of `shape` (channels, height, width), for the shapes of features."""
    training = network.training
    made = network.eval()(next(network.parameters()).new_zeros(2, *shape))
    network.train(training)
    return made
