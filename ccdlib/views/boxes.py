"""Boxes around things in an image, and how they move with its pixels.

Boxes of N images are one tensor (N, K, 5) float32: class, left, top, right, bottom, in pixels from the top left corner of the
image, right and bottom excluded; an image with fewer than K boxes has rows of class NONE. Moves are tensors (N, 2, 3) float64:
what was at (x, y) comes to (a x + b y + c, d x + e y + f).
"""

from collections.abc import Sequence

import torch

from ccdlib.data.boxed import NONE

LEAST_SHARE = 0.25  # of its area that a box must keep inside of the image
LEAST_SIDE = 1.0  # pixels


def still(n: int) -> torch.Tensor:
    """The moves (n, 2, 3) of n images that stay as they are."""
    return torch.eye(2, 3, dtype=torch.float64).repeat(n, 1, 1)


def move_of(matrix: Sequence[float]) -> torch.Tensor:
    """The move (2, 3) that undoes a Matrix of ops.py, which says where pixels come from."""
    a = torch.tensor(matrix, dtype=torch.float64).view(2, 3)
    back = torch.linalg.inv(a[:, :2])
    return torch.cat([back, -back @ a[:, 2:]], 1)


def then(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The moves of `first`, (N, 2, 3), followed by `second`, (2, 3) or (N, 2, 3)."""
    turned = second[..., :2] @ first
    turned[..., 2] += second[..., 2]
    return turned


def flipped(flips: torch.Tensor, width: int) -> torch.Tensor:
    """The moves (N, 2, 3) of images of a width that are flipped left to right where `flips` (N,) is true."""
    moves = still(len(flips))
    moves[flips] = torch.tensor([[-1.0, 0.0, width], [0.0, 1.0, 0.0]], dtype=torch.float64)
    return moves


def moved(boxes: torch.Tensor, moves: torch.Tensor, height: int, width: int, least: float = LEAST_SHARE) -> torch.Tensor:
    """Boxes (N, K, 5) after their images' moves (N, 2, 3): the hull of the four moved corners, clipped to the image.

    A box of which less than the share `least` of its area is left, or less than LEAST_SIDE pixels of a side, gets class NONE.
    height, width: of the images, in pixels.
    """
    left, top, right, bottom = boxes[..., 1:].double().unbind(2)  # each (N, K)
    corners = torch.stack([torch.stack([x, y], 2) for x in (left, right) for y in (top, bottom)], 2)  # (N, K, 4, 2)
    moves = moves.to(boxes.device)
    corners = (moves[:, None, None, :, :2] @ corners[..., None]).squeeze(4) + moves[:, None, None, :, 2]
    hull = torch.cat([corners.amin(2), corners.amax(2)], 2)  # (N, K, 4)
    limits = hull.new_tensor([width, height, width, height])
    inside = hull.clamp(min=0).minimum(limits)
    sides, whole = inside[..., 2:] - inside[..., :2], hull[..., 2:] - hull[..., :2]
    kept = (sides.prod(2) >= least * whole.prod(2)) & (sides.amin(2) >= LEAST_SIDE) & (boxes[..., 0] != NONE)
    found = torch.cat([boxes[..., :1].double(), inside], 2).to(boxes.dtype)
    return torch.where(kept[..., None], found, found.new_tensor([NONE, 0, 0, 0, 0]))


def rows_of(boxes: torch.Tensor) -> list[torch.Tensor]:
    """For each image of `boxes` (N, K, 5) its own boxes (k, 5), without the rows of class NONE."""
    return [own[own[:, 0] != NONE] for own in boxes]
