"""What a teacher makes of augmented images (accuracy, entropy, calibration, CCD's weights), and what methods cost."""

import os
import sys
import time
from contextlib import contextmanager
from functools import cache
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from ccdlib.config import RECIPES, RunConfig, recipe_of, teacher_of_method
from ccdlib.data import Sizes, sizes_of
from ccdlib.experiments import NAMES, check_timed
from ccdlib.losses import confidence
from ccdlib.methods import METHODS, TURNS, Given
from ccdlib.models import MODELS
from ccdlib.paper import PAIRS
from ccdlib.runs import best_device, hardware
from ccdlib.streams import stream
from ccdlib.train import data_of, epoch_views, predict, prepare, untrained

BINS = 15


def calibration_error(probabilities, labels, bins=BINS):
    """Expected calibration error in percent (Guo et al., ICML 2017): over equally wide bins of the largest probability, the
    distance between accuracy and mean probability, weighed by how many images fall in. probabilities (N, C), labels (N,)."""
    sure, said = probabilities.max(1)
    right = (said == labels).double()
    which = (sure * bins).long().clamp(max=bins - 1)  # (N,)
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, which, right - sure.double())
    return 100 * (gap.abs().sum() / len(labels)).item()


def teacher_views(teacher, data, policy, seed=0, ops=None):
    """What `teacher` answers on the test images as they are, under ops of `policy` alone, and under all of it.

    ops: their names, all effective ones when None. Every image gets the op, with a random sign where it has one. Returns one
    dict each: "views", "accuracy" (%), "entropy" (nats, mean over images), "agreement" (% of images where the most probable
    class is that of the original), "calibration" (expected calibration error, %), "weight" (CCD's mean weight 1 + cos).
    """
    images, labels = data.test_images, data.test_labels
    # From the same stream, so an op alone has the signs that it has among the others.
    draws, always = (made.draw(len(images), stream(seed, "policy")) for made in (policy, policy.with_p(1.0)))
    ops = dict.fromkeys(op for op, _ in policy.effective(data.channels)) if ops is None else ops
    views = {"original": images} | {op: policy.only((op,)).apply(images, always) for op in ops}
    views["JDA"] = policy.apply(images, draws)
    device = best_device()
    teacher = teacher.to(device)
    before = predict(teacher, data, images, device).cpu()
    rows = []
    for name, changed in views.items():
        logits = predict(teacher, data, changed, device).cpu()
        p = logits.softmax(1)
        rows.append(
            {
                "views": name,
                "accuracy": 100 * (logits.argmax(1) == labels).double().mean().item(),
                "entropy": -(p * p.clamp(min=1e-12).log()).sum(1).mean().item(),
                "agreement": 100 * (logits.argmax(1) == before.argmax(1)).double().mean().item(),
                "calibration": calibration_error(p, labels),
                "weight": confidence(torch.cat([before, logits])).mean().item(),
            }
        )
    teacher.cpu()  # as it was
    return rows


def training_weights(teacher, data, policy, seed=0):
    """CCD's weights 1 + cos on the training images, under every effective op alone (at p 1) and under the whole policy.

    Returns (weights {views: (n,)}, twins, fired): the views are "JDA" and the ops, twins (n, C, H, W) uint8 the JDA images, and
    fired the ops of each of them, in words.
    """
    images = data.train_images
    draws, always = (made.draw(len(images), stream(seed, "policy")) for made in (policy, policy.with_p(1.0)))
    twins = policy.apply(images, draws)
    ops = dict.fromkeys(op for op, _ in policy.effective(data.channels))
    views = {"JDA": twins} | {op: policy.only((op,)).apply(images, always) for op in ops}
    device = best_device()
    teacher = teacher.to(device)
    before = predict(teacher, data, images, device)
    weights = {
        name: confidence(torch.cat([before, predict(teacher, data, changed, device)])).cpu() for name, changed in views.items()
    }
    teacher.cpu()  # as it was
    return weights, twins, policy.fired(draws, data.channels)


# ---------------------------------------------------------------- cost


def cost(config, sizes, side=32):
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


def model_size(name, classes, side):
    """(parameters, multiply-adds of one image) of the backbone `name` with so many classes, images of side x side RGB."""
    sizes = Sizes(classes, 3, classes)
    return _parameters(_skeleton(name, sizes)), _answer(name, sizes, (3, side, side))[1]


def training_macs(config):
    """Multiply-adds of a whole training, as cost() counts those of a step; test evaluations are left out."""
    sizes = sizes_of(config.data)
    n = config.n_train or sizes.images
    n = round(n * sizes.images) if isinstance(n, float) else n
    return cost(config, sizes, sizes.side or config.side)["training_macs"] * n / config.batch * config.epochs


def _few(sizes):
    """Images enough to make a method for: CRD's memory of all of ImageNet need not be made to be measured."""
    return min(sizes.images, 40_000)


@cache
def _skeleton(name, sizes):
    """The network `name` without values."""
    with torch.device("meta"):
        return MODELS[name](sizes.classes, sizes.channels).eval()


def _heads_of(name, student, teacher, shape, sizes, settings):
    """The method `name` without values."""
    labels = torch.arange(_few(sizes)) % sizes.classes
    with torch.random.fork_rng(devices=[]):
        return METHODS[name](Given(student, teacher, None, shape, sizes.classes, labels), **settings).eval().to("meta")


def _parameters(module):
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def _bytes(module):
    return 0 if module is None else sum(t.numel() * t.element_size() for t in module.state_dict().values())


@cache
def _answer(name, sizes, shape):
    """What the network `name` says about one image, without values, and how many multiply-adds that takes."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        output = _skeleton(name, sizes)(torch.zeros(1, *shape, device="meta"))
    return output, counter.get_total_flops() // 2


def _head_macs(name, method, sizes, shape):
    """Multiply-adds of one image through the heads of a method on the network `name`."""
    if method is None or next(method.parameters(), None) is None:
        return 0
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        method.heads(_answer(name, sizes, shape)[0])
    return counter.get_total_flops() // 2


def step_cost(config, steps=30, device=None):
    """What a training step by `config` takes here, measured with untrained networks on the configuration's own data.

    device: "cpu" or "cuda"; the GPU where there is one when it is None.

    Errors: CcdError for other than 1 to 1000 steps.

    Returns a dict: "seconds" (median of `steps` steps), "peak_bytes" (largest memory in use during a step, above what is there
    between steps; with a GPU, of the GPU), "training_macs" (counted while a step ran, losses and all), "inputs", "hardware".
    """
    check_timed(steps)
    device = torch.device(device) if device else best_device()
    data = data_of(config).to(device)
    (trainee,) = prepare([config], data, device, untrained(config, data))
    trainee.begin(epoch=0)
    batch = epoch_views(config, data, 0).batch(torch.arange(min(config.batch, len(data.train_labels))))
    trainee.step(batch)
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        trainee.step(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    with FlopCounterMode(display=False) as counter:
        trainee.step(batch)
    turns = TURNS if trainee.method.rotates else 1
    return {
        "seconds": median(times),
        "peak_bytes": _peak(lambda: trainee.step(batch), device),
        "training_macs": counter.get_total_flops() // 2,
        "inputs": turns * len(batch.inputs),
        "hardware": hardware(device),
    }


def _peak(act, device):
    """Bytes in use at the worst moment of `act()`, above those at its start."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        act()
        return torch.cuda.max_memory_allocated() - before
    with _quiet(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        act()
    # Every allocation and release, in order; the profiler's public tables only add them up by operator.
    events = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


@contextmanager
def _quiet():
    """Nothing on the standard error meanwhile: the profiler writes to it from below Python, and a notebook would show it."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


# The pairs that the papers train, with the Sizes of their data and the side of its images.
CIFAR, IMAGENET = (Sizes(100, 3, 50_000), 32), (Sizes(1000, 3, 1_281_167), 224)
PUBLISHED = dict.fromkeys(PAIRS, CIFAR) | {("resnet34", "resnet18"): IMAGENET}


def method_configs(teacher, student, recipe="paper", policy="cifar100", negatives=16384, only=None, **data):
    """{name: RunConfig} of KD + JDA, CCD and the compared methods for a pair of networks, each under its own recipe.

    only: the names that are wanted, all when None. data: fields of RunConfig such as data and n_train. For cost tables.
    """
    taught = RunConfig(model=teacher, **RECIPES[f"{recipe}_teacher"], **data)
    found = {"KD + JDA": ("kd", policy), "CCD": ("ccd", policy)} | {name: (method, "none") for method, name in NAMES.items()}
    configs = {}
    for name, (method, views) in found.items():
        if only is None or name in only:
            kind = recipe_of(recipe, student, method if METHODS[method].rotates else "")
            settings = {"negatives": negatives} if method == "crd" else {}
            what = {"model": student, "method": method, "views": views, "settings": settings, **kind, **data}
            configs[name] = RunConfig(**what, teacher=teacher_of_method(method, taught))
    return configs


def cost_table(configs, sizes=None, side=None, steps=0):
    """[dict, one a configuration] of configs {name: RunConfig}: cost(), and step_cost() where `steps` are asked for.

    sizes, side: of the data; those of the configuration's own data when they are not given.
    """
    rows = []
    for name, config in configs.items():
        if sizes is None:
            data = data_of(config)
            where = Sizes(data.classes, data.channels, len(data.train_labels)), data.shape[-1]
        else:
            where = sizes, side
        pair = {"name": name, "pair": f"{config.teacher.model} to {config.model}"}
        rows.append(pair | cost(config, *where) | (step_cost(config, steps) if steps else {}))
    return rows


def readable(rows):
    """A cost table as a DataFrame: parameters and multiply-adds in millions and billions, megabytes, milliseconds."""
    import pandas as pd

    columns = {
        "teacher stored": ("teacher stored (M parameters)", 1e6, "{:.3f}"),
        "teacher bytes": ("teacher on disk (MB)", 1e6, "{:.2f}"),
        "student trained": ("student trained (M)", 1e6, "{:.3f}"),
        "student stored": ("student stored (M)", 1e6, "{:.3f}"),
        "student bytes": ("student on disk (MB)", 1e6, "{:.2f}"),
        "memory bank bytes": ("memory bank (MB)", 1e6, "{:.1f}"),
        "test_macs": ("test, an image (MMACs)", 1e6, "{:.1f}"),
        "inputs": ("inputs a step", 1, "{:.0f}"),
        "step_macs": ("step, forward (GMACs)", 1e9, "{:.3g}"),
        "training_macs": ("step, with backward (GMACs)", 1e9, "{:.3g}"),
        "peak_bytes": ("step, memory (MB)", 1e6, "{:.1f}"),
        "seconds": ("step, time (ms)", 1e-3, "{:.0f}"),
    }
    several = len({row["pair"] for row in rows}) > 1
    shown = []
    for row in rows:
        kept = {text: how.format(row[key] / unit) for key, (text, unit, how) in columns.items() if key in row}
        shown.append({"method": f"{row['name']}, {row['pair']}" if several else row["name"], **kept})
    return pd.DataFrame(shown).set_index("method").T
