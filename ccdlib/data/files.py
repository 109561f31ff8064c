"""Images that stay in their files: an image folder laid out like ImageNet's, decoded by workers while a network trains."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ccdlib.base import paths
from ccdlib.base.devices import cores
from ccdlib.base.files import write_whole
from ccdlib.base.registry import CcdError
from ccdlib.data.dataset import Dataset
from ccdlib.data.folders import check_side, class_folders, read_rgb

FEW = 256  # images; fewer are decoded sooner than a worker starts
DECODED = 5000  # files; so many, or fewer, are all decoded before a training begins
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as torchvision's networks take them


@dataclass(frozen=True)
class Images(Dataset):
    """A data set whose images stay in their files, as load_data("imagenet:PATH") gives it; see Data for one in memory.

    A training view is a RandomResizedCrop to side x side and a flip, with torchvision's settings. A test image has its shorter
    side resized to side * 256 / 224, and its centre cropped.
    """

    name: str
    root: Path
    train_files: np.ndarray  # (N,) paths relative to `root`
    train_labels: torch.Tensor  # (N,) int64
    test_files: np.ndarray
    test_labels: torch.Tensor
    class_names: tuple[str, ...]
    side: int  # pixels
    fingerprint: str  # a hash of the names and sizes of all files, because reading ImageNet takes an hour
    workers: int | None = None  # processes that decode images; None: see loaded()
    mean = MEAN
    std = STD
    flip = True
    channels = 3
    in_files = True

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the views that networks see."""
        return 3, self.side, self.side

    @property
    def facts(self) -> dict:
        """Everything about the data that shapes a training; the names and sizes of the files stand for their content."""
        return {"names and sizes": self.fingerprint, "side": self.side, "crop": "resized", "mean": self.mean, "std": self.std}

    def to(self, device: torch.device | str) -> Self:
        """The same data with its labels on `device`; the images are moved there batch by batch."""
        return self._replaced(train_labels=self.train_labels.to(device), test_labels=self.test_labels.to(device))

    def with_statistics(self, name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> NoReturn:
        """Raise CcdError: images in files are always normalised by ImageNet's statistics."""
        raise CcdError(f"statistics = {name!r} for {self.name}: images in files use ImageNet's statistics; give 'own'")

    def chosen(self, rows: torch.Tensor) -> Self:
        """The same data with only the training images `rows` (n,), row numbers on the CPU."""
        return self._replaced(train_files=self.train_files[rows.numpy()], train_labels=self.train_labels[rows])

    def read(self, file: str) -> Image.Image:
        """The Pillow image, RGB, of a path relative to `root`. Errors: CcdError for a file that is no image."""
        return read_rgb(self.root / file)

    def check_files(self, whole: bool | None = None) -> None:
        """Raise CcdError for files that are no images, with their number and the first of them.

        whole: True decodes each file; False reads its header only, which takes minutes for ImageNet and not hours; None decodes
        where there are at most DECODED files. Files that passed are not read again until they change. A terminal shows a bar.
        """
        from tqdm import tqdm

        files = np.concatenate([self.train_files, self.test_files])
        whole = len(files) <= DECODED if whole is None else whole
        facts = self._state(files)
        marks = [_kept(f"{facts} {how}") for how in ("headers", "decoded")]
        if marks[1].exists() or (marks[0].exists() and not whole):
            return
        look = self.read if whole else self._look
        with ThreadPoolExecutor(cores()) as pool:
            looked = pool.map(lambda file: _mistake(look, file), files)
            shown = tqdm(looked, f"checking {self.name}", len(files), unit="file", leave=False, disable=None)
            broken = [error for error in shown if error]
        if broken:
            raise CcdError(f"{len(broken)} of {len(files)} files cannot be read as images. The first: {broken[0]}")
        with suppress(CcdError):  # without the mark (a full disk, for example) they are checked again
            write_whole(marks[whole], "")

    def _state(self, files):
        """A text that changes when one of these files does, from their paths and times of change.

        For many files the times are those of their folders: on a network's disk, to ask for each file's takes minutes.
        """
        asked = sorted(files) if len(files) <= DECODED else sorted({os.path.dirname(file) for file in files})
        times = [(self.root / place).stat().st_mtime_ns for place in asked if (self.root / place).exists()]
        return str((str(self.root.resolve()), sorted(files), times))

    def _look(self, file):
        with Image.open(self.root / file):
            pass

    def tests(self, rows: torch.Tensor) -> torch.Tensor:
        """The test images `rows` (n,), as (n, 3, side, side) uint8."""
        return torch.stack([self._centre(self.read(file)) for file in self.test_files[torch.as_tensor(rows).numpy()]])

    def _centre(self, image):
        from ccdlib.base.vision import torchvision

        functional = torchvision.transforms.functional
        return tensor(functional.center_crop(functional.resize(image, round(self.side * 256 / 224)), self.side))

    def in_parts(self, rows: torch.Tensor, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Pairs (images, labels) of the test images `rows`, `size` at a time, decoded by workers."""
        loader = loaded(_Tests(self.to("cpu")), [part.tolist() for part in rows.split(size)], torch.stack, self.workers)
        for part, images in zip(rows.split(size), loader, strict=True):
            yield images, self.test_labels[part.to(self.test_labels.device)]


def _mistake(look, file):
    """The error, or a message, of a file for which `look` raises something; else None."""
    try:
        look(file)
    except Exception as error:  # Pillow raises many kinds of errors
        return error if isinstance(error, CcdError) else f"{file}: {error}"


def tensor(image: Image.Image) -> torch.Tensor:
    """A Pillow image, RGB, as (3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def pillow(image: torch.Tensor) -> Image.Image:
    """An image (3, H, W) uint8 as a Pillow image."""
    return Image.fromarray(image.permute(1, 2, 0).numpy())


@dataclass(frozen=True)
class _Tests:
    data: Images

    def __getitem__(self, row):
        return self.data._centre(self.data.read(self.data.test_files[row]))


class _Safe:
    """A dataset that returns CcdErrors as values, because a DataLoader would raise them with the traceback of its worker."""

    def __init__(self, images):
        self.images = images

    def __getitem__(self, row):
        try:
            return self.images[row]
        except CcdError as error:
            return error


def _merged(merge, images):
    errors = [item for item in images if isinstance(item, CcdError)]
    return errors[0] if errors else merge(images)


def loaded(images: Any, batches: Sequence[list[int]], merge: Callable[[list], Any], workers: int | None) -> Iterator[Any]:
    """For each of `batches`, which are lists of rows: merge([images[row], ...]), made by worker processes.

    workers: how many; None: one for each thread of this process, at most 16, and none for fewer than FEW images. Errors: the
    CcdError that a row raises.
    """
    most = min(16, torch.get_num_threads(), cores()) if sum(map(len, batches)) >= FEW else 0
    loader = DataLoader(
        _Safe(images),
        batch_sampler=batches,
        num_workers=most if workers is None else workers,
        collate_fn=partial(_merged, merge),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # by default a DataLoader draws from the global one
    )
    for made in loader:
        if isinstance(made, CcdError):
            raise made
        yield made


def image_folder(path: Path, side: int) -> Images:
    """The Images of a folder with train/CLASS/* and val/CLASS/*; side: pixels of a view.

    Errors: CcdError for a side that is not allowed, a folder of another structure, and fewer than two classes.
    """
    check_side(side, path)
    text = _index(path)
    files = [line.rpartition(" ")[0] for line in text.splitlines()]
    of_class = [file.split(os.sep)[1] for file in files]
    classes = sorted(set(of_class))
    if len(classes) < 2:
        raise CcdError(f"{path}: there is only one class, {classes[0]!r}; at least two are needed")
    number = {name: k for k, name in enumerate(classes)}
    labels, n = torch.tensor([number[name] for name in of_class]), sum(file.startswith("train") for file in files)
    parts = np.array(files[:n]), labels[:n], np.array(files[n:]), labels[n:]
    return Images(str(path), path, *parts, tuple(classes), side, hashlib.sha256(text.encode()).hexdigest())


def _index(path):
    """A line "file size" for every image, those of train/ first.

    It is kept beside the results until a file is added to or removed from a class folder: every job of a batch needs it, and on
    a network's disk, to list ImageNet's 1.3 million files takes minutes.
    """
    folders = sorted(path.glob("*/*"))
    facts = [str(path.resolve()), *(f"{folder} {folder.stat().st_mtime_ns}" for folder in folders)]
    kept = _kept("\n".join(facts))
    if kept.exists():
        return kept.read_text()
    found = class_folders(path, "An image folder")
    files = [os.path.relpath(file, path) for folder in found for file, _ in folder.samples]
    try:
        text = "".join(f"{file} {os.stat(path / file).st_size}\n" for file in files)
    except OSError as error:
        raise CcdError(f"{error.filename} cannot be read ({error.strerror}); repair or remove it") from error
    with suppress(CcdError):  # on a full disk, for example, it is made again each time
        write_whole(kept, text)
    return text


def _kept(facts):
    """The path of what is known about files that the text `facts` describes."""
    return paths.outputs() / ".images" / hashlib.sha256(facts.encode()).hexdigest()[:16]
