"""The cost of methods: counted from the networks, and measured in training steps on this machine."""

import os
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ccdlib.base.devices import best_device, hardware
from ccdlib.base.registry import CcdError
from ccdlib.data.sources import Sizes
from ccdlib.evidence.published import PAIRS
from ccdlib.methods import TURNS
from ccdlib.training.checks import data_of
from ccdlib.training.config import RunConfig, teacher_of_method
from ccdlib.training.loop import Log, prepare, train_step
from ccdlib.training.recipes import NAMES, RECIPES, own_recipe, recipe_of
from ccdlib.training.teachers import untrained
from ccdlib.training.work import cost
from ccdlib.views import epoch_views

if TYPE_CHECKING:
    import pandas as pd

MOST_STEPS = 1000  # the largest number of steps that are timed


def check_timed(steps: int) -> None:
    """Raise CcdError for a number of training steps that cannot be timed."""
    if not 1 <= steps <= MOST_STEPS:
        raise CcdError(f"timed steps = {steps}: allowed are 1 to {MOST_STEPS}, of which the median is taken")


def step_cost(config: RunConfig, steps: int = 30, device: str | None = None) -> dict[str, Any]:
    """Measure a training step by `config` on this machine, with untrained networks on the configuration's own data.

    device: "cpu" or "cuda"; None: the GPU where there is one.
    Returns "seconds" (median of `steps` steps), "peak_bytes" (the largest memory in use during a step, of the GPU if it runs
    there, above that between steps), "training_macs" (multiply-adds, those of the losses too), "inputs" (of a step), and
    "hardware". Errors: as check_timed().
    """
    check_timed(steps)
    device = torch.device(device) if device else best_device()
    data = data_of(config).to(device)
    (trainee,) = prepare([config], data, device, untrained(config, data))
    trainee.begin(epoch=0)
    batch = epoch_views(config, data, 0).batch(torch.arange(min(config.batch, len(data.train_labels))))
    _step(trainee, batch)
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        _step(trainee, batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    with FlopCounterMode(display=False) as counter:
        _step(trainee, batch)
    turns = TURNS if trainee.method.rotates else 1
    return {
        "seconds": median(times),
        "peak_bytes": _peak(lambda: _step(trainee, batch), device),
        "training_macs": counter.get_total_flops() // 2,
        "inputs": turns * len(batch.inputs),
        "hardware": hardware(device),
    }


def _step(trainee, batch):
    train_step([trainee], batch, [Log()])


def _peak(act, device):
    """The largest number of bytes in use during `act()`, above that at its start."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        act()
        return torch.cuda.max_memory_allocated() - before
    with _quiet(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        act()
    # These events hold every allocation and release; the profiler's public tables only add them up by operator.
    events = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


@contextmanager
def _quiet():
    """Silence the standard error: the profiler's C++ code writes to it, and a notebook would show that."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


# {(teacher, student) that the papers train: (the Sizes of their data, the side of its images in pixels)}
CIFAR, IMAGENET = (Sizes(100, 3, 50_000), 32), (Sizes(1000, 3, 1_281_167), 224)
PUBLISHED = dict.fromkeys(PAIRS, CIFAR) | {("resnet34", "resnet18"): IMAGENET}


def method_configs(
    teacher: str,
    student: str,
    recipe: str = "paper",
    policy: str = "cifar100",
    negatives: int = 16384,
    only: Collection[str] | None = None,
    **data,
) -> dict[str, RunConfig]:
    """{name: RunConfig} of KD + JDA, CCD and the compared methods for a pair of networks, each under its own recipe.

    policy: of KD + JDA and CCD. negatives: CRD's setting. only: the names that are wanted; None: all. data: fields of RunConfig
    such as data and n_train.
    """
    taught = RunConfig(model=teacher, **RECIPES[f"{recipe}_teacher"], **data)
    found = {"KD + JDA": ("kd", policy), "CCD": ("ccd", policy)} | {name: (method, "none") for method, name in NAMES.items()}
    configs = {}
    for name, (method, views) in found.items():
        if only is None or name in only:
            kind = recipe_of(recipe, student) | own_recipe(recipe, student, method)
            settings = {"negatives": negatives} if method == "crd" else {}
            what = {"model": student, "method": method, "views": views, **kind, "settings": settings, **data}
            configs[name] = RunConfig(**what, teacher=teacher_of_method(method, taught))
    return configs


def cost_table(
    configs: Mapping[str, RunConfig], sizes: Sizes | None = None, side: int | None = None, steps: int = 0
) -> list[dict[str, Any]]:
    """A dict for each of configs {name: RunConfig}: its name and pair, cost(), and step_cost() unless `steps` is 0.

    sizes, side: of the data and of its images in pixels, given together; None: those of the configuration's own data.
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


def readable(rows: Sequence[Mapping[str, Any]]) -> "pd.DataFrame":
    """The rows of cost_table() as a DataFrame with a column for each method; its index says the units."""
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
