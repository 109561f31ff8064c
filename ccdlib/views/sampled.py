"""Ops that are drawn for each image alone, with which JDA is compared: RandAugment, TrivialAugment and AutoAugment."""

from dataclasses import asdict, dataclass
from functools import cache

import torch

from ccdlib.views.draws import PerImage
from ccdlib.views.ops import LEVELS, OPS, apply_op, check_images, rotate
from ccdlib.views.rules import VIEWS, ViewRule

# Listed here, so that an op that is added to the kit does not change RandAugment.
RANDAUGMENT = (
    *("identity", "shearX", "shearY", "translateX", "translateY", "rotate", "color", "contrast", "sharpness", "brightness"),
    *("posterize", "solarize", "autocontrast", "equalize"),
)
AUTOAUGMENT = (*RANDAUGMENT, "invert")


@dataclass(frozen=True)
class SampledDraws(PerImage):
    """Draws of a Sampled of K ops an image for N images."""

    ops: torch.Tensor  # (N, K) places in the list of ops
    levels: torch.Tensor  # (N, K) 0..9
    signs: torch.Tensor  # (N, K) +1 or -1


@dataclass(frozen=True)
class Sampled(ViewRule):
    """Ops that are drawn uniformly for each image alone: RandAugment and TrivialAugment.

    RandAugment: Cubuk et al., 2020. TrivialAugment: Mueller & Hutter, ICCV 2021. Both draw from RandAugment's 14 ops, of which
    "identity" is one, with the ranges of OPS; rotation has both signs here.
    """

    name: str
    count: int  # ops of an image
    level: int | None = None  # None: drawn uniformly for each op
    ops: tuple[str, ...] = RANDAUGMENT
    twins = True

    def facts(self) -> dict:
        """What names a run: every field."""
        return {"augmentation": asdict(self)}

    def draw(self, n: int, generator: torch.Generator) -> SampledDraws:
        """Draws for n images from `generator` (on the CPU)."""
        shape = (n, self.count)
        ops = torch.randint(len(self.ops), shape, generator=generator)
        levels = torch.randint(LEVELS, shape, generator=generator)
        signs = torch.where(torch.rand(shape, generator=generator) < 0.5, -1, 1)
        return SampledDraws(ops, levels if self.level is None else torch.full(shape, self.level), signs)

    def apply(self, images: torch.Tensor, draws: SampledDraws, partners: torch.Tensor | None = None) -> torch.Tensor:
        """Twins of images (N, C, H, W) uint8, on their own device, by the draws for these N. Errors: see check_images."""
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
            return rotate(images, sign * OPS[name].magnitude(level))
        return images if name == "identity" else apply_op(images, name, level, sign)


@dataclass(frozen=True)
class AutoAugment(Sampled):
    """The policy that AutoAugment found for CIFAR-10 and that its paper also uses for CIFAR-100 (Cubuk et al., CVPR 2019).

    Each image gets one of 25 sub-policies of two ops, each of which fires with a probability of its own; the table is
    torchvision's.
    """

    ops: tuple[str, ...] = AUTOAUGMENT

    def facts(self) -> dict:
        """What names a run: every field, and the table."""
        return super().facts() | {"steps": subpolicies()}

    def draw(self, n: int, generator: torch.Generator) -> SampledDraws:
        """Draws for n images from `generator` (on the CPU); an op that does not fire is "identity"."""
        rows = [[(self.ops.index(op), p, level or 0) for op, p, level in steps] for steps in subpolicies()]
        chosen = torch.tensor(rows)[torch.randint(len(rows), (n,), generator=generator)]  # (n, 2, 3)
        ops, chances, levels = chosen.unbind(2)
        fires = torch.rand(ops.shape, generator=generator) < chances
        signs = torch.where(torch.rand(ops.shape, generator=generator) < 0.5, -1, 1)
        ops = torch.where(fires, ops.long(), self.ops.index("identity"))
        return SampledDraws(ops, levels.long(), signs)


@cache
def subpolicies() -> tuple[tuple[tuple[str, float, int | None], ...], ...]:
    """The sub-policies of AutoAugment for CIFAR-10: of each step its op, its probability, and its level 0..9."""
    from ccdlib.base.vision import torchvision  # it takes seconds to import

    transforms = torchvision.transforms
    table, names = transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10).policies, {op.lower(): op for op in AUTOAUGMENT}
    return tuple(tuple((names[op.lower()], p, level) for op, p, level in steps) for steps in table)


VIEWS.update(
    randaugment=Sampled("randaugment", 2, 4),  # its setting for CIFAR-100, magnitude 14 of 30, is level 4 of 0..9
    trivialaugment=Sampled("trivialaugment", 1),
    autoaugment=AutoAugment("autoaugment", 2),
)
