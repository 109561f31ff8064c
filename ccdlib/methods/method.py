"""Methods: how a network is trained. A row of METHODS is a plain loss, or a class with heads or a memory of its own.

A method is built for its networks (Given) and called once a step: `method(student, teacher, batch) -> {"term": scalar}`. Heads
are made from the networks' own parts, trained with the student and left out when it is used.

Methods with rotations of their own (`rotates`: SSKD, HSAKD) turn every view that `views` makes by 0, 90, 180 and 270 degrees:
V views an image become 4 V inputs, [all views; all views at 90 degrees; ...]. So they take any policy.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from ccdlib.base.registry import CcdError, Registry
from ccdlib.base.streams import stream
from ccdlib.methods import settings as rules
from ccdlib.methods.losses import LOSSES, full
from ccdlib.models.backbone import HE, Backbone, Output, initialise


def _row(name, method):
    """The class of a row; CcdError for what is no Method, which a plain loss is not: it is a row of LOSSES."""
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise CcdError(f"method {name!r}: {method!r} is no class made from ccdlib.Method; a function is added by LOSSES.add")
    return method


METHODS = Registry("method", _row)


TURNS = 4


class Given(NamedTuple):
    """What a method is built for: the networks, the trained heads of the teacher where there are some, and the data."""

    student: Backbone
    teacher: Backbone | None
    teacher_heads: "Method | None"
    shape: tuple[int, int, int]  # of an image: channels, height, width
    classes: int
    labels: torch.Tensor  # (n,) of the training images
    seed: int = 0


class Method(nn.Module):
    """Base of all methods.

    teacher: "none", "needed" or "optional". teacher_method: the method that its teacher must have been trained by, because it
    makes the heads that are needed. freezes: the network starts as the teacher and stays as it is, only heads are trained.
    rotates: see the module. hard_labels: mixed labels are refused. keeps: the heads are stored with the run.
    """

    teacher = "needed"
    teacher_method = None
    freezes = False
    rotates = False
    hard_labels = True
    keeps = False
    initial = HE  # how the weights of its heads are drawn

    @classmethod
    def by_image(cls, settings: dict) -> bool:
        """Whether a batch can be seen in parts: its terms are means over inputs or pairs of views, and it has no heads."""
        return False

    @classmethod
    def function(cls) -> Callable:
        """The function whose arguments are its settings."""
        return cls.__init__

    def __init__(self, given):
        super().__init__()
        # In a tuple, so that the teacher's heads are neither trained, nor put into train mode, nor stored with this method.
        self._taught_by = (given.teacher_heads,)

    @property
    def teacher_heads(self):
        """The heads of the teacher, frozen."""
        return self._taught_by[0]

    def heads(self, output):
        """What the heads make of a network's Output; nothing where there are none."""

    def headed(self, head, x):
        """head(x) in float32, computed as the networks are (bfloat16 on a GPU)."""
        if x.device.type != "cuda":
            return head(x)
        with torch.autocast("cuda", torch.bfloat16):
            return full(head(x))


class Plain(Method):
    """A row of LOSSES: no heads, no memory."""

    loss: Callable
    mean_over_inputs = False

    @classmethod
    def by_image(cls, settings):
        """Whether its terms are means over inputs or pairs of views, those of its words too."""
        return cls.mean_over_inputs and all(
            row.options[name].get("by_image", True) for row, name in rules.words_in(cls.loss, settings)
        )

    @classmethod
    def function(cls):
        """The function whose arguments are its settings."""
        return cls.loss

    def __init__(self, given, **settings):
        super().__init__(given)
        self.settings = settings
        if self.name == "at" and given.teacher is not None:
            both = [blank_output(network, given.shape) for network in (given.student, given.teacher)]
            self.loss(*both, both[0].logits.new_zeros(2, dtype=torch.long))  # says which stages do not match

    def forward(self, student, teacher, batch):
        """The loss's terms."""
        return self.loss(student, teacher, batch.labels, **self.settings)


def _plain(name, loss, hard_labels, by_image, teacher):
    """The method of a loss."""
    own = {"name": name, "loss": staticmethod(loss), "__doc__": loss.__doc__, "teacher": teacher}
    return type(name, (Plain,), own | {"hard_labels": hard_labels, "mean_over_inputs": by_image})


METHODS.follow(LOSSES, _plain)


def settings_of(name: str) -> dict[str, Any]:
    """{setting: default} of a method."""
    return rules.defaults_of(METHODS[name].function())


def check_settings(name: str, settings: dict) -> None:
    """Raise CcdError unless `settings` are settings of the method `name`, of the right type and in their range."""
    rules.check(name, METHODS[name].function(), settings)


def words_in(name: str, settings: dict) -> list[tuple[Registry, str]]:
    """The rows of registries that settings of a method name, such as (WEIGHTS, "cosine"); defaults count as named."""
    return rules.words_in(METHODS[name].function(), settings)


def make(name: str, given: Given, settings: dict | None = None) -> Method:
    """The method `name` for its networks (a Given), its heads with fresh weights; CcdError where it cannot be."""
    with torch.random.fork_rng(devices=[]):  # layers draw from the global generator when they are made
        method = METHODS[name](given, **(settings or {}))
    # Copied parts of a frozen network are trained nevertheless.
    return initialise(method.requires_grad_(True), stream(given.seed, "heads"), method.initial)


@torch.no_grad()
def blank_output(network: Backbone, shape: tuple[int, int, int]) -> Output:
    """What a network says about two blank images of `shape`, for the shapes of its features."""
    training = network.training
    made = network.eval()(next(network.parameters()).new_zeros(2, *shape))
    network.train(training)
    return made
