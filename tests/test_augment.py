"""Augmentation against Pillow, pixel by pixel, and the facts of the policies."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_image

from ccdlib.augment import (
    OPS,
    POLICIES,
    Policy,
    apply_op,
    crop_and_flip,
    draw_crops,
    normalise,
    policy_named,
    rotations,
)
from ccdlib.registry import CcdError
from ccdlib.streams import stream

GREY = {"L": 128, "RGB": (128, 128, 128)}
STEPS = sorted({step for policy in POLICIES.values() for step in policy.steps} | {(op, 9) for op in OPS})


def pillow(image, op, level, sign):
    """The pixel rule of methods.md, section 1, one Pillow image at a time."""
    fill = GREY[image.mode]
    affine = Image.Transform.AFFINE
    unit = level / 9
    side = 150 / 331 * unit * sign
    match op:
        case "shearX":
            return image.transform(image.size, affine, (1, 0.3 * unit * sign, 0, 0, 1, 0), Image.BICUBIC, fillcolor=fill)
        case "shearY":
            return image.transform(image.size, affine, (1, 0, 0, 0.3 * unit * sign, 1, 0), Image.BICUBIC, fillcolor=fill)
        case "translateX":
            return image.transform(image.size, affine, (1, 0, side * image.width, 0, 1, 0), fillcolor=fill)
        case "translateY":
            return image.transform(image.size, affine, (1, 0, 0, 0, 1, side * image.height), fillcolor=fill)
        case "rotate":
            turned = image.convert("RGBA").rotate(30 * unit)
            return Image.composite(turned, Image.new("RGBA", image.size, (128,) * 4), turned).convert(image.mode)
        case "color" | "contrast" | "sharpness" | "brightness":
            return getattr(ImageEnhance, op.title())(image).enhance(1 + 0.9 * unit * sign)
        case "posterize":
            return ImageOps.posterize(image, (8, 8, 7, 7, 6, 6, 5, 5, 4, 4)[level])
        case "solarize":
            return ImageOps.solarize(image, 256 - 256 * unit)
        case _:
            return getattr(ImageOps, op)(image)


def random_images(n, channels, height, width):
    rng = np.random.default_rng(height * 1000 + width)
    noise = rng.integers(0, 256, (n, channels, height, width))
    # Flat, dark, and narrow-ranged images reach the corner cases of autocontrast, equalize and contrast.
    noise[0] = 77
    noise[1] = noise[1] // 5 + 3
    noise[2, :, : height // 2] = 200
    return torch.from_numpy(noise.astype(np.uint8))


def real_images():
    china = Image.fromarray(load_sample_image("china.jpg"))
    crops = [china.crop((x, y, x + 96, y + 96)).resize((32, 32)) for x, y in ((0, 0), (200, 150), (420, 280))]
    return torch.from_numpy(np.stack([np.array(c) for c in crops])).permute(0, 3, 1, 2).contiguous()


def to_pillow(image):
    return Image.fromarray(image.permute(1, 2, 0).numpy().squeeze(2) if len(image) == 1 else
                           image.permute(1, 2, 0).contiguous().numpy())


def from_pillow(image):
    array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def difference(images, op, level, sign):
    ours = apply_op(images, op, level, sign)
    theirs = torch.stack([from_pillow(pillow(to_pillow(image), op, level, sign)) for image in images])
    assert ours.shape == theirs.shape
    assert ours.dtype == torch.uint8
    return (ours.int() - theirs.int()).abs().max().item()


@pytest.mark.parametrize(("op", "level"), STEPS)
def test_every_op_equals_pillow(op, level):
    # The issue allows one grey level for the enhance ops and the bicubic shear; the tables of Pillow make it zero.
    batches = [random_images(4, c, h, w) for c in (1, 3) for h, w in ((32, 32), (16, 16), (7, 13), (29, 18), (2, 5))]
    batches += [real_images(), real_images()[:, 1:2]]
    for images in batches:
        for sign in (1, -1) if OPS[op].signed else (1,):
            assert difference(images, op, level, sign) == 0, f"{op} {level} {sign:+d} on {tuple(images.shape)}"
