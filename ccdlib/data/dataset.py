"""The contract of every data set, whether its images are in memory or in files, and stratified subsets."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Self

import numpy as np
import torch

from ccdlib.base.registry import CcdError
from ccdlib.base.streams import stream

SPLITS = ("train", "test")
ARRAYS = tuple(f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels"))


class Dataset:
    """The contract of Data (images in memory) and Images (images in files), which are frozen dataclasses."""

    name: str
    class_names: tuple[str, ...]
    train_labels: torch.Tensor  # (N,) int64
    test_labels: torch.Tensor  # (M,) int64
    mean: tuple[float, ...]  # by channel, of values in 0..1; with `std` it normalises the images
    std: tuple[float, ...]
    flip: bool  # whether base views are flipped left to right
    fingerprint: str  # a hash of the content
    in_files: bool = False  # whether images are decoded while a network trains
    boxed: bool = False  # whether images have boxes, for object detection
    channels: int  # 1 (grey) or 3 (RGB)
    shape: tuple[int, int, int]  # (C, H, W) of the views that networks see

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def facts(self) -> dict:
        """Everything about the data that shapes a training, and so names a run: content, crop, flip and normalisation."""
        raise NotImplementedError

    def to(self, device: torch.device | str) -> Self:
        """The same data with its tensors on `device`."""
        raise NotImplementedError

    def with_statistics(self, name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> Self:
        """The same data, normalised by another `mean` and `std`; name: theirs, for messages.

        Errors: CcdError where they do not fit the images.
        """
        raise NotImplementedError

    def chosen(self, rows: torch.Tensor) -> Self:
        """The same data with only the training images `rows` (n,), row numbers on the CPU; test images stay."""
        raise NotImplementedError

    def few(self, n: int) -> Self:
        """The same data with its first n training images, for a forecast or a figure; test images stay."""
        return self.chosen(torch.arange(min(n, len(self.train_labels))))

    def subset(self, amount: int | float, seed: int = 0) -> Self:
        """The same data with `amount` training images, drawn by `seed`, stratified by class; test images stay.

        amount: a count (int), or a fraction of the images (float, above 0 up to 1). Larger subsets of one seed contain the
        smaller ones. Errors: CcdError for another amount, for more images than there are, and for fewer than classes.
        """
        return self.chosen(stratified(self.train_labels.cpu(), amount, seed, self.classes))

    def tests(self, rows: torch.Tensor) -> torch.Tensor:
        """The test images `rows` (n,), as (n, C, H, W) uint8."""
        raise NotImplementedError

    def in_parts(self, rows: torch.Tensor, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Pairs (images, labels) of the test images `rows`; `size` at a time, where they have to be decoded."""
        raise NotImplementedError

    def check_files(self, whole: bool | None = None) -> None:
        """Raise CcdError for files that are no images; images in memory were all read when the data was loaded."""

    def counts(self) -> torch.Tensor:
        """How many training images, or boxes where images have boxes, there are of each class: (classes,)."""
        return self.train_labels.bincount(minlength=self.classes)

    def examples(self, n: int) -> list[int]:
        """Test rows for figures: the first image of each of the first n classes that have test images."""
        return [int((self.test_labels == c).nonzero()[0]) for c in self.test_labels.unique()[:n]]

    def pictures(self, n: int) -> torch.Tensor:
        """Images for figures: examples(n) as (n, C, H, W) uint8, larger where the data has larger copies of them."""
        return self.tests(torch.tensor(self.examples(n)))

    def _replaced(self, **fields) -> Self:
        return replace(self, **fields)


def content_of(arrays: Mapping[str, np.ndarray]) -> str:
    """The SHA-256 of the shapes and values of the four ARRAYS, in hexadecimal digits."""
    digest = hashlib.sha256()
    for key in ARRAYS:
        digest.update(repr((key, arrays[key].shape)).encode())
        digest.update(np.ascontiguousarray(arrays[key]).data)
    return digest.hexdigest()


def stratified(labels: torch.Tensor, amount: int | float, seed: int, classes: int) -> torch.Tensor:
    """Sorted row numbers of a stratified subset of `labels` (N,) int64; arguments and errors as in Dataset.subset."""
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
    rank = (onehot.cumsum(0) * onehot).sum(1) - 1  # the rank of each image within its class, from 0
    share = rank / onehot.sum(0)[labels[order]]
    # Sorted by share, every prefix is stratified: one image of each class comes first, then all classes at the same pace.
    return order[share.argsort(stable=True)[:amount]].sort().values
