"""fit and evaluate: one loop for a teacher, a student alone and every method that compares logits or features.

The loop trains a cohort: runs that see the same views and have the same teacher, so that both are computed once. One run is a
cohort of one.
"""

import copy
import math
import os
import sys
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ccdlib import bundled, group, paths
from ccdlib.augment import Crops, Mix, crop_and_flip, draw_crops, normalise, rotations
from ccdlib.config import Checkpoint, RunConfig
from ccdlib.data import Data, load_data
from ccdlib.files import Images, check_views, views_of_files
from ccdlib.methods import METHODS, Batch, Given, Method, make
from ccdlib.models import Backbone, build, folded, pretrained, weights_named
from ccdlib.registry import CcdError
from ccdlib.runs import (
    DamagedRun,
    Folder,
    best_device,
    check_finite,
    existing,
    identity,
    jobs,
    load_weights,
    provenance,
    trained_by,
)
from ccdlib.streams import stream

SHOWS = ("auto", "epochs", "run", "bar", "none")


class Diverged(CcdError):
    """The loss is no longer a finite number."""


@dataclass(frozen=True)
class Result:
    """A finished run.

    accuracy: top-1 on the test set after the last epoch, in percent: the result. best_on_test: the best epoch's, chosen on
    the test set itself and therefore too high; only for comparison with papers that report it. curves: one dict an epoch.
    folder: the run's folder. seconds: of training, over all pieces. model(): the network, in eval mode on the CPU. heads(): the
    method with its trained heads, for teachers whose method keeps them. (Of a Checkpoint, which measured() makes one of, there
    are accuracy and config only.)
    """

    config: RunConfig | Checkpoint
    accuracy: float
    best_on_test: float
    curves: list
    folder: Path
    metrics: dict
    classes: int
    channels: int

    @property
    def seconds(self):
        return self.metrics["seconds"]

    def model(self):
        """The trained network, in eval mode on the CPU."""
        if isinstance(self.config, Checkpoint):
            return _from_checkpoint(self.config, self)
        network = build(self.config.model, classes=self.classes, channels=self.channels)
        return load_weights(self.folder / "weights.safetensors", network, self.config.model).eval()

    def heads(self):
        """The method with its trained heads, in eval mode on the CPU; None for a method that keeps none."""
        return _heads(self.config, self.folder / "heads.safetensors", self.model(), data_of(self.config))


def fit(config, show="auto", repair=None):
    """Train the network that `config` describes, or find it trained; its teacher first. Returns a Result.

    show: "epochs" (one printed line an epoch), "run" (one line when it is done), both also for a run that is found; "bar"
    (tqdm); "none"; or "auto": bar on an interactive command line, epochs elsewhere. repair: train a damaged run again, keeping
    its folder under another name; None: as $CCD_REPAIR says. Errors: CcdError, before any training wherever it can be known
    then; Diverged during it.
    """
    return fit_cohort([config], show, repair)[0]


def fit_cohort(configs, show="auto", repair=None):
    """fit() for the runs of one cohort (equal RunConfig.cohort), trained together: [Result, one a configuration].

    Views are made once and the teacher answers them once; every network takes its own step. On a CPU each run has the bits it
    has alone. Each has its own folder: finished ones are found, interrupted ones go on from their own last epoch. Where one
    diverges, the others are trained to their end before the error is raised. A run's seconds are its part of the cohort's.
    """
    if show not in SHOWS:
        raise CcdError(f"show = {show!r}: allowed are {', '.join(SHOWS)}")
    configs = [checked(config) for config in configs]
    if len({config.cohort for config in configs}) != 1:
        raise CcdError(
            f"{len(configs)} configurations are no cohort: all must have the same teacher, data, views, draws, batch and "
            "epochs. Group them by RunConfig.cohort"
        )
    show = ("bar" if sys.stderr.isatty() else "epochs") if show == "auto" else show
    repair = os.environ.get("CCD_REPAIR") == "1" if repair is None else repair
    device = _device(configs[0].device)
    data = data_of(configs[0])
    _seconds_between_saves()  # a wrong value is refused before the training
    _check_teacher(configs[0], data)
    folders = {folder.path: folder for folder in map(folder_of, configs)}  # each once, however often it is asked for
    missing = group.from_first(lambda: [path for path, folder in folders.items() if not folder.ready(repair)])
    found = folders.keys() - set(missing)
    for path in sorted(found):
        _check_teacher_of(folders[path], data, device)
    for path in missing:
        _check_fits(folders[path].config, data)
    if missing and configs[0].processes > 1 and group.size() == 1 and not group.started_by_torchrun():
        group.launch([folders[path].config for path in missing], show, repair)
    elif missing:
        taught_by = _teacher(configs[0], data, show, repair)
        with ExitStack() as locks:
            still = group.from_first(lambda: _locked([folders[path] for path in missing], locks, repair))
            found |= set(missing) - set(still)  # another process may have finished them
            if still:
                _train([folders[path] for path in still], data.to(device), taught_by, device, show, repair)
            group.wait()
    for path in sorted(found) if show == "epochs" and group.rank() == 0 else ():
        for row in folders[path].curves():
            print(_line(folders[path].config, row))
    return [_result(config, folder_of(config), data, show) for config in configs]


def _locked(folders, locks, repair):
    """Hold the folders of runs; the paths of those that are still to be trained."""
    for folder in sorted(folders, key=lambda folder: folder.path):  # in one order: no two processes wait for each other
        locks.enter_context(folder.lock())
    missing = [folder for folder in folders if not folder.ready(repair)]
    for folder in missing:
        if folder.finished:
            folder.set_aside()
    return [folder.path for folder in missing]


def _result(config, folder, data, show):
    metrics = folder.metrics
    if show == "run" and group.rank() == 0:
        print(f"{config.model}, {config.method}, views {config.views}, seed {config.seed}: {metrics['accuracy']:.1f} %")
    return Result(
        config, metrics["accuracy"], metrics["best_on_test"], folder.curves(), folder.path, metrics, data.classes, data.channels
    )


def folder_of(config):
    """The Folder of a run, whether it is trained or not. Errors: CcdError for data or a teacher file that is not there."""
    device = best_device().type if config.device == "auto" else config.device
    precision = "bfloat16" if device == "cuda" else "float32"
    return Folder(config, identity(config, lambda c: _whole_data(c).facts, precision))


def checked(config):
    """The RunConfig itself, once more checked: whatever made it may have left that out. CcdError for what is none."""
    if not isinstance(config, RunConfig):
        raise CcdError(f"{config!r} is no RunConfig; give one, such as RunConfig(model='resnet8')")
    return config.but()


def _device(name):
    device = best_device() if name == "auto" else torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        how = "CCD_DEVICE = 'cuda'" if name == "auto" else "device 'cuda'"
        raise CcdError(f"{how} was asked for and no CUDA device is there; use 'auto' or 'cpu', or unset CCD_DEVICE")
    return device


def check(configs):
    """Raise CcdError where one of `configs` cannot be trained, in seconds, before hours are spent on the others.

    fit() makes the same checks for its own configuration and its teacher; a notebook makes them for all it will train.
    """
    if not configs:
        raise CcdError("there is nothing to train; ask for at least one seed (parameter `seeds`)")
    seen = set()
    for config in chain.from_iterable(_taught(checked(config)) for config in configs):
        # Of seeds and views nothing can go wrong here; configurations that differ in no more are one case.
        case = [_shape_of(c) if isinstance(c, RunConfig) else c for c in (config, config.teacher)]
        if str(case) not in seen:
            seen.add(str(case))
            if config.device != "auto":  # what that means here may not be here: a batch is planned where there is no GPU
                _device(config.device)
            data = data_of(config)
            _check_teacher(config, data)
            _check_fits(config, data)
            if isinstance(config.teacher, Checkpoint):
                _check_checkpoint(config.teacher, data)
            data.check_files()


def _taught(config):
    """The configuration, its teacher, the teacher's teacher ..., as far as they are trained here."""
    while isinstance(config, RunConfig):
        yield config
        config = config.teacher


def _shape_of(config):
    parts = config.batch, config.accumulate, config.processes
    rotated = config.views == "rotation"
    what = config.data, config.side, config.n_train, config.statistics, config.model, config.method, config.settings
    return *what, config.device, parts, rotated


def _check_fits(config, data):
    """One image through the network, because some halve small images to nothing, and the heads of the method."""
    network = build(config.model, data.classes, data.channels, config.seed)
    if isinstance(data, Images):
        check_views(config)
    n, parts = len(data.train_labels), config.accumulate * config.processes
    if parts > 1 and n // steps_an_epoch(n, config.batch) < 2 * parts:
        raise CcdError(
            f"{n} training images in steps of at most {config.batch}, each in {parts} parts (accumulate {config.accumulate}, "
            f"processes {config.processes}), leave parts of less than two images; take fewer parts"
        )
    if config.views == "rotation" and data.shape[1] != data.shape[2]:
        raise CcdError(f"views 'rotation' need square images, not {data.shape[1:]}; make them square first")
    try:
        predict(network, data, data.tests(torch.arange(1)))
    except RuntimeError as error:
        raise CcdError(f"model {config.model!r} cannot take images of shape {data.shape} ({error}); use larger ones") from error
    teacher = config.teacher and build(config.teacher.model, data.classes, data.channels)
    _method(config, data, network, teacher, None)


def _whole_data(config):
    return load_data(config.data, side=config.side).normalised_by(config.statistics)


def data_of(config):
    """The data of a configuration as its training sees it: normalised by its statistics, its training images chosen."""
    data = _whole_data(config)
    return data if config.n_train is None else data.subset(config.n_train, config.subset_seed)


def _check_teacher(config, data):
    if isinstance(config.teacher, RunConfig):
        taught = data_of(config.teacher)
        if (taught.classes, taught.channels) != (data.classes, data.channels):
            raise CcdError(
                f"the teacher's data {config.teacher.data!r} has {taught.classes} classes and {taught.channels} channels, the "
                f"student's {config.data!r} {data.classes} and {data.channels}; train the teacher on data of the same kind"
            )


def _check_checkpoint(teacher, data):
    """Read a Checkpoint and its heads as the training will; of what is downloaded first only the name is looked at."""
    if teacher.file.startswith("torchvision:"):
        weights_named(teacher.model, teacher.file)
        return
    network = _from_checkpoint(teacher, data)
    if teacher.heads:
        _heads(teacher, existing(teacher.heads), network, data)


class TaughtBy(NamedTuple):
    """The teacher of a run, in eval mode on the CPU, and the heads that its method trained; both may be None."""

    network: Backbone | None = None
    heads: Method | None = None


def _teacher(config, data, show, repair):
    """The TaughtBy of a configuration, trained first if it has to be."""
    if config.teacher is None:
        return TaughtBy()
    if isinstance(config.teacher, Checkpoint):
        network = _from_checkpoint(config.teacher, data)
        heads = config.teacher.heads and _heads(config.teacher, existing(config.teacher.heads), network, data)
        return TaughtBy(network, heads)
    taught = config.teacher.but(device=config.device, processes=config.processes)
    result = fit(taught, show="bar" if show == "bar" else "none", repair=repair)
    return TaughtBy(result.model(), result.heads())


def _from_checkpoint(teacher, data):
    """The network of a Checkpoint, in eval mode on the CPU."""
    network = build(teacher.model, classes=data.classes, channels=data.channels)
    named = teacher.file.startswith("torchvision:")
    if not (named or teacher.file.endswith(".pth")):
        return load_weights(existing(teacher.file), network, teacher.model).eval()
    state = group.from_first(lambda: pretrained(teacher.model, teacher.file if named else str(existing(teacher.file))))
    try:
        check_finite(state, teacher.file)
        network.load_state_dict(state)
    except RuntimeError as error:
        raise CcdError(f"{teacher.file} does not fit {teacher.model} with {data.classes} classes: {error}") from error
    return network.eval()


def _accuracy_of(teacher, network, data, device):
    """Percent that the network of a Checkpoint reaches on the test set: measured, or what the card of a bundled one says, whose
    weights and data are known by their checksums."""
    card = bundled.card(teacher.file)
    if card and card["data_sha256"] == data.fingerprint:
        return card["accuracy"]
    return evaluate(copy.deepcopy(network).to(device), data, device)["accuracy"]


def measured(teacher, data):
    """A Checkpoint as a Result without training: its accuracy on the test images of `data`, and no curves."""
    device, network = best_device(), _from_checkpoint(teacher, data)
    reached = _accuracy_of(teacher, network, data, device)
    _check_accuracy(teacher, reached, data)
    file = Path(teacher.file)
    return Result(teacher, reached, reached, [], file, {"seconds": 0.0}, data.classes, data.channels)


def network_of(config, data, show="epochs"):
    """The network of a RunConfig, trained or found, or of a Checkpoint, in eval mode on the CPU; show: see fit()."""
    if isinstance(config, RunConfig):
        return fit(config, show).model()
    if show != "none":
        print(f"{config.file}: {measured(config, data).accuracy:.1f} % on the test images, from its file")
    return _from_checkpoint(config, data)


def _check_accuracy(teacher, reached, data):
    """Raise CcdError where a Checkpoint is not as good as it should be: other images, another order of classes, ..."""
    if teacher.accuracy is not None and abs(reached - teacher.accuracy) > 0.5:
        raise CcdError(
            f"the teacher {teacher.file} reaches {reached:.2f} % on the {len(data.test_labels)} test images of {data.name}, "
            f"and accuracy = {teacher.accuracy:.2f} % was expected. Compare the classes, their order and the images with what "
            "it was trained on, or give another accuracy"
        )


def _check_teacher_of(folder, data, device):
    """_check_accuracy for a run that is found: by what it keeps or, if it was trained before that was kept, measured now."""
    teacher = folder.config.teacher
    if isinstance(teacher, Checkpoint) and teacher.accuracy is not None:
        reached = folder.metrics.get("teacher_accuracy")
        if reached is None:
            reached = _accuracy_of(teacher, _from_checkpoint(teacher, data), data, device)
        _check_accuracy(teacher, reached, data)


def _heads(teacher, file, network, data):
    """The method of `teacher` (a RunConfig or Checkpoint) with its heads from a file; None for a method that keeps none."""
    if not METHODS[teacher.method].keeps:
        return None
    heads = make(teacher.method, _given(data, network), getattr(teacher, "settings", None))
    return load_weights(file, heads, teacher.model).requires_grad_(False).eval()


def _given(data, student, teacher=None, heads=None, seed=0):
    return Given(student, teacher, heads, data.shape, data.classes, data.train_labels, seed)


def _method(config, data, network, teacher, heads):
    return make(config.method, _given(data, network, teacher, heads, config.seed), config.settings)


# ---------------------------------------------------------------- views


BLOCK = 256  # images whose views are made at once; the arrays of more leave the cache


class Part(NamedTuple):
    """What a process sees at once: rows of images (CPU row numbers), of which (epoch, step), which pass of how many the step
    has, and how much its loss counts there."""

    rows: torch.Tensor
    step: tuple[int, int]
    of: tuple[int, int] = (0, 1)
    weight: float = 1.0


class EpochViews:
    """The views of one epoch: all draws made at its start, from streams that only seed, epoch and view name.

    Draws belong to images, not to positions in a batch, so arms of one seed share them whatever else differs: an arm with
    an augmented twin sees the same originals as an arm without, a larger p fires the same ops and more, the first of
    several twins is the twin of an arm with one, and a larger share gives twins to the same images and more.
    """

    def __init__(self, config, data, epoch):
        self.config, self.data = config, data
        n, self.epoch, self.made = len(data.train_labels), epoch, config.augmentation
        twins = config.twins * config.candidates if self.made else 0
        self.views = {"base": 2}.get(config.views, 1 + twins)
        rank = torch.randperm(n, generator=stream(config.draws_seed, "share", epoch))
        self.has_twin = rank < round(config.share * n)  # (n,)
        self._draw(n, twins)

    def _draw(self, n, twins):
        config, data, seed = self.config, self.data, self.config.draws_seed
        flip = data.flip if config.flip is None else config.flip
        if config.views == "raw":
            self.crops = [Crops(torch.full((n, 2), data.pad), torch.zeros(n, dtype=torch.bool))]
        else:
            self.crops = [draw_crops(n, data.pad, flip, stream(seed, "base", self.epoch, v)) for v in range(self.views)]
        generator = stream(seed, "policy", self.epoch)
        self.draws = [self.made.draw(n, generator) for _ in range(twins)]

    def parts(self):
        """[Part] of this process, in their order: a step's images are spread over its passes and the processes of the group."""
        n, config = len(self.data.train_labels), self.config
        order = torch.randperm(n, generator=stream(config.draws_seed, "order", self.epoch))
        parts = []
        # Steps of nearly equal size: no last batch of one image, on which batch norm fails.
        for step, rows in enumerate(order.tensor_split(steps_an_epoch(n, config.batch))):
            for k, shared in enumerate(rows.tensor_split(config.accumulate)):
                mine = shared.tensor_split(group.size())[group.rank()]
                weight = 1.0
                if len(mine) < len(rows):  # its share of the inputs; gradients are averaged over the processes
                    weight = group.size() * self._inputs(mine) / self._inputs(rows)
                parts.append(Part(mine, (self.epoch, step), (k, config.accumulate), weight))
        return parts

    def _inputs(self, rows):
        """How many inputs these images make, up to a constant factor."""
        return len(rows) + (self.views - 1) * int(self.has_twin[rows].sum())

    def batches(self):
        """The Batch of every step of the epoch, or of every pass of it, in their order."""
        parts = self.parts()
        at_once = max(1, BLOCK // self.config.batch)
        for first in range(0, len(parts), at_once):
            yield from self._made(parts[first : first + at_once])

    def batch(self, rows, step=0):
        """The Batch of the images in `rows` (CPU row numbers), views first; B is views * len(rows), or fewer where only a
        share of the images has twins."""
        return next(self._made([Part(rows, (self.epoch, step))]))

    def _owners(self, part):
        """The rows of the images that have each view."""
        return [part.rows if v == 0 else part.rows[self.has_twin[part.rows]] for v in range(self.views)]

    def _made(self, parts):
        """The Batches of `parts`. Crops and ops work on the images of all at once, because an op on a few is all overhead."""
        owners = zip(*map(self._owners, parts), strict=True)
        views = []
        for v, rows in enumerate(owners):
            images, labels = self._view(v, torch.cat(rows))
            sizes = [len(part) for part in rows]
            views.append(zip(rows, images.split(sizes), labels.split(sizes), strict=True))
        for part, seen in zip(parts, zip(*views, strict=True), strict=True):
            rows, images, labels = zip(*seen, strict=True)
            yield self._batch(rows, torch.cat(images), torch.cat(labels), part)

    def _batch(self, owners, views, labels, part):
        if self.config.views == "rotation":
            views, owners, labels = rotations(views), owners * 4, labels.repeat(4)
        inputs = normalise(views, self.data.mean, self.data.std)
        return Batch(inputs, labels, torch.cat(owners), tuple(map(len, owners)), part.step, part.of, part.weight)

    def _view(self, v, rows):
        """View v of the images in `rows`, and its labels: (n,), or (n, classes) of all views where some are mixed."""
        labels = self.data.train_labels[rows.to(self.data.train_labels.device, non_blocking=True)]
        images = self._cropped(v, rows)
        if not isinstance(self.made, Mix):
            return images, labels
        labels = F.one_hot(labels, self.data.classes).float()
        if v == 0:
            return images, labels
        draws = self.draws[v - 1][rows]
        mixed, share = self.made.apply(images, self._cropped(v, draws.partners), draws)
        theirs = F.one_hot(self.data.train_labels[draws.partners.to(labels.device)], self.data.classes)
        return mixed, share[:, None] * labels + (1 - share[:, None]) * theirs

    def _cropped(self, v, rows):
        images = self.data.train_images.index_select(0, rows.to(self.data.train_images.device, non_blocking=True))
        crops, draws = self.crops[v][rows], None
        if v and self.draws and not isinstance(self.made, Mix):
            draws = self.draws[v - 1][rows]
        if draws and self.config.jda == "after crop":
            return self.made.apply(crop_and_flip(images, crops, self.data.pad), draws)
        return crop_and_flip(self.made.apply(images, draws) if draws else images, crops, self.data.pad)


class FileViews(EpochViews):
    """The views of one epoch of images that are in files: made by workers, but for what comes after the crop."""

    def _draw(self, n, twins):
        """Every image has its own streams here; see files.ViewsOfFile."""

    def batches(self):
        """The Batch of every step of the epoch, or of every pass of it, in their order."""
        yield from self._made(self.parts())

    def _made(self, parts):
        data, labels = self.data, self.data.train_labels
        loader = views_of_files(self.config, data, self.epoch, self.has_twin, self.views, [part.rows for part in parts])
        for part, by_view in zip(parts, loader, strict=True):
            owners, images = self._owners(part), []
            for views, draws in by_view:  # fewer than self.views where none of the images has a twin
                here = views.to(labels.device, non_blocking=True)
                images.append(here if draws is None else self.made.apply(here, draws))
            rows = torch.cat(owners[: len(images)]).to(labels.device, non_blocking=True)
            yield self._batch(owners, torch.cat(images), labels[rows], part)


def epoch_views(config, data, epoch):
    """The EpochViews of a data set, in memory or in files."""
    return (FileViews if isinstance(data, Images) else EpochViews)(config, data, epoch)


# ---------------------------------------------------------------- the loop


@dataclass(frozen=True)
class Trainee:
    """All that a training step needs: the student, its teacher, the method between them, the optimiser of what is trained.

    teacher: answers only, its batch norms folded into its convolutions. frozen: the network stays as it is and only the
    method's heads are trained. shared: the network as the processes of a group train it together, elsewhere the network.
    """

    config: RunConfig
    data: Data
    device: torch.device
    network: Backbone
    teacher: torch.nn.Module | None
    method: Method
    optimiser: torch.optim.Optimizer
    frozen: bool
    shared: torch.nn.Module

    def step(self, batch):
        """One optimiser step on a Batch: (terms, right answers, inputs that count), without waiting for a GPU."""
        return next(steps([self], batch))

    def begin(self, epoch):
        """Make ready for the steps of an epoch."""
        self.network.train(not self.frozen)
        self.method.train()
        for part in self.optimiser.param_groups:
            part["lr"] = self.config.lr_at(epoch)

    def learn(self, batch, inputs, target):
        """The step itself; inputs: those of the batch as the method turns them, target: the teacher's Output of them."""
        first, last = batch.of[0] == 0, batch.of[0] + 1 == batch.of[1]
        if first:
            self.optimiser.zero_grad(set_to_none=True)
        # Gradients are exchanged after the last pass of a step.
        with nullcontext() if last or group.size() == 1 else self.shared.no_sync():
            output = self.answers(self.network, inputs) if self.frozen else self._forward(self.shared, inputs)
            terms, soft = self.method(output, target, batch), self.config.soft_at(batch.step[0])
            if soft < 1:
                terms = {name: term if name == "ce" else soft * term for name, term in terms.items()}
            loss = sum(terms.values())
            (loss if batch.weight == 1 else batch.weight * loss).backward()
        if last:
            if self.config.clip:
                torch.nn.utils.clip_grad_norm_(trained_by(self.optimiser), self.config.clip)
            self.optimiser.step()
        said, labels = output.logits[: len(batch.labels)].argmax(1), batch.labels
        return terms, (said == (labels if labels.ndim == 1 else labels.argmax(1))).sum(), len(labels)

    def answers(self, network, inputs):
        """The Output of a network that is not trained."""
        with torch.no_grad():
            return self._forward(network, inputs)

    def _forward(self, network, inputs):
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return _float(network(inputs))

    def picked(self, batch):
        """CutMixPick: of the candidates, those of which the teacher is least certain, as many as there would be twins."""
        candidates = self.config.candidates
        if candidates == 1:
            return batch
        first = batch.sizes[0]
        log_p = self.answers(self.teacher, batch.inputs[first:]).logits.log_softmax(1)
        entropy = -(log_p.exp() * log_p).sum(1)  # (candidates,)
        best = entropy.argsort(descending=True, stable=True)[: len(entropy) // candidates]
        originals = torch.arange(first, device=best.device)
        return batch.kept(torch.cat([originals, first + best.sort().values]))


def steps(trainees, batch):
    """A step of every Trainee of a cohort on one Batch; what their shared teacher says is computed once."""
    batch = trainees[0].picked(batch)
    seen = {}  # {whether a method turns the inputs: (inputs, the teacher's Output)}
    for trainee in trainees:
        turned = trainee.method.rotates
        if turned not in seen:
            inputs = batch.turned().inputs if turned else batch.inputs
            seen[turned] = inputs, trainee.teacher and trainee.answers(trainee.teacher, inputs)
        yield trainee.learn(batch, *seen[turned])


def prepare(configs, data, device, taught_by):
    """The Trainees of a cohort on `device`, where `data` is; taught_by: their TaughtBy."""
    teacher, heads = taught_by
    answering = None
    if teacher is not None:
        answering = folded(teacher).to(device, memory_format=torch.channels_last)
    trainees = []
    for config in configs:
        network = build(config.model, data.classes, data.channels, config.seed)
        frozen = METHODS[config.method].freezes and teacher is not None
        if frozen:  # the teacher is the network whose heads are trained
            network.load_state_dict(teacher.state_dict())
            network.requires_grad_(False)
        network.to(memory_format=torch.channels_last)
        # Heads are made and drawn on the CPU, like the networks: equal weights on every device.
        method = _method(config, data, network, None if frozen else teacher, heads)
        network, method = network.to(device), method.to(device)
        parameters = [p for part in (network, method) for p in part.parameters() if p.requires_grad]
        optimiser = torch.optim.SGD(
            parameters,
            config.lr,
            config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.nesterov and config.momentum > 0,
            fused=True,
        )
        shared = group.in_group(network, device)
        trainees.append(
            Trainee(config, data, device, network, None if frozen else answering, method, optimiser, frozen, shared)
        )
    if heads is not None:
        heads.to(device)
    return trainees


@dataclass
class Member:
    """A run in training: its Trainee, its Folder, its curves so far, how many of their epochs an earlier process did, and
    the Diverged that ended it."""

    trainee: Trainee
    folder: Folder
    rows: list = field(default_factory=list)
    found: int = 0
    failed: Diverged | None = None

    @property
    def parts(self):
        """What changes in training."""
        return self.trainee.network, self.trainee.method, self.trainee.optimiser

    def resume(self, repair):
        """Go on from the state that is kept, if there is one."""
        try:
            self.found, self.rows = self.folder.load_state(*self.parts)
        except DamagedRun:
            if not repair:
                raise
            if group.rank() == 0:
                self.folder.file("resume.pt").rename(self.folder.file("resume.damaged.pt"))
        if group.rank() == 0:
            self.folder.start()

    def add(self, row, seconds):
        """Keep the row of an epoch that took so many seconds, with the accuracy on the test set where one is due."""
        config, trainee = self.trainee.config, self.trainee
        began = time.perf_counter()
        tested = row["epoch"] == config.epochs or row["epoch"] % config.eval_every == 0
        row["test_accuracy"] = evaluate(trainee.network, trainee.data, trainee.device)["accuracy"] if tested else None
        self.rows.append(row | {"seconds": round(seconds + time.perf_counter() - began, 4)})

    def save(self):
        """Keep the state after this epoch."""
        if group.rank():
            return
        self.folder.save_state(len(self.rows), *self.parts, self.rows)
        self.folder.save_curves(self.rows)

    def finish(self, facts):
        """Make it a finished run; facts: what else is kept of it."""
        if group.rank():
            return
        trainee = self.trainee
        metrics = facts | _metrics(self.rows, trainee.data, trainee.device, len(self.rows) - self.found)
        self.folder.finish(trainee.network, trainee.method, self.rows, metrics)


def _train(folders, data, taught_by, device, show, repair):
    trainees = prepare([folder.config for folder in folders], data, device, taught_by)
    members = [Member(trainee, folder) for trainee, folder in zip(trainees, folders, strict=True)]
    for member in members:
        member.resume(repair)
    done = [len(member.rows) for member in members]
    if group.from_first(lambda: done) != done:
        raise CcdError(
            f"{paths.outputs()} is not the same folder for all processes; name one that all machines share in CCD_OUTPUTS"
        )
    teacher, facts = members[0].trainee.config.teacher, {}
    if isinstance(teacher, Checkpoint):
        facts = {"teacher_accuracy": _accuracy_of(teacher, taught_by.network, data, device)}
        _check_accuracy(teacher, facts["teacher_accuracy"], data)
    saved, epochs = time.monotonic(), members[0].trainee.config.epochs
    for epoch in _epochs(members, show):
        # A cohort that was killed while it kept its states goes on from different epochs.
        active = [member for member in members if len(member.rows) == epoch and not member.failed]
        began = time.perf_counter()
        rows = train_epoch([member.trainee for member in active], epoch)
        seconds = (time.perf_counter() - began) / max(1, len(active))
        for member, row in zip(active, rows, strict=True):
            if isinstance(row, Diverged):
                member.failed = row
                continue
            member.add(row, seconds)
            if show == "epochs" and group.rank() == 0:
                print(_line(member.trainee.config, member.rows[-1], len(members) > 1))
        if epoch + 1 < epochs and time.monotonic() - saved >= _seconds_between_saves():
            for member in active:
                if not member.failed:
                    member.save()
            saved = time.monotonic()
    for member in members:
        if not member.failed:
            member.finish(facts)
    for member in members:
        if member.failed:
            raise member.failed


def check_surroundings():
    """Raise CcdError where an environment variable that a training reads has a value that it cannot use here."""
    jobs()
    _seconds_between_saves()
    _device("auto")


def _seconds_between_saves():
    """How long a run may go on without keeping its state, at most an epoch more: $CCD_SAVE_EVERY seconds, or five."""
    given = os.environ.get("CCD_SAVE_EVERY", "5")
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise CcdError(f"CCD_SAVE_EVERY = {given!r}: allowed are seconds from 0, which keeps the state after every epoch")
    return seconds


def steps_an_epoch(images, batch):
    """Optimiser steps in an epoch of that many training images, at most `batch` of them a step."""
    return math.ceil(images / batch)


def train_epoch(trainees, epoch):
    """Train one epoch of a cohort; for each of its Trainees its row of the curves, or the Diverged that ends it."""
    if not trainees:
        return []
    logs = [Log() for _ in trainees]
    for trainee in trainees:
        trainee.begin(epoch)
    for batch in epoch_views(trainees[0].config, trainees[0].data, epoch).batches():
        for log, step in zip(logs, steps(trainees, batch), strict=True):
            log.add(*step, batch)
    return [_row(trainee, log, epoch) for trainee, log in zip(trainees, logs, strict=True)]


@dataclass
class Log:
    """What the steps of an epoch gave, on the device."""

    names: tuple = ()
    history: list = field(default_factory=list)
    correct: int = 0
    seen: int = 0

    def add(self, terms, correct, seen, batch):
        """Keep what a step, or a pass of one, returned."""
        self.names = tuple(terms)
        values = torch.stack([term.detach() for term in terms.values()])
        self.history.append(values if batch.weight == 1 else batch.weight * batch.of[1] * values)
        self.correct, self.seen = self.correct + correct, self.seen + seen


def _row(trainee, log, epoch):
    """A row of the curves, or the Diverged.

    Looked at once an epoch, so that a GPU never waits for it; what was saved before this epoch is still on disk.
    """
    config, history = trainee.config, group.total(torch.stack(log.history)) / group.size()  # (steps, terms)
    correct, seen = group.total(
        torch.stack([torch.as_tensor(log.correct), torch.tensor(log.seen, device=history.device)])
    ).tolist()
    where, broken = None, (~history.isfinite().all(1)).nonzero()
    states = (part.state_dict().values() for part in (trainee.network, trainee.method))
    if len(broken):
        at = broken[0].item()
        where = f"step {at + 1} of {len(history)}, {dict(zip(log.names, history[at].tolist(), strict=True))}"
        where = f"the loss is not a finite number any more: epoch {epoch + 1}, {where}"
    elif not all(tensor.isfinite().all() for tensor in chain.from_iterable(states)):
        where = f"the weights are not finite numbers any more after epoch {epoch + 1}, step {len(history)}"
    if where:
        return Diverged(f"{where}. What was saved before is kept; lower lr (it was {config.lr:g}), or look at the data")
    means = dict(zip(log.names, history.mean(0).tolist(), strict=True))
    return {"epoch": epoch + 1, "lr": config.lr_at(epoch)} | means | {"train_accuracy": 100 * correct / seen}


def pace(configs):
    """A function from a run of such a cohort to its part of the seconds that training takes on this machine.

    From a few steps and one evaluation, timed here with untrained networks; nothing is kept.
    """
    device, data, first = _device(configs[0].device), data_of(configs[0]), configs[0]
    if isinstance(data, Images) and device.type == "cpu":  # a whole step of large images would take minutes
        size = max(1, min(first.batch, PACED // data.side**2))
        configs = [config.but(batch=size, accumulate=1) for config in configs]
    batch = configs[0].batch
    few = data.few(3 * batch)
    trainees = prepare(configs, data, device, untrained(first, data))
    trainees = [replace(trainee, data=few.to(device)) for trainee in trainees]
    for epoch in range(2):  # the first warms up
        began = time.perf_counter()
        train_epoch(trainees, epoch)
    image = (time.perf_counter() - began) / len(few.train_labels) / len(configs)
    began = time.perf_counter()
    tested = few if isinstance(data, Images) else data
    evaluate(trainees[0].network, tested.to(device), device)
    test = (time.perf_counter() - began) * len(data.test_labels) / len(tested.test_labels)

    def seconds(config):
        n = len(data.train_labels)
        return config.epochs * n * image + math.ceil(config.epochs / config.eval_every) * test

    return seconds


PACED = 8 * 224**2  # pixels of a timed step, where a whole one is too large


def untrained(config, data):
    """The TaughtBy that a configuration asks for, with untrained weights: as much work as the trained one."""
    if config.teacher is None:
        return TaughtBy()
    network = build(config.teacher.model, data.classes, data.channels).eval()
    needed = METHODS[config.method].teacher_method
    heads = needed and make(needed, _given(data, network)).requires_grad_(False).eval()
    return TaughtBy(network, heads)


def _float(output):
    """Logits and pooled features in float32, whatever autocast made of them: losses are computed in full precision."""
    return output._replace(logits=output.logits.float(), pooled=output.pooled.float())


@torch.no_grad()
def evaluate(network, data, device="cpu", batch=None):
    """{"accuracy" (percent), "loss"} of a network on the test set; the processes of a group take every image once.

    batch: images at once; None: 500 on a GPU, and on a CPU 125, because the features of more leave its cache.
    """
    device, counts = torch.device(device), torch.zeros(3, dtype=torch.float64)
    batch = batch or (500 if device.type == "cuda" else 125)
    for images, labels in data.in_parts(torch.arange(len(data.test_labels))[group.rank() :: group.size()], batch):
        if not len(labels):  # more processes than images
            continue
        logits = predict(network, data, images, device, batch).cpu()
        labels = labels.cpu()
        loss = F.cross_entropy(logits, labels).double() * len(labels)
        counts += torch.stack([(logits.argmax(1) == labels).sum().double(), loss, torch.tensor(float(len(labels)))])
    right, loss, n = group.total(counts.to(device)).tolist()
    return {"accuracy": 100 * (right / n), "loss": loss / n}


@torch.no_grad()
def predict(network, data, images, device="cpu", batch=500):
    """Logits (N, classes) float32 of uint8 images (N, C, H, W), normalised as `data` says, in eval mode."""
    network.eval()
    device = torch.device(device)
    logits = []
    for part in images.split(batch):
        inputs = normalise(part.to(device), data.mean, data.std)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits.append(network(inputs).logits.float())
    return torch.cat(logits)


def _metrics(rows, data, device, epochs_here):
    tested = [(row["test_accuracy"], row["epoch"]) for row in rows if row["test_accuracy"] is not None]
    best, best_epoch = max(tested, key=lambda pair: (pair[0], -pair[1]))
    return {
        "accuracy": rows[-1]["test_accuracy"],
        "best_on_test": best,
        "best_on_test_epoch": best_epoch,
        "train_images": len(data.train_labels),
        "test_images": len(data.test_labels),
        "seconds": round(sum(row["seconds"] for row in rows), 3),
        "resumed": epochs_here < len(rows),
        "data": {"name": data.name, "sha256": data.fingerprint},
        "provenance": provenance(device),
    }


def _epochs(members, show):
    """The epochs that some member lacks, while one goes on."""
    config, done = members[0].trainee.config, min(len(member.rows) for member in members)
    epochs = range(done, config.epochs)
    if show == "bar":
        from tqdm import tqdm

        who = f"seed {config.seed}" if len(members) == 1 else f"and {len(members) - 1} more"
        label = f"{config.model} {config.method} {who}"
        epochs = tqdm(epochs, label, total=config.epochs, initial=done, unit="epoch", leave=False)
    for epoch in epochs:
        if all(member.failed for member in members):
            return
        yield epoch


def _line(config, row, named=False):
    """One line an epoch, without times, so that a run that is found prints what it printed when it was trained."""
    known = ("epoch", "lr", "train_accuracy", "test_accuracy", "seconds")
    terms = " ".join(f"{name} {value:.3f}" for name, value in row.items() if name not in known)
    test = "" if row["test_accuracy"] is None else f"  test {row['test_accuracy']:.1f} %"
    width = len(str(config.epochs))
    who = f"{config.model} {config.method}, seed {config.seed}: " if named else ""
    return (
        f"{who}epoch {row['epoch']:{width}d}/{config.epochs}  lr {row['lr']:.4g}  {terms}  train {row['train_accuracy']:.1f} %"
        f"{test}"
    )
