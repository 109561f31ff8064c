"""Loaders of images into memory: the bundled objects, digits, npz files, CIFAR-10/100 and image folders.

A loader is a function of a path and a side in pixels, of which many use neither. It returns the four ARRAYS (images uint8
(N, C, H, W), labels int64 (N,)) and the names of the classes.
"""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
from PIL import Image

from ccdlib.base import paths
from ccdlib.base.files import sha256, write_whole
from ccdlib.base.registry import CcdError
from ccdlib.data import bundled
from ccdlib.data.dataset import ARRAYS, SPLITS, content_of
from ccdlib.data.folders import LEAST_SIDE, check_side, class_folders, read_rgb

Named = tuple[dict[str, np.ndarray], tuple[str, ...]]  # arrays and class names


def digits(path: Path | None = None, side: int | None = None) -> Named:
    """The digits that scikit-learn ships, 16 x 16 pixels: 1,000 training and 797 test images.

    They are kept beside the downloads, because scikit-learn takes seconds to import.
    """
    file = paths.downloads() / f"digits-{version('scikit-learn')}.npz"
    try:
        with open(file, "rb") as whole, np.load(whole, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ARRAYS}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # missing or incomplete
        arrays = _digits_of_sklearn()
        kept = io.BytesIO()
        np.savez(kept, **arrays)
        with suppress(CcdError):  # a checkout that cannot be written makes them again each time
            write_whole(file, kept.getvalue())
    return arrays, tuple(str(d) for d in range(10))


def _digits_of_sklearn():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    # Grey levels are 0..16. Three stages of a network, and the policies, need more pixels than 8 x 8.
    scans = (digits.images * 255 / 16).round().astype(np.uint8)
    enlarge = [np.array(Image.fromarray(scan).resize((16, 16), Image.Resampling.BICUBIC)) for scan in scans]
    images, labels = np.stack(enlarge)[:, None], digits.target.astype(np.int64)
    rows = train_test_split(np.arange(len(labels)), train_size=1000, stratify=labels, random_state=0)
    arrays = {}
    for split, chosen in zip(SPLITS, rows, strict=True):
        arrays |= {f"{split}_images": images[np.sort(chosen)], f"{split}_labels": labels[np.sort(chosen)]}
    return arrays


def npz(path: Path, side: int | None = None) -> Named:
    """The arrays of a .npz archive, and its class names where it has `label_names`, else 0, 1, 2 ...

    Errors: CcdError for a file that is no archive of numbers, lacks an array, or has arrays that do not fit (see checked).
    """
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
    except Exception as error:  # numpy raises many kinds of errors for a damaged archive
        why = type(error).__name__ if "pickle" in str(error) else error  # numpy's advice is to allow pickles, which run code
        raise CcdError(
            f"{path} cannot be read as an npz archive of numbers ({why}); write it with numpy.savez, arrays of numbers only"
        ) from error
    return checked(readable(arrays, path), names, str(path))


def readable(arrays: Mapping[str, np.ndarray], where: object) -> dict[str, np.ndarray]:
    """The four ARRAYS in the layout of the kit: images uint8 (N, C, H, W) and labels int64 (N,).

    arrays: images uint8 (N, H, W) or (N, H, W, C), labels whole numbers (N,) or (N, 1). where: their source, for messages.
    Errors: CcdError for arrays of other types or shapes.
    """
    found = {}
    for split in SPLITS:
        found[f"{split}_images"] = _nchw(arrays[f"{split}_images"], f"{split}_images of {where}")
        found[f"{split}_labels"] = _whole(arrays[f"{split}_labels"], f"{split}_labels of {where}")
    return found


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


def checked(arrays: dict[str, np.ndarray], names: Sequence[str] | None, where: str) -> Named:
    """The four ARRAYS and the class names, unchanged where they fit together.

    names: of the classes; None: 0, 1, 2 ... where: their source, for messages. Errors: CcdError for different numbers of
    images and labels, training and test images of different shapes, images smaller than LEAST_SIDE, labels that are no class,
    and classes without a training image.
    """
    for split in SPLITS:
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if len(images) != len(labels) or not len(images):
            raise CcdError(
                f"{where}: {len(images)} {split} images and {len(labels)} labels; there must be at least one image, and one "
                "label for each image"
            )
    if arrays["train_images"].shape[1:] != arrays["test_images"].shape[1:]:
        shapes = [arrays[f"{split}_images"].shape[1:] for split in SPLITS]
        raise CcdError(f"{where}: train images (C, H, W) are {shapes[0]}, test images {shapes[1]}; they must be equal")
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
            f"{where}: {classes} classes are more than the {len(train)} training images; number them 0, 1, 2 ... without gaps"
        )
    empty = np.flatnonzero(np.bincount(train, minlength=classes) == 0)
    if len(empty) or classes < 2:
        raise CcdError(
            f"{where}: of {classes} classes, {len(empty)} have no training image ({', '.join(map(str, empty[:9]))}); "
            "number the classes 0, 1, 2 ... without gaps, at least two"
        )
    return arrays, names or tuple(map(str, range(classes)))


def cifar(name: str) -> Callable[[Path | None, int | None], Named]:
    """A loader of "CIFAR10" or "CIFAR100": torchvision's copy, downloaded once, or cifar100.npz in the folder of downloads.

    Images are put into the order of their content, so that whatever copy they come from, a seed chooses the same of them and
    runs have the same names. It raises CcdError where the data is not there and cannot be downloaded, and for an archive or
    cifar100.npz with other content.
    """

    def load(path=None, side=None):
        file, known = paths.downloads() / f"{name.lower()}.npz", CIFAR[name].content
        own = bool(known) and file.exists()
        arrays, names = in_order(*(npz(file) if own else _torchvisions(name)))
        if own and (found := content_of(arrays)) != known:
            raise CcdError(
                f"{file} does not hold {name}: the SHA-256 of its images and labels is {found} and not {known}, or it lacks "
                "the class names, label_names; remove it, or name it with npz:PATH"
            )
        return arrays, names

    return load


class Known(NamedTuple):
    """SHA-256 of a data set: of the archive that its authors publish, and of its images and labels in_order()."""

    archive: str
    content: str | None = None


CIFAR = {
    "CIFAR10": Known("6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"),
    "CIFAR100": Known(
        "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        "592d960292ada6ceeee8be266304f58d61ea8c46ffa03d958152ea8f5a131b15",
    ),
}


def _torchvisions(name):
    """The arrays and class names of torchvision's data set, whose files it checks by their MD5."""
    from ccdlib.base.vision import torchvision  # it takes seconds to import

    root, kind = paths.downloads(), getattr(torchvision.datasets, name)
    archive = root / kind.filename
    try:
        train = kind(root, train=True, download=True)
        parts = [train, kind(root, train=False)]
    except (OSError, RuntimeError) as error:
        raise CcdError(
            f"{name} is not in {root} and could not be downloaded ({error}). Connect to the network once, or put the file "
            f"{kind.url} into that folder, or set CCD_DATA to the folder that has it. Data 'objects' and 'digits' come with "
            "the package"
        ) from error
    if archive.exists() and (found := sha256(archive)) != CIFAR[name].archive:
        raise CcdError(
            f"{archive} has the SHA-256 {found} instead of {CIFAR[name].archive}; remove it and the folder {kind.base_folder} "
            "that was unpacked from it, and try again"
        )
    arrays = {}
    for split, part in zip(SPLITS, parts, strict=True):
        arrays |= {f"{split}_images": part.data.transpose(0, 3, 1, 2), f"{split}_labels": np.array(part.targets)}
    return checked(arrays, tuple(train.classes), name)


def in_order(arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> Named:
    """The four ARRAYS with the images of each split in the order of the SHA-256 of their pixels and label, and the classes in
    alphabetical order. Copies of one data set become equal so, however their images and classes are sorted."""
    place = np.argsort(np.argsort(names))
    found = {}
    for split in SPLITS:
        images, labels = np.ascontiguousarray(arrays[f"{split}_images"]), place[arrays[f"{split}_labels"]]
        keys = [hashlib.sha256(image.tobytes() + bytes([label])).digest() for image, label in zip(images, labels, strict=True)]
        rows = sorted(range(len(keys)), key=keys.__getitem__)
        found |= {f"{split}_images": images[rows], f"{split}_labels": labels[rows]}
    return found, tuple(sorted(names))


def folder(path: Path, side: int) -> Named:
    """The images of path/train/CLASS/* and path/val/CLASS/*, resized to side x side pixels.

    Errors: CcdError for a side that is not allowed, a folder of another structure, and files that are no images.
    """

    def read(sample):
        return np.array(read_rgb(sample[0]).resize((side, side), Image.Resampling.BICUBIC))

    check_side(side, path)
    arrays, folders = {}, class_folders(path, "A folder data set")
    for split, found in zip(SPLITS, folders, strict=True):
        with ThreadPoolExecutor() as pool:
            images = list(pool.map(read, found.samples))
        arrays |= {f"{split}_images": np.stack(images).transpose(0, 3, 1, 2), f"{split}_labels": np.array(found.targets)}
    return checked(arrays, tuple(folders[0].classes), str(path))


def objects(path: Path | None = None, side: int | None = None) -> Named:
    """The bundled photographs of 20 things, 32 x 32 pixels: 1,000 training and 929 test images."""
    arrays, names = bundled.photographs()
    return checked(arrays, names, "objects")
