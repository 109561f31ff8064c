"""An epoch as batches of views, of images in files: workers decode and crop them, and apply what comes before the crop."""

from collections.abc import Iterator
from typing import Any

import torch
from PIL.Image import Image

from ccdlib.base.registry import CcdError
from ccdlib.base.streams import stream
from ccdlib.data.dataset import Dataset
from ccdlib.data.files import loaded, tensor
from ccdlib.views.boxed import BoxViews
from ccdlib.views.draws import Drawn, joined
from ccdlib.views.epoch import BLOCK, Ahead, Batch, EpochViews
from ccdlib.views.rules import VIEWS, ViewRule


class FileViews(EpochViews):
    """The views of one epoch of images in files.

    Every draw has its own stream, named by seed, epoch, view and image, so that it is the same in whichever process or worker
    the view is made.
    """

    def _draw(self, n, twins):
        """Nothing is drawn at the start of the epoch, because every image has its own streams."""

    def drawn(self, v: int, rows: torch.Tensor) -> Drawn | None:
        """The draws of view `v` for the images `rows` (n,); None for a base view."""
        if v < self.rule.base:
            return None
        seed = self.config.draws_seed
        draws = [self.rule.draw(1, stream(seed, "policy", self.epoch, v, int(row))) for row in rows]
        return joined(draws)

    def batches(self) -> Iterator[Batch]:
        """The batches of this process: one for each pass of each step, in order."""
        yield from self._made(self.parts())

    def _made(self, parts):
        data, labels = self.data, self.data.train_labels
        images = _OfFile(self.config, data.to("cpu"), self.epoch, self.has_twin, self.views, self.drawn)
        for part, by_view in zip(
            parts, loaded(images, [part.rows.tolist() for part in parts], together, data.workers), strict=True
        ):
            owners, images = self._owners(part), []
            for views, draws in by_view:  # only the base views where none of the images has a twin
                here = views.to(labels.device, non_blocking=True)
                images.append(here if draws is None else self.rule.apply(here, draws))
            rows = torch.cat(owners[: len(images)]).to(labels.device, non_blocking=True)
            yield self._batch(owners, torch.cat(images), labels[rows], part)


class _OfFile:
    """The training images of an epoch as workers make them: by row, the views and the draws that are still to be applied."""

    def __init__(self, config, data, epoch, has_twin, views, drawn):
        self.config, self.data, self.epoch, self.has_twin, self.views = config, data, epoch, has_twin, views
        self.rule, self.drawn = config.rule, drawn

    def __getitem__(self, row):
        """[(view (3, side, side) uint8, draws to apply on the device, or None), ...] of the image `row`; the original first."""
        image, seen = self.data.read(self.data.train_files[row]), []
        for v in range(self.views if self.has_twin[row] else self.rule.base):
            whole, draws = image, self.drawn(v, [row])
            if draws is not None and self.config.jda == "before crop":
                whole, draws = self.rule.apply_to(image, draws), None
            seen.append((self._base(whole, v, row), draws))
        return seen

    def _base(self, image, v, row):
        from ccdlib.base.vision import torchvision

        box, flipped = crop_box(self.config, image, self.epoch, v, row)
        functional = torchvision.transforms.functional
        view = functional.resized_crop(image, *box, (self.data.side, self.data.side))
        return tensor(functional.hflip(view) if flipped else view)


def crop_box(config: Any, image: Image, epoch: int, v: int, row: int) -> tuple[tuple[int, int, int, int], bool]:
    """The part of a whole image that view `v` of the training image `row` shows in an epoch, and whether it is mirrored.

    The part is (top, left, height, width) in pixels, 8 to 100 % of the area. config: a RunConfig.
    """
    from ccdlib.base.vision import torchvision

    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
        torch.default_generator.manual_seed(stream(config.draws_seed, "base", epoch, v, row).initial_seed())
        box = torchvision.transforms.RandomResizedCrop.get_params(image, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
        return tuple(box), bool(torch.rand(()) < 0.5 and config.flip is not False)


def together(images: list[list[tuple]]) -> list[tuple[torch.Tensor, Drawn | None]]:
    """The views of several images, as a worker made them, by view: [(views (n, 3, side, side), draws or None), ...]."""
    by_view = []
    for v in range(max(map(len, images))):
        views, draws = zip(*(seen[v] for seen in images if len(seen) > v), strict=True)
        by_view.append((torch.stack(views), None if draws[0] is None else joined(draws)))
    return by_view


def views_of(config: Any, data: Dataset, epochs: int, rank: int = 0, size: int = 1) -> Ahead:
    """The batches of a training of so many `epochs`; the other arguments as in epoch_views."""
    # Images in files are decoded by workers, an epoch at a time.
    images = BLOCK if data.in_files else len(data.train_labels)
    return Ahead(lambda epoch: epoch_views(config, data, epoch, rank, size), images, epochs)


def epoch_views(config: Any, data: Dataset, epoch: int, rank: int = 0, size: int = 1) -> EpochViews:
    """The views of an epoch of a data set in memory or in files, with or without boxes; arguments as in EpochViews."""
    kind = FileViews if data.in_files else BoxViews if data.boxed else EpochViews
    return kind(config, data, epoch, rank, size)


def check_views(config: Any) -> None:
    """Raise CcdError where the views of `config`, a RunConfig, cannot be made of images in files, which have many sizes."""

    def possible(rule: ViewRule, jda: str) -> bool:
        return rule.crops and not rule.mixes and (not rule.twins or rule.whole_images or jda == "after crop")

    if not possible(config.rule, config.jda):
        before = [name for name, rule in VIEWS.items() if possible(rule, "before crop")]
        after = [name for name, rule in VIEWS.items() if possible(rule, "after crop") and name not in before]
        raise CcdError(
            f"views {config.views!r}, jda {config.jda!r} with data {config.data!r}: images in files have many sizes. Allowed "
            f"views: {', '.join(before)}; {', '.join(after)} with jda 'after crop'"
        )
