"""A teacher's answers to augmented images: accuracy, entropy, calibration, CCD's weights, and T. stddev."""

from collections.abc import Iterable
from itertools import count
from typing import Any

import torch

from ccdlib.base.arithmetic import exact
from ccdlib.base.devices import best_device
from ccdlib.base.streams import stream
from ccdlib.data.memory import Data
from ccdlib.methods.losses import confidence
from ccdlib.models.backbone import Backbone, folded
from ccdlib.training.config import RunConfig
from ccdlib.training.evaluate import predict
from ccdlib.training.loop import picked
from ccdlib.views.in_files import epoch_views
from ccdlib.views.policies import Policy

BINS = 15  # of Guo et al.
ROWS = 640  # views of a group, for T. stddev; of Wang et al.
GROUPS = 32


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


@torch.no_grad()
def teacher_stddev(teacher: Backbone, config: RunConfig, data: Data, groups: int = GROUPS, rows: int = ROWS) -> float:
    """T. stddev of the views that a student is trained on: how much the teacher's mean answer varies from group to group.

    Source: Wang et al., NeurIPS 2022, by whom a lower one is better for the student. The teacher's probabilities at temperature
    1 are averaged over groups of `rows` views, half of them originals and half twins (without twins, of rows / 2 views); the
    result is the standard deviation of these means over `groups` groups, class by class, averaged over the classes. teacher: on
    the device of `data`. config: of the student; its epochs are gone through, from the first, until there are so many groups.
    """
    exact(data.train_labels.device)
    teacher, halves, each = folded(teacher.eval()), ([], []), rows // 2
    for answers in _answers(teacher, config, data):
        for half, p in zip(halves, answers, strict=True):
            half.extend(p)
        if all(len(half) >= groups * each for half in halves if half):
            break
    means = [torch.stack(half[: groups * each]).view(groups, each, -1).mean(1) for half in halves if half]
    return torch.stack(means).mean(0).std(0).mean().item()  # of (groups, classes)


def _answers(teacher, config, data):
    """For each batch of a training without end, the teacher's probabilities of the views of originals, and of all others."""
    for epoch in count():
        for batch in epoch_views(config, data, epoch).batches():
            batch = picked(batch, config.rule.candidates, lambda inputs: teacher(inputs).logits)
            p = teacher(batch.inputs).logits.softmax(1).double().cpu()
            yield p.tensor_split(batch.sizes[:1])


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
