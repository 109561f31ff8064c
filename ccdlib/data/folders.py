"""Image folders with train/CLASS/* and val/CLASS/*: their structure, the checks of it, and the reading of one file."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ccdlib.base.registry import CcdError

LEAST_SIDE = 8  # pixels; networks halve smaller images to nothing


def check_side(side: int, path: str | Path) -> None:
    """Raise CcdError for a `side` in pixels to which the images of `path` are not resized: below LEAST_SIDE or above 4096."""
    if not isinstance(side, int) or not LEAST_SIDE <= side <= 4096:
        raise CcdError(f"side = {side!r} for {path}: allowed are whole numbers of pixels from {LEAST_SIDE} to 4096")


def class_folders(path: Path, what: str) -> list[Any]:
    """torchvision's two ImageFolders of path/train and path/val.

    what: the kind of data, for messages. Errors: CcdError for folders of another structure, for different classes in the two,
    and for links by which images would count twice.
    """
    from ccdlib.base.vision import torchvision

    _check_links(path)
    found = []
    for part in ("train", "val"):
        try:
            found.append(torchvision.datasets.ImageFolder(path / part))
        except OSError as error:
            raise CcdError(
                f"{path / part}: {error}. {what} has train/CLASS/*.png and val/CLASS/*.png (or .jpg ...), with at least one "
                "image in each class"
            ) from error
    train, val = found
    if train.classes != val.classes:
        raise CcdError(f"{path}: train/ has the classes {train.classes}, val/ has {val.classes}; they must be the same")
    return found


def _check_links(path):
    """Raise CcdError where a link makes a folder appear twice, within itself or elsewhere: its images would count twice."""
    seen = {}
    for part in ("train", "val"):
        for folder, _, _ in os.walk(path / part, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:
                raise CcdError(
                    f"{folder} and {seen[real]} are one folder, by a link, and its images would count twice; remove the link"
                )
            seen[real] = folder


def read_rgb(file: str | Path) -> Image.Image:
    """The Pillow image of a file, RGB; 16-bit grey values are divided by 256. Errors: CcdError for a file that is no image."""
    try:
        with Image.open(file) as image:
            if image.mode.startswith("I;16"):  # Pillow's own conversion clips at 255
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            if image.mode in ("I", "F"):
                raise ValueError(f"its pixels have 32 bits, mode {image.mode}, and no known range; save it with 8 or 16 bits")
            return image.convert("RGB")
    except Exception as error:  # Pillow raises many kinds of errors
        raise CcdError(f"{file} cannot be read as an image ({error}); repair or remove it") from error
