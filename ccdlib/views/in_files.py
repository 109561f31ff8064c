"""The epoch as batches of views: images in files, decoded, cropped and augmented by workers, but for what comes after the crop."""

from collections.abc import Iterator
from typing import Any

import torch

from ccdlib.base.registry import CcdError
from ccdlib.base.streams import stream
from ccdlib.data.dataset import Dataset
from ccdlib.data.files import loaded, tensor
from ccdlib.views.draws import PerImage, joined
from ccdlib.views.epoch import Batch, EpochViews
from ccdlib.views.rules import VIEWS, ViewRule


class FileViews(EpochViews):
    """The views of one epoch of images that are in files.

    Every draw comes from a stream of its own for seed, epoch, view and image, so that it is the same whichever process or
    worker makes the view.
    """

    def _draw(self, n, twins):
        """Every image has its own streams here."""

    def drawn(self, v: int, rows: torch.Tensor) -> PerImage | None:
        """The draws of view v for the images in `rows`; None for a base view."""
        if v < self.rule.base:
            return None
        seed = self.config.draws_seed
        draws = [self.rule.draw(1, stream(seed, "policy", self.epoch, v, int(row))) for row in rows]
        return joined(draws)

    def batches(self) -> Iterator[Batch]:
        """The Batch of every step of the epoch, or of every pass of it, in their order."""
        yield from self._made(self.parts())

    def _made(self, parts):
        data, labels = self.data, self.data.train_labels
        images = _OfFile(self.config, data.to("cpu"), self.epoch, self.has_twin, self.views, self.drawn)
        for part, by_view in zip(
            parts, loaded(images, [part.rows.tolist() for part in parts], together, data.workers), strict=True
        ):
            owners, images = self._owners(part), []
            for views, draws in by_view:  # fewer than self.views where none of the images has a twin
                here = views.to(labels.device, non_blocking=True)
                images.append(here if draws is None else self.rule.apply(here, draws))
            rows = torch.cat(owners[: len(images)]).to(labels.device, non_blocking=True)
            yield self._batch(owners, torch.cat(images), labels[rows], part)


class _OfFile:
    """What a worker makes of a training image in an epoch: its views (3, side, side) uint8, and what is still to be applied."""

    def __init__(self, config, data, epoch, has_twin, views, drawn):
        self.config, self.data, self.epoch, self.has_twin, self.views = config, data, epoch, has_twin, views
        self.rule, self.drawn = config.rule, drawn

    def __getitem__(self, row):
        """[(view, its draws for the device, or None), ...] of the image in `row`; the original first."""
        image, seen = self.data.read(self.data.train_files[row]), []
        for v in range(self.views if self.has_twin[row] else self.rule.base):
            whole, draws = image, self.drawn(v, [row])
            if draws is not None and self.config.jda == "before crop":
                whole, draws = self.rule.apply_to(image, draws), None
            seen.append((self._base(whole, v, row), draws))
        return seen

    def _base(self, image, v, row):
        from ccdlib.base.vision import torchvision  # it takes a second to import

        crop, functional = torchvision.transforms.RandomResizedCrop, torchvision.transforms.functional
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.default_generator.manual_seed(stream(self.config.draws_seed, "base", self.epoch, v, row).initial_seed())
            box = crop.get_params(image, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
            flipped = torch.rand(()) < 0.5 and self.config.flip is not False
        view = functional.resized_crop(image, *box, (self.data.side, self.data.side))
        return tensor(functional.hflip(view) if flipped else view)


def together(images: list) -> list:
    """What _OfFile made of several images, by view: [(views (n, 3, side, side), draws or None), ...]."""
    by_view = []
    for v in range(max(map(len, images))):
        views, draws = zip(*(seen[v] for seen in images if len(seen) > v), strict=True)
        by_view.append((torch.stack(views), None if draws[0] is None else joined(draws)))
    return by_view


def epoch_views(config: Any, data: Dataset, epoch: int, rank: int = 0, size: int = 1) -> EpochViews:
    """The views of an epoch (from 0) of a data set, in memory or in files; see EpochViews."""
    return (FileViews if data.in_files else EpochViews)(config, data, epoch, rank, size)


def check_views(config: Any) -> None:
    """Raise CcdError for views that cannot be made of images that are still in their files."""

    def possible(rule: ViewRule, jda: str) -> bool:
        return rule.crops and not rule.mixes and (not rule.twins or rule.whole_images or jda == "after crop")

    if not possible(config.rule, config.jda):
        before = [name for name, rule in VIEWS.items() if possible(rule, "before crop")]
        after = [name for name, rule in VIEWS.items() if possible(rule, "after crop") and name not in before]
        raise CcdError(
            f"views {config.views!r}, jda {config.jda!r} with data {config.data!r}: images in files have many sizes. Allowed "
            f"views: {', '.join(before)}; {', '.join(after)} with jda 'after crop'"
        )
