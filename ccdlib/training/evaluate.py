"""The logits of a network, and its accuracy and loss on the test set."""

import torch
import torch.nn.functional as F
from torch import nn

from ccdlib.base.arithmetic import Precision, exact, resolved
from ccdlib.data import Dataset
from ccdlib.training import group
from ccdlib.training.detections import average_precision
from ccdlib.views.crops import normalise


@torch.no_grad()
def evaluate(
    network: nn.Module,
    data: Dataset,
    device: str | torch.device = "cpu",
    batch: int | None = None,
    precision: Precision = "auto",
) -> dict[str, float]:
    """Top-1 "accuracy" (percent) and mean cross entropy "loss" of a network, which is on `device`, on the test set of `data`.

    batch: images at once. None: 500 on a GPU, and 125 on a CPU, where the features of more images do not fit into the cache.
    precision: as in RunConfig.
    Of a detector, "accuracy" is the average precision instead, in float32 (see detections.py).
    The processes of a group share the test images, and all of them get the result.
    """
    if data.boxed:
        return average_precision(network, data, torch.device(device))
    device, counts = torch.device(device), torch.zeros(3, dtype=torch.float64)
    batch = batch or (500 if device.type == "cuda" else 125)
    for images, labels in data.in_parts(torch.arange(len(data.test_labels))[group.rank() :: group.size()], batch):
        if not len(labels):  # more processes than images
            continue
        logits = predict(network, data, images, device, batch, precision).cpu()
        labels = labels.cpu()
        loss = F.cross_entropy(logits, labels).double() * len(labels)
        counts += torch.stack([(logits.argmax(1) == labels).sum().double(), loss, torch.tensor(float(len(labels)))])
    right, loss, n = group.total(counts.to(device)).tolist()
    return {"accuracy": 100 * (right / n), "loss": loss / n}


@torch.no_grad()
def predict(
    network: nn.Module,
    data: Dataset,
    images: torch.Tensor,
    device: str | torch.device = "cpu",
    batch: int = 500,
    precision: Precision = "auto",
) -> torch.Tensor:
    """Logits (N, classes), float32, of uint8 images (N, C, H, W), normalised by the mean and standard deviation of `data`.

    The network, which is on `device`, is set to eval mode; batch: images at once. precision: of the network, as in RunConfig.
    """
    network.eval()
    device = torch.device(device)
    half = resolved(precision, False, device.type).half
    if not half:
        exact(device)
    logits = []
    for part in images.split(batch):
        inputs = normalise(part.to(device), data.mean, data.std)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits.append(network(inputs).logits.float())
    return torch.cat(logits)
