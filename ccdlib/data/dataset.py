"""What every data set has, wherever its images are, and stratified subsets of it."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Self

import torch

from ccdlib.base.registry import CcdError
from ccdlib.base.streams import stream

SPLITS = ("train", "test")
ARRAYS = tuple(f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels"))


class Dataset:
    """The contract of Data (images in memory) and Images (images in files), which are frozen dataclasses.

    name, class_names. train_labels (N,), test_labels (M,): int64. mean, std: by which channels are normalised. flip: whether
    the base view flips. fingerprint: a hash of the content. in_files: whether images are decoded while a network trains.
    channels: 1 (grey) or 3 (RGB). shape: (C, H, W) of what the networks see.
    """

    name: str
    class_names: tuple[str, ...]
    train_labels: torch.Tensor
    test_labels: torch.Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    fingerprint: str
    in_files = False
    channels: int
    shape: tuple[int, int, int]

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def facts(self) -> dict:
        """What of the data shapes a training: its content, and how images are cropped, flipped and normalised."""
        raise NotImplementedError

    def to(self, device: torch.device | str) -> Self:
        """The same data with whatever of it is in memory on `device`."""
        raise NotImplementedError

    def with_statistics(self, name: str, mean: tuple, std: tuple) -> Self:
        """The same data, normalised by the statistics `name`: CcdError where that cannot be."""
        raise NotImplementedError

    def chosen(self, rows: torch.Tensor) -> Self:
        """The same data with the training images in `rows` (CPU row numbers); test images stay."""
        raise NotImplementedError

    def few(self, n: int) -> Self:
        """The same data with its first n training images, for a look or a timing; test images stay."""
        return self.chosen(torch.arange(min(n, len(self.train_labels))))

    def subset(self, amount: int | float, seed: int = 0) -> Self:
        """The same data with `amount` training images, drawn stratified by class, repeatable by `seed`.

        amount: a count (int), or a fraction (float in 0..1] of each class. Larger subsets of one seed contain the
        smaller ones. Test images stay. Errors: CcdError when there are too few images, or a class would be left empty.
        """
        return self.chosen(stratified(self.train_labels.cpu(), amount, seed, self.classes))

    def tests(self, rows: torch.Tensor) -> torch.Tensor:
        """Test images (n, C, H, W) uint8 of the given rows."""
        raise NotImplementedError

    def in_parts(self, rows: torch.Tensor, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(images, labels) of the test rows, some at a time."""
        raise NotImplementedError

    def check_files(self, whole: bool | None = None) -> None:
        """Raise CcdError for files that are no images; nothing to do where all images were read when the data was loaded."""

    def examples(self, n: int) -> list[int]:
        """Rows of the test set: the first image of each of the first n classes that it has, fewer where there are fewer."""
        return [int((self.test_labels == c).nonzero()[0]) for c in self.test_labels.unique()[:n]]

    def pictures(self, n: int) -> torch.Tensor:
        """Images to look at: uint8 (n, C, H, W), those of examples(n), larger where the data has larger copies of them."""
        return self.tests(torch.tensor(self.examples(n)))

    def _replaced(self, **fields) -> Self:
        return replace(self, **fields)


def stratified(labels: torch.Tensor, amount: int | float, seed: int, classes: int) -> torch.Tensor:
    """Sorted row numbers of a stratified subset of `labels` (N,); see Dataset.subset."""
    if isinstance(amount, bool) or not isinstance(amount, (int, float)):
        raise CcdError(f"subset {amount!r}: give a whole number of images, or a fraction such as 0.25")
    if isinstance(amount, float):
        if not 0 < amount <= 1:
            raise CcdError(f"subset fraction {amount}: allowed are fractions above 0 up to 1; a count is a whole number")
        amount = round(amount * len(labels))
    if amount > len(labels):
        raise CcdError(f"{amount} training images were asked for; the data has {len(labels)}. Ask for at most that many")
    if amount < classes:
        raise CcdError(f"{amount} training images leave some of the {classes} classes empty; ask for at least {classes}")
    order = torch.randperm(len(labels), generator=stream(seed, "subset"))
    onehot = torch.nn.functional.one_hot(labels[order], classes)
    rank = (onehot.cumsum(0) * onehot).sum(1) - 1  # the how-many-eth of its class each image is, from 0
    share = rank / onehot.sum(0)[labels[order]]
    # Sorted by share, every prefix is stratified: first one image of each class, then all classes at the same pace.
    return order[share.argsort(stable=True)[:amount]].sort().values
