"""Data sets as uint8 tensors on the training device: objects, digits, npz files, CIFAR-10/100, image folders."""

import hashlib
import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch

from ccdlib import bundled, paths
from ccdlib.registry import CcdError, Registry, unknown
from ccdlib.streams import stream

SPLITS = ("train", "test")
LEAST_SIDE = 8  # pixels; smaller images are halved to nothing
ARRAYS = tuple(f"{split}_{kind}" for split in SPLITS for kind in ("images", "labels"))


@dataclass(frozen=True)
class Data:
    """A data set in memory.

    Images are uint8 (N, C, H, W), labels int64 (N,). `mean` and `std` (per channel, of the whole training set) are what
    normalise() takes; `pad` and `flip` are the base crop and flip that suit the images. `fingerprint` is a hash of
    every pixel and label, so that a stored run knows exactly what it was trained on.
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

    @property
    def classes(self):
        """The number of classes."""
        return len(self.class_names)

    @property
    def facts(self):
        """What of the data shapes a training: every pixel and label, and how the images are cropped, flipped, normalised."""
        return {"sha256": self.fingerprint, "mean": self.mean, "std": self.std, "pad": self.pad, "flip": self.flip}

    @property
    def channels(self):
        """1 (grey) or 3 (RGB)."""
        return self.train_images.shape[1]

    @property
    def shape(self):
        """(C, H, W) of an image."""
        return tuple(self.train_images.shape[1:])

    def normalised_by(self, statistics):
        """The same data, to be normalised by `statistics` (see statistics_of); CcdError for those of other channels."""
        mean, std = statistics_of(statistics) or (self.mean, self.std)
        if len(mean) != self.channels:
            raise CcdError(
                f"statistics {statistics!r} are of {len(mean)} channels, the images of {self.name} have {self.channels}; "
                "give 'own'"
            )
        return replace(self, mean=mean, std=std)

    def check_files(self, whole=None):
        """Nothing: all images were read when it was made; see files.Images."""

    def few(self, n):
        """The same data with its first n training images, for a look or a timing."""
        return replace(self, train_images=self.train_images[:n], train_labels=self.train_labels[:n])

    def tests(self, rows):
        """Test images (n, C, H, W) uint8 of the given rows."""
        return self.test_images[rows]

    def in_parts(self, rows, size):
        """(images, labels) of the test rows, here all at once."""
        rows = rows.to(self.test_labels.device)
        yield self.test_images[rows], self.test_labels[rows]

    def examples(self, n):
        """Rows of the test set: the first image of each of the first n classes that it has, fewer where there are fewer."""
        return [int((self.test_labels == c).nonzero()[0]) for c in self.test_labels.unique()[:n]]

    def pictures(self, n):
        """Images to look at: uint8 (n, C, H, W), those of examples(n), larger where the data has larger copies of them."""
        rows, larger = self.examples(n), source_of(self.name)[0].pictures
        return torch.from_numpy(larger()[self.test_labels[rows].cpu().numpy()]) if larger else self.test_images[rows]

    def to(self, device):
        """The same data on `device`."""
        return replace(self, **{name: getattr(self, name).to(device) for name in ARRAYS})

    def subset(self, amount, seed=0):
        """The same data with `amount` training images, drawn stratified by class, repeatable by `seed`.

        amount: a count (int), or a fraction (float in 0..1] of each class. Larger subsets of one seed contain the
        smaller ones. Test images stay. Errors: CcdError when there are too few images, or a class would be left empty.
        """
        rows = stratified(self.train_labels.cpu(), amount, seed, self.classes)
        rows = rows.to(self.train_images.device)
        return replace(self, train_images=self.train_images[rows], train_labels=self.train_labels[rows])


def stratified(labels, amount, seed, classes):
    """Sorted row numbers of a stratified subset of `labels` (N,); see Data.subset."""
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


# ---------------------------------------------------------------- loading


DATASETS = Registry("dataset")


class Sizes(NamedTuple):
    """What an experiment must know of its data before there are images: classes, channels, training images, their side."""

    classes: int
    channels: int
    images: int
    side: int | None = None  # pixels; None where it is what is asked for


IMAGENET = Sizes(1000, 3, 1_281_167)  # what a plan counts with where imagenet:PATH is on another machine


@dataclass(frozen=True)
class Source:
    """One row of DATASETS: a loader of arrays and class names, and the base crop, flip and statistics its images want.

    in_files: the loader gives a files.Images instead, whose images are decoded while a network trains. pictures: a function
    that returns larger copies, uint8 (classes, C, H, W), of each class's first test image.
    """

    load: Callable
    takes_path: bool = False
    flip: bool = True
    statistics: tuple | None = None  # (mean, std) where the literature fixes them
    sizes: "Sizes | None" = None  # where they are known without the images
    in_files: bool = False
    about: str = ""
    pictures: Callable | None = None


def load_data(name, *, side=32, n_train=None, seed=0, device="cpu"):
    """The data set `name` as a Data.

    name: "objects" (bundled photographs of 20 things; 1,000 train, 929 test, 32 x 32), "digits" (1,797 real 8 x 8 scans that
    scikit-learn ships, as 16 x 16; 1,000 train, 797 test), "cifar10", "cifar100" (downloaded once by torchvision), "npz:PATH"
    (arrays train_images, train_labels, test_images, test_labels; images uint8 NHWC or NHW; optional label_names), "folder:PATH"
    (train/ and val/ with one folder a class, resized to side x side and kept in memory), "imagenet:PATH" (such a folder as a
    files.Images: decoded and cropped to side x side while a network trains), "photos" (a small one of that kind, made of three
    photographs). n_train, seed: a stratified training subset, see Data.subset. Errors: CcdError.
    """
    source, path = source_of(name)
    if not str(device).startswith(("cpu", "cuda")):
        raise CcdError(f"device = {device!r}: allowed are 'cpu' and 'cuda'")
    data = _load(name, side, _stamp(path, source.in_files))
    if n_train is not None:
        data = data.subset(n_train, seed)
    return data.to(device)


def source_of(name):
    """(Source, path or None) of a data set's name; CcdError for a name that is none."""
    kind, colon, path = str(name).partition(":")
    allowed = [row + ":PATH" if DATASETS[row].takes_path else row for row in DATASETS]
    if kind not in DATASETS or bool(colon) != DATASETS[kind].takes_path or (colon and not path):
        raise unknown("dataset", name, allowed)
    return DATASETS[kind], Path(path).expanduser() if path else None


def statistics_of(name):
    """(mean, std) per channel that the literature fixes for the data set `name`; None for "own". CcdError for other names."""
    fixed = {row: source.statistics for row, source in DATASETS.items() if source.statistics}
    if name != "own" and name not in fixed:
        raise unknown("statistics", name, ["own", *fixed])
    return fixed.get(name)


def sizes_of(name):
    """The Sizes of a data set, without loading one that has to be downloaded; CcdError for a name or path that is none."""
    source, path = source_of(name)
    if source.sizes:
        return source.sizes
    if source.in_files and path is not None and not path.exists():
        return IMAGENET
    data = load_data(name)
    resized = source.in_files or source is DATASETS["folder"]
    return Sizes(data.classes, data.channels, len(data.train_labels), None if resized else data.shape[-1])


def _stamp(path, folders_only=False):
    """Changes when the file does, so that a data set kept in memory is not an old one. folders_only: files are too many."""
    if path is None:
        return None
    if not path.exists():
        raise CcdError(f"there is no {path}; give an existing file (npz:PATH) or folder (folder:PATH, imagenet:PATH)")
    files = [path, *sorted(path.glob("*/*") if folders_only else path.rglob("*"))] if path.is_dir() else [path]
    try:
        return hash(tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files))
    except OSError as error:
        raise CcdError(f"{error.filename} cannot be read ({error.strerror}); mend it or take it out") from error


@lru_cache(maxsize=4)
def _load(name, side, stamp):
    source, path = source_of(name)
    if source.in_files:
        return source.load(name, path, side)
    arrays, class_names = source.load(path, side) if source.takes_path else source.load()
    tensors = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in arrays.items()}
    mean, std = source.statistics or _statistics(tensors["train_images"])
    pad = tensors["train_images"].shape[2] // 8
    return Data(
        name,
        **tensors,
        class_names=class_names,
        mean=mean,
        std=std,
        pad=pad,
        flip=source.flip,
        fingerprint=_fingerprint(arrays),
    )


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


def _digits():
    """The arrays and class names of the digits; kept beside the downloads, because scikit-learn takes seconds to import."""
    file = paths.downloads() / f"digits-{version('scikit-learn')}.npz"
    try:
        with open(file, "rb") as whole, np.load(whole, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ARRAYS}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # not there, or not whole
        arrays = _digits_of_sklearn()
        kept = io.BytesIO()
        np.savez(kept, **arrays)
        with suppress(OSError):  # a checkout that cannot be written does without
            file.parent.mkdir(parents=True, exist_ok=True)
            beside = file.with_name(f".{file.name}.{os.getpid()}.part")
            beside.write_bytes(kept.getvalue())
            beside.replace(file)
    return arrays, tuple(str(d) for d in range(10))


def _digits_of_sklearn():
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    # Grey levels 0..16 become 0..255, then 8 x 8 becomes 16 x 16: large enough for three stages and the policies.
    scans = (digits.images * 255 / 16).round().astype(np.uint8)
    enlarge = [np.array(Image.fromarray(scan).resize((16, 16), Image.Resampling.BICUBIC)) for scan in scans]
    images, labels = np.stack(enlarge)[:, None], digits.target.astype(np.int64)
    rows = train_test_split(np.arange(len(labels)), train_size=1000, stratify=labels, random_state=0)
    arrays = {}
    for split, chosen in zip(SPLITS, rows, strict=True):
        arrays |= {f"{split}_images": images[np.sort(chosen)], f"{split}_labels": labels[np.sort(chosen)]}
    return arrays


def _npz(path, side):
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [key for key in ARRAYS if key not in archive.files]
            if missing:
                raise CcdError(
                    f"{path} lacks {', '.join(missing)}; it has {', '.join(archive.files) or 'nothing'}. "
                    f"An npz data set needs the arrays {', '.join(ARRAYS)}"
                )
            arrays = {key: archive[key] for key in ARRAYS}
            names = tuple(map(str, archive["label_names"])) if "label_names" in archive.files else None
    except CcdError:
        raise
    except Exception as error:  # numpy raises many kinds for a file that is no (whole) archive
        why = type(error).__name__ if "pickle" in str(error) else error  # numpy advises to run what such a file holds
        raise CcdError(
            f"{path} cannot be read as an npz archive of numbers ({why}); write it with numpy.savez, arrays of numbers only"
        ) from error
    for split in SPLITS:
        arrays[f"{split}_images"] = _nchw(arrays[f"{split}_images"], f"{split}_images of {path}")
        arrays[f"{split}_labels"] = _whole(arrays[f"{split}_labels"], f"{split}_labels of {path}")
    return _checked(arrays, names, str(path))


def _nchw(images, where):
    if images.dtype != np.uint8:
        raise CcdError(f"{where} is {images.dtype}; images must be uint8 with values 0 to 255")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise CcdError(f"{where} has shape {images.shape}; allowed are (N, H, W) and (N, H, W, C) with C of 1 or 3")
    return images.transpose(0, 3, 1, 2)


def _whole(labels, where):
    labels = labels.squeeze(1) if labels.ndim == 2 and labels.shape[1] == 1 else labels  # MedMNIST writes (N, 1)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise CcdError(f"{where} is {labels.dtype} of shape {labels.shape}; labels must be whole numbers (N,)")
    return labels.astype(np.int64)


def _checked(arrays, names, where):
    """The arrays and the class names, when labels and images fit together; CcdError otherwise."""
    for split in SPLITS:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if len(images) != len(labels) or not len(images):
            raise CcdError(f"{where}: {len(images)} {split} images and {len(labels)} labels; needed is as many, above 0")
    if arrays["train_images"].shape[1:] != arrays["test_images"].shape[1:]:
        shapes = [arrays[f"{split}_images"].shape[1:] for split in SPLITS]
        raise CcdError(f"{where}: train images (C, H, W) are {shapes[0]}, test images {shapes[1]}; they must agree")
    if min(arrays["train_images"].shape[2:]) < LEAST_SIDE:
        size = " x ".join(map(str, arrays["train_images"].shape[2:]))
        raise CcdError(f"{where}: images are {size} pixels; allowed are {LEAST_SIDE} x {LEAST_SIDE} and larger")
    train = arrays["train_labels"]
    classes = len(names) if names else int(train.max()) + 1
    for split in SPLITS:
        low, high = arrays[f"{split}_labels"].min(), arrays[f"{split}_labels"].max()
        if low < 0 or high >= classes:
            raise CcdError(f"{where}: {split} labels go from {low} to {high}; allowed are 0 to {classes - 1}")
    if classes > len(train):
        raise CcdError(
            f"{where}: {classes} classes for {len(train)} training images; number the classes 0, 1, 2 ... without gaps"
        )
    empty = np.flatnonzero(np.bincount(train, minlength=classes) == 0)
    if len(empty) or classes < 2:
        raise CcdError(
            f"{where}: of {classes} classes, {len(empty)} have no training image ({', '.join(map(str, empty[:9]))}); "
            "number the classes 0, 1, 2 ... without gaps, at least two"
        )
    return arrays, names or tuple(map(str, range(classes)))


def _cifar(name):
    def load():
        from ccdlib.vision import torchvision

        root = paths.downloads()
        try:
            parts = [getattr(torchvision.datasets, name)(root, train=train, download=True) for train in (True, False)]
        except (OSError, RuntimeError) as error:
            raise CcdError(
                f"{name} is not in {root} and could not be downloaded ({error}). Connect to the network once, put "
                "torchvision's archive there (or name its folder in CCD_DATA), or use data 'digits' or 'npz:PATH'"
            ) from error
        arrays = {}
        for split, part in zip(SPLITS, parts, strict=True):
            arrays |= {f"{split}_images": part.data.transpose(0, 3, 1, 2), f"{split}_labels": np.array(part.targets)}
        return _checked(arrays, tuple(parts[0].classes), name)

    return load


def _imagenet(name, path, side):
    from ccdlib.files import image_folder

    return image_folder(name, path, side)


def _photos(name, _, side):
    from ccdlib.files import image_folder, photos

    return image_folder(name, photos(paths.downloads() / "photos"), side)


def check_side(side, path):
    """Raise CcdError for a `side` that images of `path` cannot be resized to."""
    if not isinstance(side, int) or not LEAST_SIDE <= side <= 4096:
        raise CcdError(f"side = {side!r} for {path}: allowed are whole numbers of pixels from {LEAST_SIDE} to 4096")


def class_folders(path, what):
    """torchvision's ImageFolders of path/train and path/val; CcdError where they are none. what: the data, for the message."""
    from ccdlib.vision import torchvision

    _check_links(path)
    found = []
    for part in ("train", "val"):
        try:
            found.append(torchvision.datasets.ImageFolder(path / part))
        except OSError as error:
            raise CcdError(
                f"{path / part}: {error}. {what} has train/CLASS/*.png and val/CLASS/*.png (or .jpg ...), at least one image a "
                "class"
            ) from error
    train, val = found
    if train.classes != val.classes:
        raise CcdError(f"{path}: train/ has the classes {train.classes}, val/ has {val.classes}; they must be the same")
    return found


def _check_links(path):
    """Raise CcdError where links make a folder count twice, as a class within itself or in another: its images would, too."""
    seen = {}
    for part in ("train", "val"):
        for folder, _, _ in os.walk(path / part, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:
                raise CcdError(
                    f"{folder} and {seen[real]} are one folder, by a link, and its images would count twice; remove the link"
                )
            seen[real] = folder


def read_rgb(file):
    """The Pillow image of a file, RGB; CcdError where it is none."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            if image.mode.startswith("I;16"):  # Pillow would cut all values off at 255
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            if image.mode in ("I", "F"):
                raise ValueError(f"its pixels have 32 bits, mode {image.mode}, and no known range; save it with 8 or 16 bits")
            return image.convert("RGB")
    except Exception as error:  # Pillow raises many kinds for what is no (sane) image
        raise CcdError(f"{file} cannot be read as an image ({error}); repair it or take it out") from error


def _folder(path, side):
    from PIL import Image

    def read(sample):
        return np.array(read_rgb(sample[0]).resize((side, side), Image.Resampling.BICUBIC))

    check_side(side, path)
    arrays, folders = {}, class_folders(path, "A folder data set")
    for split, found in zip(SPLITS, folders, strict=True):
        with ThreadPoolExecutor() as pool:
            images = list(pool.map(read, found.samples))
        arrays |= {
            f"{split}_images": np.stack(images).transpose(0, 3, 1, 2),
            f"{split}_labels": np.array(found.targets),
        }
    return _checked(arrays, tuple(folders[0].classes), str(path))


def _objects():
    arrays, names = bundled.photographs()
    return _checked(arrays, names, "objects")


DATASETS.update(
    objects=Source(_objects, sizes=Sizes(20, 3, 1000, 32), pictures=bundled.gallery),
    digits=Source(_digits, flip=False, sizes=Sizes(10, 1, 1000, 16)),  # a mirrored digit is another sign
    cifar10=Source(
        _cifar("CIFAR10"), statistics=((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)), sizes=Sizes(10, 3, 50000, 32)
    ),
    cifar100=Source(
        _cifar("CIFAR100"), statistics=((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)), sizes=Sizes(100, 3, 50000, 32)
    ),
    npz=Source(_npz, takes_path=True, about="arrays train_images, train_labels, test_images, test_labels of a .npz"),
    folder=Source(_folder, takes_path=True, about="train/CLASS/* and val/CLASS/*, resized, kept in memory"),
    imagenet=Source(
        _imagenet, takes_path=True, in_files=True, about="train/CLASS/* and val/CLASS/*, decoded and cropped in training"
    ),
    photos=Source(_photos, in_files=True, about="tiles of three photographs in such folders: 219 training images, 3 classes"),
)
