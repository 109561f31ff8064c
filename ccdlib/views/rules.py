"""The contract of a view rule, and the registry of all of them."""

from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import torch

from ccdlib.base.registry import CcdError, Registry
from ccdlib.views.crops import rotations
from ccdlib.views.draws import PerImage


class ViewRule:
    """How views of an image are made: what `RunConfig.views` names.

    Every image has `base` base views (random crop and flip; with `crops` False the image as it is). A rule with `twins` makes
    augmented copies of the image besides, as many as RunConfig.twins says, for RunConfig.share of the images. Then every view
    is turned (`turned`), which makes `turns` network inputs of it. Draws are made apart from their application, so that methods
    that are compared share them.

    candidates: twins that are made for one that is kept, the one of which the teacher is least certain. mixes: whether
    apply() puts two images into one, and with them their labels. knobs: the fields of RunConfig that change the rule itself
    (see with_knobs). ops: the names of the rows of OPS that it may apply. whole_images: whether it can come before the crop on
    images of any size, one by one (`apply_to`).
    """

    name: str
    base = 1
    twins = True
    crops = True
    turns = 1
    candidates = 1
    mixes = False
    knobs: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()
    whole_images = False

    def draw(self, n: int, generator: torch.Generator) -> PerImage:
        """Draws for one twin of each of n images, from `generator` (on the CPU)."""
        raise NotImplementedError

    def apply(self, images: torch.Tensor, draws: PerImage, partners: torch.Tensor | None = None) -> torch.Tensor:
        """Augmented copies of images (N, C, H, W) uint8, on their own device, by draws of the same N; partners: the images that
        partners_of(draws) names, where the rule mixes."""
        raise NotImplementedError

    def apply_to(self, image: Any, draws: PerImage) -> Any:
        """The augmented copy of one Pillow image of any size, by draws of one image; for rules with `whole_images`."""
        raise NotImplementedError

    def partners_of(self, draws: PerImage) -> torch.Tensor:
        """For a rule that mixes: the training row (N,) of the second image of each."""
        raise NotImplementedError

    def shares(self, draws: PerImage, height: int, width: int) -> torch.Tensor:
        """For a rule that mixes: how much of each mixed image is its first image (N,) float32, and so of its label."""
        raise NotImplementedError

    def turned(self, views: torch.Tensor) -> torch.Tensor:
        """The network inputs (turns * B, C, H, W) of B views."""
        return views

    def with_knobs(self, **values) -> "ViewRule":
        """The rule with other values of its `knobs`; None keeps one."""
        return self

    def facts(self) -> dict:
        """What names a run besides the rule's name."""
        return {}


@dataclass(frozen=True)
class Base(ViewRule):
    """Base views only: one or two crops and flips, the image as it is, or four rotations of one crop."""

    name: str
    base: int = 1
    crops: bool = True
    turns: int = 1
    twins = False

    def turned(self, views):
        """The views, at each of four angles where the rule rotates."""
        return rotations(views) if self.turns > 1 else views


def _row(name: str, rule: ViewRule | type) -> ViewRule:
    """The rule of a row, made where a class is given; it has the name of its row."""
    rule = rule() if isinstance(rule, type) else rule
    if not isinstance(rule, ViewRule):
        raise CcdError(f"views {name!r}: {rule!r} is no ViewRule; give a Policy, or an object of a class made from ViewRule")
    if getattr(rule, "name", None) == name:
        return rule
    if is_dataclass(rule) and "name" in rule.__dataclass_fields__:
        return replace(rule, name=name)
    rule.name = name
    return rule


VIEWS = Registry("views", _row)
VIEWS.update(raw=Base("raw", crops=False), none=Base("none"), base=Base("base", base=2), rotation=Base("rotation", turns=4))
