"""Images in memory, as uint8 tensors on the training device."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from ccdlib.base.registry import CcdError
from ccdlib.data.dataset import ARRAYS, Dataset


@dataclass(frozen=True)
class Data(Dataset):
    """A data set in memory.

    Images are uint8 (N, C, H, W), labels int64 (N,). `mean` and `std` (per channel, of the whole training set) are what
    normalise() takes; `pad` and `flip` are the base crop and flip that suit the images. `fingerprint` is a hash of
    every pixel and label, so that a stored run knows exactly what it was trained on. larger: a function that returns larger
    copies, uint8 (classes, C, H, W), of each class's first test image.
    """

    name: str
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int
    flip: bool
    fingerprint: str
    larger: Callable | None = None

    @property
    def facts(self) -> dict:
        """What of the data shapes a training: every pixel and label, and how the images are cropped, flipped, normalised."""
        return {"sha256": self.fingerprint, "mean": self.mean, "std": self.std, "pad": self.pad, "flip": self.flip}

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self.train_images.shape[1]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return tuple(self.train_images.shape[1:])

    def with_statistics(self, name, mean, std):
        """The same data, normalised by the statistics `name`; CcdError for those of other channels."""
        if len(mean) != self.channels:
            raise CcdError(
                f"statistics {name!r} are of {len(mean)} channels, the images of {self.name} have {self.channels}; give 'own'"
            )
        return self._replaced(mean=mean, std=std)

    def chosen(self, rows):
        """The same data with the training images in `rows`."""
        rows = rows.to(self.train_images.device)
        return self._replaced(train_images=self.train_images[rows], train_labels=self.train_labels[rows])

    def tests(self, rows):
        """Test images (n, C, H, W) uint8 of the given rows."""
        return self.test_images[rows]

    def in_parts(self, rows, size):
        """(images, labels) of the test rows, here all at once."""
        rows = rows.to(self.test_labels.device)
        yield self.test_images[rows], self.test_labels[rows]

    def pictures(self, n):
        """Images to look at; see Dataset.pictures."""
        if not self.larger:
            return super().pictures(n)
        return torch.from_numpy(self.larger()[self.test_labels[self.examples(n)].cpu().numpy()])

    def to(self, device):
        """The same data on `device`."""
        return self._replaced(**{name: getattr(self, name).to(device) for name in ARRAYS})


def in_memory(
    name: str,
    arrays: Mapping[str, np.ndarray],
    class_names: tuple[str, ...],
    flip: bool = True,
    statistics: tuple | None = None,
    larger: Callable | None = None,
) -> Data:
    """The Data of the four ARRAYS: images uint8 (N, C, H, W), labels int64 (N,).

    statistics: (mean, std) where the literature fixes them; None: those of the training images.
    """
    tensors = {key: torch.from_numpy(np.ascontiguousarray(arrays[key])) for key in ARRAYS}
    mean, std = statistics or _statistics(tensors["train_images"])
    pad = tensors["train_images"].shape[2] // 8
    how = {"mean": mean, "std": std, "pad": pad, "flip": flip, "larger": larger}
    return Data(name, **tensors, class_names=class_names, fingerprint=_fingerprint(arrays), **how)


def _fingerprint(arrays):
    digest = hashlib.sha256()
    for key in ARRAYS:
        digest.update(repr((key, arrays[key].shape)).encode())
        digest.update(np.ascontiguousarray(arrays[key]).data)
    return digest.hexdigest()


def _statistics(images):
    """Mean and standard deviation per channel, of values in 0..1, to four digits as the literature gives them."""
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in range(images.shape[1]):
        share = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        share /= share.sum()
        middle = (share * values).sum()
        mean.append(round(middle.item(), 4))
        std.append(round((share * (values - middle) ** 2).sum().sqrt().item(), 4) or 1.0)  # a constant channel stays as it is
    return tuple(mean), tuple(std)
