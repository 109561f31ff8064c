"""What every view is made with besides a view rule: random crop and flip, rotation, and normalisation."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ccdlib.base.registry import CcdError
from ccdlib.views.draws import PerImage


@dataclass(frozen=True)
class Crops(PerImage):
    """Draws of crop and flip for N images."""

    corners: torch.Tensor  # (N, 2) the top left corner, (row, column), of the crop in the padded image, in pixels
    flips: torch.Tensor  # (N,) bool


def draw_crops(n: int, pad: int, flip: bool, generator: torch.Generator) -> Crops:
    """Crops for n images that are padded by `pad` pixels on each side.

    flip: whether half of the images, drawn at random, are flipped left to right; the draws use as many random numbers either
    way. generator: on the CPU.
    """
    corners = torch.randint(0, 2 * pad + 1, (n, 2), generator=generator)
    flips = torch.rand(n, generator=generator) < (0.5 if flip else 0.0)
    return Crops(corners, flips)


def crop_and_flip(images: torch.Tensor, crops: Crops, pad: int) -> torch.Tensor:
    """Images (N, C, H, W), padded by `pad` pixels of zeros, cropped to their own size and flipped left to right by `crops`."""
    n, channels, height, width = images.shape
    corners, flips = (drawn.to(images.device, non_blocking=True) for drawn in (crops.corners, crops.flips))
    padded = F.pad(images, (pad,) * 4)
    # Rows first and columns after: a whole row is copied at once, so that only columns are looked up pixel by pixel.
    first = padded.shape[2] * torch.arange(n * channels, device=images.device).view(n, channels, 1)
    rows = (first + corners[:, :1, None] + torch.arange(height, device=images.device)).flatten()
    columns = torch.arange(width, device=images.device)
    columns = corners[:, 1:] + torch.where(flips[:, None], columns.flip(0), columns)  # (N, W)
    taken = padded.flatten(0, 2).index_select(0, rows).view(n, channels, height, padded.shape[3])
    return taken.gather(3, columns[:, None, None].expand(-1, channels, height, -1))


def normalise(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Network inputs (N, C, H, W) float32 of uint8 images: (x / 255 - mean) / std by channel.

    Their memory format is channels_last, in which convolutions are faster.
    """
    mean, std = (torch.tensor(values).view(1, -1, 1, 1).to(images.device, non_blocking=True) for values in (mean, std))
    return images.float().div_(255).sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


def as_bytes(inputs: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """The images (N, C, H, W) uint8 of which normalise() made `inputs`."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    return ((inputs * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


def rotations(images: torch.Tensor) -> torch.Tensor:
    """Images (N, C, S, S) at four angles, (4 N, C, S, S): all at 0 degrees, then at 90, 180 and 270, counter-clockwise.

    Errors: CcdError for images that are not square.
    """
    if images.shape[2] != images.shape[3]:
        raise CcdError(
            f"rotation views need square images; these are {images.shape[2]} x {images.shape[3]} pixels. Crop or "
            "resize them to a square"
        )
    return torch.cat([torch.rot90(images, k, (2, 3)) for k in range(4)])
