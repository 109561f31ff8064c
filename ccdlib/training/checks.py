"""The checks before a training: that these networks, data, teachers and settings of the machine can be trained together."""

import math
import os
from collections.abc import Iterable

import torch

from ccdlib.base import extensions
from ccdlib.base.devices import device_named, jobs
from ccdlib.base.registry import CcdError
from ccdlib.data import Dataset, load_data
from ccdlib.data.sources import normalised_by
from ccdlib.models import build
from ccdlib.training.config import Checkpoint, RunConfig, with_teachers
from ccdlib.training.evaluate import predict
from ccdlib.training.teachers import check_checkpoint, method_of
from ccdlib.views import check_views, steps_an_epoch


def check(configs: Iterable[RunConfig]) -> None:
    """Check within seconds that all of `configs` and their teachers can be trained, before hours are spent on some of them.

    fit() makes the same checks for its own configuration and its teacher. Errors: CcdError for the first one that cannot be
    trained, and for an empty list.
    """
    configs = list(configs)
    if not configs:
        raise CcdError("there is nothing to train; ask for at least one seed (parameter `seeds`)")
    seen = set()
    for config in (run for asked in configs for run in with_teachers(checked(asked))):
        # A seed cannot make a training impossible, so configurations that differ in nothing else are checked once.
        case = str([_shape_of(each) for each in (config, config.teacher)])
        if case not in seen:
            seen.add(case)
            _check_one(config)


def _check_one(config):
    if config.device != "auto":  # "auto" is settled where the run is trained: a batch may be planned on a machine without a GPU
        device_named(config.device)
    check_importable(config)
    data = data_of(config)
    check_teacher(config, data)
    check_fits(config, data)
    if isinstance(config.teacher, Checkpoint):
        check_checkpoint(config.teacher, data)
    data.check_files()


def _shape_of(config):
    """All that may make a training impossible. Of the views, that is how many inputs they make and from which images."""
    if not isinstance(config, RunConfig):
        return config
    rule, what = config.rule, config.fields_where(lambda use: use.part in ("data", "network", "method", "compute"))
    what = [*what, "side", "statistics", "batch", "accumulate", "jda"]
    fields = [getattr(config, name) for name in what if name not in ("teacher", "subset_seed")]
    return fields, rule.turns, rule.crops, rule.mixes


def checked(config: RunConfig) -> RunConfig:
    """The same RunConfig, validated again, because pydantic has ways to make one unvalidated.

    Errors: CcdError for anything that is not a RunConfig, or not a valid one.
    """
    if not isinstance(config, RunConfig):
        raise CcdError(f"expected a RunConfig, such as RunConfig(model='resnet8'), got {config!r}")
    return config.but()


def check_importable(config: RunConfig) -> None:
    """Raise CcdError if several processes are to train the run, and it may need rows that only this process has."""
    if config.processes > 1:
        check_carried("several processes of torchrun train the run, which")


def check_carried(who: str) -> None:
    """Raise CcdError if a registry has a row from a notebook cell, a prompt or a script, which no other process can import.

    who: the words of the error for those other processes.
    """
    for row in extensions.carried():
        raise CcdError(
            f"the {row.kind} {row.name!r} was defined in an interactive session or a script: {who} cannot import it. Write it "
            "into a module and add that to CCD_EXTENSIONS, or start with `ccd --use FILE.py`"
        )


def check_fits(config: RunConfig, data: Dataset) -> None:
    """Check that a run can be trained on `data`: its views can be made, its network takes the images, its method can be built.

    Some networks halve small images until nothing is left, so the network answers one test image here. Errors: CcdError.
    """
    network = build(config.model, data.classes, data.channels, config.seed)
    if data.in_files:
        check_views(config)
    n, parts = len(data.train_labels), config.accumulate * config.processes
    if parts > 1 and n // steps_an_epoch(n, config.batch) < 2 * parts:
        raise CcdError(
            f"the smallest step of an epoch of {n} training images (batch {config.batch}) has fewer than two images for each "
            f"of its {parts} parts (accumulate {config.accumulate} x processes {config.processes}); reduce one of them, or "
            "use more training images"
        )
    if config.rule.turns > 1 and data.shape[1] != data.shape[2]:
        raise CcdError(
            f"views {config.views!r} need square images; these are {data.shape[1]} x {data.shape[2]} pixels. Crop or resize "
            "them to a square"
        )
    try:
        predict(network, data, data.tests(torch.arange(1)))
    except RuntimeError as error:
        raise CcdError(
            f"model {config.model!r} cannot take images of shape {data.shape} ({error}); use larger images"
        ) from error
    teacher = config.teacher and build(config.teacher.model, data.classes, data.channels)
    method_of(config, data, network, teacher, None)


def check_teacher(config: RunConfig, data: Dataset) -> None:
    """Raise CcdError if the teacher is trained on data with other numbers of classes or channels than the student's `data`."""
    if isinstance(config.teacher, RunConfig):
        taught = data_of(config.teacher)
        if (taught.classes, taught.channels) != (data.classes, data.channels):
            raise CcdError(
                f"the teacher's data {config.teacher.data!r} has {taught.classes} classes and {taught.channels} channels, the "
                f"student's {config.data!r} {data.classes} and {data.channels}; train the teacher on data with "
                "the same numbers of both"
            )


def whole_data(config: RunConfig) -> Dataset:
    """The data set of a configuration with all its training images, to be normalised by the configuration's `statistics`."""
    return normalised_by(load_data(config.data, side=config.side), config.statistics)


def data_of(config: RunConfig) -> Dataset:
    """The data set of a configuration as its training sees it: whole_data() with the chosen `n_train` training images."""
    data = whole_data(config)
    return data if config.n_train is None else data.subset(config.n_train, config.subset_seed)


def check_surroundings() -> None:
    """Raise CcdError if an environment variable that a training reads has a value that cannot be used on this machine."""
    extensions.check()
    jobs()
    seconds_between_saves()
    device_named("auto")


def seconds_between_saves() -> float:
    """Seconds after which a run saves its state at the end of an epoch: $CCD_SAVE_EVERY, or 5. Errors: CcdError."""
    given = os.environ.get("CCD_SAVE_EVERY", "5")
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise CcdError(f"CCD_SAVE_EVERY = {given!r}: allowed are seconds from 0 (0 saves the state after every epoch)")
    return seconds
