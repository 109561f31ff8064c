"""Policies of Joint Data Augmentation (JDA).

Sources: the JDA of Li et al., ACCV 2022, with the magnitudes of Cubuk et al., AutoAugment, CVPR 2019.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from PIL import Image

from ccdlib.base.registry import CcdError, Subset, unknown
from ccdlib.views.boxes import move_of, still, then
from ccdlib.views.draws import PerImage
from ccdlib.views.ops import OPS, apply_op, check_images, check_level, pillow_op
from ccdlib.views.rules import VIEWS, ViewRule


@dataclass(frozen=True)
class Draws(PerImage):
    """Draws of a Policy of S steps for N images."""

    fires: torch.Tensor  # (N, S) bool: whether the step fires
    signs: torch.Tensor  # (N, S) +1 or -1, for the steps whose op is signed


@dataclass(frozen=True)
class Policy(ViewRule):
    """Steps (op, level) in a fixed order, each of which fires independently with probability p (Li et al., ACCV 2022).

    A step whose level is None is left out: its draws are made and have no effect, so that a policy with fewer ops has the same
    draws as the whole one. Errors: CcdError for a p outside of 0..1, an unknown op, and a level outside of 0..9.
    """

    name: str
    p: float
    steps: tuple[tuple[str, int | None], ...]
    twins = True
    knobs = ("p", "ops")
    whole_images = True
    moves_boxes = True

    def __post_init__(self):
        if not (isinstance(self.p, (int, float)) and 0 <= self.p <= 1):
            raise CcdError(f"p = {self.p!r} of policy {self.name!r}: allowed are probabilities from 0 to 1")
        for name, level in self.steps:
            OPS[name]
            if level is not None:
                check_level(name, level)

    @property
    def ops(self) -> tuple[str, ...]:
        """The names of its ops, each once."""
        return tuple(dict.fromkeys(name for name, _ in self.steps))

    def facts(self) -> dict:
        """What names a run: steps and p."""
        return {"steps": self.steps, "p": self.p}

    def with_knobs(self, p: float | None = None, ops: Iterable[str] | None = None) -> "Policy":
        """The policy with another p where it is given, and with only the ops `ops` where they are; see with_p() and only()."""
        policy = self if ops is None else self.only(ops)
        return policy if p is None else policy.with_p(p)

    def draw(self, n: int, generator: torch.Generator) -> Draws:
        """Draws for n images from `generator` (on the CPU).

        With a larger p the same steps fire and more, so that runs that differ in p are paired as well.
        """
        shape = (n, len(self.steps))
        fires = torch.rand(shape, generator=generator) < self.p
        signs = torch.where(torch.rand(shape, generator=generator) < 0.5, -1, 1)
        return Draws(fires, signs)

    def apply(self, images: torch.Tensor, draws: Draws, partners: torch.Tensor | None = None) -> torch.Tensor:
        """Twins of images (N, C, H, W) uint8, on their own device, by the draws for these N.

        Errors: CcdError for images of another type or shape, and for draws of another number of images or steps.
        """
        check_images(images)
        if draws.fires.shape != (len(images), len(self.steps)):
            raise CcdError(
                f"draws for {tuple(draws.fires.shape)} (images, steps) do not fit {len(images)} images and the "
                f"{len(self.steps)} steps of policy {self.name!r}; draw with policy.draw({len(images)}, generator)"
            )
        out = images.clone()
        for k, (name, level) in enumerate(self.steps):
            if not _changes(name, level, images.shape[1]):
                continue
            for sign in (1, -1) if OPS[name].signed else (None,):
                chosen = draws.fires[:, k] if sign is None else draws.fires[:, k] & (draws.signs[:, k] == sign)
                rows = chosen.nonzero().flatten().to(images.device, non_blocking=True)
                if len(rows):
                    out.index_copy_(0, rows, apply_op(out.index_select(0, rows), name, level, sign or 1))
        return out

    def moves(self, draws: Draws, height: int, width: int) -> torch.Tensor:
        """How pixels move by these draws for N images, (N, 2, 3) as in boxes.py."""
        found = still(len(draws))
        for k, (name, level) in enumerate(self.steps):
            op = OPS[name]
            if op.moves is None or level is None:
                continue
            for sign in (1, -1) if op.signed else (1,):
                rows = draws.fires[:, k] & (draws.signs[:, k] == sign) if op.signed else draws.fires[:, k]
                found[rows] = then(found[rows], move_of(op.moves(sign * op.magnitude(level), width, height)))
        return found

    def apply_to(self, image: Image.Image, draws: Draws) -> Image.Image:
        """The twin of one Pillow image of any size, RGB or grey, by draws for one image; it has the pixels of apply()."""
        for k, (name, level) in enumerate(self.steps):
            if draws.fires[0, k] and _changes(name, level, len(image.getbands())):
                image = pillow_op(image, name, level, int(draws.signs[0, k]))
        return image

    def fired(self, draws: Draws, channels: int = 3) -> list[list[str]]:
        """For each image, the ops that change it by these draws, with their signs: [["solarize", "shearX +"], ...]."""
        signs = {1: " +", -1: " -"}
        changing = [(k, name) for k, (name, level) in enumerate(self.steps) if _changes(name, level, channels)]
        return [
            [name + (signs[int(sign[k])] if OPS[name].signed else "") for k, name in changing if fires[k]]
            for fires, sign in zip(draws.fires, draws.signs, strict=True)
        ]

    def with_p(self, p: float) -> "Policy":
        """The policy with another probability p."""
        return replace(self, p=p)

    def only(self, ops: Iterable[str]) -> "Policy":
        """The policy without the steps whose op is not in `ops`. Errors: CcdError for an op that the policy does not have."""
        for op in ops:
            if op not in dict(self.steps):
                raise unknown(f"op of policy {self.name!r}", op, dict(self.steps))
        return replace(self, steps=tuple((name, level if name in ops else None) for name, level in self.steps))

    def effective(self, channels: int = 3) -> list[tuple[str, int]]:
        """The steps (op, level) that can change an image with so many channels."""
        return [(name, level) for name, level in self.steps if _changes(name, level, channels)]

    def describe(self, channels: int = 3) -> dict:
        """Facts about the policy, for images with so many channels.

        expected_ops: the expected number of ops that change an image; p_no_op: the probability that none does; identities: the
        steps that never change one (such as `color` on grey images, channels = 1).
        """
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


def _changes(name, level, channels):
    """Whether a step can change an image with so many channels."""
    return level is not None and not OPS[name].is_identity(level, channels)


def _policy(name, p, text):
    steps = (step.split() for step in text.split(","))
    return Policy(name, p, tuple((op, int(level)) for op, level in steps))


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
    # For object detection, by the authors' public recipe (2023), whose rotation of level 10 of 10 is level 9 here.
    _policy(
        "detection",
        0.15,
        "translateY 4, equalize 0, translateX 2, shearY 2, rotate 9, color 6, brightness 3, contrast 3, invert 0, shearX 1",
    ),
):
    VIEWS[_row.name] = _row


POLICIES = Subset(VIEWS, "policy", lambda rule: "ops" in rule.knobs)


def policy_named(name: str, p: float | None = None, ops: Iterable[str] | None = None) -> Policy:
    """The policy `name`, with p and ops as in Policy.with_knobs. Errors: CcdError for an unknown policy or op, and for p."""
    return POLICIES[name].with_knobs(p=p, ops=ops)
