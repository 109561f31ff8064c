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
RATIOS = (0.5, 1.0, 2.0)  # height to width of anchors

Features = dict[str, torch.Tensor]


class Regions(NamedTuple):
    """Regions of B images, those of the first image first, and what a detector says about them."""

    boxes: list[torch.Tensor]  # B tensors (r, 4) of left, top, right, bottom in pixels
    labels: torch.Tensor  # (R,) 0 for background, else 1 + class
    targets: torch.Tensor  # (R, 4) how far the thing's box lies from the region, as the network predicts it
    logits: torch.Tensor  # (R, 1 + classes)
    offsets: torch.Tensor  # (R, 4 (1 + classes))


class Scale(NamedTuple):
    """The sizes of a detector. The defaults are for scenes, of 64 pixels and a few things."""

    width: int = 32  # channels of the pyramid
    hidden: int = 64  # of the layers that see a region
    anchor: int = 6  # times its stride is the side of a level's anchors
    anchors: int = 64  # of an image that are drawn for the loss
    proposed: int = 100  # regions of an image in training, and half of them in testing
    drawn: int = 32  # of these regions for the loss
    found: int = 30  # things of an image at most


SCENES = Scale()


class Detector(nn.Module):
    """Faster R-CNN. Called on images it gives an Output with the maps of its pyramid as `feats`, and without logits: (B, 0).

    body: a Backbone whose later stages feed the pyramid. widths, strides: of these stages, in channels, and in pixels.
    """

    detects = True
    initial = Initial(he=False)

    def __init__(self, body: Backbone, widths: Sequence[int], strides: Sequence[int], classes: int, scale: Scale = SCENES):
        from ccdlib.base.vision import torchvision

        super().__init__()
        detection = torchvision.models.detection
        self.stem, self.stages, self.skipped = body.stem, body.stages, len(body.stages) - len(widths)
        last = torchvision.ops.feature_pyramid_network.LastLevelMaxPool()
        self.pyramid = torchvision.ops.FeaturePyramidNetwork(list(widths), scale.width, last)
        self.scale, self.strides = scale, (*strides, 2 * strides[-1])
        sides = [(scale.anchor * stride,) for stride in self.strides]
        anchors = detection.anchor_utils.AnchorGenerator(sides, [RATIOS] * len(sides))
        head = detection.rpn.RPNHead(scale.width, len(RATIOS))
        counts = {"training": scale.proposed, "testing": scale.proposed // 2}
        # Anchors are things' from an overlap of 0.7 and background below 0.3; of those that are drawn at most half are things'.
        self.rpn = detection.rpn.RegionProposalNetwork(anchors, head, 0.7, 0.3, scale.anchors, 0.5, counts, counts, 0.7)
        features = detection.faster_rcnn.TwoMLPHead(scale.width * REGION**2, scale.hidden)
        predictor = detection.faster_rcnn.FastRCNNPredictor(scale.hidden, 1 + classes)
        # A region is a thing's from an overlap of 0.5; a quarter of those that are drawn are things'.
        self.regions = detection.roi_heads.RoIHeads(
            self.pooled,
            features,
            predictor,
            0.5,
            0.5,
            scale.drawn,
            0.25,
            None,
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=scale.found,
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
            side = ((own[:, 2] - own[:, 0]) * (own[:, 3] - own[:, 1])).sqrt() / self.scale.anchor
            level = side[:, None].log2().sub(torch.tensor(self.strides, device=side.device).log2()).abs().argmin(1)
            x, y = (own[:, [a]] + (own[:, [a + 2]] - own[:, [a]]) * steps for a in (0, 1))  # (r, samples)
            x, y = 2 * x / width - 1, 2 * y / height - 1
            grid = torch.stack(torch.broadcast_tensors(x[:, None], y[:, :, None]), 3)  # (r, samples, samples, 2)
            regions = features["0"].new_zeros(len(own), self.scale.width, REGION, REGION)
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
        """Some proposed boxes of each image, at most a quarter of them things', with their labels (R,) and targets (R, 4)."""
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


def _on(backbone: str, widths: Sequence[int], strides: Sequence[int], scale: Scale = SCENES) -> Callable[[int, int], Detector]:
    def make(classes, channels):
        return Detector(MODELS[backbone](2, channels), widths, strides, classes, scale)

    make.detects = True
    return make


SMALL = (32, 64), (2, 4)  # widths and strides, for scenes
LARGE = (128, 256, 512), (8, 16, 32), Scale(256, 1024, 4, 256, 1000, 128, 100)  # for photographs
MODELS.update(
    frcnn_resnet8=_on("resnet8", *SMALL),
    frcnn_resnet20=_on("resnet20", *SMALL),
    frcnn_resnet18=_on("resnet18", *LARGE),
    frcnn_resnet34=_on("resnet34", *LARGE),
)
DETECTORS = Subset(MODELS, "detector", lambda row: getattr(row, "detects", False))
BACKBONES = Subset(MODELS, "backbone", lambda row: not getattr(row, "detects", False))
