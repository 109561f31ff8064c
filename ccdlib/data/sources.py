"""The registry of data sets, and how one is loaded by its name."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ccdlib.base.registry import CcdError, Registry, unknown
from ccdlib.data import arrays, bundled, files, photos
from ccdlib.data.dataset import ARRAYS, Dataset
from ccdlib.data.memory import in_memory


class Sizes(NamedTuple):
    """What an experiment must know of its data before there are images: classes, channels, training images, their side."""

    classes: int
    channels: int
    images: int
    side: int | None = None  # pixels; None where it is what is asked for


IMAGENET = Sizes(1000, 3, 1_281_167)  # what a plan counts with where imagenet:PATH is on another machine


@dataclass(frozen=True)
class Source:
    """One row of DATASETS.

    load(path, side): (the four ARRAYS, class names), or an Images with `in_files`, which is decoded while a network trains.
    path: a Path, where `takes_path`; side: pixels to which images are resized, where `resized`. flip, statistics: the base
    flip, and (mean, std) where the literature fixes them. sizes: where they are known without the images. about: a line for
    `ccd data`. larger: see Data.
    """

    load: Callable
    takes_path: bool = False
    resized: bool = False
    in_files: bool = False
    flip: bool = True
    statistics: tuple | None = None
    sizes: Sizes | None = None
    about: str = ""
    larger: Callable | None = None


def _row(name: str, load: Callable | Source, **options) -> Source:
    """The Source of a row: a loader with options, or a reader's function of nothing, or of the side, that returns arrays."""
    if isinstance(load, Source):
        return load
    asked = len(inspect.signature(load).parameters)
    if asked > 1:
        return Source(load, **options)

    def loaded(path, side):
        made = load(side) if asked else load()
        try:
            given, names = made if isinstance(made, tuple) else (made, None)
            given = {key: np.asarray(given[key]) for key in ARRAYS}
        except (KeyError, TypeError, ValueError) as error:
            raise CcdError(
                f"data set {name!r} returned no ({', '.join(ARRAYS)}) by name ({error!r}); return a dict of these arrays, or it "
                "and the class names"
            ) from error
        return arrays.checked(arrays.readable(given, name), names and tuple(map(str, names)), name)

    return Source(loaded, **options)


DATASETS = Registry("dataset", _row, **{name: field.default for name, field in Source.__dataclass_fields__.items() if name != "load"})


def load_data(name: str, *, side: int = 32, n_train: int | float | None = None, seed: int = 0, device: str = "cpu") -> Dataset:
    """The data set `name`.

    name: "objects" (bundled photographs of 20 things; 1,000 train, 929 test, 32 x 32), "digits" (1,797 real 8 x 8 scans that
    scikit-learn ships, as 16 x 16; 1,000 train, 797 test), "cifar10", "cifar100" (downloaded once by torchvision), "npz:PATH"
    (arrays train_images, train_labels, test_images, test_labels; images uint8 NHWC or NHW; optional label_names), "folder:PATH"
    (train/ and val/ with one folder a class, resized to side x side and kept in memory), "imagenet:PATH" (such a folder as a
    files.Images: decoded and cropped to side x side while a network trains), "photos" (a small one of that kind, made of three
    photographs). side: pixels. n_train, seed: a stratified training subset, see Dataset.subset. device: of what is in memory.
    Errors: CcdError.
    """
    source, path = source_of(name)
    if not str(device).startswith(("cpu", "cuda")):
        raise CcdError(f"device = {device!r}: allowed are 'cpu' and 'cuda'")
    data = _load(name, side, _stamp(name, path, source.in_files))
    if n_train is not None:
        data = data.subset(n_train, seed)
    return data.to(device)


def normalised_by(data: Dataset, statistics: str) -> Dataset:
    """The same data, normalised by `statistics` (see statistics_of). Errors: CcdError for those of other channels."""
    fixed = statistics_of(statistics)
    return data.with_statistics(statistics, *fixed) if fixed else data


def source_of(name: str) -> tuple[Source, Path | None]:
    """(Source, path or None) of a data set's name; CcdError for a name that is none."""
    kind, colon, path = str(name).partition(":")
    allowed = [row + ":PATH" if DATASETS[row].takes_path else row for row in DATASETS]
    if kind not in DATASETS or bool(colon) != DATASETS[kind].takes_path or (colon and not path):
        raise unknown("dataset", name, allowed)
    return DATASETS[kind], Path(path).expanduser() if path else None


def statistics_of(name: str) -> tuple | None:
    """(mean, std) per channel that the literature fixes for the data set `name`; None for "own". CcdError for other names."""
    fixed = {row: source.statistics for row, source in DATASETS.items() if source.statistics}
    if name != "own" and name not in fixed:
        raise unknown("statistics", name, ["own", *fixed])
    return fixed.get(name)


def sizes_of(name: str) -> Sizes:
    """The Sizes of a data set, without loading one that has to be downloaded; CcdError for a name or path that is none."""
    source, path = source_of(name)
    if source.sizes:
        return source.sizes
    if source.in_files and path is not None and not path.exists():
        return IMAGENET
    data = load_data(name)
    return Sizes(data.classes, data.channels, len(data.train_labels), None if source.resized else data.shape[-1])


def _stamp(name, path, folders_only=False):
    """Changes when the file or a reader's loader does, so that a data set kept in memory is not an old one. folders_only: files
    are too many."""
    if path is None:
        added = DATASETS.added.get(name)
        return added and added.digest()
    if not path.exists():
        raise CcdError(f"there is no {path}; give an existing file (npz:PATH) or folder (folder:PATH, imagenet:PATH)")
    found = [path, *sorted(path.glob("*/*") if folders_only else path.rglob("*"))] if path.is_dir() else [path]
    try:
        return hash(tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in found))
    except OSError as error:
        raise CcdError(f"{error.filename} cannot be read ({error.strerror}); mend it or take it out") from error


@lru_cache(maxsize=4)
def _load(name, side, stamp):
    source, path = source_of(name)
    loaded = source.load(path, side)
    if source.in_files:
        return loaded._replaced(name=name)
    return in_memory(name, *loaded, source.flip, source.statistics, source.larger)


DATASETS.update(
    objects=Source(arrays.objects, sizes=Sizes(20, 3, 1000, 32), larger=bundled.gallery),
    digits=Source(arrays.digits, flip=False, sizes=Sizes(10, 1, 1000, 16)),  # a mirrored digit is another sign
    cifar10=Source(
        arrays.cifar("CIFAR10"), statistics=((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)), sizes=Sizes(10, 3, 50000, 32)
    ),
    cifar100=Source(
        arrays.cifar("CIFAR100"), statistics=((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)), sizes=Sizes(100, 3, 50000, 32)
    ),
    npz=Source(arrays.npz, takes_path=True, about="arrays train_images, train_labels, test_images, test_labels of a .npz"),
    folder=Source(
        arrays.folder, takes_path=True, resized=True, about="train/CLASS/* and val/CLASS/*, resized, kept in memory"
    ),
    imagenet=Source(
        files.image_folder,
        takes_path=True,
        resized=True,
        in_files=True,
        about="train/CLASS/* and val/CLASS/*, decoded and cropped in training",
    ),
    photos=Source(
        photos.tiles, resized=True, in_files=True, about="tiles of three photographs in such folders: 219 training images, 3 classes"
    ),
)
