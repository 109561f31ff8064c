"""The registry of data sets, and the loading of one by its name."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ccdlib.base.registry import CcdError, Registry, unknown
from ccdlib.data import arrays, boxed, bundled, files, photos
from ccdlib.data.dataset import ARRAYS, Dataset
from ccdlib.data.memory import in_memory


class Sizes(NamedTuple):
    """The sizes of a data set that a plan needs before any image is loaded."""

    classes: int
    channels: int
    images: int  # for training
    side: int | None = None  # pixels; None where images are resized to the side that a run asks for


IMAGENET, COCO = Sizes(1000, 3, 1_281_167), Sizes(80, 3, 118_287)


@dataclass(frozen=True)
class Source:
    """One row of DATASETS."""

    load: Callable[[Path | None, int], Any]  # (path, side) -> (the four ARRAYS, class names), or an Images with `in_files`
    takes_path: bool = False  # whether its name is "name:PATH"
    resized: bool = False  # whether images are resized to side x side pixels
    in_files: bool = False  # whether images are decoded while a network trains
    boxed: bool = False  # whether images have boxes; `load` then returns ({"train": Split, "test": Split}, class names)
    flip: bool = True  # whether base views are flipped left to right
    statistics: tuple | None = None  # (mean, std) by channel, where the literature fixes them
    sizes: Sizes | None = None  # where they are known without the images
    elsewhere: Sizes | None = None  # assumed in a plan where its path is on another machine
    measure: Callable[[Path], tuple[int, int, int]] | None = None  # classes, channels and images of a path, without decoding
    about: str = ""  # a line for `ccd data`
    larger: Callable[[], np.ndarray] | None = None  # see Data


def _row(name: str, load: Callable | Source, **options) -> Source:
    """The Source of a row: of a loader, or of a reader's function of nothing, or of the side, that returns arrays."""
    if isinstance(load, Source):
        return load
    asked = len(inspect.signature(load).parameters)
    if asked > 1:
        return Source(load, **options)

    def loaded(path, side):
        made = load(side) if asked else load()
        if options["boxed"]:
            return boxed.checked(made, name)
        try:
            given, names = made if isinstance(made, tuple) else (made, None)
            given = {key: np.asarray(given[key]) for key in ARRAYS}
        except (KeyError, TypeError, ValueError) as error:
            raise CcdError(
                f"data set {name!r} did not return the arrays {', '.join(ARRAYS)} by name ({error!r}); return a dict of these "
                "arrays, or a tuple of this dict and the class names"
            ) from error
        return arrays.checked(arrays.readable(given, name), names and tuple(map(str, names)), name)

    return Source(loaded, **options)


DATASETS = Registry("dataset", _row, **{field.name: field.default for field in fields(Source) if field.name != "load"})


def load_data(name: str, *, side: int = 32, n_train: int | float | None = None, seed: int = 0, device: str = "cpu") -> Dataset:
    """The data set `name`: a Data in memory, or an Images in files.

    name: one of
        "objects"        bundled photographs of 20 things, 32 x 32 pixels; 1,000 training and 929 test images
        "digits"         8 x 8 scans that scikit-learn ships, as 16 x 16; 1,000 training and 797 test images
        "cifar10", "cifar100"  downloaded once by torchvision
        "npz:PATH"       an archive of the four ARRAYS, images uint8 (N, H, W, C) or (N, H, W); label_names where there are some
        "folder:PATH"    train/CLASS/* and val/CLASS/*, resized to side x side and kept in memory
        "imagenet:PATH"  such a folder whose images are decoded and cropped to side x side while a network trains
        "photos"         a small one of that kind, made of three photographs
        "scenes"         with boxes: digits and things on photographs, 64 x 64 pixels; 1,000 training and 200 test images
        "coco:PATH"      with boxes: COCO's folders and json, resized into squares of side x side and kept in memory
        or a reader's own row of DATASETS.
    side: pixels. n_train, seed: a stratified training subset, see Dataset.subset. device: of the tensors.
    Errors: CcdError for an unknown name or device, and for data that is missing or damaged.
    """
    source, path = source_of(name)
    if not str(device).startswith(("cpu", "cuda")):
        raise CcdError(f"device = {device!r}: allowed are 'cpu' and 'cuda'")
    data = _load(name, side, _stamp(name, path, source))
    if n_train is not None:
        data = data.subset(n_train, seed)
    return data.to(device)


def normalised_by(data: Dataset, statistics: str) -> Dataset:
    """The same data, normalised as statistics_of(statistics) says. Errors: CcdError where that does not fit the images."""
    fixed = statistics_of(statistics)
    return data.with_statistics(statistics, *fixed) if fixed else data


def source_of(name: str) -> tuple[Source, Path | None]:
    """The Source of a data set's name, and its path where it has one. Errors: CcdError for an unknown name."""
    kind, colon, path = str(name).partition(":")
    allowed = [row + ":PATH" if DATASETS[row].takes_path else row for row in DATASETS]
    if kind not in DATASETS or bool(colon) != DATASETS[kind].takes_path or (colon and not path):
        raise unknown("dataset", name, allowed)
    return DATASETS[kind], Path(path).expanduser() if path else None


def statistics_of(name: str) -> tuple | None:
    """The (mean, std) that the literature fixes for data set `name`; None for "own". Errors: CcdError for any other name."""
    fixed = {row: source.statistics for row, source in DATASETS.items() if source.statistics}
    if name != "own" and name not in fixed:
        raise unknown("statistics", name, ["own", *fixed])
    return fixed.get(name)


def sizes_of(name: str) -> Sizes:
    """The Sizes of a data set, without a download. Errors: CcdError for an unknown name or a path that does not exist."""
    source, path = source_of(name)
    if source.sizes:
        return source.sizes
    if source.elsewhere and path is not None and not path.exists():
        return source.elsewhere
    if source.measure:
        return Sizes(*source.measure(path))
    data = load_data(name)
    return Sizes(data.classes, data.channels, len(data.train_labels), None if source.resized else data.shape[-1])


def _stamp(name, path, source):
    """A value that changes when the files or a reader's loader do, so that no outdated data set is taken from the cache.

    Of images in files, and of COCO, only the folders are looked at, and not each file, of which there are too many.
    """
    if path is None:
        added = DATASETS.added.get(name)
        return added and added.digest()
    if not path.exists():
        raise CcdError(f"there is no {path}; give an existing file (npz:PATH) or folder (folder:, imagenet:, coco:PATH)")
    within = "*/*" if source.in_files else "[!.]*" if source.boxed else None
    found = sorted(path.glob(within)) if within else sorted(path.rglob("*"))
    if source.boxed:
        found += sorted(path.glob("annotations/*"))
    try:
        return hash(tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in (path, *found)))
    except OSError as error:
        raise CcdError(f"{error.filename} cannot be read ({error.strerror}); repair or remove it") from error


@lru_cache(maxsize=4)
def _load(name, side, stamp):
    source, path = source_of(name)
    loaded = source.load(path, side)
    if source.in_files:
        return loaded._replaced(name=name)
    if source.boxed:
        return boxed.with_boxes(name, *loaded, source.flip)
    return in_memory(name, *loaded, source.flip, source.statistics, source.larger)


DATASETS.update(
    objects=Source(arrays.objects, sizes=Sizes(20, 3, 1000, 32), larger=bundled.gallery),
    digits=Source(arrays.digits, flip=False, sizes=Sizes(10, 1, 1000, 16)),  # a mirrored digit is no digit
    cifar10=Source(
        arrays.cifar("CIFAR10"), statistics=((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)), sizes=Sizes(10, 3, 50000, 32)
    ),
    cifar100=Source(
        arrays.cifar("CIFAR100"),
        statistics=((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
        sizes=Sizes(100, 3, 50000, 32),
    ),
    npz=Source(arrays.npz, takes_path=True, about="arrays train_images, train_labels, test_images, test_labels of a .npz"),
    folder=Source(arrays.folder, takes_path=True, resized=True, about="train/CLASS/* and val/CLASS/*, resized, kept in memory"),
    imagenet=Source(
        files.image_folder,
        takes_path=True,
        elsewhere=IMAGENET,
        resized=True,
        in_files=True,
        about="train/CLASS/* and val/CLASS/*, decoded and cropped in training",
    ),
    scenes=Source(boxed.scenes, boxed=True, sizes=Sizes(6, 3, 1000, 64)),
    coco=Source(
        boxed.coco,
        takes_path=True,
        elsewhere=COCO,
        measure=boxed.sizes_of_coco,
        resized=True,
        boxed=True,
        about="with boxes: instances_train*.json, instances_val*.json, images in train*/ and val*/; resized, kept in memory",
    ),
    photos=Source(
        photos.tiles,
        resized=True,
        in_files=True,
        about="tiles of three photographs in such folders: 219 training images, 3 classes",
    ),
)
