"""What a teacher makes of augmented images: accuracy, entropy, calibration, and the weights that CCD gives them."""

import torch

from ccdlib.base.devices import best_device
from ccdlib.base.streams import stream
from ccdlib.methods.losses import confidence
from ccdlib.training.evaluate import predict

BINS = 15


def calibration_error(probabilities, labels, bins=BINS):
    """Expected calibration error in percent (Guo et al., ICML 2017): over equally wide bins of the largest probability, the
    distance between accuracy and mean probability, weighed by how many images fall in. probabilities (N, C), labels (N,)."""
    sure, said = probabilities.max(1)
    right = (said == labels).double()
    which = (sure * bins).long().clamp(max=bins - 1)  # (N,)
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, which, right - sure.double())
    return 100 * (gap.abs().sum() / len(labels)).item()


def teacher_views(teacher, data, policy, seed=0, ops=None):
    """What `teacher` answers on the test images as they are, under ops of `policy` alone, and under all of it.

    ops: their names, all effective ones when None. Every image gets the op, with a random sign where it has one. Returns one
    dict each: "views", "accuracy" (%), "entropy" (nats, mean over images), "agreement" (% of images where the most probable
    class is that of the original), "calibration" (expected calibration error, %), "weight" (CCD's mean weight 1 + cos).
    """
    images, labels = data.test_images, data.test_labels
    # From the same stream, so an op alone has the signs that it has among the others.
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
    teacher.cpu()  # as it was
    return rows


def training_weights(teacher, data, policy, seed=0):
    """CCD's weights 1 + cos on the training images, under every effective op alone (at p 1) and under the whole policy.

    Returns (weights {views: (n,)}, twins, fired): the views are "JDA" and the ops, twins (n, C, H, W) uint8 the JDA images, and
    fired the ops of each of them, in words.
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
    teacher.cpu()  # as it was
    return weights, twins, policy.fired(draws, data.channels)
