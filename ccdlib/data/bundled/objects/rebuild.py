"""Make train.webp and test.webp of this folder again, from the original archive, and compare them with what is bundled.

    python rebuild.py 101_ObjectCategories.tar.gz DEST

The archive is part of Caltech-101 (https://data.caltech.edu/records/mzrjq-6wc02). images.csv lists the photographs in their
order. The script says how many images have other pixels than the bundled ones; its exit status is 1 where there are any.
"""

import csv
import sys
import tarfile
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
COLUMNS = 40  # images in a row of a mosaic
SIDE = 32  # pixels


def square(photograph: Image.Image) -> Image.Image:
    """The middle square of a photograph, RGB, resized to 32 x 32 pixels (Lanczos)."""
    width, height = photograph.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    box = left, top, left + side, top + side
    return photograph.convert("RGB").crop(box).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def mosaic(images: np.ndarray) -> Image.Image:
    """Images (N, 32, 32, 3) uint8 as one picture, row by row; the rest of the last row is black."""
    rows = -(-len(images) // COLUMNS)
    whole = np.zeros((rows * COLUMNS, SIDE, SIDE, 3), np.uint8)
    whole[: len(images)] = images
    return Image.fromarray(whole.reshape(rows, COLUMNS, SIDE, SIDE, 3).swapaxes(1, 2).reshape(rows * SIDE, COLUMNS * SIDE, 3))


def tiles(picture: Image.Image, n: int) -> np.ndarray:
    """The first n images (n, 32, 32, 3) uint8 of a mosaic."""
    pixels = np.asarray(picture.convert("RGB"))
    rows = pixels.shape[0] // SIDE
    return pixels.reshape(rows, SIDE, COLUMNS, SIDE, 3).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)[:n]


def main(archive: str, destination: str) -> NoReturn:
    """Write the mosaics of `archive` to the folder `destination`, and exit; see above for the status."""
    with open(HERE / "images.csv", newline="") as file:
        listed = list(csv.DictReader(file))
    wanted, squares = {row["source"] for row in listed}, {}
    with tarfile.open(archive) as photographs:
        for member in photographs:
            name = "/".join(Path(member.name).parts[-2:])
            if name in wanted:
                with Image.open(photographs.extractfile(member)) as photograph:
                    squares[name] = np.asarray(square(photograph))
    if missing := sorted(wanted - squares.keys()):
        sys.exit(f"{archive} lacks {len(missing)} photographs, such as {missing[0]}")
    others = 0
    Path(destination).mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        images = np.stack([squares[row["source"]] for row in listed if row["split"] == split])
        with Image.open(HERE / f"{split}.webp") as picture:
            others += int((images != tiles(picture, len(images))).any((1, 2, 3)).sum())
        mosaic(images).save(Path(destination) / f"{split}.webp", lossless=True, quality=100, method=6)
    print(f"{len(listed)} images written to {destination}; {others} have other pixels than the bundled ones")
    sys.exit(others > 0)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
