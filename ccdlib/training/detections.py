"""The average precision of a detector on a test set, by torchmetrics and pycocotools."""

import torch

from ccdlib.base.arithmetic import exact
from ccdlib.data import Dataset
from ccdlib.models import Detector
from ccdlib.views.boxes import rows_of
from ccdlib.views.crops import normalise


def detections(network: Detector, data: Dataset, device: torch.device, batch: int = 25) -> list[dict[str, torch.Tensor]]:
    """What a network, which is on `device`, finds on each test image; see Detector.detect. It is set to eval mode."""
    network.eval()
    exact(device)
    found = []
    for images in data.test_images.split(batch):
        found += network.detect(normalise(images.to(device), data.mean, data.std))
    return [{name: values.cpu() for name, values in each.items()} for each in found]


def average_precision(network: Detector, data: Dataset, device: torch.device) -> dict[str, float]:
    """COCO's average precision of a network on the test set of `data`, in percent.

    "accuracy" is its mean over overlaps from 0.5 to 0.95; "AP50" and "AP75" are those at one overlap.
    """
    found = _scored(detections(network, data, device), rows_of(data.test_boxes.cpu())).compute()
    return {name: 100 * found[key].item() for name, key in (("accuracy", "map"), ("AP50", "map_50"), ("AP75", "map_75"))}


def precisions(found: list[dict[str, torch.Tensor]], truth: list[torch.Tensor]) -> list[float]:
    """The precision at recalls 0, 0.01 ... 1, in 0..1, at an overlap of 0.5, averaged over the classes that there are.

    found: what a network finds on each image. truth: the boxes (k, 5) of each image.
    """
    values = _scored(found, truth, extended_summary=True).compute()["precision"][0, :, :, 0, -1]  # (101, classes)
    return values[:, (values >= 0).all(0)].mean(1).tolist()


def _scored(found, truth, **options):
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(**options)
    metric.warn_on_many_detections = False
    metric.update(list(found), [{"boxes": own[:, 1:], "labels": own[:, 0].long()} for own in truth])
    return metric
