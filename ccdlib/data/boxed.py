"""Images in memory with boxes around things, for object detection: COCO's folders, and small scenes made of bundled images."""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from PIL import Image

from ccdlib.base.reading import text_of
from ccdlib.base.registry import CcdError
from ccdlib.data import arrays, bundled
from ccdlib.data.dataset import SPLITS
from ccdlib.data.folders import check_side, read_rgb
from ccdlib.data.memory import Data, in_memory

GREY = 128  # fills what an image does not cover of its square
NONE = -1  # the class of a row without a box


@dataclass(frozen=True)
class Boxed(Data):
    """A data set in memory whose images have boxes: rows of class, left, top, right, bottom, in pixels; class NONE: no box.

    The labels of Data are the classes of the first boxes, by which subsets are stratified; an image without boxes has 0.
    """

    train_boxes: torch.Tensor | None = None  # (N, K, 5) float32
    test_boxes: torch.Tensor | None = None  # (M, K, 5)
    boxed = True

    def counts(self) -> torch.Tensor:
        """How many training boxes there are of each class: (classes,)."""
        of_class = self.train_boxes[..., 0].flatten()
        return of_class[of_class != NONE].long().bincount(minlength=self.classes)

    def chosen(self, rows: torch.Tensor) -> Self:
        """The same data with only the training images `rows` (n,)."""
        return super().chosen(rows)._replaced(train_boxes=self.train_boxes[rows.to(self.train_boxes.device)])

    def to(self, device: torch.device | str) -> Self:
        """The same data with images, labels and boxes on `device`."""
        moved = {name: getattr(self, name).to(device) for name in ("train_boxes", "test_boxes")}
        return super().to(device)._replaced(**moved)


class Split(NamedTuple):
    """A split as it is read: square images, and the boxes of each image."""

    images: np.ndarray  # (N, 3, side, side) uint8
    boxes: list[np.ndarray]  # for each image (k, 5) float32


def with_boxes(name: str, splits: Mapping[str, Split], class_names: Sequence[str], flip: bool = True) -> Boxed:
    """The Boxed of the two SPLITS. Errors: CcdError for a split without any box."""
    parts = {}
    for split in SPLITS:
        images, boxes = splits[split]
        if not any(map(len, boxes)):
            raise CcdError(f"the {split} images of {name} have no boxes at all; annotate some of them")
        labels = np.array([int(own[0, 0]) if len(own) else 0 for own in boxes], dtype=np.int64)
        parts |= {f"{split}_images": images, f"{split}_labels": labels}
    plain = in_memory(name, parts, tuple(class_names), flip)
    packed = {f"{split}_boxes": torch.from_numpy(_packed(splits[split].boxes)) for split in SPLITS}
    digest = hashlib.sha256(plain.fingerprint.encode())
    for boxes in packed.values():
        digest.update(repr(tuple(boxes.shape)).encode() + boxes.numpy().tobytes())
    fields = {key: getattr(plain, key) for key in plain.__dataclass_fields__}
    return Boxed(**fields | packed | {"pad": 0, "fingerprint": digest.hexdigest()})


def checked(made: Any, where: str) -> tuple[dict[str, Split], tuple[str, ...]]:
    """What a reader's own function returned, ({"train": (images, boxes), "test": ...}, class names), as Splits and names.

    Images are uint8 (N, 3, S, S); for each there is an array (k, 5) of class, left, top, right, bottom. where: for messages.
    Errors: CcdError for anything else, for boxes outside of their images, and for classes that there are not.
    """
    try:
        splits, names = made
        found = {split: Split(np.asarray(splits[split][0]), _rows(splits[split][1])) for split in SPLITS}
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise CcdError(
            f"data set {where!r} did not return images and boxes ({error!r}); return ({{'train': (images, boxes), 'test': "
            "(images, boxes)}, class names), with an array (k, 5) of class, left, top, right, bottom for each image"
        ) from error
    for split, (images, boxes) in found.items():
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3 or len(images) != len(boxes):
            raise CcdError(
                f"the {split} images of {where} are {images.dtype} {images.shape} with {len(boxes)} lists of boxes; give uint8 "
                "(N, 3, height, width), and boxes for each image"
            )
        for k, own in enumerate(boxes):
            low, high = own[:, 1:3], own[:, 3:5]
            inside = (low >= 0).all() and (low < high).all() and (high <= [images.shape[3], images.shape[2]]).all()
            if not (inside and (own[:, 0] >= 0).all() and (own[:, 0] < len(names)).all()):
                raise CcdError(f"a box of {split} image {k} of {where} is not inside of it, or is of no class: {own.tolist()}")
    return found, tuple(map(str, names))


def _rows(boxes):
    return [np.asarray(own, dtype=np.float32).reshape(-1, 5) for own in boxes]


def _packed(boxes):
    """(N, K, 5) float32 of N lists of boxes (k, 5)."""
    found = np.zeros((len(boxes), max([1, *map(len, boxes)]), 5), dtype=np.float32)
    found[..., 0] = NONE
    for row, own in zip(found, boxes, strict=True):
        row[: len(own)] = own
    return found


# ---------------------------------------------------------------- COCO's folders


def coco(path: Path, side: int) -> tuple[dict[str, Split], tuple[str, ...]]:
    """The images and boxes of a folder laid out like COCO, resized so that the longer edge has `side` pixels.

    It holds instances_NAME.json, or annotations/instances_NAME.json, and the images in NAME/, where NAME begins with "train",
    and another with "val", which is tested on. Crowds are left out, and, with a warning that names them, boxes without area, of
    which COCO itself has two. Errors: CcdError for a folder of another structure, for a json that cannot be read or lacks a
    part, and for an annotation whose class or image is unknown, or whose box is not inside of its image, with its file and id;
    and for an image that is missing or damaged.
    """
    check_side(side, path)
    found, names = {}, None
    for split, begins in zip(SPLITS, ("train", "val"), strict=True):
        file = _annotations(path, begins)
        listed, own = _listed(file)
        if names is not None and own != names:
            raise CcdError(f"{file} has the classes {', '.join(own)}, the training images {', '.join(names)}; make them equal")
        folder, names = path / file.stem.removeprefix("instances_"), own
        images, boxes = np.empty((len(listed), 3, side, side), np.uint8), []
        for image, (picture, size, around) in zip(images, listed, strict=True):
            image[:] = _square(folder / picture, size, side, file).transpose(2, 0, 1)
            scale = side / max(size)
            boxes.append(np.array([(c, *(scale * edge for edge in box)) for c, box in around], np.float32).reshape(-1, 5))
        found[split] = Split(images, boxes)
    return found, names


def sizes_of_coco(path: Path) -> tuple[int, int, int]:
    """The numbers of classes, channels and training images of such a folder, without decoding an image; errors as coco()."""
    listed, names = _listed(_annotations(path, "train"))
    return len(names), 3, len(listed)


def _annotations(path, begins):
    files = [file for where in (path, path / "annotations") for file in sorted(where.glob(f"instances_{begins}*.json"))]
    if len(files) != 1:
        raise CcdError(
            f"{path} has {len(files)} files instances_{begins}*.json, in it or in its folder annotations; it needs one such "
            f"file for training images (train) and one for test images (val), and the images in folders of the same names"
        )
    return files[0]


def _listed(file):
    """[(file, (width, height), [(class, (left, top, right, bottom)), ...]), ...] of a json of COCO, and the class names."""
    try:
        read = json.loads(text_of(file))
        images = {row["id"]: (row["file_name"], (row["width"], row["height"])) for row in read["images"]}
        names = {row["id"]: str(row["name"]) for row in read["categories"]}
        rows = [
            (row["id"], row["image_id"], row["category_id"], [float(row["bbox"][k]) for k in range(4)])
            for row in read["annotations"]
            if not row.get("iscrowd")
        ]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise CcdError(
            f"{file} cannot be read as annotations of COCO ({type(error).__name__}: {error}); give its json"
        ) from error
    places, around, empty = {key: k for k, key in enumerate(names)}, {key: [] for key in images}, []
    for key, image, category, (left, top, width, height) in rows:
        why = None
        if image not in images:
            why = f"its image_id {image} is not among the images"
        elif category not in names:
            why = f"its category_id {category} is not among the categories"
        else:
            wide, high = images[image][1]
            if 0 in (width, height):
                empty.append(key)
                continue
            inside = 0 <= left <= left + width <= wide + 0.5 and 0 <= top <= top + height <= high + 0.5
            if not inside:  # or no number
                why = f"its box [{left:g}, {top:g}, {width:g}, {height:g}] is not inside of its image of {wide} x {high} pixels"
        if why:
            raise CcdError(f"annotation {key} of {file}: {why}; correct or remove it")
        around[image].append((places[category], (left, top, left + width, top + height)))
    if empty:
        said = ", ".join(map(str, empty[:9])) + ", ..." * (len(empty) > 9)
        warnings.warn(f"{file}: the boxes of annotations {said} have no area and are left out", stacklevel=2)
    if len(names) < 2 or not images:
        raise CcdError(f"{file} has {len(names)} classes and {len(images)} images; give at least two classes and one image")
    return [(*images[key], around[key]) for key in images], tuple(names.values())


def _square(picture, size, side, file):
    """An image (side, side, 3), its longer edge resized to `side`, in the top left corner of a grey square."""
    if not picture.is_file():
        raise CcdError(f"there is no {picture}, which {file} names; put the image there, or remove it from the file")
    image = read_rgb(picture)
    if image.size != tuple(size):
        raise CcdError(
            f"{picture} has {image.size[0]} x {image.size[1]} pixels, and {file} says {size[0]} x {size[1]}; correct one"
        )
    scale = side / max(size)
    resized = image.resize([max(1, round(scale * edge)) for edge in size], Image.Resampling.BICUBIC)
    square = Image.new("RGB", (side, side), (GREY,) * 3)
    square.paste(resized, (0, 0))
    return np.asarray(square)


# ---------------------------------------------------------------- scenes

SCENES = {"train": 1000, "test": 200}
SIDE = 64  # pixels
THINGS = 5  # classes of the bundled photographs, besides "digit"
MOST = 4  # things in a scene
SIZES = (16, 28)  # pixels, the smallest and largest side of a thing


def scenes(path: Path | None = None, side: int | None = None) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Small scenes: one to four digits and things, without much overlap, on photographs of other things.

    Everything comes from the bundled photographs and digits, and from a fixed seed; the parts of test scenes are test images.
    """
    photographs, names = bundled.photographs()
    digits, _ = arrays.digits()
    found = {}
    for k, split in enumerate(SPLITS):
        rng = np.random.default_rng((20261128, k))
        images, labels = photographs[f"{split}_images"], photographs[f"{split}_labels"]
        around = images[labels >= THINGS]
        parts = [*(images[labels == c] for c in range(THINGS)), digits[f"{split}_images"]]
        made = [_scene(rng, around, parts) for _ in range(SCENES[split])]
        found[split] = Split(np.stack([image for image, _ in made]), [boxes for _, boxes in made])
    return found, (*names[:THINGS], "digit")


def _scene(rng, around, parts):
    """A scene (3, SIDE, SIDE) uint8 and its boxes (k, 5)."""
    scene = _resized(around[rng.integers(len(around))], (SIDE, SIDE)).astype(np.float32)
    boxes = np.zeros((0, 5), np.float32)
    for _ in range(rng.integers(1, MOST + 1)):
        c, size = rng.integers(len(parts)), int(rng.integers(SIZES[0], SIZES[1] + 1))
        picture = _resized(parts[c][rng.integers(len(parts[c]))], (size, size))
        left, top = rng.integers(0, SIDE - size + 1, 2)
        ink = rng.integers(2) * 255.0  # a digit is drawn in black or white
        shade, box = _cut(picture, ink)
        box = np.append(c, np.add(box, [left, top, left, top])).astype(np.float32)[None]
        if _overlap(box[0, 1:], boxes[:, 1:]) > 0.1:
            continue  # it would hide another thing
        colours, alpha = shade
        part = scene[:, top : top + size, left : left + size]
        part += alpha * (colours - part)
        boxes = np.concatenate([boxes, box])
    return scene.round().astype(np.uint8), boxes


def _cut(picture, ink):
    """What is pasted of a picture (C, s, s): ((colours, how opaque in 0..1), its box [left, top, right, bottom])."""
    size = picture.shape[-1]
    if len(picture) == 1:  # a digit, without its black background
        alpha = picture.astype(np.float32) / 255
        rows, columns = (np.flatnonzero((alpha[0] > 0.25).any(axis)) for axis in (1, 0))
        return (np.float32(ink), alpha), np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    place = np.abs((np.arange(size) + 0.5) / size * 2 - 1)  # a square with round corners and a soft edge
    inside = 1 - (place[:, None] ** 6 + place[None] ** 6)
    alpha = np.clip(inside * 3, 0, 1).astype(np.float32)[None]
    return (picture.astype(np.float32), alpha), np.array([0, 0, size, size])


def _resized(picture, size):
    image = Image.fromarray(picture[0] if len(picture) == 1 else picture.transpose(1, 2, 0))
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _overlap(box, others):
    """The largest share of the smaller of two boxes that they have in common, over `others` (k, 4)."""
    if not len(others):
        return 0.0
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    areas = [np.prod(each[..., 2:] - each[..., :2], axis=-1) for each in (box, others)]
    return float((sides.clip(0).prod(1) / np.minimum(*areas)).max())
