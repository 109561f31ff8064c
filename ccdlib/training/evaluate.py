"""What a network answers to the test images."""

import torch
import torch.nn.functional as F

from ccdlib.training import group
from ccdlib.views.crops import normalise


@torch.no_grad()
def evaluate(network, data, device="cpu", batch=None):
    """{"accuracy" (percent), "loss"} of a network on the test set; the processes of a group take every image once.

    batch: images at once; None: 500 on a GPU, and on a CPU 125, because the features of more leave its cache.
    """
    device, counts = torch.device(device), torch.zeros(3, dtype=torch.float64)
    batch = batch or (500 if device.type == "cuda" else 125)
    for images, labels in data.in_parts(torch.arange(len(data.test_labels))[group.rank() :: group.size()], batch):
        if not len(labels):  # more processes than images
            continue
        logits = predict(network, data, images, device, batch).cpu()
        labels = labels.cpu()
        loss = F.cross_entropy(logits, labels).double() * len(labels)
        counts += torch.stack([(logits.argmax(1) == labels).sum().double(), loss, torch.tensor(float(len(labels)))])
    right, loss, n = group.total(counts.to(device)).tolist()
    return {"accuracy": 100 * (right / n), "loss": loss / n}


@torch.no_grad()
def predict(network, data, images, device="cpu", batch=500):
    """Logits (N, classes) float32 of uint8 images (N, C, H, W), normalised as `data` says, in eval mode."""
    network.eval()
    device = torch.device(device)
    logits = []
    for part in images.split(batch):
        inputs = normalise(part.to(device), data.mean, data.std)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits.append(network(inputs).logits.float())
    return torch.cat(logits)
