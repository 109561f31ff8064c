"""Figures of object detection: images with boxes, and precision against recall."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ccdlib.data import Dataset
from ccdlib.evidence.plots import LINES, caption, style
from ccdlib.training.detections import precisions
from ccdlib.views.boxes import rows_of

Boxes = Sequence[torch.Tensor]  # for each image (k, 5): class, left, top, right, bottom


def pictures(rows: Mapping[str, tuple[torch.Tensor, Boxes]], names: Sequence[str]) -> Figure:
    """Draw rows of images with their boxes: {label: (images (n, C, H, W) uint8, boxes)}, of classes with these names."""
    style()
    n = max(len(images) for images, _ in rows.values())
    figure, axes = plt.subplots(len(rows), n, figsize=(1.9 * n, 2.1 * len(rows)), layout="constrained", squeeze=False)
    for line, (label, (images, boxes)) in zip(axes, rows.items(), strict=True):
        for ax, image, own in zip(line, images, boxes, strict=False):  # a row may be shorter
            ax.imshow(image.permute(1, 2, 0).expand(-1, -1, 3).numpy(), interpolation="nearest")
            for c, left, top, right, bottom in own[:, :5].tolist():
                colour = f"C{int(c) % 10}"
                edges = {"fill": False, "edgecolor": colour, "linewidth": 1.6}
                ax.add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, **edges))
                ground = {"boxstyle": "square,pad=0.1", "facecolor": colour, "linewidth": 0}
                # The name stands above its box, or inside where there is no room above.
                side = "bottom" if top > 0.08 * image.shape[1] else "top"
                ax.text(left, top, names[int(c)], fontsize=6, color="white", bbox=ground, clip_on=True, va=side)
            ax.set(xticks=[], yticks=[], xlim=(-0.5, image.shape[2] - 0.5), ylim=(image.shape[1] - 0.5, -0.5))
        line[0].set_ylabel(label, fontsize="small")
    return figure


def sure(found: Sequence[Mapping[str, torch.Tensor]], least: float = 0.5) -> list[torch.Tensor]:
    """The boxes (k, 5) of things that a network found with a score of at least `least`; see Detector.detect."""
    known = [each["scores"] >= least for each in found]
    return [
        torch.cat([each["labels"][own, None].float(), each["boxes"][own]], 1) for each, own in zip(found, known, strict=True)
    ]


def precision_recall(found: Mapping[str, Sequence[Mapping[str, torch.Tensor]]], data: Dataset) -> Figure:
    """Draw precision against recall, averaged over the classes, at an overlap of 0.5, of what networks find on a test set.

    found: {arm: one result of Detector.detect for each test image of `data`}.
    """
    style()
    figure, ax = plt.subplots(figsize=(6.4, 4.8), layout="constrained")
    for k, (arm, each) in enumerate(found.items()):
        values = precisions(each, rows_of(data.test_boxes))
        ax.plot([0.01 * r for r in range(101)], values, color=f"C{k}", linestyle=LINES[k % len(LINES)], label=arm)
    ax.set(xlabel="recall: share of the things that are found", ylabel="precision: share of the boxes that are right")
    ax.set(xlim=(0, 1), ylim=(0, 1.02))
    ax.legend()
    caption(figure, "one seed each; a box is right from an overlap of 0.5; mean over the classes")
    return figure
