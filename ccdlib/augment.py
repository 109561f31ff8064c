"""Joint Data Augmentation (JDA): ops, policies and the base crop and flip, batched on the device.

Images are uint8 tensors (N, C, H, W) with C = 1 (grey) or 3 (RGB). Every op gives exactly the pixels that Pillow gives,
because Pillow makes its tables: an index image warped once becomes a gather table (nearest-neighbour geometry), and
`Image.blend` run on all 256 x 256 pairs of values becomes the table of the enhance ops. What remains (histograms, the
3 x 3 smoothing, the bicubic shear) is written in the same integer or float64 arithmetic.

An op is one row of OPS; a policy is data; the draws of a batch are a value, made apart from their application, so that
methods that are compared share them.

Source: the JDA of Li et al., ACCV 2022, with the magnitudes of Cubuk et al., AutoAugment, 2019.
"""

from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps

from ccdlib.registry import CcdError, Registry, unknown

GREY = 128  # what an op that moves pixels puts where no pixel comes from
LEVELS = 10


class Op(NamedTuple):
    """One row: `function(images, magnitude)` and its range over the ten levels; level 0 of a range changes nothing."""

    function: Any
    low: float | None = None  # None: the op has no magnitude
    high: float | None = None
    signed: bool = False
    colour_only: bool = False  # the identity on grey images
    whole: bool = False  # magnitudes are rounded to whole numbers

    def magnitude(self, level):
        """The magnitude at `level` in 0..9, by ten equal steps; None for an op without one."""
        if self.low is None:
            return None
        value = _steps(self.low, self.high)[level]
        return round(value) if self.whole else value

    def is_identity(self, level, channels=3):
        """Whether the op at `level` leaves every image with that many channels as it is."""
        return (self.low is not None and self.magnitude(level) == self.low) or (self.colour_only and channels == 1)


@cache
def _steps(low, high):
    """The magnitudes of all levels, to the bit those of numpy's linspace, which published code takes."""
    return np.linspace(low, high, LEVELS).tolist()


# ---------------------------------------------------------------- tables that Pillow makes


@cache
def _blend_table(factor, device):
    """(65536,) uint8: entry 256 a + b is Pillow's blend(a, b, factor), the arithmetic of every enhance op."""
    a, b = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8), indexing="ij")
    blended = Image.blend(Image.fromarray(a), Image.fromarray(b), factor)
    return torch.from_numpy(np.array(blended)).flatten().to(device)


@cache
def _point_table(name, argument, device):
    """(256,) uint8: a point op of Pillow's ImageOps, run on the grey values 0..255."""
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    operation = getattr(ImageOps, name)
    return torch.from_numpy(np.array(operation(ramp, *argument))).flatten().to(device)


@cache
def _gather_table(kind, amount, height, width, device):
    """(H * W,) int64: which input pixel Pillow puts at each output pixel by nearest neighbour; H * W where none."""
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
    """Four taps (4, H * W) int64, fraction (H * W,) float64 and inside (H * W,) bool of a bicubic shear along `axis`.

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


# ---------------------------------------------------------------- the ops: (images (n, C, H, W), magnitude) -> images


# Lookups are gather, index_select and index_copy_: brackets give the same and took three times as long on a CPU.


def _lookup(table, indices):
    """table[indices] for a table of one dimension."""
    return table.index_select(0, indices.flatten()).view(indices.shape)


def _gather(images, table):
    flat = F.pad(images.flatten(2), (0, 1), value=GREY)  # a pixel from nowhere is grey
    return flat.gather(2, table.expand(*flat.shape[:2], -1)).view(images.shape)


def _translate(axis):
    def translate(images, magnitude):
        return _gather(images, _gather_table(axis, magnitude, *images.shape[2:], images.device))

    return translate


def _rotate(images, magnitude):
    return _gather(images, _gather_table("rotate", magnitude, *images.shape[2:], images.device))


def _shear(axis):
    def shear(images, magnitude):
        taps, d, inside = _shear_table(axis, magnitude, *images.shape[2:], images.device)
        flat = images.flatten(2).short()
        v1, v2, v3, v4 = (flat.gather(2, tap.expand_as(flat)) for tap in taps)  # each (n, C, H * W)
        # Cubic convolution (Keys 1981, a = -1) as a polynomial in the fraction d; Pillow cuts the result off. The
        # coefficients are whole numbers, so they are exact in sixteen bits; the steps of the polynomial are float64's.
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
    """(n, 1, H, W) int32 luma in Pillow's integer arithmetic (ITU-R 601-2)."""
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
        # Nine ones and four more for the centre: weight 13, rounded to the nearest whole number.
        smooth[:, :, 1:-1, 1:-1] = (2 * (window + 4 * pixels[:, :, 1:-1, 1:-1]) + 13) // 26
    return _blend(smooth, images, magnitude)


def _apply_tables(images, tables):
    """Each image channel through its own table; tables (n, C, 256) uint8."""
    own = 256 * torch.arange(tables.shape[0] * tables.shape[1], dtype=torch.int, device=images.device)
    return _lookup(tables.flatten(), images + own.view(*images.shape[:2], 1, 1))


def _autocontrast(images, magnitude):
    flat = images.flatten(2)
    low, high = flat.amin(2, keepdim=True).double(), flat.amax(2, keepdim=True).double()  # (n, C, 1)
    # torch.div, because `255 / tensor` is a reciprocal and a product: two roundings where Pillow has one.
    scale = torch.div(torch.full_like(low, 255), (high - low).clamp(min=1))
    ramp = torch.arange(256, dtype=torch.float64, device=images.device)
    stretched = (ramp * scale + (-low * scale)).clamp(0, 255)
    return _apply_tables(images, torch.where(high > low, stretched, ramp).to(torch.uint8))


def _equalize(images, magnitude):
    flat = images.flatten(2).long()
    counts = torch.zeros(*flat.shape[:2], 256, dtype=torch.int, device=images.device)
    counts.scatter_add_(2, flat, torch.ones((), dtype=torch.int, device=images.device).expand_as(flat))
    ramp = torch.arange(256, device=images.device)
    last = counts.gather(2, flat.amax(2, keepdim=True))  # how many pixels have the largest value
    step = (flat.shape[2] - last) // 255
    below = counts.cumsum(2) - counts
    spread = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    return _apply_tables(images, torch.where(step > 0, spread, ramp).to(torch.uint8))


OPS = Registry("op")
OPS.update(
    shearX=Op(_shear("x"), 0, 0.3, signed=True),
    shearY=Op(_shear("y"), 0, 0.3, signed=True),
    translateX=Op(_translate("x"), 0, 150 / 331, signed=True),
    translateY=Op(_translate("y"), 0, 150 / 331, signed=True),
    rotate=Op(_rotate, 0, 30),
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


def apply_op(images, name, level, sign=1):
    """Op `name` at `level` (0..9) with `sign` (+1 or -1, for signed ops) on images (N, C, H, W) uint8."""
    op = OPS[name]
    _check_level(name, level)
    check_images(images)
    if op.is_identity(level, images.shape[1]):
        return images.clone()
    magnitude = op.magnitude(level)
    return op.function(images, sign * magnitude if op.signed else magnitude)


def pillow_op(image, name, level, sign=1):
    """apply_op on one Pillow image, by Pillow itself: for images of many sizes, of which no tables can be kept."""
    op = OPS[name]
    _check_level(name, level)
    magnitude = op.magnitude(level) if not op.signed else sign * op.magnitude(level)
    if name in _MOVES:
        matrix, how = _MOVES[name](magnitude, *image.size)
        grey = (GREY,) * len(image.getbands())
        return image.transform(image.size, Image.Transform.AFFINE, matrix, how, fillcolor=grey if len(grey) > 1 else GREY)
    if name == "rotate":
        return image.rotate(magnitude, Image.Resampling.NEAREST, fillcolor=(GREY,) * 3 if image.mode == "RGB" else GREY)
    if hasattr(ImageEnhance, name.title()):
        return getattr(ImageEnhance, name.title())(image).enhance(1 + magnitude)
    return getattr(ImageOps, name)(image, *(() if magnitude is None else (magnitude,)))


_MOVES = {  # (magnitude, width, height) -> affine matrix and resampling
    "shearX": lambda m, w, h: ((1, m, 0, 0, 1, 0), Image.Resampling.BICUBIC),
    "shearY": lambda m, w, h: ((1, 0, 0, m, 1, 0), Image.Resampling.BICUBIC),
    "translateX": lambda m, w, h: ((1, 0, m * w, 0, 1, 0), Image.Resampling.NEAREST),
    "translateY": lambda m, w, h: ((1, 0, 0, 0, 1, m * h), Image.Resampling.NEAREST),
}


def _check_level(name, level):
    if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level < LEVELS:
        raise CcdError(f"level {level!r} of op {name!r}: allowed are the whole numbers 0 to {LEVELS - 1}")


def check_images(images):
    """Raise CcdError unless `images` is a uint8 tensor (N, C, H, W) with one or three channels."""
    if not isinstance(images, torch.Tensor) or images.dtype != torch.uint8 or images.ndim != 4:
        given = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, torch.Tensor) else type(images).__name__
        raise CcdError(f"images must be a uint8 tensor (N, C, H, W), not {given}; augmentation comes before normalise")
    if images.shape[1] not in (1, 3):
        raise CcdError(f"images have {images.shape[1]} channels; allowed are 1 (grey) and 3 (RGB), as (N, C, H, W)")


# ---------------------------------------------------------------- policies


class PerImage:
    """Draws for N images, as tensors whose first dimension is N; indexing chooses images."""

    def __len__(self):
        return len(getattr(self, fields(self)[0].name))

    def __getitem__(self, rows):
        return replace(self, **{field.name: getattr(self, field.name)[rows] for field in fields(self)})


@dataclass(frozen=True)
class Draws(PerImage):
    """What a policy will do to N images: which steps fire (N, S) bool, and the signs (N, S) of those that have one."""

    fires: torch.Tensor
    signs: torch.Tensor


@dataclass(frozen=True)
class Policy:
    """Ops at fixed levels, walked in order, each firing independently with probability p (Li et al., ACCV 2022).

    A step whose level is None is left out: its draws are made and nothing comes of them, so that a policy with fewer
    ops stays paired, draw by draw, with the whole one.
    """

    name: str
    p: float
    steps: tuple[tuple[str, int | None], ...]

    def __post_init__(self):
        if not (isinstance(self.p, (int, float)) and 0 <= self.p <= 1):
            raise CcdError(f"p = {self.p!r} of policy {self.name!r}: allowed are probabilities from 0 to 1")
        for name, level in self.steps:
            OPS[name]
            if level is not None:
                _check_level(name, level)

    def draw(self, n, generator):
        """Draws for n images from `generator` (a torch.Generator on the CPU).

        A larger p makes the same steps fire and more, so sweeps of p are paired as well.
        """
        shape = (n, len(self.steps))
        fires = torch.rand(shape, generator=generator) < self.p
        signs = torch.where(torch.rand(shape, generator=generator) < 0.5, -1, 1)
        return Draws(fires, signs)

    def apply(self, images, draws):
        """Augmented copies of images (N, C, H, W) uint8, on their own device, by draws of the same N."""
        check_images(images)
        if draws.fires.shape != (len(images), len(self.steps)):
            raise CcdError(
                f"draws for {tuple(draws.fires.shape)} (images, steps) do not fit {len(images)} images and the "
                f"{len(self.steps)} steps of policy {self.name!r}; draw with policy.draw({len(images)}, generator)"
            )
        out = images.clone()
        for k, (name, level) in enumerate(self.steps):
            op = OPS[name]
            if level is None or op.is_identity(level, images.shape[1]):
                continue
            for sign in (1, -1) if op.signed else (None,):
                chosen = draws.fires[:, k] if sign is None else draws.fires[:, k] & (draws.signs[:, k] == sign)
                rows = chosen.nonzero().flatten().to(images.device, non_blocking=True)
                if len(rows):
                    out.index_copy_(0, rows, apply_op(out.index_select(0, rows), name, level, sign or 1))
        return out

    def apply_to(self, image, draws):
        """The augmented copy of one Pillow image of any size, RGB or grey, by draws of one image: the pixels of apply."""
        for k, (name, level) in enumerate(self.steps):
            if level is not None and draws.fires[0, k] and not OPS[name].is_identity(level, len(image.getbands())):
                image = pillow_op(image, name, level, int(draws.signs[0, k]))
        return image

    def fired(self, draws, channels=3):
        """For each image the ops, in words, that change it by these draws: [["solarize", "shearX +"], ...]."""
        signs = {1: " +", -1: " -"}
        changing = [
            (k, name)
            for k, (name, level) in enumerate(self.steps)
            if level is not None and not OPS[name].is_identity(level, channels)
        ]
        return [
            [name + (signs[int(sign[k])] if OPS[name].signed else "") for k, name in changing if fires[k]]
            for fires, sign in zip(draws.fires, draws.signs, strict=True)
        ]

    def with_p(self, p):
        """The same steps at another probability."""
        return replace(self, p=p)

    def only(self, ops):
        """The same walk with all steps left out whose op is not in `ops`; CcdError for an op that the policy lacks."""
        for op in ops:
            if op not in dict(self.steps):
                raise unknown(f"op of policy {self.name!r}", op, dict(self.steps))
        return replace(self, steps=tuple((name, level if name in ops else None) for name, level in self.steps))

    def effective(self, channels=3):
        """The steps (op, level) that can change an image with that many channels."""
        return [(name, k) for name, k in self.steps if k is not None and not OPS[name].is_identity(k, channels)]

    def describe(self, channels=3):
        """Facts about the policy: a dict with the expected number of ops that change an image, the probability that
        none does, and the steps that never do (on grey images, channels = 1, `color` is one of them)."""
        changing = self.effective(channels)
        effective = len(changing)
        same = [f"{name} {k}" for name, k in self.steps if k is not None and (name, k) not in changing]
        return {
            "policy": self.name,
            "p": self.p,
            "steps": len(self.steps),
            "effective_steps": effective,
            "expected_ops": effective * self.p,
            "p_no_op": (1 - self.p) ** effective,
            "identities": same,
        }


def _policy(name, p, text):
    steps = (step.split() for step in text.split(","))
    return Policy(name, p, tuple((op, int(level)) for op, level in steps))


POLICIES = Registry("policy")
for _row in (
    _policy(
        "cifar100",
        0.3,
        "autocontrast 2, contrast 3, posterize 0, solarize 4, translateY 8, shearX 5, brightness 3, shearY 0, "
        "translateX 1, sharpness 5, invert 4, color 4, equalize 8, rotate 3",
    ),
    _policy(
        "cifar10",
        0.5,
        "invert 7, rotate 2, shearY 8, posterize 9, autocontrast 8, color 3, sharpness 9, equalize 5, contrast 7, "
        "translateY 3, brightness 6, solarize 2, translateX 3, shearX 8",
    ),
    _policy(
        "imagenet",
        0.2,
        "posterize 8, solarize 5, equalize 8, posterize 7, equalize 7, equalize 4, solarize 3, posterize 5, rotate 3, "
        "equalize 8, rotate 8, rotate 9, equalize 7, invert 4, color 4, rotate 8, color 8, sharpness 7, shearX 5, "
        "color 0, equalize 7, solarize 5, invert 4, color 4, equalize 8",
    ),
):
    POLICIES[_row.name] = _row


def policy_named(name, p=None, ops=None):
    """The policy `name`, at probability `p` and with only the ops `ops` when they are given."""
    if name not in POLICIES:
        raise unknown("policy", name, POLICIES)
    policy = POLICIES[name] if ops is None else POLICIES[name].only(ops)
    return policy if p is None else policy.with_p(p)


# ---------------------------------------------------------------- what JDA is compared with


@dataclass(frozen=True)
class SampledDraws(PerImage):
    """What a Sampled will do to N images: which of its ops (N, K), at which level (N, K), with which sign (N, K)."""

    ops: torch.Tensor
    levels: torch.Tensor
    signs: torch.Tensor


@dataclass(frozen=True)
class Sampled:
    """`count` ops an image, each drawn uniformly from `ops` for that image alone, at `level` or, when None, at a uniform one.

    RandAugment (Cubuk et al., 2020) and TrivialAugment (Mueller & Hutter, ICCV 2021) over RandAugment's 14 ops, "identity"
    among them, with the ranges of OPS; rotation has both signs here.
    """

    name: str
    count: int
    level: int | None = None
    ops: tuple[str, ...] = ("identity", *(op for op in OPS if op != "invert"))

    def draw(self, n, generator):
        """Draws for n images from `generator` (a torch.Generator on the CPU)."""
        shape = (n, self.count)
        ops = torch.randint(len(self.ops), shape, generator=generator)
        levels = torch.randint(LEVELS, shape, generator=generator)
        signs = torch.where(torch.rand(shape, generator=generator) < 0.5, -1, 1)
        return SampledDraws(ops, levels if self.level is None else torch.full(shape, self.level), signs)

    def apply(self, images, draws):
        """Augmented copies of images (N, C, H, W) uint8, on their own device, by draws of the same N."""
        check_images(images)
        out = images.clone()
        for k in range(self.count):
            which = torch.stack([draws.ops[:, k], draws.levels[:, k], draws.signs[:, k]], 1)
            for case in which.unique(dim=0):
                rows = (which == case).all(1).nonzero().flatten().to(images.device, non_blocking=True)
                done = self._one(out.index_select(0, rows), self.ops[case[0]], int(case[1]), int(case[2]))
                out.index_copy_(0, rows, done)
        return out

    @staticmethod
    def _one(images, name, level, sign):
        if name == "rotate":
            return _rotate(images, sign * OPS[name].magnitude(level))
        return images if name == "identity" else apply_op(images, name, level, sign)


@dataclass(frozen=True)
class MixDraws(PerImage):
    """What a Mix will do to N images: the partner's row (N,), the image's own share (N,) in 0..1, the box's centre (N, 2)."""

    partners: torch.Tensor
    shares: torch.Tensor
    centres: torch.Tensor


@dataclass(frozen=True)
class Mix:
    """Two images in one, and their labels mixed in the same shares; the share is Beta(1, 1), which is uniform.

    boxes False: Mixup (Zhang et al., ICLR 2018), share * a + (1 - share) * b. boxes True: CutMix (Yun et al., ICCV 2019), a
    box of (1 - share) of the area, cut off at the image's edges, comes from b. candidates: how many are made for one
    that is kept, those of which the teacher is least certain (CutMixPick: Wang et al., NeurIPS 2022).
    """

    name: str
    boxes: bool
    candidates: int = 1

    def draw(self, n, generator):
        """Draws for n images from `generator` (a torch.Generator on the CPU); partners are a permutation of them."""
        partners = torch.randperm(n, generator=generator)
        return MixDraws(partners, torch.rand(n, generator=generator), torch.rand((n, 2), generator=generator))

    def apply(self, images, partners, draws):
        """(mixed (N, C, H, W) uint8, the first images' shares (N,) float32) of images and partners, both (N, C, H, W) uint8."""
        check_images(images)
        shares = draws.shares.to(images.device)
        if not self.boxes:
            part = shares[:, None, None, None]
            return (part * images + (1 - part) * partners).round().to(torch.uint8), shares
        from_partner = self._boxes(draws, *images.shape[2:]).to(images.device)  # (N, H, W)
        mixed = torch.where(from_partner[:, None], partners, images)
        return mixed, 1 - from_partner.float().mean((1, 2))

    @staticmethod
    def _boxes(draws, height, width):
        inside = []
        for axis, length in enumerate((height, width)):
            half = (1 - draws.shares).sqrt() * length / 2
            centre = draws.centres[:, axis] * length
            middle = torch.arange(length) + 0.5  # a pixel is in the box when its middle is
            inside.append((middle - centre[:, None]).abs() < half[:, None])
        return inside[0][:, :, None] & inside[1][:, None, :]


# Kinds of augmented views besides the policies; RandAugment's level is 4 of 0..9 (M = 14 of 30, its CIFAR-100 setting).
AUGMENTATIONS = Registry("augmentation")
for _row in (
    Sampled("randaugment", 2, 4),
    Sampled("trivialaugment", 1),
    Mix("mixup", boxes=False),
    Mix("cutmix", boxes=True),
    Mix("cutmixpick", boxes=True, candidates=2),
):
    AUGMENTATIONS[_row.name] = _row


# ---------------------------------------------------------------- base: random crop, flip, normalise


@dataclass(frozen=True)
class Crops(PerImage):
    """Base draws for N images: the crop's top left corner (N, 2) inside the padded image, and the flip (N,) bool."""

    corners: torch.Tensor
    flips: torch.Tensor


def draw_crops(n, pad, flip, generator):
    """Crops for n images padded by `pad` pixels on each side; `flip` says whether left-right flips are drawn at all."""
    corners = torch.randint(0, 2 * pad + 1, (n, 2), generator=generator)
    flips = torch.rand(n, generator=generator) < (0.5 if flip else 0.0)
    return Crops(corners, flips)


def crop_and_flip(images, crops, pad):
    """Random crop at the images' own size from zero padding, then horizontal flip; (N, C, H, W) uint8 to the same."""
    n, channels, height, width = images.shape
    corners, flips = (drawn.to(images.device, non_blocking=True) for drawn in (crops.corners, crops.flips))
    padded = F.pad(images, (pad,) * 4)
    # Whole rows of pixels first, then columns in each row: rows are copied, only columns are looked up.
    first = padded.shape[2] * torch.arange(n * channels, device=images.device).view(n, channels, 1)
    rows = (first + corners[:, :1, None] + torch.arange(height, device=images.device)).flatten()
    columns = torch.arange(width, device=images.device)
    columns = corners[:, 1:] + torch.where(flips[:, None], columns.flip(0), columns)  # (N, W)
    taken = padded.flatten(0, 2).index_select(0, rows).view(n, channels, height, padded.shape[3])
    return taken.gather(3, columns[:, None, None].expand(-1, channels, height, -1))


def normalise(images, mean, std):
    """uint8 images (N, C, H, W) to float32, (x / 255 - mean) / std per channel, in memory as channels_last, which is what the
    networks want."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1).to(images.device, non_blocking=True) for values in (mean, std))
    return images.float().div_(255).sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


def as_bytes(inputs, mean, std):
    """The images (N, C, H, W) uint8 that normalise() made `inputs` of."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    return ((inputs * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def rotations(images):
    """Views first: (4 N, C, S, S), all images turned by 0, then by 90, 180 and 270 degrees counter-clockwise."""
    if images.shape[2] != images.shape[3]:
        raise CcdError(f"rotation views need square images, not {tuple(images.shape[2:])}; make them square first")
    return torch.cat([torch.rot90(images, k, (2, 3)) for k in range(4)])
