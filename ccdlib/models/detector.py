"""Detectors: Faster R-CNN on a small pyramid of feature maps, made of torchvision's parts. They are rows of MODELS.

Source: Ren et al., NeurIPS 2015, with the pyramid of Lin et al., CVPR 2017.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ccdlib.base.registry import Subset
from ccdlib.models.backbone import MODELS, Backbone, Initial, Output

REGION = 7  # pixels of a side into which a region of a feature map is pooled
SAMPLES = 2  # along each side of such a pixel
ANCHOR = 6  # times its stride is the side of a level's anchors
RATIOS = (0.5, 1.0, 2.0)  # height to width of anchors
TEST_REGIONS, TRAIN_REGIONS, SAMPLED = 50, 100, 32  # of an image: proposed in testing, in training, and drawn for the loss

Features = dict[str, torch.Tensor]


class Regions(NamedTuple):
    """Regions of B images, those of the first image first, and what a detector says about them."""

    boxes: list[torch.Tensor]  # B tensors (r, 4) of left, top, right, bottom in pixels
    labels: torch.Tensor  # (R,) 0 for background, else 1 + class
    targets: torch.Tensor  # (R, 4) how far the thing's box lies from the region, as the network predicts it
    logits: torch.Tensor  # (R, 1 + classes)
    offsets: torch.Tensor  # (R, 4 (1 + classes))


class Detector(nn.Module):
    """Faster R-CNN. Called on images it gives an Output with the maps of its pyramid as `feats`, and without logits: (B, 0).

    body: a Backbone whose later stages feed the pyramid. widths, strides: of these stages, in channels, and in pixels. width:
    channels of the pyramid. hidden: the width of the layers that see a region.
    """

    detects = True
    initial = Initial(he=False)

    def __init__(
        self, body: Backbone, widths: Sequence[int], strides: Sequence[int], classes: int, width: int = 32, hidden: int = 64
    ):
        from ccdlib.base.vision import torchvision

        super().__init__()
        detection = torchvision.models.detection
        self.stem, self.stages, self.skipped = body.stem, body.stages, len(body.stages) - len(widths)
        last = torchvision.ops.feature_pyramid_network.LastLevelMaxPool()
        self.pyramid = torchvision.ops.FeaturePyramidNetwork(list(widths), width, last)
        self.width, self.strides = width, (*strides, 2 * strides[-1])
        sides = [(ANCHOR * stride,) for stride in self.strides]
        anchors = detection.anchor_utils.AnchorGenerator(sides, [RATIOS] * len(sides))
        head = detection.rpn.RPNHead(width, len(RATIOS))
        counts = {"training": TRAIN_REGIONS, "testing": TEST_REGIONS}
        # Anchors are things' from an overlap of 0.7 and background below 0.3; 64 of an image are drawn, at most half things'.
        self.rpn = detection.rpn.RegionProposalNetwork(anchors, head, 0.7, 0.3, 64, 0.5, counts, counts, 0.7)
        features = detection.faster_rcnn.TwoMLPHead(width * REGION**2, hidden)
        predictor = detection.faster_rcnn.FastRCNNPredictor(hidden, 1 + classes)
        # A region is a thing's from an overlap of 0.5; a quarter of those that are drawn are things'.
        self.regions = detection.roi_heads.RoIHeads(
            self.pooled,
            features,
            predictor,
            0.5,
            0.5,
            SAMPLED,
            0.25,
            None,
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=30,
        )

    def forward(self, x: torch.Tensor) -> Output:
        """The Output for normalised images x (B, C, H, W): the maps of the pyramid from the finest to the coarsest."""
        x, found = self.stem(x), OrderedDict()
        for k, stage in enumerate(self.stages):
            x = stage(x)
            if k >= self.skipped:
                found[str(k)] = x
        maps = tuple(self.pyramid(found).values())
        return Output(maps[0].flatten(1)[:, :0], maps, F.adaptive_avg_pool2d(maps[-1], 1).flatten(1))

    def pooled(self, features: Features, boxes: list[torch.Tensor], sizes: list[tuple[int, int]]) -> torch.Tensor:
        """The features (R, width, REGION, REGION) of regions, each from the level of the pyramid that fits its size.

        This is RoIAlign with aligned pixels, by grid_sample: torchvision's is compiled where it may be missing.
        """
        height, width = sizes[0]
        steps = torch.arange(REGION * SAMPLES, device=boxes[0].device)
        steps = (steps + 0.5) / len(steps)
        found = []
        for k, own in enumerate(boxes):
            side = ((own[:, 2] - own[:, 0]) * (own[:, 3] - own[:, 1])).sqrt() / ANCHOR
            level = side[:, None].log2().sub(torch.tensor(self.strides, device=side.device).log2()).abs().argmin(1)
            x, y = (own[:, [a]] + (own[:, [a + 2]] - own[:, [a]]) * steps for a in (0, 1))  # (r, samples)
            x, y = 2 * x / width - 1, 2 * y / height - 1
            grid = torch.stack(torch.broadcast_tensors(x[:, None], y[:, :, None]), 3)  # (r, samples, samples, 2)
            regions = features["0"].new_zeros(len(own), self.width, REGION, REGION)
            for j, maps in enumerate(features.values()):
                rows = (level == j).nonzero().flatten()
                if len(rows):
                    each = maps[k : k + 1].expand(len(rows), -1, -1, -1)
                    sampled = F.grid_sample(each, grid[rows].to(maps.dtype), padding_mode="border", align_corners=False)
                    regions = regions.index_copy(0, rows, F.avg_pool2d(sampled, SAMPLES))
            found.append(regions)
        return torch.cat(found)

    def proposed(self, output: Output, inputs: torch.Tensor, things: list[dict] | None) -> tuple[list[torch.Tensor], dict]:
        """The boxes that the network proposes as regions of B images, and in training the two losses of its proposals."""
        return self.rpn(_images(inputs), named(output.feats), things)

    def drawn(self, boxes: list[torch.Tensor], things: list[dict]) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        """SAMPLED proposed boxes of an image, at most a quarter of them things', with their labels (R,) and targets (R, 4)."""
        boxes, _, labels, targets = self.regions.select_training_samples(boxes, things)
        return boxes, torch.cat(labels), torch.cat(targets)

    def said(self, output: Output, boxes: list[torch.Tensor], size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (R, 1 + classes) and offsets (R, 4 (1 + classes)) of regions of B images of a size (height, width)."""
        features = self.pooled(named(output.feats), boxes, [size] * len(boxes))
        return self.regions.box_predictor(self.regions.box_head(features))

    @torch.no_grad()
    def detect(self, inputs: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        """The things in normalised images (B, C, H, W): for each "boxes" (k, 4), "scores" (k,) and "labels" (k,), 0 the first
        class. The network must be in eval mode."""
        output = self(inputs)
        boxes, _ = self.proposed(output, inputs, None)
        found, _ = self.regions(named(output.feats), boxes, [tuple(inputs.shape[2:])] * len(inputs))
        return [each | {"labels": each["labels"] - 1} for each in found]


def named(maps: Sequence[torch.Tensor]) -> Features:
    """The maps of a pyramid by name, as torchvision takes them."""
    return OrderedDict((str(k), each) for k, each in enumerate(maps))


def _images(inputs):
    from ccdlib.base.vision import torchvision

    sizes = [tuple(inputs.shape[2:])] * len(inputs)
    return torchvision.models.detection.image_list.ImageList(inputs, sizes)


def _on(backbone: str, widths: Sequence[int], strides: Sequence[int], **sizes: int) -> Callable[[int, int], Detector]:
    def make(classes, channels):
        return Detector(MODELS[backbone](2, channels), widths, strides, classes, **sizes)

    make.detects = True
    return make


SMALL, LARGE = ((32, 64), (2, 4)), ((128, 256, 512), (8, 16, 32))  # widths and strides, for scenes and for photographs
MODELS.update(
    frcnn_resnet8=_on("resnet8", *SMALL),
    frcnn_resnet20=_on("resnet20", *SMALL),
    frcnn_resnet18=_on("resnet18", *LARGE, width=256, hidden=1024),
    frcnn_resnet34=_on("resnet34", *LARGE, width=256, hidden=1024),
)
DETECTORS = Subset(MODELS, "detector", lambda row: getattr(row, "detects", False))
BACKBONES = Subset(MODELS, "backbone", lambda row: not getattr(row, "detects", False))
