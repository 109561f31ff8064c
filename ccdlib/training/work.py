"""The cost of trainings in parameters, bytes and multiply-adds, counted without data and without training anything."""

from contextlib import contextmanager
from functools import cache

import torch
from torch import nn

from ccdlib.data.sources import Sizes, sizes_of
from ccdlib.methods.method import METHODS, TURNS, Given
from ccdlib.models.backbone import MODELS
from ccdlib.training.config import RunConfig


def cost(config: RunConfig, sizes: Sizes, side: int = 32) -> dict:
    """The cost of a training, counted from the networks alone.

    sizes: the Sizes of the data. side: the height and width of its images, in pixels. Returns a dict with, for both "student"
    and "teacher", "... trained": the parameters that are trained, with all heads; "... stored": the parameters that are kept
    for the next stage, which the student's heads are not, unless its method keeps them; "... bytes": the size of what is
    stored, with the statistics of batch norms. "memory bank bytes": the size of CRD's memory. "test_macs": multiply-adds of one
    image through the student. "inputs": network inputs in a step. "step_macs": multiply-adds of the forward passes of a step
    through networks and heads of both sides, the number that the literature gives. "training_macs": these with the backward
    passes, each as two forward passes of all that is trained; both twice where the optimiser needs two gradients. The
    multiply-adds of losses are not counted.
    """
    shape, kind = (sizes.channels, side, side), METHODS[config.method]
    student, made = _skeleton(config.model, sizes), config.teacher
    teacher = made and _skeleton(made.model, sizes)
    frozen = kind.freezes and teacher is not None
    heads = kind.teacher_method and _heads_of(kind.teacher_method, teacher, None, shape, sizes, {})
    method = _heads_of(config.method, student, teacher, shape, sizes, config.settings)
    inputs = _inputs(config)
    alone = _answer(config.model, sizes, shape)[1]
    forward = alone + _head_macs(config.model, method, sizes, shape)
    taught = 0
    if teacher is not None and not frozen:
        taught = _answer(made.model, sizes, shape)[1] + _head_macs(made.model, heads, sizes, shape)
    backward = 2 * (forward - alone * frozen)
    return {
        "method": config.method,
        "student trained": _parameters(method) + (0 if frozen else _parameters(student)),
        "student stored": _parameters(student) + (_parameters(method) if kind.keeps else 0),
        "student bytes": _bytes(student) + (_bytes(method) if kind.keeps else 0),
        "teacher trained": _parameters(teacher) + _parameters(heads),
        "teacher stored": _parameters(teacher) + _parameters(heads),
        "teacher bytes": _bytes(teacher) + _bytes(heads),
        "memory bank bytes": sum(
            b.numel() // _few(sizes) * sizes.images * 4 for name, b in method.named_buffers() if name.startswith("memory")
        ),
        "test_macs": alone,
        "inputs": inputs,
        "step_macs": inputs * (forward + taught),
        "training_macs": inputs * ((forward + backward) * (2 if config.ascent[0] else 1) + taught),
    }


def model_size(name: str, classes: int, side: int) -> tuple[int, int]:
    """The parameters of the backbone `name`, and its multiply-adds for one RGB image of side x side pixels."""
    sizes = Sizes(classes, 3, classes)
    return _parameters(_skeleton(name, sizes)), _answer(name, sizes, (3, side, side))[1]


def training_macs(config: RunConfig) -> float:
    """Multiply-adds of a whole training, computed from those of a step in cost(), without evaluations on the test set."""
    macs = _macs_of_input(config, sizes_of(config.data))
    return macs * _inputs(config) * images_of(config) / config.batch * config.epochs


def images_of(config: RunConfig) -> int:
    """The number of training images of a run: n_train may be a number, a fraction of the data set, or None for all of it."""
    every = sizes_of(config.data).images
    return round(config.n_train * every) if isinstance(config.n_train, float) else config.n_train or every


def _macs_of_input(config, sizes):
    """Multiply-adds of a network input in training; the same for all views, seeds and numbers of images."""
    added = [rows.added[name].digest() for rows, name in config.rows if name in rows.added]  # a reader may have changed it
    side = sizes.side or config.side
    key = str(
        (
            config.model,
            config.teacher and config.teacher.model,
            config.method,
            config.settings,
            config.optimiser,
            sizes,
            side,
            added,
        )
    )
    if key not in _counts:
        _counts[key] = cost(config, sizes, side)["training_macs"] / _inputs(config)
    return _counts[key]


_counts: dict[str, float] = {}


def _inputs(config):
    """Network inputs of a step."""
    return (TURNS if METHODS[config.method].rotates else 1) * round(config.batch * config.views_per_image)


def _few(sizes):
    """The number of images for which a method is built here: CRD's memory would be too large for all of ImageNet."""
    return min(sizes.images, 40_000)


def _skeleton(name, sizes):
    """The network `name` with weights of no meaning."""
    return _network(MODELS[name], sizes)


@cache
def _network(make, sizes):
    with torch.random.fork_rng(devices=[]):  # layers draw from the global generator when they are made
        return make(sizes.classes, sizes.channels).eval()


def _heads_of(name, student, teacher, shape, sizes, settings):
    """The method `name` with weights of no meaning."""
    labels = torch.arange(_few(sizes)) % sizes.classes
    with torch.random.fork_rng(devices=[]):
        return METHODS[name](Given(student, teacher, None, shape, sizes.classes, labels), **settings).eval()


def _parameters(module):
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def _bytes(module):
    return 0 if module is None else sum(t.numel() * t.element_size() for t in module.state_dict().values())


def _answer(name, sizes, shape):
    """What the network `name` says about one blank image, and how many multiply-adds that takes."""
    return _answer_of(_skeleton(name, sizes), shape)


@cache
def _answer_of(network, shape):
    with _counted(network) as counts:
        output = network(torch.zeros(1, *shape))
    return output, sum(counts)


def _head_macs(name, method, sizes, shape):
    """Multiply-adds of one image through the heads of a method on the network `name`."""
    if method is None:
        return 0
    with _counted(method) as counts:
        method.heads(_answer(name, sizes, shape)[0])
    return sum(counts)


@contextmanager
def _counted(module):
    """A list to which every convolution and linear layer of a module adds its multiply-adds.

    By hooks: torch's own FlopCounterMode counts the same and takes seconds to import.
    """
    counts = []

    def add(layer, inputs, output):
        counts.append(output.numel() * layer.weight[0].numel())

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)] if module is not None else []
    hooks = [layer.register_forward_hook(add) for layer in layers]
    try:
        with torch.no_grad():
            yield counts
    finally:
        for hook in hooks:
            hook.remove()
