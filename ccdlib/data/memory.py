"""Images in memory, as uint8 tensors on the training device."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from ccdlib.base.registry import CcdError
from ccdlib.data.dataset import ARRAYS, Dataset, content_of


@dataclass(frozen=True)
class Data(Dataset):
    """A data set in memory."""

    name: str
    train_images: torch.Tensor  # (N, C, H, W) uint8
    train_labels: torch.Tensor  # (N,) int64
    test_images: torch.Tensor
    test_labels: torch.Tensor
    class_names: tuple[str, ...]
    mean: tuple[float, ...]  # by channel, of values in 0..1; a subset keeps those of the whole training set
    std: tuple[float, ...]
    pad: int  # pixels of zeros around an image from which base views are cropped
    flip: bool  # whether base views are flipped left to right
    fingerprint: str  # a hash of every pixel and label of the whole data set
    larger: Callable[[], np.ndarray] | None = None  # makes larger copies, (classes, C, H, W) uint8, of pictures()

    @property
    def facts(self) -> dict:
        """Everything about the data that shapes a training: pixels and labels, crop, flip and normalisation."""
        return {"sha256": self.fingerprint, "mean": self.mean, "std": self.std, "pad": self.pad, "flip": self.flip}

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.train_images.shape[1]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return tuple(self.train_images.shape[1:])

    def with_statistics(self, name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> Self:
        """The same data, normalised by another `mean` and `std`. Errors: CcdError for those of another number of channels."""
        if len(mean) != self.channels:
            raise CcdError(
                f"statistics {name!r} have {len(mean)} channels, the images of {self.name} have {self.channels}; give 'own'"
            )
        return self._replaced(mean=mean, std=std)

    def chosen(self, rows: torch.Tensor) -> Self:
        """The same data with only the training images `rows` (n,)."""
        rows = rows.to(self.train_images.device)
        return self._replaced(train_images=self.train_images[rows], train_labels=self.train_labels[rows])

    def tests(self, rows: torch.Tensor) -> torch.Tensor:
        """The test images `rows` (n,), as (n, C, H, W) uint8."""
        return self.test_images[rows]

    def in_parts(self, rows: torch.Tensor, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One pair (images, labels) of all test images `rows`, whatever `size` is."""
        rows = rows.to(self.test_labels.device)
        yield self.test_images[rows], self.test_labels[rows]

    def pictures(self, n: int) -> torch.Tensor:
        """Images for figures, larger copies where there are some; see Dataset.pictures."""
        if not self.larger:
            return super().pictures(n)
        return torch.from_numpy(self.larger()[self.test_labels[self.examples(n)].cpu().numpy()])

    def to(self, device: torch.device | str) -> Self:
        """The same data with images and labels on `device`."""
        return self._replaced(**{name: getattr(self, name).to(device) for name in ARRAYS})


def in_memory(
    name: str,
    arrays: Mapping[str, np.ndarray],
    class_names: tuple[str, ...],
    flip: bool = True,
    statistics: tuple | None = None,
    larger: Callable[[], np.ndarray] | None = None,
) -> Data:
    """The Data of the four ARRAYS: images uint8 (N, C, H, W), labels int64 (N,). Crops are padded by an eighth of the height.

    statistics: (mean, std) by channel where the literature fixes them; None: those of the training images. flip, larger: see
    Data.
    """
    tensors = {key: torch.from_numpy(np.ascontiguousarray(arrays[key])) for key in ARRAYS}
    mean, std = statistics or _statistics(tensors["train_images"])
    pad = tensors["train_images"].shape[2] // 8
    how = {"mean": mean, "std": std, "pad": pad, "flip": flip, "larger": larger}
    return Data(name, **tensors, class_names=class_names, fingerprint=content_of(arrays), **how)


def _statistics(images):
    """Mean and standard deviation of each channel, of values in 0..1, to four digits as in the literature."""
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in range(images.shape[1]):
        share = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        share /= share.sum()
        middle = (share * values).sum()
        mean.append(round(middle.item(), 4))
        std.append(round((share * (values - middle) ** 2).sum().sqrt().item(), 4) or 1.0)  # a constant channel is not scaled
    return tuple(mean), tuple(std)
