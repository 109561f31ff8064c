"""A teacher's answers to augmented images: their accuracy, entropy and calibration, and the weights that CCD gives them."""

from collections.abc import Iterable
from typing import Any

import torch

from ccdlib.base.devices import best_device
from ccdlib.base.streams import stream
from ccdlib.data.memory import Data
from ccdlib.methods.losses import confidence
from ccdlib.models.backbone import Backbone
from ccdlib.training.evaluate import predict
from ccdlib.views.policies import Policy

BINS = 15  # of Guo et al.


def calibration_error(probabilities: torch.Tensor, labels: torch.Tensor, bins: int = BINS) -> float:
    """Expected calibration error in percent (Guo et al., ICML 2017) of probabilities (N, C) for labels (N,).

    It is the distance between accuracy and mean probability, averaged over equally wide bins of the largest probability, with
    the number of images in a bin as its weight.
    """
    sure, said = probabilities.max(1)
    right = (said == labels).double()
    which = (sure * bins).long().clamp(max=bins - 1)  # (N,)
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, which, right - sure.double())
    return 100 * (gap.abs().sum() / len(labels)).item()


def teacher_views(
    teacher: Backbone, data: Data, policy: Policy, seed: int = 0, ops: Iterable[str] | None = None
) -> list[dict[str, Any]]:
    """Measure a teacher on the test images as they are, under single ops of `policy`, and under the whole policy ("JDA").

    seed: of the draws. ops: the names of the ops that are measured; None: all that change images. A single op is applied to
    every image, with a random sign where it has one. Returns a dict for each kind of views: "views", "accuracy" (%), "entropy"
    (nats, mean over images), "agreement" (% of images whose most probable class is that of the original), "calibration"
    (expected calibration error, %), "weight" (mean of CCD's weights 1 + cos).
    """
    images, labels = data.test_images, data.test_labels
    # Both draw from the same stream, so that a single op has the signs that it has in the whole policy.
    draws, always = (made.draw(len(images), stream(seed, "policy")) for made in (policy, policy.with_p(1.0)))
    ops = dict.fromkeys(op for op, _ in policy.effective(data.channels)) if ops is None else ops
    views = {"original": images} | {op: policy.only((op,)).apply(images, always) for op in ops}
    views["JDA"] = policy.apply(images, draws)
    device = best_device()
    teacher = teacher.to(device)
    before = predict(teacher, data, images, device).cpu()
    rows = []
    for name, changed in views.items():
        logits = predict(teacher, data, changed, device).cpu()
        p = logits.softmax(1)
        rows.append(
            {
                "views": name,
                "accuracy": 100 * (logits.argmax(1) == labels).double().mean().item(),
                "entropy": -(p * p.clamp(min=1e-12).log()).sum(1).mean().item(),
                "agreement": 100 * (logits.argmax(1) == before.argmax(1)).double().mean().item(),
                "calibration": calibration_error(p, labels),
                "weight": confidence(torch.cat([before, logits])).mean().item(),
            }
        )
    teacher.cpu()  # where it was before
    return rows


def training_weights(
    teacher: Backbone, data: Data, policy: Policy, seed: int = 0
) -> tuple[dict[str, torch.Tensor], torch.Tensor, list[list[str]]]:
    """CCD's weights 1 + cos of the n training images under the whole policy and under each of its ops alone, at p = 1.

    seed: of the draws. Returns {"JDA" or an op: weights (n,)}; the twins under the whole policy (n, C, H, W) uint8; and the ops
    that fired for each twin, in words.
    """
    images = data.train_images
    draws, always = (made.draw(len(images), stream(seed, "policy")) for made in (policy, policy.with_p(1.0)))
    twins = policy.apply(images, draws)
    ops = dict.fromkeys(op for op, _ in policy.effective(data.channels))
    views = {"JDA": twins} | {op: policy.only((op,)).apply(images, always) for op in ops}
    device = best_device()
    teacher = teacher.to(device)
    before = predict(teacher, data, images, device)
    weights = {
        name: confidence(torch.cat([before, predict(teacher, data, changed, device)])).cpu() for name, changed in views.items()
    }
    teacher.cpu()  # where it was before
    return weights, twins, policy.fired(draws, data.channels)
