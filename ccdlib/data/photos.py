"""A small image folder, of pictures that our libraries bring along."""

import os

from PIL import Image

from ccdlib.base import paths
from ccdlib.data.files import image_folder

TILE = 53  # pixels


def tiles(path, side):
    """The Images of such a folder, which is made among the downloads; see load_data("photos")."""
    return image_folder(photos(paths.downloads() / "photos"), side)


def photos(folder):
    """Write a small image folder: tiles of three photographs that scikit-learn and matplotlib bring along; a class each.

    Every fourth tile is a test image; tiles do not overlap. Returns the folder, which is made once.
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
        except OSError:  # another process was first
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
    """Tiles of slightly different sizes, as files of an image folder have."""
    for y in range(0, picture.height - TILE, TILE):
        for x in range(0, picture.width - TILE, TILE):
            less = (x + y) // TILE % 8
            yield x, y, x + TILE - less, y + TILE - less // 2
