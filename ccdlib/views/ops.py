"""Ops: pixel operations on batches of images, on their device. Each is a row of OPS.

Images are uint8 tensors (N, C, H, W) with C = 1 (grey) or 3 (RGB). Every op gives exactly the pixels that Pillow gives, because
Pillow makes its tables: an image of indices, moved once, becomes the table of an op that moves pixels to their nearest
neighbours, and `Image.blend` of all 256 x 256 pairs of values becomes the table of the ops of ImageEnhance. The rest
(histograms, the 3 x 3 smoothing, the bicubic shear) is written in the integer or float64 arithmetic of Pillow.

Source: the ops and magnitudes of Cubuk et al., AutoAugment, CVPR 2019.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps

from ccdlib.base.registry import CcdError, Registry

GREY = 128  # fills pixels into which an op moves nothing
LEVELS = 10  # of magnitude


# (magnitude, width, height) -> (a, b, c, d, e, f): what is at (x, y) of the output was at (a x + b y + c, d x + e y + f), in
# pixels from the top left corner, so that the centre of the first pixel is (1/2, 1/2).
Matrix = Callable[[float, int, int], tuple[float, float, float, float, float, float]]


class Op(NamedTuple):
    """One op: a function, and the range of its magnitude over the ten levels."""

    function: Callable[[torch.Tensor, float | None], torch.Tensor]  # (images, magnitude) -> images, (N, C, H, W) uint8
    low: float | None = None  # the magnitude at level 0, at which the op changes nothing; None: the op has no magnitude
    high: float | None = None  # the magnitude at level 9
    signed: bool = False  # whether the magnitude gets a sign
    colour_only: bool = False  # whether it leaves grey images as they are
    whole: bool = False  # whether magnitudes are rounded to whole numbers
    moves: "Matrix | None" = None  # where pixels come from, for an op that moves them, and boxes with them

    def magnitude(self, level: int) -> float | None:
        """The magnitude at `level` in 0..9, by equal steps; None for an op without one."""
        if self.low is None:
            return None
        value = _steps(self.low, self.high)[level]
        return round(value) if self.whole else value

    def is_identity(self, level: int, channels: int = 3) -> bool:
        """Whether the op at `level` leaves every image with so many channels as it is."""
        return (self.low is not None and self.magnitude(level) == self.low) or (self.colour_only and channels == 1)


@cache
def _steps(low, high):
    """The magnitudes of all levels; by numpy's linspace, because published code takes its bits."""
    return np.linspace(low, high, LEVELS).tolist()


@cache
def _blend_table(factor, device):
    """(65536,) uint8: entry 256 a + b is Pillow's blend(a, b, factor), the arithmetic of all ops of ImageEnhance."""
    a, b = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8), indexing="ij")
    blended = Image.blend(Image.fromarray(a), Image.fromarray(b), factor)
    return torch.from_numpy(np.array(blended)).flatten().to(device)


@cache
def _point_table(name, argument, device):
    """(256,) uint8: an op of Pillow's ImageOps that maps each value by itself, applied to the values 0..255."""
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    operation = getattr(ImageOps, name)
    return torch.from_numpy(np.array(operation(ramp, *argument))).flatten().to(device)


@cache
def _gather_table(kind, amount, height, width, device):
    """(H * W,) int64: the input pixel that Pillow moves to each output pixel, by nearest neighbour; H * W for none."""
    nowhere = height * width
    index = Image.fromarray(np.arange(nowhere, dtype=np.int32).reshape(height, width))
    if kind == "rotate":
        moved = index.rotate(amount, Image.Resampling.NEAREST, fillcolor=nowhere)
    else:
        shift = (amount * width, 0.0) if kind == "x" else (0.0, amount * height)
        matrix = (1, 0, shift[0], 0, 1, shift[1])
        moved = index.transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=nowhere)
    return torch.from_numpy(np.array(moved, dtype=np.int64)).flatten().to(device)


@cache
def _shear_table(axis, amount, height, width, device):
    """A bicubic shear along `axis`: the four input pixels (4, H * W) int64 of each output pixel, the fraction (H * W,) float64
    of its position between the middle two, and whether that is inside of the image (H * W,) bool.

    Pixel (x, y) reads position x + 1/2 + amount (y + 1/2) of its row ("x"), or the same with x and y exchanged ("y").
    """
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    along, across, length = (x, y, width) if axis == "x" else (y, x, height)
    # Pillow adds the products in this order; another order could round to the other side of a pixel's edge.
    place = (along + 0.5) + amount * (across + 0.5) if axis == "x" else amount * (across + 0.5) + (along + 0.5)
    inside = (place >= 0) & (place < length)
    first = np.floor(place - 0.5)
    taps = [np.clip(first + k, 0, length - 1).astype(np.int64) for k in (-1, 0, 1, 2)]
    flat = [y * width + t if axis == "x" else t * width + x for t in taps]
    tables = np.stack(flat).reshape(4, -1), (place - 0.5 - first).ravel(), inside.ravel()
    return tuple(torch.from_numpy(t).to(device) for t in tables)


def _lookup(table, indices):
    """table[indices] for a table of one dimension; index_select is faster."""
    return table.index_select(0, indices.flatten()).view(indices.shape)


def _gather(images, table):
    flat = F.pad(images.flatten(2), (0, 1), value=GREY)  # index H * W: no pixel
    return flat.gather(2, table.expand(*flat.shape[:2], -1)).view(images.shape)


def _translate(axis):
    def translate(images, magnitude):
        return _gather(images, _gather_table(axis, magnitude, *images.shape[2:], images.device))

    return translate


def rotate(images: torch.Tensor, magnitude: float) -> torch.Tensor:
    """Images (N, C, H, W) uint8, rotated by `magnitude` degrees counter-clockwise about their centre."""
    return _gather(images, _gather_table("rotate", magnitude, *images.shape[2:], images.device))


def _shear(axis):
    def shear(images, magnitude):
        taps, d, inside = _shear_table(axis, magnitude, *images.shape[2:], images.device)
        flat = images.flatten(2).short()
        v1, v2, v3, v4 = (flat.gather(2, tap.expand_as(flat)) for tap in taps)  # each (n, C, H * W)
        # Cubic convolution (Keys 1981, a = -1) as a polynomial in the fraction d, whose result Pillow clips and truncates. The
        # coefficients are whole numbers and exact in sixteen bits; the steps of the polynomial need Pillow's float64.
        value = (v2 - v1 + v4 - v3).double()
        for coefficient in (2 * (v1 - v2) + v3 - v4, v3 - v1, v2):
            value.mul_(d).add_(coefficient)
        return torch.where(inside, value.clamp_(0, 255), GREY).to(torch.uint8).view(images.shape)

    return shear


def _point(name, argument=lambda magnitude: ()):
    def point(images, magnitude):
        return _lookup(_point_table(name, argument(magnitude), images.device), images.int())

    return point


def _grey(images):
    """The luma (N, 1, H, W) int32 of images, in Pillow's integer arithmetic (ITU-R 601-2)."""
    if images.shape[1] == 1:
        return images.int()
    r, g, b = images.int().split(1, dim=1)
    return (19595 * r + 38470 * g + 7471 * b + 0x8000) >> 16


def _blend(degenerate, images, magnitude):
    return _lookup(_blend_table(1 + magnitude, images.device), 256 * degenerate + images.int())


def _brightness(images, magnitude):
    return _blend(0, images, magnitude)


def _contrast(images, magnitude):
    grey, pixels = _grey(images), images.shape[2] * images.shape[3]
    mean = (2 * grey.sum((1, 2, 3), keepdim=True) + pixels) // (2 * pixels)  # rounded half up
    return _blend(mean.int(), images, magnitude)


def _color(images, magnitude):
    return images if images.shape[1] == 1 else _blend(_grey(images), images, magnitude)


def _sharpness(images, magnitude):
    height, width = images.shape[2:]
    smooth = images.int()
    if min(height, width) >= 3:  # Pillow leaves smaller images, and the border pixels of all others, as they are
        pixels = images.short()
        rows = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]
        window = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
        # The kernel has nine ones and four more at the centre; its sum is 13, and Pillow rounds to nearest.
        smooth[:, :, 1:-1, 1:-1] = (2 * (window + 4 * pixels[:, :, 1:-1, 1:-1]) + 13) // 26
    return _blend(smooth, images, magnitude)


def _apply_tables(images, tables):
    """Images whose every channel is mapped by its own table; tables (N, C, 256) uint8."""
    own = 256 * torch.arange(tables.shape[0] * tables.shape[1], dtype=torch.int, device=images.device)
    return _lookup(tables.flatten(), images + own.view(*images.shape[:2], 1, 1))


def _autocontrast(images, magnitude):
    flat = images.flatten(2)
    low, high = flat.amin(2, keepdim=True).double(), flat.amax(2, keepdim=True).double()  # (n, C, 1)
    # Not `255 / tensor`, which is a reciprocal and a product: two roundings where Pillow has one.
    scale = torch.div(torch.full_like(low, 255), (high - low).clamp(min=1))
    ramp = torch.arange(256, dtype=torch.float64, device=images.device)
    stretched = (ramp * scale + (-low * scale)).clamp(0, 255)
    return _apply_tables(images, torch.where(high > low, stretched, ramp).to(torch.uint8))


def _equalize(images, magnitude):
    flat = images.flatten(2).long()
    counts = torch.zeros(*flat.shape[:2], 256, dtype=torch.int, device=images.device)
    counts.scatter_add_(2, flat, torch.ones((), dtype=torch.int, device=images.device).expand_as(flat))
    ramp = torch.arange(256, device=images.device)
    last = counts.gather(2, flat.amax(2, keepdim=True))  # the number of pixels that have the largest value
    step = (flat.shape[2] - last) // 255
    below = counts.cumsum(2) - counts
    spread = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    return _apply_tables(images, torch.where(step > 0, spread, ramp).to(torch.uint8))


def _row(name: str, function: Any, **options) -> Op:
    """The Op of a row: an Op, or a function of (images, magnitude) with the other fields of an Op as options."""
    return function if isinstance(function, Op) else Op(function, **options)


def _turn(degrees, width, height):
    """The Matrix of a rotation counter-clockwise about the centre."""
    cos, sin, x, y = math.cos(math.radians(degrees)), math.sin(math.radians(degrees)), width / 2, height / 2
    return cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y


OPS = Registry("op", _row, low=None, high=None, signed=False, colour_only=False, whole=False, moves=None)
OPS.update(
    shearX=Op(_shear("x"), 0, 0.3, signed=True, moves=lambda m, w, h: (1, m, 0, 0, 1, 0)),
    shearY=Op(_shear("y"), 0, 0.3, signed=True, moves=lambda m, w, h: (1, 0, 0, m, 1, 0)),
    translateX=Op(_translate("x"), 0, 150 / 331, signed=True, moves=lambda m, w, h: (1, 0, m * w, 0, 1, 0)),
    translateY=Op(_translate("y"), 0, 150 / 331, signed=True, moves=lambda m, w, h: (1, 0, 0, 0, 1, m * h)),
    rotate=Op(rotate, 0, 30, moves=_turn),
    color=Op(_color, 0, 0.9, signed=True, colour_only=True),
    contrast=Op(_contrast, 0, 0.9, signed=True),
    sharpness=Op(_sharpness, 0, 0.9, signed=True),
    brightness=Op(_brightness, 0, 0.9, signed=True),
    posterize=Op(_point("posterize", lambda bits: (bits,)), 8, 4, whole=True),
    solarize=Op(_point("solarize", lambda threshold: (threshold,)), 256, 0),
    autocontrast=Op(_autocontrast),
    equalize=Op(_equalize),
    invert=Op(_point("invert")),
)


def apply_op(images: torch.Tensor, name: str, level: int, sign: int = 1) -> torch.Tensor:
    """Op `name`, at `level` in 0..9, on images (N, C, H, W) uint8.

    sign: +1 or -1, for signed ops. Errors: CcdError for an unknown op, another level, and images of another type or shape.
    """
    op = OPS[name]
    check_level(name, level)
    check_images(images)
    if op.is_identity(level, images.shape[1]):
        return images.clone()
    magnitude = op.magnitude(level)
    return op.function(images, sign * magnitude if op.signed else magnitude)


def pillow_op(image: Image.Image, name: str, level: int, sign: int = 1) -> Image.Image:
    """apply_op() on one Pillow image, with the same pixels.

    Pillow itself does it, because images of many sizes would need too many tables; a reader's own op gets a tensor.
    """
    op = OPS[name]
    check_level(name, level)
    if name in OPS.added:
        pixels = torch.from_numpy(np.atleast_3d(np.array(image)).transpose(2, 0, 1).copy())[None]
        return Image.fromarray(apply_op(pixels, name, level, sign)[0].permute(1, 2, 0).numpy().squeeze())
    magnitude = op.magnitude(level) if not op.signed else sign * op.magnitude(level)
    if op.moves and name != "rotate":
        how = Image.Resampling.BICUBIC if name.startswith("shear") else Image.Resampling.NEAREST
        matrix, grey = op.moves(magnitude, *image.size), (GREY,) * len(image.getbands())
        return image.transform(image.size, Image.Transform.AFFINE, matrix, how, fillcolor=grey if len(grey) > 1 else GREY)
    if name == "rotate":
        return image.rotate(magnitude, Image.Resampling.NEAREST, fillcolor=(GREY,) * 3 if image.mode == "RGB" else GREY)
    if hasattr(ImageEnhance, name.title()):
        return getattr(ImageEnhance, name.title())(image).enhance(1 + magnitude)
    return getattr(ImageOps, name)(image, *(() if magnitude is None else (magnitude,)))


def check_level(name: str, level: int) -> None:
    """Raise CcdError unless `level`, of op `name`, is a whole number from 0 to 9."""
    if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level < LEVELS:
        raise CcdError(f"level {level!r} of op {name!r}: allowed are the whole numbers 0 to {LEVELS - 1}")


def check_images(images: torch.Tensor) -> None:
    """Raise CcdError unless `images` is a uint8 tensor (N, C, H, W) with one or three channels."""
    if not isinstance(images, torch.Tensor) or images.dtype != torch.uint8 or images.ndim != 4:
        given = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, torch.Tensor) else type(images).__name__
        raise CcdError(f"images must be a uint8 tensor (N, C, H, W), not {given}; augmentation comes before normalise")
    if images.shape[1] not in (1, 3):
        raise CcdError(f"images have {images.shape[1]} channels; allowed are 1 (grey) and 3 (RGB), as (N, C, H, W)")
