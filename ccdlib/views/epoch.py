"""The epoch as batches of views: images in memory. An image walks from here to the step and the loss."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from ccdlib.base.streams import stream
from ccdlib.data.dataset import Dataset
from ccdlib.views.crops import Crops, crop_and_flip, draw_crops, normalise, rotations
from ccdlib.views.draws import PerImage


class Batch(NamedTuple):
    """What a step sees: B inputs of N images, views first."""

    inputs: torch.Tensor  # (B, C, H, W) float32, normalised
    labels: torch.Tensor  # (B,), or mixed labels (B, classes)
    images: torch.Tensor  # (B,) rows of the training set, on the CPU
    sizes: tuple[int, ...]  # how many inputs each view has; the first, the originals, has N
    step: tuple[int, int] = (0, 0)  # epoch and step in it, for random numbers
    of: tuple[int, int] = (0, 1)  # which pass of how many this is, where the images of a step are spread over several
    weight: float = 1.0  # how much its loss counts in the step

    def turned(self):
        """The batch of a method that rotates: all inputs at 0, then at 90, 180 and 270 degrees; labels and images stay."""
        return self._replace(inputs=rotations(self.inputs))

    def kept(self, rows):
        """Only the inputs `rows`, the originals and some of the second view."""
        where = rows.cpu()
        first = self.sizes[0]
        return self._replace(
            inputs=self.inputs[rows], labels=self.labels[rows], images=self.images[where], sizes=(first, len(rows) - first)
        )


BLOCK = 256  # images whose views are made at once; the arrays of more leave the cache


class Part(NamedTuple):
    """What a process sees at once: rows of images (CPU row numbers), of which (epoch, step), which pass of how many the step
    has, and how much its loss counts there."""

    rows: torch.Tensor
    step: tuple[int, int]
    of: tuple[int, int] = (0, 1)
    weight: float = 1.0


def steps_an_epoch(images: int, batch: int) -> int:
    """Optimiser steps in an epoch of that many training images, at most `batch` of them a step."""
    return math.ceil(images / batch)


class EpochViews:
    """The views of one epoch: all draws made at its start, from streams that only seed, epoch and view name.

    Draws belong to images, not to positions in a batch, so arms of one seed share them whatever else differs: an arm with
    an augmented twin sees the same originals as an arm without, a larger p fires the same ops and more, the first of
    several twins is the twin of an arm with one, and a larger share gives twins to the same images and more.

    config: a RunConfig. rank, size: which of how many processes this is that train the run together; each sees its part.
    """

    def __init__(self, config: Any, data: Dataset, epoch: int, rank: int = 0, size: int = 1):
        self.config, self.data, self.epoch, self.rule = config, data, epoch, config.rule
        self.rank, self.size = rank, size
        n, twins = len(data.train_labels), config.twins * self.rule.candidates if self.rule.twins else 0
        self.views = self.rule.base + twins
        chance = torch.randperm(n, generator=stream(config.draws_seed, "share", epoch))
        self.has_twin = chance < round(config.share * n)  # (n,)
        self._draw(n, twins)

    def _draw(self, n, twins):
        data, seed = self.data, self.config.draws_seed
        flip = data.flip if self.config.flip is None else self.config.flip
        if self.rule.crops:
            self.crops = [draw_crops(n, data.pad, flip, stream(seed, "base", self.epoch, v)) for v in range(self.views)]
        else:
            self.crops = [Crops(torch.full((n, 2), data.pad), torch.zeros(n, dtype=torch.bool))] * self.views
        generator = stream(seed, "policy", self.epoch)
        self.draws = [self.rule.draw(n, generator) for _ in range(twins)]

    def drawn(self, v: int, rows: torch.Tensor) -> PerImage | None:
        """The draws of view v for the images in `rows`; None for a base view."""
        return None if v < self.rule.base else self.draws[v - self.rule.base][rows]

    def parts(self) -> list[Part]:
        """The parts of this process, in their order: a step's images are spread over its passes and the processes."""
        n, config = len(self.data.train_labels), self.config
        order = torch.randperm(n, generator=stream(config.draws_seed, "order", self.epoch))
        parts = []
        # Steps of nearly equal size: no last batch of one image, on which batch norm fails.
        for step, rows in enumerate(order.tensor_split(steps_an_epoch(n, config.batch))):
            for k, shared in enumerate(rows.tensor_split(config.accumulate)):
                mine = shared.tensor_split(self.size)[self.rank]
                weight = 1.0
                if len(mine) < len(rows):  # its share of the inputs; gradients are averaged over the processes
                    weight = self.size * self._inputs(mine) / self._inputs(rows)
                parts.append(Part(mine, (self.epoch, step), (k, config.accumulate), weight))
        return parts

    def _inputs(self, rows):
        """How many views these images have, up to a constant factor."""
        return self.rule.base * len(rows) + (self.views - self.rule.base) * int(self.has_twin[rows].sum())

    def batches(self) -> Iterator[Batch]:
        """The Batch of every step of the epoch, or of every pass of it, in their order."""
        parts = self.parts()
        at_once = max(1, BLOCK // self.config.batch)
        for first in range(0, len(parts), at_once):
            yield from self._made(parts[first : first + at_once])

    def batch(self, rows: torch.Tensor, step: int = 0) -> Batch:
        """The Batch of the images in `rows` (CPU row numbers), views first; B is views * len(rows), or fewer where only a
        share of the images has twins."""
        return next(self._made([Part(rows, (self.epoch, step))]))

    def _owners(self, part):
        """The rows of the images that have each view."""
        return [part.rows if v < self.rule.base else part.rows[self.has_twin[part.rows]] for v in range(self.views)]

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
        turns = self.rule.turns
        inputs = normalise(self.rule.turned(views), self.data.mean, self.data.std)
        labels = labels.repeat(turns, *[1] * (labels.ndim - 1))
        owners = owners * turns
        return Batch(inputs, labels, torch.cat(owners), tuple(map(len, owners)), part.step, part.of, part.weight)

    def _view(self, v, rows):
        """View v of the images in `rows`, and its labels: (n,), or (n, classes) of all views where some are mixed."""
        rule, draws = self.rule, self.drawn(v, rows)
        labels, images = self._labels(rows), self._images(v, rows, draws)
        if not rule.mixes:
            return images, labels
        labels = F.one_hot(labels, self.data.classes).float()
        if draws is None:
            return images, labels
        partners = rule.partners_of(draws)
        mixed = rule.apply(images, draws, self._images(v, partners, None))
        share = rule.shares(draws, *images.shape[2:]).to(labels.device)[:, None]
        return mixed, share * labels + (1 - share) * F.one_hot(self._labels(partners), self.data.classes)

    def _labels(self, rows):
        return self.data.train_labels[rows.to(self.data.train_labels.device, non_blocking=True)]

    def _images(self, v, rows, draws):
        """The images in `rows`, cropped as in view v and, by `draws`, augmented before or after that."""
        images = self.data.train_images.index_select(0, rows.to(self.data.train_images.device, non_blocking=True))
        crops, applies = self.crops[v][rows], draws is not None and not self.rule.mixes  # mixing comes after the crop
        if applies and self.config.jda == "after crop":
            return self.rule.apply(crop_and_flip(images, crops, self.data.pad), draws)
        return crop_and_flip(self.rule.apply(images, draws) if applies else images, crops, self.data.pad)
