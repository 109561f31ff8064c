"""Teachers: their networks and heads from files, their accuracy, and the methods that are built for them."""

import copy
from pathlib import Path
from typing import NamedTuple

import torch

from ccdlib.base.registry import CcdError
from ccdlib.data import Dataset, bundled
from ccdlib.methods import METHODS, Given, Method, make
from ccdlib.models import Backbone, build, pretrained, weights_named
from ccdlib.training import group
from ccdlib.training.config import Checkpoint, RunConfig
from ccdlib.training.evaluate import evaluate
from ccdlib.training.identity import existing
from ccdlib.training.store import check_finite, load_weights


class TaughtBy(NamedTuple):
    """The teacher of a run, in eval mode on the CPU, and the heads that its method trained; None for what there is not."""

    network: Backbone | None = None
    heads: Method | None = None


def method_of(config: RunConfig, data: Dataset, network: Backbone, teacher: Backbone | None, heads: Method | None) -> Method:
    """The method of a configuration, built for its networks, with fresh weights in its heads.

    heads: those of the teacher. Errors: CcdError if the method cannot be built for these networks, data or settings.
    """
    return make(config.method, _given(data, network, teacher, heads, config.seed), config.settings)


def heads_from(teacher: RunConfig | Checkpoint, file: Path, network: Backbone, data: Dataset) -> Method | None:
    """The method that trained `teacher`, with its heads from a file, frozen; None for a method that stores no heads.

    network: the teacher's. data: its training data. Errors: CcdError for a file that is damaged, or of another network.
    """
    if not METHODS[teacher.method].keeps:
        return None
    heads = make(teacher.method, _given(data, network), getattr(teacher, "settings", None))
    return load_weights(file, heads, teacher.model).requires_grad_(False).eval()


def _given(data, student, teacher=None, heads=None, seed=0):
    return Given(student, teacher, heads, data.shape, data.classes, data.train_labels, seed)


def from_checkpoint(teacher: Checkpoint, classes: int, channels: int) -> Backbone:
    """The network of a Checkpoint, in eval mode on the CPU.

    Errors: CcdError for a file that is not there or damaged, or holds the weights of another network.
    """
    network = build(teacher.model, classes=classes, channels=channels)
    named = teacher.file.startswith("torchvision:")
    if not (named or teacher.file.endswith(".pth")):
        return load_weights(existing(teacher.file), network, teacher.model).eval()
    state = group.from_first(lambda: pretrained(teacher.model, teacher.file if named else str(existing(teacher.file))))
    try:
        check_finite(state, teacher.file)
        network.load_state_dict(state)
    except RuntimeError as error:
        raise CcdError(f"{teacher.file} does not fit {teacher.model} with {classes} classes: {error}") from error
    return network.eval()


def checkpoint_taught(teacher: Checkpoint, data: Dataset) -> TaughtBy:
    """The network and the heads of a Checkpoint. Errors: CcdError as from_checkpoint() and heads_from()."""
    network = from_checkpoint(teacher, data.classes, data.channels)
    return TaughtBy(network, teacher.heads and heads_from(teacher, existing(teacher.heads), network, data))


def check_checkpoint(teacher: Checkpoint, data: Dataset) -> None:
    """Check that a Checkpoint and its heads can be loaded; of weights to be downloaded, only the name. Errors: CcdError."""
    if teacher.file.startswith("torchvision:"):
        weights_named(teacher.model, teacher.file)
    else:
        checkpoint_taught(teacher, data)


def accuracy_of(teacher: Checkpoint, network: Backbone, data: Dataset, device: torch.device) -> float:
    """The accuracy of the network of a Checkpoint on the test set of `data`, in percent.

    It is measured on `device`, except for a bundled teacher on the data of its card, which states the accuracy: there the
    checksums of weights and data are known.
    """
    card = bundled.card(teacher.file)
    if card and card["data_sha256"] == data.fingerprint:
        return card["accuracy"]
    return evaluate(copy.deepcopy(network).to(device), data, device)["accuracy"]


def check_accuracy(teacher: Checkpoint, reached: float, data: Dataset) -> None:
    """Raise CcdError if the accuracy `reached` is not the one that a Checkpoint states, both in percent.

    Reasons can be other images, or the classes in another order.
    """
    if teacher.accuracy is not None and abs(reached - teacher.accuracy) > 0.5:
        raise CcdError(
            f"the teacher {teacher.file} reaches {reached:.2f} % on the {len(data.test_labels)} test images of {data.name}, "
            f"and accuracy = {teacher.accuracy:.2f} % was expected. Compare the classes, their order and the images with what "
            "it was trained on, or give another accuracy"
        )


def untrained(config: RunConfig, data: Dataset) -> TaughtBy:
    """The teacher of a configuration with untrained weights, to time a step: it does as much work as the trained one."""
    if config.teacher is None:
        return TaughtBy()
    network = build(config.teacher.model, data.classes, data.channels).eval()
    needed = METHODS[config.method].teacher_method
    heads = needed and make(needed, _given(data, network)).requires_grad_(False).eval()
    return TaughtBy(network, heads)
