"""The contract of view rules, and their registry VIEWS."""

from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import torch
from PIL import Image

from ccdlib.base.registry import CcdError, Registry
from ccdlib.views.crops import rotations
from ccdlib.views.draws import Drawn


class ViewRule:
    """How the views of an image are made; `RunConfig.views` names one.

    Every image has `base` base views. A rule with `twins` also makes twins, which are augmented copies of the image: as many as
    RunConfig.twins says, for RunConfig.share of the images. Draws are made apart from their application, so that methods that
    are compared share them.
    """

    name: str
    base: int = 1  # base views of an image
    twins: bool = True  # whether it makes twins, by draw() and apply()
    crops: bool = True  # whether every view is cropped and flipped at random; else it is the whole image
    flips: bool = False  # whether whole images, where there are no crops, are flipped at random all the same
    turns: int = 1  # network inputs that turned() makes of a view
    candidates: int = 1  # twins that are made for one that is kept: the one of which the teacher is least certain
    mixes: bool = False  # whether apply() mixes two images, and with them their labels
    knobs: tuple[str, ...] = ()  # the fields of RunConfig that change the rule itself, by with_knobs()
    ops: tuple[str, ...] = ()  # the rows of OPS that it may apply
    moves_boxes: bool = False  # whether moves() says how pixels move, so that images may have boxes
    whole_images: bool = False  # whether apply_to() takes one image of any size, so that the rule can come before the crop

    def draw(self, n: int, generator: torch.Generator) -> Drawn:
        """Draws for one twin of each of n images, from `generator` (on the CPU)."""
        raise NotImplementedError

    def apply(self, images: torch.Tensor, draws: Drawn, partners: torch.Tensor | None = None) -> torch.Tensor:
        """Twins of images (N, C, H, W) uint8, on their own device, by the draws for these N.

        partners: for a rule that mixes, the images of the rows partners_of(draws).
        """
        raise NotImplementedError

    def moves(self, draws: Drawn, height: int, width: int) -> torch.Tensor:
        """How pixels move by these draws for N images, for rules with `moves_boxes`: (N, 2, 3), as in boxes.py."""
        raise NotImplementedError

    def apply_to(self, image: Image.Image, draws: Drawn) -> Image.Image:
        """The twin of one Pillow image of any size, by draws for one image; for rules with `whole_images`."""
        raise NotImplementedError

    def partners_of(self, draws: Drawn) -> torch.Tensor:
        """For a rule that mixes: the training row (N,) of the second image of each twin."""
        raise NotImplementedError

    def shares(self, draws: Drawn, height: int, width: int) -> torch.Tensor:
        """For a rule that mixes: the share (N,) float32, in 0..1, of each first image in its twin, and of its label.

        height, width: of the images, in pixels.
        """
        raise NotImplementedError

    def turned(self, views: torch.Tensor) -> torch.Tensor:
        """The network inputs (turns * B, C, H, W) of B views."""
        return views

    def with_knobs(self, **values: Any) -> "ViewRule":
        """The rule with other values of its `knobs`; None leaves one as it is. Errors: CcdError for a value out of range."""
        return self

    def facts(self) -> dict:
        """What names a run besides the name of the rule."""
        return {}


@dataclass(frozen=True)
class Base(ViewRule):
    """A rule without twins: one or two crops, the whole image, also flipped, or one crop at four angles."""

    name: str
    base: int = 1
    crops: bool = True
    flips: bool = False
    turns: int = 1
    twins = False

    def turned(self, views: torch.Tensor) -> torch.Tensor:
        """The views, at all four angles where the rule has four `turns`; see rotations()."""
        return rotations(views) if self.turns > 1 else views


def _row(name: str, rule: ViewRule | type) -> ViewRule:
    """The rule of a row, under the name of the row; `rule` may be a class, of which an object is made."""
    rule = rule() if isinstance(rule, type) else rule
    if not isinstance(rule, ViewRule):
        raise CcdError(f"views {name!r}: expected a Policy or an object of a subclass of ViewRule, got {rule!r}")
    if getattr(rule, "name", None) == name:
        return rule
    if is_dataclass(rule) and "name" in rule.__dataclass_fields__:
        return replace(rule, name=name)
    rule.name = name
    return rule


VIEWS = Registry("views", _row)
VIEWS.update(
    raw=Base("raw", crops=False),
    flip=Base("flip", crops=False, flips=True),
    none=Base("none"),
    base=Base("base", base=2),
    rotation=Base("rotation", turns=4),
)
