"""The base of every view: random crop and flip, rotation, and the normalisation that networks see."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ccdlib.base.registry import CcdError
from ccdlib.views.draws import PerImage


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
