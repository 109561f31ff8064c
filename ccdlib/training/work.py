"""The work of trainings, counted from the networks alone: parameters, bytes, multiply-adds."""

from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from ccdlib.data.sources import Sizes, sizes_of
from ccdlib.methods.method import METHODS, TURNS, Given
from ccdlib.models.backbone import MODELS
from ccdlib.training.config import RunConfig


def cost(config: RunConfig, sizes: Sizes, side: int = 32) -> dict:
    """What training by `config` (a RunConfig) costs, from the networks alone: nothing is loaded, trained or run.

    sizes: the Sizes of the data; side: of its images, in pixels. Returns a dict. Of teacher and student each, "trained" and
    "stored": parameters that are trained (with all heads), and that are kept for the next stage (the student's heads are
    not); "bytes": of what is stored, batch norm statistics with it. "test_macs": multiply-adds of one image through a student.
    "inputs": network inputs of a step. "step_macs": forward multiply-adds of a step, networks and heads of both sides, the
    number the literature gives; "training_macs": with backward passes, two forward passes' worth for what is trained.
    Multiply-adds of the losses themselves are left out.
    """
    shape, kind = (sizes.channels, side, side), METHODS[config.method]
    student, made = _skeleton(config.model, sizes), config.teacher
    teacher = made and _skeleton(made.model, sizes)
    frozen = kind.freezes and teacher is not None
    heads = kind.teacher_method and _heads_of(kind.teacher_method, teacher, None, shape, sizes, {})
    method = _heads_of(config.method, student, teacher, shape, sizes, config.settings)
    turns = TURNS if kind.rotates else 1
    inputs = turns * round(config.batch * config.views_per_image)
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
        "training_macs": inputs * (forward + backward + taught),
    }


def model_size(name: str, classes: int, side: int) -> tuple[int, int]:
    """(parameters, multiply-adds of one image) of the backbone `name` with so many classes, images of side x side RGB."""
    sizes = Sizes(classes, 3, classes)
    return _parameters(_skeleton(name, sizes)), _answer(name, sizes, (3, side, side))[1]


def training_macs(config: RunConfig) -> float:
    """Multiply-adds of a whole training, as cost() counts those of a step; test evaluations are left out."""
    sizes = sizes_of(config.data)
    n = config.n_train or sizes.images
    n = round(n * sizes.images) if isinstance(n, float) else n
    # Runs of a kind have one step, whatever their seeds and epochs; what a reader added may have changed meanwhile.
    added = tuple(rows.added[name].digest() for rows, name in config.rows if name in rows.added)
    key = config.work, added
    if key not in _steps:
        _steps[key] = cost(config, sizes, sizes.side or config.side)["training_macs"]
    return _steps[key] * n / config.batch * config.epochs


_steps: dict[tuple, float] = {}


def _few(sizes):
    """Images enough to make a method for: CRD's memory of all of ImageNet need not be made to be measured."""
    return min(sizes.images, 40_000)


def _skeleton(name, sizes):
    """The network `name` without values."""
    return _network(MODELS[name], sizes)


@cache
def _network(make, sizes):
    with torch.device("meta"):
        return make(sizes.classes, sizes.channels).eval()


def _heads_of(name, student, teacher, shape, sizes, settings):
    """The method `name` without values."""
    labels = torch.arange(_few(sizes)) % sizes.classes
    with torch.random.fork_rng(devices=[]):
        return METHODS[name](Given(student, teacher, None, shape, sizes.classes, labels), **settings).eval().to("meta")


def _parameters(module):
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def _bytes(module):
    return 0 if module is None else sum(t.numel() * t.element_size() for t in module.state_dict().values())


def _answer(name, sizes, shape):
    """What the network `name` says about one image, without values, and how many multiply-adds that takes."""
    return _answer_of(_skeleton(name, sizes), shape)


@cache
def _answer_of(network, shape):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        output = network(torch.zeros(1, *shape, device="meta"))
    return output, counter.get_total_flops() // 2


def _head_macs(name, method, sizes, shape):
    """Multiply-adds of one image through the heads of a method on the network `name`."""
    if method is None or next(method.parameters(), None) is None:
        return 0
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        method.heads(_answer(name, sizes, shape)[0])
    return counter.get_total_flops() // 2
