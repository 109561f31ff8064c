"""Forecasts of how long trainings take: from the seconds of stored runs, else from multiply-adds, or from timed steps."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import torch

from ccdlib.base import paths
from ccdlib.base.devices import best_device, device_named, jobs
from ccdlib.base.registry import CcdError
from ccdlib.training.checks import data_of
from ccdlib.training.config import RunConfig, work_of
from ccdlib.training.loop import prepare, train_epoch
from ccdlib.training.schedule import grouped
from ccdlib.training.teachers import untrained
from ccdlib.training.work import images_of, training_macs

RATE = 100.0  # TFLOP/s that a GPU sustains in training, unless CCD_TFLOPS says otherwise
CPU_RATE = 2e10  # multiply-adds a second that a CPU core sustains in training, while no run is stored yet
PACED = 8 * 224**2  # pixels of a timed step on a CPU, where a whole step of large images would take minutes


def expected_seconds(configs: Sequence[RunConfig], timed: bool = False) -> list[float]:
    """Seconds that the training of each of `configs` takes on this machine.

    A run is as fast as the stored runs of its kind (RunConfig.work) that the same kind of device trained. If there are none,
    its multiply-adds are divided by the rate of other stored runs, or by a usual rate. timed: time a few steps of every kind
    of cohort instead, which takes about a minute.
    """
    if timed:
        return _timed(configs)
    stored, seconds, rate = _stored(), [], None
    for config in configs:
        images = config.epochs * images_of(config)
        if config.work in stored:
            seconds.append(median(pace for pace, _ in stored[config.work]) * images)
        else:
            rate = rate or _rate(stored)
            seconds.append(training_macs(config) / rate)
    return seconds


def _stored():
    """{kind of work: [(seconds an image and epoch, fields of its RunConfig), ...]} of stored runs of this kind of device."""
    found = {}
    for file in (paths.outputs() / "runs").glob("*-*/metrics.json"):
        try:
            metrics, asked = json.loads(file.read_text()), json.loads(file.with_name("config.json").read_text())["asked"]
            if metrics["provenance"]["device"].startswith(best_device().type):
                pace = metrics["seconds"] / (asked["epochs"] * metrics["train_images"])
                found.setdefault(work_of(asked), []).append((pace, asked))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # fit() reports a damaged run; a forecast needs none
    return found


def _rate(stored):
    """Multiply-adds a second: the median of the first five kinds of stored runs, or a usual rate where none is stored."""
    rates = []
    for paces in list(stored.values())[:5]:
        try:
            config = RunConfig(**paces[0][1])
        except CcdError:  # a run of another version of the kit
            continue
        rates.append(training_macs(config) / (config.epochs * images_of(config)) / median(pace for pace, _ in paces))
    return median(rates) if rates else gpu_rate() / 2 if best_device().type == "cuda" else CPU_RATE


def gpu_rate() -> float:
    """Floating point operations a second that a GPU sustains in training: $CCD_TFLOPS, or 100 TFLOP/s. Errors: CcdError."""
    given = os.environ.get("CCD_TFLOPS", str(RATE))
    try:
        rate = float(given)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise CcdError(f"CCD_TFLOPS = {given!r}: give the TFLOP/s that your GPU sustains in training, a number above 0")
    return rate * 1e12


def gpu_hours(configs: Sequence[RunConfig]) -> str:
    """A sentence with the GPU hours of the trainings, or "" if they are less than 0.05.

    They are computed from multiply-adds and gpu_rate(), so neither a GPU nor the images are needed. Errors: CcdError.
    """
    operations, rate = 2.0 * sum(map(training_macs, configs)), gpu_rate()
    hours = operations / rate / 3600
    if hours < 0.05:
        return ""
    return (
        f"{len(configs)} runs, {operations:.2g} operations: {hours:,.{0 if hours >= 10 else 1}f} GPU hours at "
        f"{rate / 1e12:g} TFLOP/s (CCD_TFLOPS: what your GPU sustains)"
    )


def _timed(configs):
    """The seconds of each of `configs`: the median of three timings of a few steps, for every kind of cohort."""
    paces, seconds, threads = {}, {}, torch.get_num_threads()
    if jobs() > 1:  # side by side, cohorts have one thread each
        torch.set_num_threads(1)
    try:
        for cohort in grouped(range(len(configs)), lambda k: configs[k].cohort):
            members = [configs[k] for k in cohort]
            kinds = str([config.work for config in members])
            paces[kinds] = paces.get(kinds) or [_pace(members) for _ in range(3)]
            seconds |= {k: configs[k].epochs * images_of(configs[k]) * median(paces[kinds]) for k in cohort}
    finally:
        torch.set_num_threads(threads)
    return [seconds[k] for k in range(len(configs))]


def _pace(configs):
    """Seconds an image and epoch of one run of a cohort, with its part of an evaluation, measured with untrained networks."""
    device, data, first = device_named(configs[0].device), data_of(configs[0]), configs[0]
    if data.in_files and device.type == "cpu":
        size = max(1, min(first.batch, PACED // data.side**2))
        configs = [config.but(batch=size, accumulate=1) for config in configs]
    few = data.few(3 * configs[0].batch)
    trainees = [replace(trainee, data=few.to(device)) for trainee in prepare(configs, data, device, untrained(first, data))]
    for epoch in range(2):  # the first one warms up caches and memory
        began = time.perf_counter()
        train_epoch(trainees, epoch)
    image = (time.perf_counter() - began) / len(few.train_labels) / len(configs)
    if data.in_files:  # an evaluation could take hours; a test image takes about a third of the time of a training image
        return image * (1 + len(data.test_labels) / len(data.train_labels) / first.eval_every / 3)
    began = time.perf_counter()
    replace(trainees[0], data=data.to(device)).tested()
    return image + (time.perf_counter() - began) / len(data.train_labels) / first.eval_every
