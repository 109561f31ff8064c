"""Images that stay in their files: an image folder in ImageNet's way, decoded by workers while a network trains."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

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

FEW = 256  # images


DECODED = 5000  # files, of which each is decoded before a training begins


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as its networks are trained everywhere


@dataclass(frozen=True)
class Images(Dataset):
    """A data set whose images stay in their files, as load_data("imagenet:PATH") gives it; see Data for one in memory.

    train_files, test_files: paths (N,) relative to `root`; labels int64 (N,). A training view is a RandomResizedCrop to
    side x side and a flip, with torchvision's settings; a test image has its shorter side resized to side * 256 / 224 and its
    centre cropped. `fingerprint` is a hash of all names and sizes of the files, because reading ImageNet takes an hour.
    """

    name: str
    root: Path
    train_files: np.ndarray
    train_labels: torch.Tensor
    test_files: np.ndarray
    test_labels: torch.Tensor
    class_names: tuple[str, ...]
    side: int
    fingerprint: str
    workers: int | None = None  # processes that decode images; None: as many as pay
    mean = MEAN
    std = STD
    flip = True
    channels = 3
    in_files = True

    @property
    def shape(self):
        """(C, H, W) of what the networks see."""
        return 3, self.side, self.side

    @property
    def facts(self):
        """What of the data shapes a training; names and sizes stand for the files."""
        return {"names and sizes": self.fingerprint, "side": self.side, "crop": "resized", "mean": self.mean, "std": self.std}

    def to(self, device):
        """The same data, its labels on `device`; the images come there batch by batch."""
        return self._replaced(train_labels=self.train_labels.to(device), test_labels=self.test_labels.to(device))

    def with_statistics(self, name, mean, std):
        """CcdError: images in files are normalised by ImageNet's statistics."""
        raise CcdError(f"statistics = {name!r} for {self.name}: images in files have ImageNet's; give 'own'")

    def chosen(self, rows):
        """The same data with the training images in `rows`."""
        return self._replaced(train_files=self.train_files[rows.numpy()], train_labels=self.train_labels[rows])

    def read(self, file):
        """The Pillow image of a file, RGB; CcdError where it is none."""
        return read_rgb(self.root / file)

    def check_files(self, whole=None):
        """Raise CcdError for files that are no images, naming the first.

        whole: decode each of them; False: only look at their headers, which takes ImageNet's files minutes, not hours; None:
        decode where they are few. Files that were found to be in order are not looked at again until they change. On a terminal
        a bar shows how far it is.
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
            shown = tqdm(looked, f"looking at {self.name}", len(files), unit="file", leave=False, disable=None)
            broken = [error for error in shown if error]
        if broken:
            raise CcdError(f"{len(broken)} of {len(files)} files are no images that can be read. The first: {broken[0]}")
        with suppress(CcdError):  # a full disk, say: then they are looked at again
            write_whole(marks[whole], "")

    def _state(self, files):
        """A text that is another one when one of these files is: where they are, and when they changed.

        Of many files, which it takes minutes to ask on the disk of a network, the times are those of their folders.
        """
        asked = sorted(files) if len(files) <= DECODED else sorted({os.path.dirname(file) for file in files})
        times = [(self.root / place).stat().st_mtime_ns for place in asked if (self.root / place).exists()]
        return str((str(self.root.resolve()), sorted(files), times))

    def _look(self, file):
        with Image.open(self.root / file):
            pass

    def tests(self, rows):
        """Test images (n, 3, side, side) uint8 of the given rows."""
        return torch.stack([self._centre(self.read(file)) for file in self.test_files[torch.as_tensor(rows).numpy()]])

    def _centre(self, image):
        from ccdlib.base.vision import torchvision

        functional = torchvision.transforms.functional
        return tensor(functional.center_crop(functional.resize(image, round(self.side * 256 / 224)), self.side))

    def in_parts(self, rows, size):
        """(images, labels) of the test rows, `size` at a time, decoded by workers."""
        loader = loaded(_Tests(self.to("cpu")), [part.tolist() for part in rows.split(size)], torch.stack, self.workers)
        for part, images in zip(rows.split(size), loader, strict=True):
            yield images, self.test_labels[part.to(self.test_labels.device)]


def _mistake(look, file):
    """What is wrong with a file, when `look` finds something."""
    try:
        look(file)
    except Exception as error:  # Pillow raises many kinds
        return error if isinstance(error, CcdError) else f"{file}: {error}"


def tensor(image):
    """(3, H, W) uint8 of a Pillow image in RGB."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def pillow(image):
    """The Pillow image of (3, H, W) uint8."""
    return Image.fromarray(image.permute(1, 2, 0).numpy())


@dataclass(frozen=True)
class _Tests:
    data: Images

    def __getitem__(self, row):
        return self.data._centre(self.data.read(self.data.test_files[row]))


class _Safe:
    """A dataset whose mistakes come back as values: a DataLoader would raise them with the traceback of its worker."""

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


def loaded(images, batches, merge, workers):
    """What `merge` makes of each of `batches` (lists of rows), by so many workers.

    None: one a thread of this process, or none where a few images are decoded before a worker has started.
    """
    most = min(16, torch.get_num_threads(), cores()) if sum(map(len, batches)) >= FEW else 0
    loader = DataLoader(
        _Safe(images),
        batch_sampler=batches,
        num_workers=most if workers is None else workers,
        collate_fn=partial(_merged, merge),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # the default is the global one
    )
    for made in loader:
        if isinstance(made, CcdError):
            raise made
        yield made


def image_folder(path, side):
    """The Images of the folder `path` with train/CLASS/* and val/CLASS/*. Errors: CcdError for what is no such folder."""
    check_side(side, path)
    text = _index(path)
    files = [line.rpartition(" ")[0] for line in text.splitlines()]
    of_class = [file.split(os.sep)[1] for file in files]
    classes = sorted(set(of_class))
    if len(classes) < 2:
        raise CcdError(f"{path}: there is only the class {classes[0]!r}; at least two are needed")
    number = {name: k for k, name in enumerate(classes)}
    labels, n = torch.tensor([number[name] for name in of_class]), sum(file.startswith("train") for file in files)
    parts = np.array(files[:n]), labels[:n], np.array(files[n:]), labels[n:]
    return Images(str(path), path, *parts, tuple(classes), side, hashlib.sha256(text.encode()).hexdigest())


def _index(path):
    """A line "file size" for every image, those of train/ first.

    Kept beside the results for as long as no file comes to or leaves a class folder: every job of a batch needs it, and to look
    at ImageNet's 1.3 million files takes minutes on the disk of a network.
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
        raise CcdError(f"{error.filename} cannot be read ({error.strerror}); mend it or take it out") from error
    with suppress(CcdError):  # a full disk, say: then it is made again
        write_whole(kept, text)
    return text


def _kept(facts):
    """Where something is kept that was found out about files of which the text `facts` says all that matters."""
    return paths.outputs() / ".images" / hashlib.sha256(facts.encode()).hexdigest()[:16]
