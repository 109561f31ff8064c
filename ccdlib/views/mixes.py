"""Two images in one, which JDA is compared with: Mixup, CutMix and CutMixPick."""

from dataclasses import asdict, dataclass

import torch

from ccdlib.views.draws import PerImage
from ccdlib.views.ops import check_images
from ccdlib.views.rules import VIEWS, ViewRule


@dataclass(frozen=True)
class MixDraws(PerImage):
    """What a Mix will do to N images: the partner's row (N,), the image's own share (N,) in 0..1, the box's centre (N, 2)."""

    partners: torch.Tensor
    shares: torch.Tensor
    centres: torch.Tensor


@dataclass(frozen=True)
class Mix(ViewRule):
    """Two images in one, and their labels mixed in the same shares; the share is Beta(1, 1), which is uniform.

    boxes False: Mixup (Zhang et al., ICLR 2018), share * a + (1 - share) * b. boxes True: CutMix (Yun et al., ICCV 2019), a
    box of (1 - share) of the area, cut off at the image's edges, comes from b. candidates: how many are made for one
    that is kept, those of which the teacher is least certain (CutMixPick: Wang et al., NeurIPS 2022).
    """

    name: str
    boxes: bool
    candidates: int = 1
    twins = True
    mixes = True

    def facts(self):
        """What names a run: all of it."""
        return {"augmentation": asdict(self)}

    def draw(self, n, generator):
        """Draws for n images from `generator` (a torch.Generator on the CPU); partners are a permutation of them."""
        partners = torch.randperm(n, generator=generator)
        return MixDraws(partners, torch.rand(n, generator=generator), torch.rand((n, 2), generator=generator))

    def partners_of(self, draws):
        """The training row (N,) of the second image of each."""
        return draws.partners

    def apply(self, images, draws, partners=None):
        """Mixed images (N, C, H, W) uint8 of images and partners, both (N, C, H, W) uint8."""
        check_images(images)
        if not self.boxes:
            part = draws.shares.to(images.device)[:, None, None, None]
            return (part * images + (1 - part) * partners).round().to(torch.uint8)
        from_partner = self._boxes(draws, *images.shape[2:]).to(images.device)  # (N, H, W)
        return torch.where(from_partner[:, None], partners, images)

    def shares(self, draws, height, width):
        """The first images' shares (N,) float32 of images of that size, in pixels."""
        return 1 - self._boxes(draws, height, width).float().mean((1, 2)) if self.boxes else draws.shares

    @staticmethod
    def _boxes(draws, height, width):
        inside = []
        for axis, length in enumerate((height, width)):
            half = (1 - draws.shares).sqrt() * length / 2
            centre = draws.centres[:, axis] * length
            middle = torch.arange(length) + 0.5  # a pixel is in the box when its middle is
            inside.append((middle - centre[:, None]).abs() < half[:, None])
        return inside[0][:, :, None] & inside[1][:, None, :]


VIEWS.update(
    mixup=Mix("mixup", boxes=False), cutmix=Mix("cutmix", boxes=True), cutmixpick=Mix("cutmixpick", True, candidates=2)
)
