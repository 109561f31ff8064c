"""A small image folder, made of photographs that scikit-learn and matplotlib bring along."""

import os
from pathlib import Path

from PIL import Image

from ccdlib.base import paths
from ccdlib.data.files import Images, image_folder

TILE = 53  # pixels


def tiles(path: Path | None, side: int) -> Images:
    """The Images of that folder, which is made among the downloads; the loader of load_data("photos"), without a path."""
    return image_folder(photos(paths.downloads() / "photos"), side)


def photos(folder: Path) -> Path:
    """The image folder `folder`, written where it does not exist: tiles of three photographs, of which each is a class.

    Tiles do not overlap, and every fourth is a test image.
    """
    if not folder.exists():
        beside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
        for name, picture in _pictures().items():
            for k, box in enumerate(_boxes(picture)):
                file = beside / ("val" if k % 4 == 3 else "train") / name / f"{k:03}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                picture.crop(box).save(file, quality=95)
        try:
            beside.rename(folder)
        except OSError:  # another process may have been first
            if not folder.exists():
                raise
    return folder


def _pictures():
    from matplotlib.cbook import get_sample_data
    from sklearn.datasets import load_sample_image

    with get_sample_data("grace_hopper.jpg") as file, Image.open(file) as portrait:
        return {
            "flower": Image.fromarray(load_sample_image("flower.jpg")),
            "palace": Image.fromarray(load_sample_image("china.jpg")),
            "portrait": portrait.convert("RGB"),
        }


def _boxes(picture):
    """The boxes of tiles of slightly different sizes, because the images of a folder have many."""
    for y in range(0, picture.height - TILE, TILE):
        for x in range(0, picture.width - TILE, TILE):
            less = (x + y) // TILE % 8
            yield x, y, x + TILE - less, y + TILE - less // 2
