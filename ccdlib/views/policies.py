"""Policies: Joint Data Augmentation (JDA), and RandAugment and TrivialAugment, which it is compared with.

A policy is data, and the draws of a batch are a value, made apart from their application.

Source: the JDA of Li et al., ACCV 2022, with the magnitudes of Cubuk et al., AutoAugment, CVPR 2019.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

import torch

from ccdlib.base.registry import CcdError, Subset, unknown
from ccdlib.views.draws import PerImage
from ccdlib.views.ops import LEVELS, OPS, apply_op, check_images, check_level, pillow_op, rotate
from ccdlib.views.rules import VIEWS, ViewRule


@dataclass(frozen=True)
class Draws(PerImage):
    """What a policy will do to N images: which steps fire (N, S) bool, and the signs (N, S) of those that have one."""

    fires: torch.Tensor
    signs: torch.Tensor


@dataclass(frozen=True)
class Policy(ViewRule):
    """Ops at fixed levels, walked in order, each firing independently with probability p (Li et al., ACCV 2022).

    A step whose level is None is left out: its draws are made and nothing comes of them, so that a policy with fewer
    ops stays paired, draw by draw, with the whole one.
    """

    name: str
    p: float
    steps: tuple[tuple[str, int | None], ...]
    twins = True
    knobs = ("p", "ops")
    whole_images = True

    def __post_init__(self):
        if not (isinstance(self.p, (int, float)) and 0 <= self.p <= 1):
            raise CcdError(f"p = {self.p!r} of policy {self.name!r}: allowed are probabilities from 0 to 1")
        for name, level in self.steps:
            OPS[name]
            if level is not None:
                check_level(name, level)

    @property
    def ops(self):
        """The names of its ops."""
        return tuple(dict.fromkeys(name for name, _ in self.steps))

    def facts(self):
        """What names a run: steps and p; the policy's own name is only how they are called."""
        return {"steps": self.steps, "p": self.p}

    def with_knobs(self, p=None, ops=None):
        """The policy at another probability, or with some of its ops only."""
        policy = self if ops is None else self.only(ops)
        return policy if p is None else policy.with_p(p)

    def draw(self, n, generator):
        """Draws for n images from `generator` (a torch.Generator on the CPU).

        A larger p makes the same steps fire and more, so sweeps of p are paired as well.
        """
        shape = (n, len(self.steps))
        fires = torch.rand(shape, generator=generator) < self.p
        signs = torch.where(torch.rand(shape, generator=generator) < 0.5, -1, 1)
        return Draws(fires, signs)

    def apply(self, images, draws, partners=None):
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
    VIEWS[_row.name] = _row


POLICIES = Subset(VIEWS, "policy", lambda rule: "ops" in rule.knobs)  # live: a reader's policy is one at once


def policy_named(name: str, p: float | None = None, ops: Iterable[str] | None = None) -> Policy:
    """The policy `name`, at probability `p` and with only the ops `ops` when they are given. Errors: CcdError."""
    return POLICIES[name].with_knobs(p=p, ops=ops)


# RandAugment's own list: an op that is added to the kit changes nothing here.
RANDAUGMENT = (
    *("identity", "shearX", "shearY", "translateX", "translateY", "rotate", "color", "contrast", "sharpness", "brightness"),
    *("posterize", "solarize", "autocontrast", "equalize"),
)


@dataclass(frozen=True)
class SampledDraws(PerImage):
    """What a Sampled will do to N images: which of its ops (N, K), at which level (N, K), with which sign (N, K)."""

    ops: torch.Tensor
    levels: torch.Tensor
    signs: torch.Tensor


@dataclass(frozen=True)
class Sampled(ViewRule):
    """`count` ops an image, each drawn uniformly from `ops` for that image alone, at `level` or, when None, at a uniform one.

    RandAugment (Cubuk et al., 2020) and TrivialAugment (Mueller & Hutter, ICCV 2021) over RandAugment's 14 ops, "identity"
    among them, with the ranges of OPS; rotation has both signs here.
    """

    name: str
    count: int
    level: int | None = None
    ops: tuple[str, ...] = RANDAUGMENT
    twins = True

    def facts(self):
        """What names a run: all of it."""
        return {"augmentation": asdict(self)}

    def draw(self, n, generator):
        """Draws for n images from `generator` (a torch.Generator on the CPU)."""
        shape = (n, self.count)
        ops = torch.randint(len(self.ops), shape, generator=generator)
        levels = torch.randint(LEVELS, shape, generator=generator)
        signs = torch.where(torch.rand(shape, generator=generator) < 0.5, -1, 1)
        return SampledDraws(ops, levels if self.level is None else torch.full(shape, self.level), signs)

    def apply(self, images, draws, partners=None):
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
            return rotate(images, sign * OPS[name].magnitude(level))
        return images if name == "identity" else apply_op(images, name, level, sign)


# RandAugment's level is 4 of 0..9 (M = 14 of 30, its setting for CIFAR-100).
VIEWS.update(randaugment=Sampled("randaugment", 2, 4), trivialaugment=Sampled("trivialaugment", 1))
