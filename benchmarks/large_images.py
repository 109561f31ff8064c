"""JDA on whole images in the workers, or on the device after the crop: views a second of ImageNet-like files, on one core.

    python -W ignore benchmarks/large_images.py

Files: the three photographs of the data set "photos", cut to 500 x 375 at many places, as JPEG; all kinds in turn, five times.
"""

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

import ccdlib
from ccdlib.data import photos
from ccdlib.views import epoch_views

IMAGES, ROUNDS, BATCH = 96, 5, 32


def write(folder):
    """An image folder of large JPEGs."""
    for name, picture in photos._pictures().items():
        for k in range(IMAGES // 3):
            x, y = k * 7 % max(1, picture.width - 500), k * 3 % max(1, picture.height - 375)
            for part in ("train", "val") if k == 0 else ("train",):
                file = Path(folder, part, name, f"{k}.jpg")
                file.parent.mkdir(parents=True, exist_ok=True)
                picture.crop((x, y, x + 500, y + 375)).save(file, quality=92)


def main():
    """Print the table."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write(folder)
        name = f"imagenet:{folder}"
        data = replace(ccdlib.load_data(name, side=224), workers=0)
        kinds = {
            "no JDA, two crops": {"views": "base"},
            "JDA before the crop": {"views": "imagenet"},
            "JDA after the crop": {"views": "imagenet", "jda": "after crop"},
        }
        seconds = {kind: [] for kind in kinds}
        for _ in range(ROUNDS):
            for kind, what in kinds.items():
                config = ccdlib.RunConfig(data=name, side=224, batch=BATCH, **what)
                began = time.perf_counter()
                for _ in epoch_views(config, data, 0).batches():
                    pass
                seconds[kind].append(time.perf_counter() - began)
        print(f"| two views of {IMAGES} images, 500 x 375 to 224 x 224 | ms an image (median, range) | images a second |")
        print("|---|---|---|")
        for kind, times in seconds.items():
            each = [1000 * t / IMAGES for t in times]
            middle = statistics.median(each)
            print(f"| {kind} | {middle:.1f} ({min(each):.1f} to {max(each):.1f}) | {1000 / middle:.0f} |")


if __name__ == "__main__":
    main()
