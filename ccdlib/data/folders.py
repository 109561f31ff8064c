"""Image folders, train/CLASS/* and val/CLASS/*, and what is looked at before their images are."""

import os

import numpy as np

from ccdlib.base.registry import CcdError

LEAST_SIDE = 8  # pixels; smaller images are halved to nothing


def check_side(side, path):
    """Raise CcdError for a `side` that images of `path` cannot be resized to."""
    if not isinstance(side, int) or not LEAST_SIDE <= side <= 4096:
        raise CcdError(f"side = {side!r} for {path}: allowed are whole numbers of pixels from {LEAST_SIDE} to 4096")


def class_folders(path, what):
    """torchvision's ImageFolders of path/train and path/val; CcdError where they are none. what: the data, for the message."""
    from ccdlib.base.vision import torchvision

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
