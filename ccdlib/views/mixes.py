"""Mixed and cut images, with which JDA is compared: Mixup, CutMix, CutMixPick and Cutout."""

from dataclasses import asdict, dataclass

import torch

from ccdlib.views.draws import PerImage
from ccdlib.views.ops import GREY, check_images
from ccdlib.views.rules import VIEWS, ViewRule


@dataclass(frozen=True)
class MixDraws(PerImage):
    """Draws of a Mix for N images."""

    partners: torch.Tensor  # (N,) the row of the second image
    shares: torch.Tensor  # (N,) the share of the first image, in 0..1
    centres: torch.Tensor  # (N, 2) the centre of the box, (row, column), as fractions of height and width


@dataclass(frozen=True)
class Mix(ViewRule):
    """Two images in one, and their labels mixed in the same shares. The share is drawn from Beta(1, 1), which is uniform.

    Mixup (Zhang et al., ICLR 2018): share * a + (1 - share) * b. CutMix (Yun et al., ICCV 2019): a box of (1 - share) of the
    area comes from b; it is clipped at the edges of the image, and labels get the shares of the pixels. CutMixPick (Wang et
    al., NeurIPS 2022): CutMix with several candidates for each twin, of which the teacher's least certain one is kept.
    """

    name: str
    boxes: bool  # True: CutMix; False: Mixup
    candidates: int = 1
    twins = True
    mixes = True

    def facts(self) -> dict:
        """What names a run: every field."""
        return {"augmentation": asdict(self)}

    def draw(self, n: int, generator: torch.Generator) -> MixDraws:
        """Draws for n images from `generator` (on the CPU); the partners are a permutation of them."""
        partners = torch.randperm(n, generator=generator)
        return MixDraws(partners, torch.rand(n, generator=generator), torch.rand((n, 2), generator=generator))

    def partners_of(self, draws: MixDraws) -> torch.Tensor:
        """The training row (N,) of the second image of each twin."""
        return draws.partners

    def apply(self, images: torch.Tensor, draws: MixDraws, partners: torch.Tensor | None = None) -> torch.Tensor:
        """Mixed images (N, C, H, W) uint8 of `images` and `partners`, both (N, C, H, W) uint8. Errors: see check_images."""
        check_images(images)
        if not self.boxes:
            part = draws.shares.to(images.device)[:, None, None, None]
            return (part * images + (1 - part) * partners).round().to(torch.uint8)
        from_partner = self._boxes(draws, *images.shape[2:]).to(images.device)  # (N, H, W)
        return torch.where(from_partner[:, None], partners, images)

    def shares(self, draws: MixDraws, height: int, width: int) -> torch.Tensor:
        """The share (N,) float32 of each first image; of a box, by the pixels of images of that height and width."""
        return 1 - self._boxes(draws, height, width).float().mean((1, 2)) if self.boxes else draws.shares

    @staticmethod
    def _boxes(draws, height, width):
        return _inside(draws.centres, (1 - draws.shares).sqrt(), height, width)


@dataclass(frozen=True)
class CutoutDraws(PerImage):
    """Draws of a Cutout for N images."""

    centres: torch.Tensor  # (N, 2) the centre of the box, (row, column), as fractions of height and width


@dataclass(frozen=True)
class Cutout(ViewRule):
    """A box of the image becomes grey; its centre is anywhere in the image, at whose edges it is clipped.

    Source: DeVries & Taylor, 2017, whose box has the mean colour of the data. side: of the box, as a share of the image's;
    theirs is 8 of 32 pixels for CIFAR-100.
    """

    name: str
    side: float = 0.25
    twins = True

    def facts(self) -> dict:
        """What names a run: every field."""
        return {"augmentation": asdict(self)}

    def draw(self, n: int, generator: torch.Generator) -> CutoutDraws:
        """Draws for n images from `generator` (on the CPU)."""
        return CutoutDraws(torch.rand((n, 2), generator=generator))

    def apply(self, images: torch.Tensor, draws: CutoutDraws, partners: torch.Tensor | None = None) -> torch.Tensor:
        """Twins of images (N, C, H, W) uint8, on their own device, by the draws for these N. Errors: see check_images."""
        check_images(images)
        sides = torch.full((len(draws),), self.side)
        return images.masked_fill(_inside(draws.centres, sides, *images.shape[2:]).to(images.device)[:, None], GREY)


def _inside(centres, sides, height, width):
    """Whether a pixel is in the box of its image, (N, H, W): `centres` (N, 2) and `sides` (N,) are shares of the image's."""
    inside = []
    for axis, length in enumerate((height, width)):
        middle = torch.arange(length) + 0.5  # a pixel is in the box when its middle is
        inside.append((middle - centres[:, axis, None] * length).abs() < sides[:, None] * length / 2)
    return inside[0][:, :, None] & inside[1][:, None, :]


VIEWS.update(
    mixup=Mix("mixup", boxes=False),
    cutmix=Mix("cutmix", boxes=True),
    cutmixpick=Mix("cutmixpick", True, candidates=2),
    cutout=Cutout("cutout"),
)
