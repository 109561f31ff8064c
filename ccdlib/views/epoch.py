"""An epoch as batches of views, of images in memory."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from ccdlib.base.streams import stream
from ccdlib.data.dataset import Dataset
from ccdlib.views.crops import Crops, crop_and_flip, draw_crops, normalise, rotations
from ccdlib.views.draws import Drawn, joined


class Batch(NamedTuple):
    """The inputs of a training step: B inputs of N images, all inputs of the first view first."""

    inputs: torch.Tensor  # (B, C, H, W) float32, normalised
    labels: torch.Tensor  # (B,) int64, or (B, classes) float32 where the rule mixes, or boxes (B, K, 5) where images have them
    images: torch.Tensor  # (B,) rows of the training set, on the CPU
    sizes: tuple[int, ...]  # inputs of each view; the first view, of the originals, has N
    step: tuple[int, int] = (0, 0)  # epoch, and step in it; names the random numbers of a method
    of: tuple[int, int] = (0, 1)  # this pass, and the number of passes over which the images of a step are spread
    weight: float = 1.0  # of its loss in that of the step
    moves: torch.Tensor | None = None  # (B, 2, 3) of images with boxes: from the original view to each view, as in boxes.py

    def turned(self) -> "Batch":
        """The batch with all inputs at four angles (see rotations), for methods that rotate; the other fields stay."""
        return self._replace(inputs=rotations(self.inputs))

    def kept(self, rows: torch.Tensor) -> "Batch":
        """The batch with only the inputs `rows`: the originals, and some of the second view."""
        where = rows.cpu()
        first = self.sizes[0]
        return self._replace(
            inputs=self.inputs[rows], labels=self.labels[rows], images=self.images[where], sizes=(first, len(rows) - first)
        )


BLOCK = 256  # images whose views are made at once; larger arrays do not stay in the cache of a CPU


class Part(NamedTuple):
    """The images that one process sees in one pass of a step; step, of and weight are those of its Batch."""

    rows: torch.Tensor  # (n,) rows of the training set, on the CPU
    step: tuple[int, int]
    of: tuple[int, int] = (0, 1)
    weight: float = 1.0


def steps_an_epoch(images: int, batch: int) -> int:
    """The number of optimiser steps in an epoch of so many training images, at most `batch` of them in a step."""
    return math.ceil(images / batch)


class EpochViews:
    """The views of one epoch. All draws are made at its start, from streams that seed, epoch and view alone name.

    Draws belong to images and not to places in a batch, so that runs of one seed share them whatever else differs. A run with
    twins sees the same originals as a run without. A larger p fires the same ops and more. The first of several twins is the
    twin of a run with one. A larger share gives twins to the same images and to more.

    config: a RunConfig. epoch: from 0. rank, size: the number of this process, from 0, and how many train the run together.
    """

    def __init__(self, config: Any, data: Dataset, epoch: int, rank: int = 0, size: int = 1):
        self.config, self.data, self.epoch, self.rule = config, data, epoch, config.rule
        self.rank, self.size = rank, size
        n, twins = len(data.train_labels), config.twins * self.rule.candidates if self.rule.twins else 0
        self.views = self.rule.base + twins
        order = torch.randperm(n, generator=stream(config.draws_seed, "share", epoch))
        self.has_twin = order < round(config.share * n)  # (n,) bool
        self._draw(n, twins)

    def _draw(self, n, twins):
        data, seed, rule = self.data, self.config.draws_seed, self.rule
        flip = (data.flip if self.config.flip is None else self.config.flip) and (rule.crops or rule.flips)
        self.crops = [draw_crops(n, data.pad, flip, stream(seed, "base", self.epoch, v)) for v in range(self.views)]
        if not rule.crops:
            whole = torch.full((n, 2), data.pad)
            self.crops = [Crops(whole, drawn.flips) for drawn in self.crops]
        generator = stream(seed, "policy", self.epoch)
        self.draws = [rule.draw(n, generator) for _ in range(twins)]

    def drawn(self, v: int, rows: torch.Tensor) -> Drawn | None:
        """The draws of view `v` for the images `rows` (n,); None for a base view, which has only a crop."""
        return None if v < self.rule.base else self.draws[v - self.rule.base][rows]

    def parts(self) -> list[Part]:
        """The parts of this process, in order: the images of a step are spread over its passes and over the processes."""
        n, config = len(self.data.train_labels), self.config
        order = torch.randperm(n, generator=stream(config.draws_seed, "order", self.epoch))
        parts = []
        # Steps of nearly equal size, because batch norm fails on a last step of one image.
        for step, rows in enumerate(order.tensor_split(steps_an_epoch(n, config.batch))):
            for k, shared in enumerate(rows.tensor_split(config.accumulate)):
                mine = shared.tensor_split(self.size)[self.rank]
                weight = 1.0
                if len(mine) < len(rows):  # the share of its inputs, times the processes, over which gradients are averaged
                    weight = self.size * self._inputs(mine) / self._inputs(rows)
                parts.append(Part(mine, (self.epoch, step), (k, config.accumulate), weight))
        return parts

    def _inputs(self, rows):
        """The number of inputs of these images, up to a constant factor."""
        return self.rule.base * len(rows) + (self.views - self.rule.base) * int(self.has_twin[rows].sum())

    def batches(self) -> Iterator[Batch]:
        """The batches of this process: one for each pass of each step, in order."""
        parts = self.parts()
        at_once = max(1, BLOCK // self.config.batch)
        for first in range(0, len(parts), at_once):
            yield from self._made(parts[first : first + at_once])

    @staticmethod
    def batches_of(epochs: list["EpochViews"]) -> list[list[Batch]]:
        """For each of several epochs of one configuration, its batches; the views of all are made at once."""
        parts = [each.parts() for each in epochs]
        made = _made_at_once(list(zip(epochs, parts, strict=True)))
        return [[next(made) for _ in own] for own in parts]

    def batch(self, rows: torch.Tensor, step: int = 0) -> Batch:
        """The Batch of the images `rows` (n,), row numbers on the CPU; step: its number in the epoch.

        B is views * n, or less where only a share of the images has twins.
        """
        return next(self._made([Part(rows, (self.epoch, step))]))

    def _owners(self, part):
        """For each view, the rows of the images of the part that have it."""
        return [part.rows if v < self.rule.base else part.rows[self.has_twin[part.rows]] for v in range(self.views)]

    def _made(self, parts):
        return _made_at_once([(self, parts)])

    def _batch(self, owners, views, labels, part):
        turns = self.rule.turns
        inputs = normalise(self.rule.turned(views), self.data.mean, self.data.std)
        labels = labels.repeat(turns, *[1] * (labels.ndim - 1))
        owners = owners * turns
        return Batch(inputs, labels, torch.cat(owners), tuple(map(len, owners)), part.step, part.of, part.weight)

    def _view(self, rows, draws, crops, crops_of_partners):
        """A view of the images `rows`, and its labels: (n,), or (n, classes) where the rule mixes, also of base views."""
        rule = self.rule
        labels, images = self._labels(rows), self._images(rows, draws, crops)
        if not rule.mixes:
            return images, labels
        labels = F.one_hot(labels, self.data.classes).float()
        if draws is None:
            return images, labels
        partners = rule.partners_of(draws)
        mixed = rule.apply(images, draws, self._images(partners, None, crops_of_partners))
        share = rule.shares(draws, *images.shape[2:]).to(labels.device)[:, None]
        return mixed, share * labels + (1 - share) * F.one_hot(self._labels(partners), self.data.classes)

    def _labels(self, rows):
        return self.data.train_labels[rows.to(self.data.train_labels.device, non_blocking=True)]

    def _images(self, rows, draws, crops):
        """The images `rows`, cropped by `crops` and, by `draws`, augmented before or after the crop."""
        images = self.data.train_images.index_select(0, rows.to(self.data.train_images.device, non_blocking=True))
        applies = draws is not None and not self.rule.mixes  # mixing comes after the crop
        if applies and self.config.jda == "after crop":
            return self.rule.apply(crop_and_flip(images, crops, self.data.pad), draws)
        return crop_and_flip(self.rule.apply(images, draws) if applies else images, crops, self.data.pad)


def _made_at_once(epochs):
    """The batches of [(EpochViews, some of its parts), ...], in order.

    Crops and ops take the images of all parts at once: on few images an op is all overhead.
    """
    first, parts = epochs[0][0], [part for _, own in epochs for part in own]
    owners = [[views._owners(part) for part in own] for views, own in epochs]
    made = []
    for v in range(first.views):
        rows = [torch.cat([part[v] for part in own]) for own in owners]  # one tensor an epoch
        every = [(views, mine, views.drawn(v, mine)) for (views, _), mine in zip(epochs, rows, strict=True)]
        crops = joined([views.crops[v][mine] for views, mine, _ in every])
        draws = None if every[0][2] is None else joined([drawn for *_, drawn in every])
        theirs = None
        if draws is not None and first.rule.mixes:
            theirs = joined([views.crops[v][first.rule.partners_of(drawn)] for views, _, drawn in every])
        images, labels = first._view(torch.cat(rows), draws, crops, theirs)
        sizes = [len(part[v]) for own in owners for part in own]
        made.append(list(zip(images.split(sizes), labels.split(sizes), strict=True)))
    rows = [part for own in owners for part in own]
    for k, part in enumerate(parts):
        images, labels = zip(*(view[k] for view in made), strict=True)
        yield first._batch(rows[k], torch.cat(images), torch.cat(labels), part)


class Ahead:
    """The batches of a training, epoch by epoch. Where an epoch has few images, the views of several are made at once.

    make: makes the EpochViews of an epoch. images: of an epoch. epochs: of the training.
    """

    def __init__(self, make: Callable[[int], EpochViews], images: int, epochs: int):
        self.make, self.epochs, self.ready = make, epochs, {}
        self.at_once = BLOCK // images

    def batches(self, epoch: int) -> Iterable[Batch]:
        """The batches of an epoch, counted from 0."""
        if self.at_once < 2:
            return self.make(epoch).batches()
        if epoch not in self.ready:
            numbers = range(epoch, min(epoch + self.at_once, self.epochs))
            made = EpochViews.batches_of([self.make(number) for number in numbers])
            self.ready = dict(zip(numbers, made, strict=True))
        return self.ready.pop(epoch)
